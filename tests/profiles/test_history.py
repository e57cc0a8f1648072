from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepd_profiles import apps, history, interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.snippets import snippet, words_of

Log = Callable[..., Interaction]
Said = Callable[..., None]


@pytest.fixture
def said(log: Log) -> Said:
    """Store an exchange by its prompt and response."""

    def store(interaction_id: str, prompt: str, response: str = "Yes.", **fields: object) -> None:
        log(interaction_id, messages=[{"role": "user", "content": prompt}], response=response, **fields)

    return store


def ids(found: list[history.Found]) -> list[str]:
    return [each.interaction.id for each in found]


def search(conn: sqlite3.Connection, query: str, **arguments: object) -> list[str]:
    return ids(history.search(conn, query, **arguments))  # type: ignore[arg-type]


def test_prompts_and_responses_are_searched_without_case_and_accents(conn: sqlite3.Connection, said: Said) -> None:
    said("i_1", "How do I bake bread?", "With flour.")
    said("i_2", "What is in a crêpe?", "FLOUR, milk and eggs.")
    said("i_3", "Name a colour.", "Blue.")
    assert sorted(search(conn, "flour")) == ["i_1", "i_2"]
    assert search(conn, "Crepe") == ["i_2"]
    assert search(conn, "CRÊPE") == ["i_2"]
    assert search(conn, "bake") == ["i_1"]
    assert search(conn, "bak") == []
    assert search(conn, "tractor") == []


def test_what_has_all_words_comes_before_what_has_some(conn: sqlite3.Connection, said: Said) -> None:
    said("i_both", "tell me about the red " + "old " * 40 + "barn")
    said("i_red", "red red red")
    said("i_barn", "barn barn")
    assert search(conn, "red barn")[0] == "i_both"
    assert sorted(search(conn, "red barn")) == ["i_barn", "i_both", "i_red"]
    assert search(conn, "red barn", limit=1) == ["i_both"]


def test_rare_words_weigh_more_and_short_texts_too(conn: sqlite3.Connection, said: Said) -> None:
    for n in range(30):
        said(f"i_{n}", "the weather today")
    said("i_long", "zeppelin " + "and other things that fly " * 10)
    said("i_short", "a zeppelin")
    for n in range(30, 60):
        said(f"i_{n}", "the weather today")
    assert search(conn, "the zeppelin", limit=3) == ["i_short", "i_long", "i_59"]


def test_of_equal_ones_the_newest_comes_first(conn: sqlite3.Connection, said: Said) -> None:
    for n in (2, 3, 1):
        said(f"i_{n}", "same words")
    assert search(conn, "same") == ["i_1", "i_3", "i_2"]


def test_the_order_is_that_of_bm25(conn: sqlite3.Connection, said: Said) -> None:
    """Against the formula itself, over all exchanges, whose frequencies are exact because they are few."""
    rng = random.Random(4)
    texts = {f"i_{n}": " ".join(rng.choices("abcdefgh", range(1, 9), k=rng.randint(3, 30))) for n in range(60)}
    for name, text in texts.items():
        said(name, text, "")
    matching = [name for name, text in texts.items() if {"a", "b"} & set(text.split())]
    # n words of one letter are counted as 3 n + 4 bytes; the mean is that of what is ranked.
    mean = sum(3 * len(texts[name].split()) + 4 for name in matching) / len(matching)

    def bm25(text: str) -> float:
        score, length = 0.0, 3 * len(text.split()) + 4
        for word in "ab":
            count = sum(word in t.split() for t in texts.values())
            idf = math.log(1 + (60 - count + 0.5) / (count + 0.5))
            tf = text.split().count(word)
            score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean))
        return score

    found = history.search(conn, "a b", limit=60)
    assert sorted(ids(found)) == sorted(matching)
    for each in found:
        assert each.score == pytest.approx(bm25(texts[each.interaction.id]), rel=1e-9)


def test_a_word_with_signs_is_looked_for_as_it_stands(conn: sqlite3.Connection, said: Said) -> None:
    said("i_1", "please re-do it")
    said("i_2", "do it, re: the letter")
    assert search(conn, "re-do") == ["i_1"]
    assert search(conn, "don't AND (x OR") == []


@pytest.mark.parametrize("query", ["", "   ", "?!", '"', '"""', "*", "- ^ : ( )", "\x00", "\ud800", "👍"])
def test_queries_without_a_word_find_nothing(conn: sqlite3.Connection, said: Said, query: str) -> None:
    said("i_1", "something")
    assert history.search(conn, query) == []


@pytest.mark.parametrize(
    "query", ['"some" thing', "some*", "prompt : some", "NOT some", "some AND", "NEAR (some 2)", "+some"]
)
def test_operators_are_words(conn: sqlite3.Connection, said: Said, query: str) -> None:
    said("i_1", "some")
    assert search(conn, query) == ["i_1"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(), max_size=40))
def test_no_text_is_a_mistake(conn: sqlite3.Connection, query: str) -> None:
    history.search(conn, query)
    history.search(conn, query, viewer="mail", since=0.0, until=1.0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_what_was_asked_word_for_word_is_found(conn: sqlite3.Connection, prompt: str) -> None:
    name = interactions.new_id()
    stored = Interaction(name, "c", 1.0, "cli", "m", 1, [{"role": "user", "content": f"zebra {prompt}"}], state="done")
    interactions.begin(conn, stored)
    assert search(conn, f"zebra {prompt}".replace("\x00", " "), limit=1) == [name]
    conn.execute("DELETE FROM interactions")


def test_a_viewer_finds_only_what_it_may_see(conn: sqlite3.Connection, said: Said) -> None:
    for name in ("", "editor", "mail", "notes"):
        said(f"i_{name}", "secret plan", app=name)
    apps.change(conn, "notes", shared=True)
    assert sorted(search(conn, "secret plan")) == ["i_", "i_editor", "i_mail", "i_notes"]
    assert sorted(search(conn, "secret plan", viewer="mail")) == ["i_", "i_mail", "i_notes"]
    assert sorted(search(conn, "secret", viewer="")) == ["i_", "i_notes"]


def test_a_time_range_includes_both_ends(conn: sqlite3.Connection, said: Said) -> None:
    for n in (4, 1, 3, 2):  # an import does not come in the order of time
        said(f"i_{n}", "tea time", created_at=float(n))
    assert sorted(search(conn, "tea", since=2.0, until=3.0)) == ["i_2", "i_3"]
    assert sorted(search(conn, "tea time", since=3.0)) == ["i_3", "i_4"]
    assert sorted(search(conn, "tea", until=1.0)) == ["i_1"]
    assert search(conn, "tea", since=5.0) == []
    assert search(conn, "tea", since=3.0, until=2.0) == []


def test_an_app_with_few_exchanges_finds_them_among_many(
    conn: sqlite3.Connection, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index passes only so many newer exchanges of others, all with the same word."""
    monkeypatch.setattr(history, "WALK", 20)
    said("i_mail", "weekly report", app="mail")
    for n in range(50):
        said(f"i_{n}", "weekly report", app="editor")
    assert search(conn, "weekly report", viewer="mail") == ["i_mail"]
    assert search(conn, "report", viewer="mail") == ["i_mail"]


def test_a_frequent_word_is_ranked_among_the_newest_and_a_rare_one_finds_all(
    conn: sqlite3.Connection, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "CANDIDATES", 10)
    said("i_old", "the the the the comet")
    for n in range(30):
        said(f"i_{n}", "the weather")
    assert ids(history.search(conn, "the", limit=50)) == [f"i_{n}" for n in range(29, 19, -1)]  # what is given up
    assert search(conn, "comet") == ["i_old"]
    assert search(conn, "the comet tail", limit=1) == ["i_old"]


def test_the_frequency_of_a_word_is_estimated_from_its_newest_places(
    conn: sqlite3.Connection, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "SAMPLE", 5)
    for n in range(40):
        said(f"i_{n}", "even" if n % 2 == 0 else "odd")
    said("i_last", "odd rare")
    assert history._frequency(conn, '"rare"', 41) == 1.0
    assert history._frequency(conn, '"odd"', 41) == pytest.approx(41 * 5 / 8)  # places 41, 40, 38, 36, 34
    assert history._frequency(conn, '"none"', 41) == 0.0


def test_what_is_deleted_or_still_streams_is_not_found(conn: sqlite3.Connection, said: Said) -> None:
    said("i_1", "gone")
    said("i_2", "gone", state="streaming")
    assert search(conn, "gone") == ["i_1"]
    assert search(conn, "gone", viewer="cli") == ["i_1"]
    conn.execute("DELETE FROM interactions WHERE id = 'i_1'")
    assert search(conn, "gone") == []
    interactions.mark_interrupted(conn)
    assert search(conn, "gone") == ["i_2"]


def test_words_far_into_a_long_text_are_found(conn: sqlite3.Connection, said: Said) -> None:
    said("i_1", "x", "word " * 1000 + "needle")
    assert search(conn, "needle") == ["i_1"]


def test_scripts_other_than_latin(conn: sqlite3.Connection, said: Said) -> None:
    said("i_ru", "Как испечь хлеб?")
    said("i_el", "Τι είναι αυτό;")
    said("i_zh", "你好，世界")
    said("i_hi", "नमस्ते दुनिया")
    assert search(conn, "ХЛЕБ") == ["i_ru"]
    assert search(conn, "ΕΊΝΑΙ") == ["i_el"]
    assert search(conn, "世界") == ["i_zh"]
    assert search(conn, "नमस्ते") == ["i_hi"]


def test_limits(conn: sqlite3.Connection, said: Said) -> None:
    for n in range(5):
        said(f"i_{n}", "again")
    assert len(search(conn, "again", limit=3)) == 3
    assert search(conn, "again", limit=0) == []
    assert search(conn, " ".join(f"x{n}" for n in range(100)) + " again") == []  # only the first words count


def test_a_snippet_shows_the_rarest_words() -> None:
    filler = "and so on " * 40
    rarity = {"common": 0.1, "rare": 3.0, "gold": 2.0}
    text = f"common {filler}here is rare\n gold in the hills {filler}"
    piece = snippet(("common start", text), rarity)
    assert "here is rare gold in the hills" in piece
    assert piece.startswith("…")
    assert piece.endswith("…")
    assert len(piece) <= 162
    assert snippet(("Short and RARE.", ""), rarity) == "Short and RARE."
    assert snippet(("nothing of it", "nor here"), rarity) == "nothing of it"
    assert snippet(("x" * 500,), {}) == "x" * 160 + "…"


def test_the_snippet_comes_with_what_is_found(conn: sqlite3.Connection, said: Said) -> None:
    said("i_1", "What do bees make?", "Bees make honey.\n\nThey live in hives.")
    (found,) = history.search(conn, "honey")
    assert found.snippet == "Bees make honey. They live in hives."
    assert found.interaction.response == "Bees make honey.\n\nThey live in hives."


def test_words_are_read_as_the_index_reads_them() -> None:
    assert words_of("Re-do snake_case, 3.5 CRÊPES: e\u0301te\u0301!") == [
        "re",
        "do",
        "snake",
        "case",
        "3",
        "5",
        "crepes",
        "ete",
    ]
