"""`edgepd train`."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from edgepd.cli.output import duration, moment
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import NUMBERS, RUN, FakeDaemon, Json, Reply, error

START = "POST /edgepd/v1/training"
PLAN = "POST /edgepd/v1/training/plan"
PROGRESS = {
    "stage": "train",
    "done": 3,
    "total": 10,
    "loss": 3.1,
    "held_out_loss": 3.25,
    "tokens_per_second": 180.0,
    "seconds_left": 75.0,
    "rss_mb": 512.4,
    "paused": None,
}


@pytest.fixture
def trainer(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    monkeypatch.setattr("edgepd.cli.train.POLL_S", 0.001)
    daemon.on(START, Reply({"run": RUN}, 202))
    return daemon


def ends(daemon: FakeDaemon, **fields: object) -> None:
    """Let the run end so, after two looks at its progress."""
    running: list[Json] = [{"run": RUN, "progress": None}, {"run": RUN, "progress": PROGRESS}]
    daemon.on("GET /edgepd/v1/training/r1", *running, {"run": {**RUN, **fields}, "progress": None})


def test_promoted(trainer: FakeDaemon, edgepd: Edgepd) -> None:
    ends(trainer, state="promoted", generation=4, numbers=NUMBERS)
    result = edgepd("train")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "promoted: generation 4 (live) is live\n"
        "  held-out loss 3.215 -> 2.900 nats/token on 4 examples that it was not trained on\n"
        "  perplexity of general text +0.41%\n"
        "  load 0.3 s, train 12.0 s\n"
    )
    assert trainer.asked("/edgepd/v1/training") == [{"kind": "live"}]
    assert len(trainer.asked("/edgepd/v1/training/r1")) == 3


@pytest.mark.parametrize("state", ["rejected", "failed", "interrupted"])
def test_not_promoted_ends_with_7(trainer: FakeDaemon, edgepd: Edgepd, state: str) -> None:
    ends(trainer, state=state, reason="held-out loss rose")
    result = edgepd("train", "--baked")
    assert (result.exit_code, result.stdout, result.stderr) == (7, f"{state}: held-out loss rose\n", "")
    assert trainer.asked("/edgepd/v1/training") == [{"kind": "baked"}]


def test_a_run_that_was_parked_says_that_it_goes_on_later(trainer: FakeDaemon, edgepd: Edgepd) -> None:
    ends(trainer, state="parked", reason="another program needs the memory")
    result = edgepd("train")
    expected = "parked: another program needs the memory; what was done is kept, and it goes on later\n"
    assert (result.exit_code, result.stdout) == (7, expected)


def test_tuning_what_is_next(trainer: FakeDaemon, edgepd: Edgepd) -> None:
    numbers = {"nll_before": 1.8, "nll_after": 1.4329, "held_out_events": 25, "train_s": 12.04}
    numbers |= {"ndcg_3_before": 0.41, "ndcg_3_after": 0.5236}
    ends(trainer, kind="intent", state="promoted", numbers=numbers)
    result = edgepd("train", "--intent")
    assert (result.exit_code, result.stdout) == (
        0,
        "promoted: the tuned model of what is next is live\n"
        "  held-out loss 1.800 -> 1.433 nats/event on 25 events that it was not tuned on\n"
        "  rank of what came, N@3, 0.410 -> 0.524; 1 is always first, 0 never among three\n"
        "  train 12.0 s\n",
    )
    assert trainer.asked("/edgepd/v1/training") == [{"kind": "intent"}]
    ends(trainer, kind="intent", state="parked", reason="a question came")
    assert edgepd("train", "--intent").stdout == "parked: a question came; it begins again later\n"
    result = edgepd("train", "--intent", "--baked")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --baked and --intent are two kinds of run; start one after the other\n",
    )


def test_json(trainer: FakeDaemon, edgepd: Edgepd) -> None:
    ends(trainer, state="rejected", reason="worse", numbers=NUMBERS)
    result = edgepd("train", "--json")
    assert (result.exit_code, result.stderr) == (7, "")
    assert json.loads(result.stdout) == {"run": {**RUN, "state": "rejected", "reason": "worse", "numbers": NUMBERS}}


def test_no_wait_only_starts(trainer: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("train", "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "run r1 has started; edgepd watch shows how it goes\n")
    assert [asked.method for asked in trainer.requests] == ["POST"]


def test_refused(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(START, error(409, "training_refused", "there are 2 examples, but at least 6 are needed"))
    result = edgepd("train")
    assert result.exit_code == 7
    assert result.stderr == "Error: there are 2 examples, but at least 6 are needed\n"


def test_ctrl_c_says_that_the_run_goes_on(trainer: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgepd.cli.train.time.sleep", interrupted)
    result = edgepd("train")
    assert result.exit_code == 130
    assert result.stderr.startswith("run r1 goes on in the daemon; edgepd watch shows it\n")


def test_the_bar_shows_the_numbers(trainer: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminal() -> Console:
        return Console(stderr=True, force_terminal=True, width=160)

    monkeypatch.setattr("edgepd.cli.train.progress_console", terminal)
    paused = {**PROGRESS, "loss": None, "seconds_left": None, "paused": "on battery [bold]"}
    running = [{"run": RUN, "progress": progress} for progress in (PROGRESS, paused)]
    trainer.on("GET /edgepd/v1/training/r1", *running, {"run": {**RUN, "state": "rejected"}, "progress": None})
    drawn = edgepd("train").stderr
    # The bar is drawn ten times a second and once at its end, which shows what was told last.
    assert "held-out 3.250, 180 tokens/s, 512 MiB, paused: on battery [bold]" in drawn


def test_plan(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    plan = {
        "residency": "stream",
        "kept_layers": 0,
        "layers": 30,
        "micro_tokens": 512,
        "kind": "lora",
        "rank": 8,
        "steps": 48,
        "predicted_rss_mb": 420.4,
        "budget_mb": 600,
        "predicted_seconds": 61.5,
        "trained_layers": None,
        "phase_of_the_moon": "full",
        "reasons": ["600 MiB may be used", "fp32 would need 1100 MiB"],
    }
    daemon.on(PLAN, {"plan": plan})
    result = edgepd("train", "--plan")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "weights in memory as   stream\n"
        "layers kept in memory  0\n"
        "layers                 30\n"
        "tokens at a time       512\n"
        "kind                   lora\n"
        "rank                   8\n"
        "optimiser steps        48\n"
        "memory                 420 MiB\n"
        "memory allowed         600 MiB\n"
        "time                   1 min 1 s\n"
        "trained layers         -\n"
        "phase of the moon      full\n"
        "- 600 MiB may be used\n"
        "- fp32 would need 1100 MiB\n"
    )
    assert json.loads(edgepd("train", "--plan", "--baked", "--json").stdout) == plan
    assert daemon.asked("/edgepd/v1/training/plan") == [{"kind": "live"}, {"kind": "baked"}]
    assert daemon.asked("/edgepd/v1/training") == []


def test_plan_of_tuning_what_is_next(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(PLAN, {"plan": {"learned_events": 160, "held_out_events": 40}})
    assert edgepd("train", "--intent", "--plan").stdout == (
        "events to tune on         160\nnewer events to judge by  40\n"
    )
    assert daemon.asked("/edgepd/v1/training/plan") == [{"kind": "intent"}]


def test_a_plan_without_reasons_or_parts(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(PLAN, {"plan": {"rank": 8}})
    assert edgepd("train", "--plan").stdout == "rank  8\n"
    daemon.on(PLAN, {"plan": {"reasons": ["nothing fits"]}})
    assert edgepd("train", "--plan").stdout == "- nothing fits\n"


def test_a_plan_that_is_refused_ends_with_7(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(PLAN, error(409, "training_refused", "no plan fits into 100 MiB; the nearest needs 240 MiB"))
    result = edgepd("train", "--plan")
    assert (result.exit_code, result.stdout) == (7, "")
    assert result.stderr == "Error: no plan fits into 100 MiB; the nearest needs 240 MiB\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90000, "25 h 0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_unknown_moment() -> None:
    assert moment(None) == "-"
