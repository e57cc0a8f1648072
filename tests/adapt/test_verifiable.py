"""The checks decide as a person would, and the bundled prompts are neither too easy nor too hard for the base."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.behaviour import verified
from edgepd.adapt.gate.verifiable import CHECKS, VerifiablePrompt, parse, prompts
from edgepd.chat import ChatFormat
from edgepd.errors import EdgepdError

# (check, arguments, answers that pass, answers that do not)
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("contains", {"any_of": ["Rome"]}, ["It is ROME.", "rome"], ["Romeo", "Paris", ""]),
    ("contains", {"any_of": ["7", "seven"]}, ["Seven days", "7."], ["17", "seventy", "7a"]),
    ("contains", {"any_of": ["100°C"]}, ["at 100°C."], ["at 100 C"]),
    (
        "contains_all",
        {"words": ["dog", "garden"]},
        ["The dog is in the garden."],
        ["The dogs are in the garden.", "dog"],
    ),
    ("lacks", {"text": "e"}, ["sun, moon"], ["star, mOOn, sEa", ""]),
    ("is_one_of", {"any_of": ["no"]}, ["No.", "no", '"NO!"', "**No**"], ["No, it is not.", "nope", ""]),
    ("number", {"value": 15}, ["15", "7 + 8 = 15.", "It is 15.0!"], ["15 is not 16", "fifteen", "", "-15", "150"]),
    ("number", {"value": 1200}, ["1,200", "1200"], ["1.200", "200"]),
    ("lower_case", {}, ["cats sleep.", "a 1"], ["Cats sleep.", "123", ""]),
    ("upper_case", {}, ["RAIN, RAIN!", "A 1"], ["RAIn", "123", ""]),
    ("starts_with", {"text": "because"}, ["Because they must.", "because"], ["They sleep because", ""]),
    ("ends_with", {"text": "see you soon"}, ["Hi! See you soon!", "see you soon"], ["see you soon, Tom", ""]),
    ("quoted", {}, ['"All the best!"', "“Be well.”"], ['"A" or b', 'He said "hi"', '"', '""']),
    ("list_items", {"count": 3}, ["- a\n- b\n- c", "Here:\n1. a\n2) b\n  * c"], ["- a\n- b", "a\nb\nc", "-a\n-b\n-c"]),
    ("lines", {"count": 2}, ["a\nb", "a\n\nb"], ["a", "a\nb\nc", ""]),
    ("words", {"most": 3, "least": 2}, ["red pear", "a red pear"], ["pear", "one very red pear", ""]),
    (
        "sentences",
        {"most": 1},
        ["One.", "No mark", 'She said "yes."', "It costs 3.50 today."],
        ["One. Two.", "Hm! No?", ""],
    ),
    ("sentences", {"most": 2, "least": 2}, ["One. Two!"], ["One.", "One. Two. Three."]),
    ("json_object", {"key": "a"}, ['{"a": 1}', '```json\n{"a": null}\n```'], ["[1]", '{"b": 1}', "a", '{"a": 1} ok']),
    ("json_object", {"key": "a", "value": "x"}, ['{"a": "x"}'], ['{"a": "X"}', '{"a": 1}']),
    ("repeats", {"text": "Go on."}, ["Go on.", '"Go on."'], ["Go on", "go on.", "Go on. Bye."]),
    ("commas", {"count": 2}, ["red, green, blue"], ["red and blue", "a, b", "a, b, c, d"]),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES)
def test_a_check(kind: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    prompt = VerifiablePrompt("x", "?", ((kind, arguments),))
    assert [answer for answer in good if not prompt.passes(f" {answer}\n", ended=True)] == []
    assert [answer for answer in bad if prompt.passes(answer, ended=True)] == []


def test_each_check_has_a_case() -> None:
    assert {kind for kind, *_ in CASES} == set(CHECKS)


def test_all_checks_of_a_prompt_must_pass() -> None:
    prompt = VerifiablePrompt("x", "?", (("contains", {"any_of": ["river"]}), ("sentences", {"most": 1})))
    assert prompt.passes("The river is wide.", ended=True)
    assert not prompt.passes("The river is wide. It is deep.", ended=True)
    assert not prompt.passes("The sea is wide.", ended=True)


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES)
def test_an_answer_that_was_cut_may_only_have_begun_well(
    kind: str, arguments: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    known_from_a_part = kind in ("contains", "contains_all", "starts_with")
    assert VerifiablePrompt("x", "?", ((kind, arguments),)).passes(good[0], ended=False) is known_from_a_part


def row(**changes: Any) -> str:
    return json.dumps({"id": "a", "prompt": "?", "checks": [{"kind": "lower_case"}]} | changes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (row() + "\n" + row(id="b", checks=[{"kind": "rhymes"}]), "line 2: unknown check 'rhymes'; known are commas, "),
        (row(checks=[{"kind": "words"}]), "line 1: check 'words': missing a required .*'most'"),
        (row(checks=[{"kind": "words", "most": 1, "colour": "red"}]), "line 1: check 'words': .*'colour'"),
        (row(checks=[]), "line 1 has no checks"),
        (row(checks=["lower_case"]), "line 1 is not a prompt with id, prompt and checks"),
        ("{", "line 1 is not a prompt"),
        ("[]", "line 1 is not a prompt"),
        (row() + "\n" + row(), "two of them have the same id"),
    ],
)
def test_a_wrong_line_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(EdgepdError, match=problem):
        parse(text)


def test_the_bundled_prompts() -> None:
    found = prompts()
    assert len(found) == 64
    assert len({p.prompt for p in found}) == 64
    for half in (found[:32], found[32:]):  # the first few are like the whole
        assert 12 <= sum(_is_knowledge(p) for p in half) <= 20
    assert [json.loads(json.dumps(asdict(p)))["id"] for p in found] == [p.id for p in found]  # the gate hashes them so


def _is_knowledge(prompt: VerifiablePrompt) -> bool:
    return {kind for kind, _ in prompt.checks} <= {"contains", "number"}


@pytest.mark.parametrize(
    "answer", ["", "I am not sure.", "Yes", "The the the the", "As a language model I cannot, but ok"]
)
def test_an_answer_that_ignores_the_prompt_gets_little(answer: str) -> None:
    assert sum(p.passes(answer, ended=True) for p in prompts()) <= 14


@pytest.mark.real_model
def test_the_base_gets_some_and_not_all(model_path: Path) -> None:
    some = prompts()[:24]
    with Scorer(Arm(model_path), 1, longest=512) as scorer:
        passed = verified(scorer, ChatFormat(scorer.model), some)
    assert 0.3 <= sum(passed) / len(some) <= 0.65  # of all 64 it gets 30
