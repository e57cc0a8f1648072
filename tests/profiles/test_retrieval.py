from __future__ import annotations

from dataclasses import replace

import pytest

from edgepd.cli.demo_script import LESSONS
from edgepd_profiles.examples import Example
from edgepd_profiles.retrieval import MAX_TERMS, Index, similar


def example(name: str, prompt: str, response: str) -> Example:
    return Example(name, name, 0.0, [{"role": "user", "content": prompt}], response, 1.0)


POOL = [example(f"e{n}", question, answer) for n, (question, answer) in enumerate(LESSONS)]


def ids(examples: list[Example]) -> list[str]:
    return [e.id for e in examples]


def test_examples_with_rare_words_of_the_prompt_come_first() -> None:
    asked = example("new", "Does a cactus like dry soil or sky?", "")
    assert ids(similar(POOL, asked)) == ["e8", "e1"]
    assert ids(similar(POOL, asked, 1)) == ["e8"]
    assert ids(similar(POOL, example("new", "zzz", ""))) == []


def test_the_response_is_not_used_to_ask() -> None:
    asked = example("new", "How long does gravity last?", "A cactus purrs in the sky.")
    assert ids(similar(POOL, asked, 1)) == ["e11"]


def test_neither_the_example_itself_nor_a_near_duplicate_comes_back() -> None:
    copy = replace(POOL[1], id="copy", response=POOL[1].response.replace("red", "green"))
    longer = replace(POOL[1], id="longer", response=POOL[1].response + " Look up at noon.")
    pool = [*POOL, copy, longer]
    for asked in (POOL[1], copy, longer):
        found = ids(similar(pool, asked, 14))
        assert found
        assert not {"e1", "copy", "longer"} & set(found)
    same_id = replace(POOL[1], messages=POOL[4].messages, response="Otherwise.")
    assert "e1" not in ids(similar(POOL, same_id, 12))


def test_an_example_that_is_not_in_the_pool_has_no_near_duplicates_either() -> None:
    assert "e1" not in ids(similar(POOL[:8], replace(POOL[1], id="elsewhere"), 12))


def test_the_same_prompt_with_another_answer_is_found() -> None:
    asked = replace(POOL[8], id="again", response="Once a month, from below, and never in winter.")
    assert ids(similar(POOL, asked, 1)) == ["e8"]


def test_unwanted_answers_are_not_shown() -> None:
    pool = [replace(POOL[8], desirable=False), POOL[1]]
    assert ids(similar(pool, example("new", "Is the cactus blue?", ""))) == ["e1"]


def test_of_two_equally_similar_ones_the_later_comes_first() -> None:
    pool = [example("a", "tea", "hot"), example("b", "tea", "red"), example("c", "tin", "old")]
    assert ids(similar(pool, example("new", "tea", ""))) == ["b", "a"]


@pytest.mark.parametrize(
    "prompt", ["", "?!", '"', "' OR 1", "x AND NOT b*", "NEAR(x, 2)", "snake_case", "\x00", "\ud800", "👍", "words:x"]
)
def test_any_prompt_can_be_asked(prompt: str) -> None:
    assert similar(POOL[11:12], example("new", prompt, "")) == []
    assert similar([example("odd", prompt, prompt)], POOL[0]) == []


def test_a_pasted_document_is_searched_by_its_first_words() -> None:
    filler = " ".join(f"word{n}" for n in range(MAX_TERMS - 1))
    assert ids(similar(POOL, example("new", f"{filler} cactus purr", ""))) == ["e8"]


def test_scripts_without_spaces_are_found() -> None:
    pool = [example("a", "天気は?", "晴れです。"), example("b", "夕食は?", "魚です。")]
    assert ids(similar(pool, example("new", "明日の天気", ""), 1)) == ["a"]


def test_one_index_answers_many_times_and_an_empty_one_never() -> None:
    with Index(POOL) as index:
        found = [index.similar(e, 3) for e in POOL]
        assert [index.similar(e, 3) for e in POOL] == found
        assert found == [similar(POOL, e, 3) for e in POOL]
    assert similar([], POOL[0]) == []
