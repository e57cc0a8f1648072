"""`edgepd watch`: one frame, the frames of a change, JSON, a terminal, and its ends."""

from __future__ import annotations

import json
from collections import deque

import pytest
from rich.console import Console

from edgepd.cli.watch import bar, frame, speed
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import ACTIVITY, NUMBERS, RUN, FakeDaemon, Json

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
        "training  none is going on\n"
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
        "last      run 4 (baked) rejected: perplexity rose\n"
        "Problem: the disk is full\n"
    )


def test_a_run_that_begins(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    def rows(progress: Json | None) -> list[str]:
        daemon.on(ROUTE, activity({"state": "loading", "loading_percent": 41.6}, run=RUN, progress=progress))
        return edgepd("watch", "--once").stdout.splitlines()[1:]

    engine = "engine    loading 42 %, 0 of 4 answers running, 0 waiting"
    assert rows(None) == [engine, "training  run r1 (live) starting"]
    assert rows({"stage": "load", "done": 0, "total": 0}) == [engine, "training  run r1 (live) load"]


def test_the_last_verdict_comes_with_its_numbers() -> None:
    last = {**RUN, "id": 4, "state": "promoted", "generation": 2, "numbers": NUMBERS}
    assert frame(activity({"tokens_per_second": None}, last=last)).splitlines()[3:] == [
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


def test_a_terminal_shows_the_frame_in_place(
    daemon: FakeDaemon, edgepd: Edgepd, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd.cli.watch.Console", lambda: Console(force_terminal=True, width=100))
    daemon.on(ROUTE, training(done=4), training(done=8, paused="waits [bold] for you"))
    result = edgepd("watch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "train 4/16" in result.stdout
    assert "paused    waits [bold] for you" in result.stdout  # what was said is not taken for markup
    assert "\x1b[1A" in result.stdout  # the cursor goes up to draw over what was there
    assert result.stdout.endswith("\x1b[?25h")  # and is visible again at the end


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


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "[..............................] 0%"),
        (0.5, "[###############...............] 50%"),
        (1.0, "[##############################] 100%"),
        (1.5, "[##############################] 100%"),
    ],
)
def test_bar(share: float, text: str) -> None:
    assert bar(share) == text
