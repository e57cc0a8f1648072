from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from edgepd.cli.demo_script import LESSONS
from edgepd_profiles.examples import Example
from edgepd_profiles.retrieval import MAX_TERMS, Index, Words, content, same_question, similar


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("allergies", "allergic"),
        ("vegetarians", "vegetarisch"),
        ("train", "training"),
        ("house", "houses"),
        ("Kind", "Kindern"),
        ("Müller", "Muller"),
        ("perro", "perros"),
        ("wishes", "wish"),
    ],
)
def test_forms_of_a_word_are_one(one: str, other: str) -> None:
    assert content(one) == content(other) != []


@pytest.mark.parametrize(
    ("one", "other"), [("internet", "international"), ("vegetables", "vegetarian"), ("bus", "but"), ("5", "7")]
)
def test_other_words_are_others(one: str, other: str) -> None:
    assert content(one) != content(other)


@pytest.mark.parametrize("text", ["what is it?", "Was ist das?", "qu'est-ce que c'est", "¿Qué es esto?", "?!", ""])
def test_questions_without_content_have_no_words(text: str) -> None:
    assert content(text) == []


def test_scripts_without_spaces_have_pairs_of_characters() -> None:
    assert content("天気予報 です") == ["天気", "気予", "予報", "報で"]


def test_the_same_question_in_other_words_around_it() -> None:
    assert same_question("What's the weather in Rome?", "please tell me the weather in rome")
    assert same_question("Why?", "why")
    assert not same_question("Why?", "Who?")
    assert not same_question("Convert 5 miles to km", "What is a mile?")
    assert same_question("How do tall trees drink water?", "How do tall trees drink milk?")  # a word apart


def found(words: Words, query: str) -> list[int]:
    return [key for key, _ in words.ranked(query)]


def test_words_are_found_changed_and_dropped() -> None:
    with closing(Words()) as words:
        words.put([(7, "tea is hot"), (-3, "red tea"), (9, "old tin")])
        assert sorted(found(words, "Which teas do you have?")) == [-3, 7]
        assert found(words, "which is it?") == []
        words.put([(7, "coffee")])
        assert found(words, "tea") == [-3]
        assert found(words, "coffee") == [7]
        words.drop(-3)
        words.drop(1000)
        assert found(words, "tea") == []
        assert (len(words), words.dropped) == (2, 2)


def test_scores_are_above_zero_and_fall() -> None:
    with closing(Words()) as words:
        words.put([(1, "cactus and dry soil"), (2, "a cactus in the sky"), (3, "gravity"), (4, "glass"), (5, "gold")])
        ranked = list(words.ranked("Does a cactus like dry soil?"))
    assert [key for key, _ in ranked] == [1, 2]
    assert ranked[0][1] > ranked[1][1] > 0


@pytest.mark.parametrize("query", ['"', "' OR 1", "x AND NOT b*", "NEAR(x, 2)", "\x00", "\ud800", "words:x", "́"])
def test_any_query_can_be_asked_of_words(query: str) -> None:
    with closing(Words()) as words:
        words.put([(1, query), (2, "tea")])
        assert 2 not in found(words, query)
