"""Endogenous replay: what the base says, how it is kept, and when it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt import generate, replay
from edgepd.adapt.examples import encode
from edgepd.adapt.replay import General, anchor_prompts, draw, encode_general, general_examples
from edgepd.chat import ChatFormat
from edgepd.errors import ModelError, StoreError
from edgepd.llama import Model
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import llama_logits, tiny_llama

SHA = "ab" * 32


class Base:
    """A tiny model with its chat format. Calling it generates, or reads what was."""

    def __init__(self, path: Path, model: Model) -> None:
        self.path, self.model, self.chat = path, model, ChatFormat(model)

    def __call__(self, directory: Path, count: int = 6, *, sha: str = SHA, max_tokens: int = 5) -> list[General]:
        return general_examples(self.chat, self.path, sha, count, directory, 1, max_tokens)

    def cached(self, directory: Path, count: int = 6, *, sha: str = SHA, max_tokens: int = 5) -> list[General]:
        return general_examples(self.chat, self.path, sha, count, directory, 1, max_tokens, cached_only=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    path = tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)
    with Model(path) as model:
        yield Base(path, model)


def file_of(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_the_bundled_prompts() -> None:
    prompts = anchor_prompts()
    assert len(prompts) == len(set(prompts)) == 64
    assert all(10 <= len(prompt) <= 130 and prompt == prompt.strip() for prompt in prompts)


def test_answers_are_the_bases_own(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a temperature near zero they are what llama.cpp finds likeliest, computed one by one without a cache."""
    monkeypatch.setattr(replay, "TEMPERATURE", 1e-6)
    monkeypatch.setattr(generate, "SEQUENCES", 3)
    found = {example.id: example for example in base(tmp_path, 5, max_tokens=3)}
    assert found
    for i, prompt in enumerate(anchor_prompts()[:5]):
        tokens, answer = base.chat.prompt([{"role": "user", "content": prompt}]), b""
        for _ in range(3):
            token = int(llama_logits(base.path, tokens)[-1].argmax())
            tokens.append(token)
            answer += base.model.piece(token)
        text = answer.decode("utf-8", errors="ignore")
        if text.strip():
            example = found.pop(f"general-{i}")
            assert (example.response, example.messages) == (text, [{"role": "user", "content": prompt}])
    assert found == {}


def test_they_are_generated_once(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = base(tmp_path / "replay")
    assert 0 < len(first) < 6  # a random model's answers are random bytes, and some of them are no text
    monkeypatch.setattr(replay, "_generate", _must_not_run)
    assert base(tmp_path / "replay") == first
    assert base.cached(tmp_path / "replay") == first
    shorter = base(tmp_path / "replay", 3)
    assert shorter == [e for e in first if e.id in ("general-0", "general-1", "general-2")]
    assert file_of(tmp_path / "replay").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "replay").stat().st_mode & 0o777 == 0o700


def _must_not_run(*_: object) -> None:
    raise AssertionError("the answers were generated again")


def test_the_same_base_says_the_same_and_more_prompts_than_there_are_differently(base: Base, tmp_path: Path) -> None:
    found = base(tmp_path / "a", 66, max_tokens=6)
    assert base(tmp_path / "b", 66, max_tokens=6) == found
    by_id = {example.id: example for example in found}
    again = [(by_id.get(f"general-{i}"), by_id.get(f"general-{i + 64}")) for i in range(2)]
    pairs = [(first, second) for first, second in again if first and second]
    assert pairs
    for first, second in pairs:
        assert first.messages == second.messages
        assert first.response != second.response


def test_without_a_cache_the_fast_path_gets_nothing(base: Base, tmp_path: Path) -> None:
    assert base.cached(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    assert base(tmp_path / "none", 0) == []


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _last_line_gone(data: bytes) -> bytes:
    return data[: data.rstrip(b"\n").rindex(b"\n") + 1]


def _one_letter_changed(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def _of_another_base(data: bytes) -> bytes:
    return data.replace(SHA.encode(), (SHA[:16] + "cd" * 24).encode())


def _of_other_prompts(data: bytes) -> bytes:
    head = json.loads(data.partition(b"\n")[0])
    return data.replace(head["prompts_sha256"].encode(), b"0" * 64)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"\xff\xfe\n[]",
        lambda _: b"[1, 2]\n",
        _cut,
        _last_line_gone,
        _one_letter_changed,
        _of_another_base,
        _of_other_prompts,
    ],
)
def test_a_damaged_or_foreign_file_is_not_believed(
    base: Base, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    wanted = base(tmp_path)
    path = file_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert base.cached(tmp_path) == []
    assert base(tmp_path) == wanted
    assert path.read_bytes() == whole


def test_each_base_and_each_length_has_a_file_of_its_own(base: Base, tmp_path: Path) -> None:
    base(tmp_path)
    base(tmp_path, sha="cd" * 32)
    base(tmp_path, max_tokens=4)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["abababababababab-general-4.jsonl", "abababababababab-general-5.jsonl"] + [
        "cdcdcdcdcdcdcdcd-general-5.jsonl"
    ]


def test_a_file_with_too_few_is_replaced_by_one_with_more(base: Base, tmp_path: Path) -> None:
    base(tmp_path, 3)
    assert base.cached(tmp_path, 6) == []
    more = base(tmp_path, 6)
    assert base.cached(tmp_path, 6) == more


def test_a_generation_that_is_broken_off_leaves_nothing(base: Base, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        general_examples(base.chat, base.path, SHA, 6, tmp_path, 1, 5, progress=stop)
    assert told[0] == (0, 6)
    assert told[-1][0] == 2
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_loaded_or_written_is_said(base: Base, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        general_examples(base.chat, tmp_path / "missing.gguf", SHA, 2, tmp_path, 1)
    (tmp_path / f"{SHA[:16]}-general-5.jsonl").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        base(tmp_path)


def test_an_answer_that_was_cut_off_gets_no_end(base: Base) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    whole = General("a", messages, "the hello", finished=True)
    cut = General("b", messages, "the hello", finished=False)
    first, second = encode_general(base.chat, [whole, cut], 512)
    assert first == encode(base.chat, whole, 512)
    assert first.tokens[-1] == base.chat.end_of_turn
    assert second.tokens == first.tokens[:-1]
    assert second.supervised_from == first.supervised_from == len(base.chat.prompt(messages))
    assert encode_general(base.chat, [whole, cut], len(second.tokens)) == [second]


def test_drawing_follows_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.0001, 0.2, 0.3], dtype=np.float32))
    rng = np.random.default_rng(1)
    counts = np.bincount([draw(logits, rng) for _ in range(20_000)], minlength=4) / 20_000
    wanted = np.exp(logits / 0.7)
    assert counts == pytest.approx(wanted / wanted.sum(), abs=0.015)


def test_the_likeliest_of_very_unlike_ones_is_drawn() -> None:
    assert draw(np.array([-1e4, 0.0, -1e4], dtype=np.float32), np.random.default_rng(1)) == 1


@pytest.mark.real_model
def test_the_real_model(model_path: Path, tmp_path: Path) -> None:
    def generate(directory: Path, cached_only: bool) -> list[General]:
        return general_examples(chat, model_path, SHA, 4, directory, 1, 8, cached_only=cached_only)

    with Model(model_path, vocab_only=True) as tokenizer:
        chat = ChatFormat(tokenizer)
        first = generate(tmp_path / "a", False)
        assert [e.id for e in first] == [f"general-{i}" for i in range(4)]
        assert all(1 <= e.supervised <= 9 for e in encode_general(chat, first, 512))
        assert generate(tmp_path / "b", False) == first
        assert generate(tmp_path / "a", True) == first
