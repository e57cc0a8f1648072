"""Run: python -m pytest tests/adapt/gate/test_behaviour.py

What is counted of answers, and what is kept of the base's abilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate import behaviour as module
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.behaviour import MOST_PROMPTS, Behaviour, behaviour, verified, verified_base, wanted
from edgepd.adapt.gate.verifiable import VerifiablePrompt
from edgepd.adapt.generate import Answer
from edgepd.chat import ChatFormat
from tests.adapt.gate.parts import ANSWER, PROMPT, SHA, WHOLE, favourites

END = 2


def summary(answers: Sequence[Answer], wanted_tokens: Sequence[int]) -> Behaviour:
    """What is counted of answers where so many tokens, the end included, were wanted."""
    examples = [Encoded(f"e{n}", tuple(range(3, 5 + count)), 2) for n, count in enumerate(wanted_tokens)]
    assert [e.supervised for e in examples] == list(wanted_tokens)
    return module._summary(answers, examples)


def test_what_is_counted_of_answers() -> None:
    answers = [
        Answer([], ended=True),
        Answer([5, 6, 7], ended=True),
        Answer([5, 6, 7], ended=True),
        Answer([5, 6, 7, 8, 5, 6, 7, 8], ended=False),  # five runs of four, of which one was there before
    ]
    found = summary(answers, [4, 4, 4, 3])
    assert found == Behaviour(empty=0.25, unended=0.25, repeated=found.repeated, same=0.25, length=1.0)
    assert found.repeated == pytest.approx(0.2 / 4)


def test_the_same_word_without_end_is_all_repetition() -> None:
    found = summary([Answer([9] * 24, ended=False)], [8])
    assert found.repeated == pytest.approx(20 / 21)
    assert (found.unended, found.length) == (1.0, 3.0)


def test_a_long_answer_that_was_cut_before_twice_the_wanted_length_may_still_end() -> None:
    """Where long answers are wanted, the cut says nothing; the candidate may be on its way to just such a one."""
    cut = Answer(list(range(3, 99)), ended=False)
    assert summary([cut], [80]).unended == 0.0
    assert summary([cut], [48]).unended == 0.0
    assert summary([cut], [47]).unended == 1.0


def test_what_the_user_wanted_ends_and_is_measured_without_its_end() -> None:
    held_out = [Encoded("a", (9, 9, 5, 6, 7, 8, 5, 6, 7, 8, END), 2), Encoded("b", (9, 9, 5, END), 2)]
    found = wanted(held_out)
    assert found == Behaviour(empty=0.0, unended=0.0, repeated=found.repeated, same=0.0, length=1.0)
    assert found.repeated == pytest.approx(0.2 / 2)
    assert wanted([held_out[1]] * 4).same == 0.75


def test_the_newest_prompts_are_answered_to_twice_the_wanted_length(base: Path, adapter: Path) -> None:
    arm = Arm(base, adapter)
    held_out = favourites(arm, MOST_PROMPTS)
    with Scorer(arm, 1, longest=64) as scorer:
        found = behaviour(scorer, [Encoded("old", (0, 0, 0), 2), *held_out])
        assert WHOLE == 2 * ANSWER + module.ROOM
        answers = scorer.answers([e.tokens[:PROMPT] for e in held_out], [WHOLE] * MOST_PROMPTS)
    assert all(answer.tokens[:6] == list(e.tokens[PROMPT:]) for answer, e in zip(answers, held_out, strict=True))
    assert found == module._summary(answers, held_out)
    assert (found.empty, found.unended, found.same) == (0.0, 1.0, 0.0)


PROMPTS = [
    VerifiablePrompt(name, f"Say {name}.", (("contains", {"any_of": [name]}),)) for name in ("red", "green", "blue")
]


@pytest.fixture
def scorer(base: Path) -> Iterator[Scorer]:
    with Scorer(Arm(base), 1, longest=64) as opened:
        yield opened


class Asked:
    """Stands for `verified`: remembers what it was asked, and passes green."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, scorer: Scorer, chat: ChatFormat, prompts: Sequence[VerifiablePrompt]) -> list[bool]:
        """Pass green."""
        self.prompts += [p.id for p in prompts]
        return [p.id == "green" for p in prompts]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(module, "verified", found)
    return found


def test_an_answer_is_verified_as_it_was_given(scorer: Scorer) -> None:
    chat = ChatFormat(scorer.model)
    tokens = [chat.prompt([{"role": "user", "content": p.prompt}]) for p in PROMPTS]
    texts = [a.text(scorer.model) for a in scorer.answers(tokens, [module.VERIFIABLE_TOKENS] * 3)]
    assert verified(scorer, chat, PROMPTS) == [False] * 3, "a random model says none of these"
    lucky = [
        VerifiablePrompt(p.id, p.prompt, (("starts_with", {"text": text.strip()[:3]}),))
        for p, text in zip(PROMPTS, texts, strict=True)
    ]
    assert verified(scorer, chat, lucky) == [True] * 3
    assert verified(scorer, chat, []) == []


def test_the_base_is_asked_once_and_for_what_is_new(scorer: Scorer, tmp_path: Path, asked: Asked) -> None:
    chat, directory = ChatFormat(scorer.model), tmp_path / "cache"
    assert verified_base(scorer, chat, PROMPTS[:2], SHA, directory) == [False, True]
    assert verified_base(scorer, chat, PROMPTS[1::-1], SHA, directory) == [True, False]
    assert asked.prompts == ["red", "green"]
    assert verified_base(scorer, chat, PROMPTS, SHA, directory) == [False, True, False]
    assert asked.prompts == ["red", "green", "blue"]
    assert verified_base(scorer, chat, PROMPTS, SHA, directory) == [False, True, False]
    assert asked.prompts == ["red", "green", "blue"]
    (path,) = directory.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_prompt_that_was_changed_is_another(scorer: Scorer, tmp_path: Path, asked: Asked) -> None:
    chat = ChatFormat(scorer.model)
    verified_base(scorer, chat, PROMPTS[:1], SHA, tmp_path)
    changed = VerifiablePrompt("red", PROMPTS[0].prompt, (("contains", {"any_of": ["crimson"]}),))
    verified_base(scorer, chat, [changed], SHA, tmp_path)
    verified_base(scorer, chat, PROMPTS[:1], SHA[:16] + "cd" * 24, tmp_path)  # whose file has the same name
    assert asked.prompts == ["red", "red", "red"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"null", b"5", b'"x"', b"{}", b"\xff", b'{"results": []}', b'{"results": null}']
)
def test_a_damaged_file_is_measured_anew(scorer: Scorer, tmp_path: Path, asked: Asked, content: bytes) -> None:
    chat = ChatFormat(scorer.model)
    verified_base(scorer, chat, PROMPTS, SHA, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_bytes())
    path.write_bytes(content)
    assert verified_base(scorer, chat, PROMPTS, SHA, tmp_path) == [False, True, False]
    assert asked.prompts == ["red", "green", "blue"] * 2
    assert json.loads(path.read_bytes()) == whole
