"""Run: python -m pytest tests/adapt/test_generate.py

Answers that are decoded side by side are those that each prompt would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgepd.adapt import generate as module
from edgepd.adapt.generate import SEQUENCES, Answer, generate
from edgepd.adapt.parking import ParkNow
from edgepd.llama import LoraAdapter, Model
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.tiny_gguf import llama_logits, tiny_llama

COUNT = 2 * SEQUENCES + 3
RNG = np.random.default_rng(4)
PROMPTS = [RNG.integers(3, 273, 3 + n % 5).tolist() for n in range(COUNT)]
LIMITS = [1 + n % 6 for n in range(COUNT)]


def likeliest(logits: npt.NDArray[np.float32], _: int) -> int:
    return int(logits.argmax())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


@pytest.fixture(scope="module")
def model(base: Path) -> Iterator[Model]:
    with Model(base) as opened:
        yield opened


def by_hand(base: Path, prompt: list[int], limit: int, adapter: Path | None = None) -> list[int]:
    """The greedy answer without a cache and alone."""
    tokens = list(prompt)
    for _ in range(limit):
        tokens.append(int(llama_logits(base, tokens, adapter)[-1].argmax()))
    return tokens[len(prompt) :]


def test_more_prompts_than_places_get_the_answers_that_each_would_get_alone(base: Path, model: Model) -> None:
    found = generate(model, PROMPTS, LIMITS, likeliest, 1)
    assert [len(answer.tokens) for answer in found] == LIMITS
    assert not any(answer.ended for answer in found)
    for n in (0, 1, 5, SEQUENCES, COUNT - 1):
        assert found[n].tokens == by_hand(base, PROMPTS[n], LIMITS[n])
    assert generate(model, [], [], likeliest, 1) == []


def test_an_adapter_speaks_for_itself_and_is_gone_afterwards(base: Path, model: Model, tmp_path: Path) -> None:
    path = random_lora(tmp_path / "a.gguf", base, seed=1, deviation=0.3)
    plain = generate(model, PROMPTS[:3], [5] * 3, likeliest, 1)
    adapter = LoraAdapter(model, path)
    adapted = generate(model, PROMPTS[:3], [5] * 3, likeliest, 1, adapter=adapter)
    adapter.close()
    assert [answer.tokens for answer in adapted] == [by_hand(base, prompt, 5, path) for prompt in PROMPTS[:3]]
    assert adapted != plain
    assert generate(model, PROMPTS[:3], [5] * 3, likeliest, 1) == plain


def test_an_answer_ends_with_a_token_that_is_no_part_of_it(model: Model) -> None:
    """The n-th prompt says n tokens and then the end; the third is cut before it gets there."""
    end = next(token for token in range(3) if model.is_end(token))
    said = [0] * 4

    def choose(_: npt.NDArray[np.float32], number: int) -> int:
        said[number] += 1
        return end if said[number] > number else 40 + number

    found = generate(model, PROMPTS[:4], [9, 9, 9, 3], choose, 1)
    assert found == [
        Answer([], ended=True),
        Answer([41], ended=True),
        Answer([42, 42], ended=True),
        Answer([43, 43, 43], ended=False),
    ]


def test_it_tells_after_each_step(model: Model) -> None:
    told: list[tuple[int, int]] = []
    generate(model, PROMPTS[:3], [2, 2, 2], likeliest, 1, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]  # one prompt joins per step, and each takes two


def test_whoever_stops_it_is_heard(model: Model) -> None:
    def stop(done: int, total: int) -> None:
        raise ParkNow

    with pytest.raises(ParkNow):
        generate(model, PROMPTS[:3], [2, 2, 2], likeliest, 1, progress=stop)


def test_the_text_of_a_cut_character_is_left_out(model: Model) -> None:
    tokens = model.tokenize("é", special=False)
    assert len(tokens) == 2
    word = model.tokenize("the ", special=False)
    assert Answer([*word, *tokens]).text(model) == "the é"
    assert Answer([*word, tokens[0]]).text(model) == "the "
    assert Answer().text(model) == ""


def test_how_many_run_side_by_side_does_not_matter(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found = generate(model, PROMPTS, LIMITS, likeliest, 1)
    monkeypatch.setattr(module, "SEQUENCES", 2)
    assert generate(model, PROMPTS, LIMITS, likeliest, 1) == found
