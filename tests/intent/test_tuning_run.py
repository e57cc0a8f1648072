"""A tuning run from the job to the outcome, with a student that is a list of chances and a tuning that sets them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.job import Outcome, Planned, Progress
from edgepd.errors import ModelError, TrainingError
from edgepd.intent.job import TuneJob
from edgepd.intent.schema import Event
from edgepd.intent.tuning import Means, carry_out
from edgepd.settings import Intent

EVENTS = [Event(3600.0 * n, "ab"[n % 2], "ab"[n % 2]) for n in range(40)]


@dataclass
class Chances:
    """A student that says always the same."""

    of: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> Chances:
        try:
            return cls(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.of))

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        del events, at, utc_offset_s
        return sorted(self.of.items(), key=lambda pair: -pair[1])


@dataclass
class Tuned:
    student: Chances
    report: dict[str, Any]


@dataclass
class Bench:
    """What a run is given, and what it said and did."""

    directory: Path
    becomes: dict[str, float]
    told: list[Progress]
    learned: list[Event]
    seeds: list[int]

    def means(self) -> Means:
        def tune(
            student: Chances,
            events: Sequence[Event],
            settings: Intent,
            seed: int,
            on_step: Callable[[int, int, float], None],
        ) -> Tuned:
            assert student.of == {"a": 0.1, "b": 0.1, "c": 0.8}, "not the shipped one"
            assert settings.seed == seed
            self.learned, self.seeds = list(events), [*self.seeds, seed]
            for step in range(1, 101):
                on_step(step, 100, 1 / step)
            return Tuned(Chances(self.becomes), {"forget_recall_before": 0.5, "forget_recall_after": 0.25})

        return Means(Chances.load, tune, self.told.append, lambda: 321.0, lambda: 333.4)

    def job(self, **changed: Any) -> TuneJob:
        shipped = self.directory / "shipped.npz"
        Chances({"a": 0.1, "b": 0.1, "c": 0.8}).save(shipped)
        output = str(self.directory / "intent-1.npz")
        return replace(TuneJob(str(shipped), None, output, EVENTS, asdict(Intent(seed=3)), 1), **changed)

    def run(self, **changed: Any) -> Outcome:
        found = carry_out(self.job(**changed), self.means())
        assert isinstance(found, Outcome)
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, {"a": 0.5, "b": 0.5}, [], [], [])


def test_what_passes_is_written_and_told(bench: Bench) -> None:
    outcome = bench.run()
    assert outcome.promoted
    assert outcome.reason.startswith("it foresees 8 events that it was not tuned on better (0.693 nats/event)")
    written = (bench.directory / "intent-1.npz").read_bytes()
    assert json.loads(written) == {"a": 0.5, "b": 0.5}
    assert outcome.file_sha256 == hashlib.sha256(written).hexdigest()
    assert outcome.scores["forget_recall_after"] == 0.25
    assert (outcome.scores["nll_before"], outcome.scores["nll_after"]) == (2.3026, 0.6931)
    assert {"load_s", "train_s", "gate_s", "write_s"} <= set(outcome.scores)
    assert outcome.scores["peak_rss_mb"] == 333


def test_what_is_held_out_is_never_tuned_on(bench: Bench) -> None:
    bench.run()
    assert bench.learned == EVENTS[:32]
    assert bench.seeds == [3]
    bench.run(settings=asdict(Intent(seed=3, held_out_share=0.5)))
    assert bench.learned == EVENTS[:20]


def test_what_does_not_pass_leaves_no_file(bench: Bench) -> None:
    bench.becomes = {"a": 0.1, "b": 0.1, "c": 0.8}
    outcome = bench.run()
    assert not outcome.promoted
    assert "it surprises more than the shipped model, which serves" in outcome.reason
    assert outcome.file_sha256 == ""
    assert outcome.scores["nll_after"] == outcome.scores["nll_before"]
    assert [file.name for file in bench.directory.iterdir()] == ["shipped.npz"]


def test_the_tuned_one_that_serves_must_be_beaten(bench: Bench) -> None:
    current = bench.directory / "intent-0.npz"
    Chances({"a": 0.6, "b": 0.6}).save(current)
    outcome = bench.run(current=str(current))
    assert not outcome.promoted
    assert outcome.reason.startswith("it surprises more than the tuned model that serves: 0.693")


@pytest.mark.parametrize("contents", [None, "no student"])
def test_a_damaged_one_does_not_serve_and_is_not_compared_with(bench: Bench, contents: str | None) -> None:
    current = bench.directory / "intent-0.npz"
    if contents is not None:
        current.write_text(contents)
    assert bench.run(current=str(current)).promoted


def test_too_few_events_are_rejected_without_tuning(bench: Bench) -> None:
    outcome = bench.run(events=EVENTS[:15])
    assert (outcome.promoted, outcome.reason) == (
        False,
        "there are not enough events to judge by: 15; it takes 16, of which 8 are held out",
    )
    assert bench.told == []
    assert bench.run(events=EVENTS[:16]).scores["held_out_events"] == 8


def test_a_plan_tunes_nothing(bench: Bench) -> None:
    planned = carry_out(bench.job(plan_only=True), bench.means())
    assert planned == Planned({"learned_events": 32, "held_out_events": 8})
    assert bench.learned == []


def test_a_shipped_one_that_is_missing_is_the_reason(bench: Bench) -> None:
    with pytest.raises(ModelError, match="elsewhere"):
        carry_out(bench.job(shipped="/elsewhere"), bench.means())


def test_the_news_are_in_order_and_few(bench: Bench) -> None:
    bench.run()
    stages = [news.stage for news in bench.told]
    assert stages[0] == "load"
    assert sorted(set(stages), key=stages.index) == ["load", "train", "gate", "write"]
    last = [news for news in bench.told if news.stage == "train"][-1]
    assert (last.done, last.total, last.loss, last.seconds_left, last.rss_mb) == (100, 100, 0.01, 0.0, 321.0)
    assert len(stages) < 60  # a hundred steps and twenty predictions, which took no time


def test_an_error_of_the_tuning_is_the_reason(bench: Bench) -> None:
    means = replace(bench.means(), tune=_breaks)
    with pytest.raises(TrainingError, match="diverged"):
        carry_out(bench.job(), means)


def _breaks(*_: object) -> Tuned:
    raise TrainingError("it diverged")
