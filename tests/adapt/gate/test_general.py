"""Run: python -m pytest tests/adapt/gate/test_general.py

What the base thinks of the general text is measured once, and the divergence from it is nearly the true one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt.gate import general
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.general import CONTEXT, QUICK_WINDOWS, WINDOW, Reading, compare, read, windows
from edgepd.errors import StoreError
from edgepd.llama import Model
from edgepd_quant.adapter_file import Adapter, LowRank, read_adapter, write_adapter
from tests.adapt.gate.parts import SHA, log_probs_by_hand
from tests.daemon.adapters import random_lora

SCORED = WINDOW - CONTEXT


def scorer_of(model: Path, adapter: Path | None = None) -> Scorer:
    return Scorer(Arm(model, adapter), 1, longest=WINDOW + 1)


def reading(base: Path, directory: Path, count: int = 2, sha: str = SHA) -> Reading:
    with scorer_of(base) as scorer:
        return read(scorer, sha, count, directory)


def same(one: Reading, other: Reading) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("losses", "ids", "log_probs"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each piece that is measured."""
    calls: list[int] = []
    measure = general._measure

    def counted(scorer: Scorer, piece: list[int]) -> Reading:
        calls.append(len(piece))
        return measure(scorer, piece)

    monkeypatch.setattr(general, "_measure", counted)
    return calls


def test_pieces_lie_evenly_over_the_text_in_an_order_that_more_go_on_from(base: Path) -> None:
    with Model(base) as model:
        pieces = windows(model, 100_000)
        text = model.tokenize(general._text(), special=False)
        starts = {tuple(text[n : n + WINDOW]): n for n in range(0, len(text) - WINDOW + 1, WINDOW)}
        assert len(pieces) == len(starts) == len(text) // WINDOW > 64, "a byte-level tokenizer makes many"
        for count in (1, QUICK_WINDOWS, 40):
            assert windows(model, count) == pieces[:count]
        opening = len(model.opening)
        positions = [starts[tuple(piece[opening:])] / len(text) for piece in pieces]
        assert sorted(positions) == sorted(n / len(text) for n in starts.values())
        assert positions[:4] == pytest.approx([0, 1 / 2, 1 / 4, 3 / 4], abs=2 * WINDOW / len(text))
        assert positions[4:8] == pytest.approx([1 / 8, 5 / 8, 3 / 8, 7 / 8], abs=2 * WINDOW / len(text))


def test_a_reading_is_what_llama_cpp_says(base: Path, tmp_path: Path) -> None:
    found = reading(base, tmp_path)
    with Model(base) as model:
        pieces = windows(model, 2)
    for number, piece in enumerate(pieces):
        part = slice(number * SCORED, (number + 1) * SCORED)
        first = len(piece) - SCORED
        logp = log_probs_by_hand(Arm(base), piece)[first - 1 : -1]
        assert found.losses[part] == pytest.approx(-logp[np.arange(SCORED), piece[first:]], abs=5e-3)
        likeliest = np.sort(logp, axis=1)[:, -general.K :]
        assert np.sort(found.log_probs[part], axis=1) == pytest.approx(likeliest, abs=5e-3)
        picked = np.take_along_axis(logp, found.ids[part].astype(np.int64), axis=1)
        assert found.log_probs[part] == pytest.approx(picked, abs=5e-3)


def test_the_base_is_measured_once(base: Path, tmp_path: Path, measured: list[int]) -> None:
    first = reading(base, tmp_path / "cache", 2)
    assert len(measured) == 2
    assert same(reading(base, tmp_path / "cache", 2), first)
    assert same(reading(base, tmp_path / "cache", 1), first.first(SCORED))
    assert len(measured) == 2
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_known_grows(base: Path, tmp_path: Path, measured: list[int]) -> None:
    reading(base, tmp_path / "grown", 1)
    grown = reading(base, tmp_path / "grown", 3)
    assert len(measured) == 3, "the first piece was known"
    assert same(grown, reading(base, tmp_path / "anew", 3))
    assert same(reading(base, tmp_path / "grown", 3), grown)
    assert len(measured) == 6


def test_what_was_made_from_something_else_is_measured_anew(
    base: Path, tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(base, tmp_path, 1)
    reading(base, tmp_path, 1, sha=SHA[:16] + "cd" * 24)  # whose file has the same name
    assert len(measured) == 2
    reading(base, tmp_path, 1, sha="cd" * 32)
    assert len(measured) == 3
    assert len(list(tmp_path.iterdir())) == 2
    for name, value in (("FORMAT", 0), ("K", 64)):
        reading(base, tmp_path, 1)
        before = len(measured)
        with monkeypatch.context() as patch:
            patch.setattr(general, name, value)
            reading(base, tmp_path, 1)
        assert len(measured) == before + 1, name
    text = general._text()
    monkeypatch.setattr(general, "_text", lambda: "Another. " + text)
    before = len(measured)
    reading(base, tmp_path, 1)
    assert len(measured) == before + 1


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"PK\x05\x06",
        lambda _: b"[1, 2]",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: flipped(data, len(data) // 3),
        lambda data: flipped(data, len(data) // 2),
        lambda data: flipped(data, len(data) - 30),
    ],
)
def test_a_damaged_file_is_measured_anew(
    base: Path, tmp_path: Path, measured: list[int], damage: Callable[[bytes], bytes]
) -> None:
    wanted = reading(base, tmp_path, 1)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same(reading(base, tmp_path, 1), wanted)
    assert len(measured) == 2
    assert path.read_bytes() == whole


def test_no_flipped_bit_is_believed_or_raises(base: Path, tmp_path: Path) -> None:
    """Wherever it lies: in the numbers, in the head of an array or in the frame around them, which readers choke on."""
    wanted = reading(base, tmp_path, 1)
    (path,) = tmp_path.iterdir()
    whole, identity = path.read_bytes(), general._identity(SHA)
    assert same(general._load(path, identity) or wanted.first(0), wanted)
    positions = [*range(0, 1000, 3), *range(1000, len(whole) - 300, 4999), *range(len(whole) - 300, len(whole), 3)]
    for position in positions:
        path.write_bytes(flipped(whole, position))
        assert general._load(path, identity) is None, position


def test_what_cannot_be_written_is_said(base: Path, tmp_path: Path) -> None:
    (tmp_path / f"{SHA[:16]}-general-text.bin").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        reading(base, tmp_path, 1)


def test_the_base_does_not_diverge_from_itself(base: Path, tmp_path: Path) -> None:
    known = reading(base, tmp_path)
    with scorer_of(base) as scorer:
        change = compare(scorer, known, 2)
    assert change.kl == pytest.approx(0, abs=1e-6)
    assert change.perplexity_rise == pytest.approx(0, abs=1e-6)
    assert change.loss_before == pytest.approx(float(known.losses.mean()))


def divergence_by_hand(base: Path, adapter: Path, count: int) -> float:
    """The mean of KL(base || adapted) over the whole vocabulary, with logits of our binding in double precision."""
    parts = []
    with scorer_of(base) as one, scorer_of(base, adapter) as other:
        for piece in windows(one.model, count):
            first = len(piece) - SCORED
            for p, q in zip(_log_probs(one, piece, first), _log_probs(other, piece, first), strict=True):
                parts.append(float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(parts))


def _log_probs(scorer: Scorer, piece: list[int], first: int) -> list[np.ndarray]:
    rows = [row.astype(np.float64) for row in scorer.logits(piece, first)]
    return [row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in rows]


@pytest.mark.parametrize("deviation", [0.01, 0.3])
def test_the_divergence_is_at_most_the_true_one_and_that_with_all_tokens(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deviation: float
) -> None:
    path = random_lora(tmp_path / "a.gguf", base, seed=3, deviation=deviation)
    true = divergence_by_hand(base, path, 2)
    found = {}
    for k in (1, 128, 273, 300):
        monkeypatch.setattr(general, "K", k)
        known = reading(base, tmp_path / "cache")
        with scorer_of(base, path) as scorer:
            found[k] = compare(scorer, known, 2).kl
    assert 0 <= found[1] < found[128] <= true
    assert found[128] > 0.7 * true
    assert found[273] == found[300] == pytest.approx(true, rel=1e-4)


def test_the_change_of_perplexity_is_that_of_the_losses(base: Path, adapter: Path, tmp_path: Path) -> None:
    known = reading(base, tmp_path)
    with scorer_of(base, adapter) as scorer:
        change = compare(scorer, known, 2)
        losses = [scorer.token_losses(piece, len(piece) - SCORED) for piece in windows(scorer.model, 2)]
        assert compare(scorer, known, 1).loss_after == pytest.approx(np.mean(losses[0]))
        rest = compare(scorer, known, 2, 1)
        assert rest.loss_after == pytest.approx(np.mean(losses[1]))
        both = compare(scorer, known, 1) + rest
        assert (both.tokens, change.tokens) == (2 * SCORED, 2 * SCORED)
        for name in ("loss_before", "loss_after", "kl"):
            assert getattr(both, name) == pytest.approx(getattr(change, name)), name
    assert change.loss_after == pytest.approx(np.mean(losses))
    assert change.perplexity_rise == pytest.approx(np.exp(change.loss_after) / np.exp(change.loss_before) - 1)
    assert abs(change.perplexity_rise) > 0.01


def test_a_candidate_of_numbers_that_are_none_has_none_either(base: Path, adapter: Path, tmp_path: Path) -> None:
    good = read_adapter(adapter)
    pairs = {name: pair for name, pair in good.tensors.items() if isinstance(pair, LowRank)}
    spoilt = {name: LowRank(pair.a, np.full_like(pair.b, np.nan)) for name, pair in pairs.items()}
    write_adapter(tmp_path / "nan.gguf", Adapter(good.kind, good.architecture, good.alpha, spoilt, {}))
    known = reading(base, tmp_path / "cache", 1)
    with scorer_of(base, tmp_path / "nan.gguf") as scorer:
        change = compare(scorer, known, 1)
    assert np.isnan(change.kl)
    assert np.isnan(change.perplexity_rise)


def test_the_identity_names_all_that_decides_the_numbers() -> None:
    identity = json.loads(json.dumps(general._identity(SHA)))
    assert set(identity) == {"format", "base_sha256", "text_sha256", "window", "context", "k", "llama_cpp"}


@pytest.mark.real_model
def test_the_divergence_of_the_real_model_is_nearly_the_true_one(model_path: Path, tmp_path: Path) -> None:
    path = random_lora(tmp_path / "a.gguf", model_path, seed=3, deviation=0.03)
    with Scorer(Arm(model_path), 2, longest=WINDOW + 1) as scorer:
        known = read(scorer, SHA, 2, tmp_path / "cache")
        assert 2.0 < float(known.losses.mean()) < 4.5  # ordinary text to it; a random model would have 10.8
    with Scorer(Arm(model_path, path), 2, longest=WINDOW + 1) as scorer:
        coarse = compare(scorer, known, 2).kl
    true = divergence_by_hand(model_path, path, 2)
    assert 0.005 < true < 1
    assert 0.85 * true <= coarse <= true
