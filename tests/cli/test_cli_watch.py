"""`edgepd watch`: one frame, the frames of a change, JSON, a terminal, and its ends."""

from __future__ import annotations

import functools
import json
from collections import deque

import pytest
from rich.console import Console

from edgepd.cli.watch import frame, speed
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import ACTIVITY, DECISION, NUMBERS, PREDICTION, READINGS, RUN, FakeDaemon, Json, error

ROUTE = "GET /edgepd/v1/activity"
PROGRESS: Json = {
    "stage": "train",
    "done": 4,
    "total": 16,
    "loss": 2.5,
    "held_out_loss": 2.75,
    "tokens_per_second": 180.4,
    "seconds_left": 75.2,
    "rss_mb": 512.4,
    "paused": None,
}
BUDGET = (
    "learning  1.5 of the weight 4 of new feedback that starts a short run\n"
    "budget    12.1 of 60 minutes used today, battery 62 %, on mains\n"
)
LAST: Json = {**RUN, "id": 4, "kind": "baked", "state": "rejected", "reason": "perplexity rose", "numbers": {}}


def activity(engine: Json | None = None, **training: object) -> Json:
    """What the daemon does, with these changes."""
    return {
        **ACTIVITY,
        "engine": {**ACTIVITY["engine"], **(engine or {})},
        "training": {**ACTIVITY["training"], **training},
    }


def training(**progress: object) -> Json:
    return activity(run={**RUN, "id": 5}, progress={**PROGRESS, **progress}, last=LAST)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the user press Ctrl-C at the fourth look; return the waits before it."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("edgepd.cli.watch.time.sleep", wait)
    return waits


def test_once_when_nothing_happens(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(ROUTE, ACTIVITY)
    result = edgepd("watch", "--once")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "model     tiny, generation 3 (live)\n"
        "engine    ready, 0 of 4 answers running, 0 waiting\n"
        "training  none is going on\n" + BUDGET
    )
    assert len(daemon.requests) == 1


def test_once_while_answering_looks_twice_for_the_speed(daemon: FakeDaemon, edgepd: Edgepd, looks: list[float]) -> None:
    busy = {"active": 2, "queued": 1}
    daemon.on(ROUTE, activity({**busy, "tokens_generated": 900}), activity({**busy, "tokens_generated": 950}))
    lines = edgepd("watch", "--once").stdout.splitlines()
    assert lines[1].startswith("engine    ready, 2 of 4 answers running, 1 waiting, ")
    assert lines[1].endswith(" tokens/s")
    assert looks == [0.5]


def test_a_training_run(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(ROUTE, {**training(paused="on battery"), "problems": ["the disk is full"]})
    assert edgepd("watch", "--once").stdout == (
        "model     tiny, generation 3 (live)\n"
        "engine    ready, 0 of 4 answers running, 0 waiting\n"
        "training  run 5 (live) train 4/16\n"
        "          [########......................] 25%\n"
        "          loss 2.500, held-out 2.750, 180 tokens/s, 512 MiB, 1 min 15 s left\n"
        "paused    on battery\n"
        "last      run 4 (baked) rejected: perplexity rose\n" + BUDGET + "Problem: the disk is full\n"
    )


def test_a_run_that_begins(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    def rows(progress: Json | None) -> list[str]:
        daemon.on(ROUTE, activity({"state": "loading", "loading_percent": 41.6}, run=RUN, progress=progress))
        return edgepd("watch", "--once").stdout.splitlines()[1:3]

    engine = "engine    loading 42 %, 0 of 4 answers running, 0 waiting"
    assert rows(None) == [engine, "training  run r1 (live) starting"]
    assert rows({"stage": "load", "done": 0, "total": 0}) == [engine, "training  run r1 (live) load"]


def test_prediction_and_its_runs() -> None:
    tuning = {**RUN, "id": 5, "kind": "intent"}
    view = activity({"tokens_per_second": None}, run=tuning, last={**tuning, "id": 4, "state": "promoted"})
    assert frame(view | {"prediction": PREDICTION | {"warmed": 0}}).splitlines()[2:-2] == [
        "training    run 5 (tuning what is next) starting",
        "last        run 4 (tuning what is next) promoted: the tuned model of what is next is live",
        "prediction  shipped model, 1,234 events, of 40 foreseen 42% first, 75% in three",
    ]


def test_the_last_verdict_comes_with_its_numbers() -> None:
    last = {**RUN, "id": 4, "state": "promoted", "generation": 2, "numbers": NUMBERS}
    assert frame(activity({"tokens_per_second": None}, last=last)).splitlines()[3:-2] == [
        "last      run 4 (live) promoted: generation 2 (live) is live",
        "          held-out loss 3.215 -> 2.900 nats/token on 4 examples that it was not trained on",
        "          perplexity of general text +0.41%",
        "          load 0.3 s, train 12.0 s",
    ]


def test_only_changes_are_written_until_ctrl_c(daemon: FakeDaemon, edgepd: Edgepd, looks: list[float]) -> None:
    daemon.on(ROUTE, training(done=4), training(done=4), training(done=8))
    result = edgepd("watch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line for line in result.stdout.splitlines() if "train " in line] == [
        "training  run 5 (live) train 4/16",
        "training  run 5 (live) train 8/16",
    ]
    assert len(daemon.requests) == len(looks) == 4
    assert set(looks) == {0.5}


def test_json_is_one_line_for_each_change(daemon: FakeDaemon, edgepd: Edgepd, looks: list[float]) -> None:
    daemon.on(ROUTE, ACTIVITY, training(loss=2.5), training(loss=2.5), training(loss=2.25))
    result = edgepd("watch", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    idle = {"tokens_per_second": 0.0}
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        activity(idle),
        *({**training(loss=loss), "engine": {**ACTIVITY["engine"], **idle}} for loss in (2.5, 2.25)),
    ]


def test_json_once(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(ROUTE, ACTIVITY)
    [line] = edgepd("watch", "--once", "--json").stdout.splitlines()
    assert json.loads(line) == activity({"tokens_per_second": 0.0})


def budgeted(**changed: object) -> Json:
    """What the daemon does, with these changes of its budget."""
    return {**ACTIVITY, "budget": {**ACTIVITY["budget"], **changed}}


@pytest.mark.parametrize("args", [("watch",), ("watch", "--json")])
def test_a_sensor_that_moves_is_no_change(
    daemon: FakeDaemon, edgepd: Edgepd, looks: list[float], args: tuple[str, ...]
) -> None:
    moved = {
        "readings": {**READINGS, "at": 2000.5, "temperature_c": 57.0, "battery_percent": 61.0},
        "decision": {**DECISION, "at": 1990.5, "reason": "1.6 of the weight 4 of new feedback"},
        "today": {"at_work_s": 727.0, "limit_s": 3600.0, "cpu_s": 601.0},
    }
    later = {"at_work_s": 781.0, "limit_s": 3600.0, "cpu_s": 601.0}
    memory = {**ACTIVITY, "memory": {"rss_bytes": 1}}
    daemon.on(ROUTE, ACTIVITY, budgeted(**moved), memory, budgeted(today=later))
    written = edgepd(*args).stdout
    models = written.count("model  ") if args == ("watch",) else written.count("\n")
    assert models == 2  # the first one, and the next minute at work


def test_another_decision_is_a_change(daemon: FakeDaemon, edgepd: Edgepd, looks: list[float]) -> None:
    held = {**DECISION, "constraint": "mains", "action": "wait"}
    daemon.on(ROUTE, ACTIVITY, budgeted(decision=held), budgeted(paused=True, decision=held))
    assert edgepd("watch", "--json").stdout.count("\n") == 3


def test_a_daemon_that_knows_no_budget(daemon: FakeDaemon, edgepd: Edgepd, looks: list[float]) -> None:
    new = ("budget", "generations", "feedback", "curve", "memory")
    daemon.on(ROUTE, {name: value for name, value in ACTIVITY.items() if name not in new})
    result = edgepd("watch")
    assert (result.exit_code, "learning" in result.stdout, result.stdout.count("model  ")) == (0, False, 1)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of a good size; its own variables would otherwise decide."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    made = functools.partial(Console, force_terminal=True, width=100, height=30)
    monkeypatch.setattr("edgepd.cli.watch.Console", made)


ENTER, LEAVE, SHOW_CURSOR, HOME = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h", "\x1b[H"


def test_a_terminal_is_filled_and_left_as_it_was(
    daemon: FakeDaemon, edgepd: Edgepd, looks: list[float], terminal: None
) -> None:
    daemon.on(ROUTE, training(done=4), training(done=8, paused="waits [bold] for you"))
    result = edgepd("watch")
    assert (result.exit_code, result.stderr) == (0, "")
    screen = result.stdout
    assert screen.count(ENTER) == screen.count(LEAVE) == 1
    assert "train 4/16" in screen
    assert "waits [bold] for you" in screen  # what was said is not taken for markup
    assert screen.count(HOME) == 1 + 2  # at the start, and for the two of the four looks that showed something new
    assert "\x1b[2J" not in screen.split("train 4/16", 1)[1]  # and never cleared, which would flicker
    assert screen.rindex(SHOW_CURSOR) > screen.index("train 8/16")
    assert screen.rindex(LEAVE) > screen.index("train 8/16")


def test_a_terminal_that_cannot_move_its_cursor_gets_text(
    daemon: FakeDaemon, edgepd: Edgepd, looks: list[float], terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    daemon.on(ROUTE, ACTIVITY)
    assert "\x1b" not in edgepd("watch").stdout


def test_a_daemon_that_is_restarted_is_waited_for(
    daemon: FakeDaemon, edgepd: Edgepd, looks: list[float], terminal: None
) -> None:
    busy = error(503, "busy", "the daemon [red]\x1b]0;stops")
    daemon.on(ROUTE, ACTIVITY, busy, training(done=12))
    result = edgepd("watch")
    assert (result.exit_code, result.stderr) == (0, "")
    waiting, back = result.stdout.index("the daemon does not answer; waiting"), result.stdout.index("train 12/16")
    assert waiting < back
    assert "the daemon [red]\N{REPLACEMENT CHARACTER}]0;stops" in result.stdout
    assert result.stdout.count(LEAVE) == 1


def test_a_daemon_that_is_gone_and_comes_back(
    daemon: FakeDaemon, edgepd: Edgepd, terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = daemon.socket.with_name("away")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            daemon.socket.rename(away)
        elif len(waits) == 2:
            away.rename(daemon.socket)
        elif len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("edgepd.cli.watch.time.sleep", wait)
    daemon.on(ROUTE, ACTIVITY, training(done=12))
    result = edgepd("watch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.index("the daemon does not answer; waiting") < result.stdout.index("train 12/16")


def test_a_daemon_that_was_never_there_is_an_error_on_a_terminal_too(edgepd: Edgepd, terminal: None) -> None:
    result = edgepd("watch")
    assert (result.exit_code, result.stdout) == (3, "")


def test_a_daemon_that_ends_while_it_is_watched(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        daemon.socket.unlink()

    monkeypatch.setattr("edgepd.cli.watch.time.sleep", stop)
    daemon.on(ROUTE, ACTIVITY)
    result = edgepd("watch")
    assert result.exit_code == 3
    assert result.stdout.startswith("model     tiny")
    assert result.stderr.startswith("Error: no daemon answers on ")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([(10.0, 900)], None),
        ([(10.0, 900), (10.5, 950)], 100.0),
        ([(10.0, 900), (10.5, 950), (12.0, 960)], 30.0),
        ([(10.0, 900), (10.5, 900)], 0.0),
        ([(10.0, 900), (10.5, 3)], None),  # another daemon, which counts anew
        ([(10.0, 900), (10.0, 950)], None),
    ],
)
def test_speed_is_that_between_the_first_and_the_last_look(seen: list[tuple[float, int]], expected: float) -> None:
    assert speed(deque(seen)) == expected
