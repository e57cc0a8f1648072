from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from edgepd_profiles.selection import lexicons
from edgepd_profiles.selection.lexicons import build, domains_for, words_of

COOKING = [f"the dough needs flour and the oven{'' if n % 2 else ' again'}".split() for n in range(6)]
MONEY = [f"the invoice has tax and the account{'' if n % 2 else ' again'}".split() for n in range(4)]
TEXTS = COOKING + MONEY
VECTORS = np.array([[1, 0.01 * n] for n in range(6)] + [[0.01 * n, 1] for n in range(4)], dtype=np.float32)


@pytest.mark.parametrize(("n", "k"), [(0, 1), (1, 1), (8, 2), (32, 4), (49, 4), (50, 5), (128, 8), (5000, 8)])
def test_number_of_domains(n: int, k: int) -> None:
    assert domains_for(n) == k


def test_a_lexicon_has_the_words_of_its_cluster_and_none_that_is_everywhere() -> None:
    found = build(TEXTS, VECTORS, 2, seed=3)
    assert {domain: set(words) for domain, words in found.items()} == {
        1: {"dough", "needs", "flour", "oven"},
        2: {"invoice", "has", "tax", "account"},
    }


def test_the_order_of_the_texts_does_not_matter() -> None:
    order = [9, 2, 4, 0, 7, 1, 8, 3, 6, 5]
    again = build([TEXTS[n] for n in order], VECTORS[order], 2, seed=3)
    assert again == build(TEXTS, VECTORS, 2, seed=3)


def test_a_word_of_one_text_only_is_never_in_a_lexicon() -> None:
    texts = [*COOKING[:-1], ["hunter2x", "password", "flour"], *MONEY]
    found = build(texts, VECTORS, 2, seed=0)
    assert "flour" in found[1]
    assert not {"hunter2x", "password"} & {word for words in found.values() for word in words}


def test_lexicons_have_at_most_fifty_words_and_share_none() -> None:
    many = ["word" + chr(97 + n // 26) + chr(97 + n % 26) for n in range(120)]
    found = build([many[:60], many[:60], many[60:], many[60:]], np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], 2, seed=0)
    assert [len(words) for words in found.values()] == [50, 50]
    assert not set(found[1]) & set(found[2])


def test_equal_vectors_make_one_domain() -> None:
    found = build([["flour"], ["flour"]], np.ones((2, 2), dtype=np.float32), 2, seed=0)
    assert {domain: set(words) for domain, words in found.items()} == {1: {"flour"}}


def test_no_texts_make_no_lexicons_and_a_mismatch_is_refused() -> None:
    assert build([], [], 1, 0) == {}
    with pytest.raises(ValueError, match="1 texts with 0 vectors"):
        build([["a"]], [], 1, 0)


def test_words_are_read_without_case_from_question_and_answer() -> None:
    assert words_of("Bake Bread!", "Flour, then water.") == ("bake", "bread", "flour", "then", "water")


def test_saving_replaces(conn: sqlite3.Connection) -> None:
    lexicons.save(conn, {1: {"tax": 0.5}})
    lexicons.save(conn, {1: {"flour": 0.25}, 2: {"sea": 1.0}})
    assert conn.execute("SELECT domain, word, weight FROM lexicons ORDER BY 1").fetchall() == [
        (1, "flour", 0.25),
        (2, "sea", 1.0),
    ]
