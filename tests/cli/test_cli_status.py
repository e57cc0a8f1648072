"""`edgepd status`: one screen, and what it says of the engine, a run, the budget and problems."""

from __future__ import annotations

import json

import pytest

from edgepd.cli.output import moment
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import BUDGET, PREDICTION, RUN, STATUS, FakeDaemon, Json

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


def status_lines(daemon: FakeDaemon, edgepd: Edgepd, **changed: object) -> dict[str, str]:
    """What `edgepd status` says, by the words at the start of the line."""
    daemon.on("GET /edgepd/v1/status", {**STATUS, **changed})
    rows = [line.split("  ", 1) for line in edgepd("status").stdout.splitlines() if "  " in line]
    return {name: value.strip() for name, value in rows}


def test_status(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /edgepd/v1/status", STATUS)
    result = edgepd("status")
    assert result.exit_code == 0
    assert result.stdout == (
        "daemon        0.1.0, pid 4711, up 1 h 2 min\n"
        "listens on    /run/edgepd.sock\n"
        "model         tiny (/models/tiny.gguf)\n"
        "generation    3 (live)\n"
        "engine        ready; threads: 2, slots: 4\n"
        "in memory     tiny.gguf, 98 MiB, for 4 min 3 s more if nobody asks\n"
        "answers       1 running, 2 waiting\n"
        "tokens        900 generated, 1200 in prompts, of which 300 came from the cache\n"
        "switches      5, the last in 0.21 ms\n"
        "interactions  40\n"
        "feedback      3 thumbs up, 1 down, 12 corrections; 13 examples to learn from\n"
        "training      none yet\n"
        "learning      1.5 of the weight 4 of new feedback that starts a short run\n"
        "budget        12.1 of 60 minutes used today, battery 62 %, on mains\n"
        "memory        180 MiB\n"
    )
    assert json.loads(edgepd("status", "--json").stdout) == STATUS


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ({"state": "unloaded", "models": []}, "no model loaded; the next request loads it; threads: 2, slots: 4"),
        ({"state": "loading", "loading_percent": 41.6}, "loading the model, 42 %; threads: 2, slots: 4"),
        ({"state": "failed"}, "failed; the log of the daemon says why; threads: 2, slots: 4"),
    ],
)
def test_status_of_the_engine(daemon: FakeDaemon, edgepd: Edgepd, engine: Json, text: str) -> None:
    lines = status_lines(daemon, edgepd, engine={**STATUS["engine"], **engine})
    assert lines["engine"] == text
    assert ("in memory" in lines) is (engine.get("models") != [])


def test_status_of_a_daemon_that_stops(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    assert status_lines(daemon, edgepd, draining=True)["engine"] == "stopping; threads: 2, slots: 4"


def test_status_of_a_loopback_port_and_a_model_that_stays(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    model = {"path": "/models/tiny.gguf", "size_bytes": 2**20, "expires_in_s": None}
    engine = {**STATUS["engine"], "models": [model], "cached_tokens": 0, "switches": 0, "last_switch_ms": 0.0}
    lines = status_lines(daemon, edgepd, tcp_port=4000, engine=engine)
    assert lines["listens on"] == "/run/edgepd.sock and 127.0.0.1:4000"
    assert lines["in memory"] == "tiny.gguf, 1 MiB, stays"
    assert lines["tokens"] == "900 generated, 1200 in prompts"
    assert lines["switches"] == "0"


def test_status_of_prediction(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    told = (
        "shipped model, 1,234 events, of 40 foreseen 42% first, 75% in three, 9 of 12 prompts computed ahead were used"
    )
    assert status_lines(daemon, edgepd, prediction=PREDICTION)["prediction"] == told
    off = status_lines(daemon, edgepd, prediction=PREDICTION | {"enabled": False})
    assert off["prediction"] == "prediction is switched off (intent.enabled)"
    tuning = {**RUN, "kind": "intent"}
    lines = status_lines(daemon, edgepd, training={"run": tuning, "progress": None})
    assert lines["training"] == "run r1 (tuning what is next) running"


def test_status_of_a_run_and_problems(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    busy = {"training": {"run": RUN, "progress": PROGRESS}, "problems": ["the disk is full", "restart it"]}
    assert status_lines(daemon, edgepd, **busy)["training"] == (
        "run r1 (live) running: train 3/10, loss 3.100, held-out 3.250, 180 tokens/s, 512 MiB, 1 min 15 s left"
    )
    assert edgepd("status").stdout.splitlines()[-2:] == ["Problem: the disk is full", "Problem: restart it"]
    loading = {"training": {"run": RUN, "progress": {"stage": "load", "done": 0, "total": 0}}}
    assert status_lines(daemon, edgepd, **loading)["training"] == "run r1 (live) running: load"
    ended = {"training": {"run": {**RUN, "state": "rejected", "reason": "worse"}, "progress": None}}
    assert status_lines(daemon, edgepd, **ended)["training"] == "run r1 (live) rejected: worse"


@pytest.mark.parametrize(
    ("battery", "text"),
    [
        ({"percent": 62.0, "on_ac": True}, ", battery 62 %, on mains"),
        ({"percent": 62.0, "on_ac": False}, ", on battery at 62 %"),
        ({"percent": 62.0, "on_ac": None}, ", battery 62 %"),
        ({"percent": 0.0, "on_ac": False}, ", on battery at 0 %"),
        ({"percent": None, "on_ac": True}, ", on mains"),
        ({"percent": None, "on_ac": False}, ", on battery"),
        ({"percent": None, "on_ac": None}, ""),
    ],
)
def test_status_of_the_battery(daemon: FakeDaemon, edgepd: Edgepd, battery: Json, text: str) -> None:
    lines = status_lines(daemon, edgepd, budget={**BUDGET, "battery": battery})
    assert lines["budget"] == f"12.1 of 60 minutes used today{text}"


def test_status_of_a_pause(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    given = {**BUDGET, "battery": {"percent": None, "on_ac": None}, "paused": True}
    endless = status_lines(daemon, edgepd, budget=given)["budget"]
    assert endless == "12.1 of 60 minutes used today, paused until you resume it"
    until = status_lines(daemon, edgepd, budget={**given, "paused_until": 5000.0})["budget"]
    assert until == f"12.1 of 60 minutes used today, paused until {moment(5000.0)}"


def test_status_of_a_daemon_that_knows_no_budget(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /edgepd/v1/status", {name: value for name, value in STATUS.items() if name != "budget"})
    result = edgepd("status")
    assert (result.exit_code, "budget" in result.stdout) == (0, False)
