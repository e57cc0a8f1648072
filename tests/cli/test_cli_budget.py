"""`edgepd budget`: what is shown of the limits, the machine and the decisions, and the pause."""

from __future__ import annotations

import json

import pytest

from edgepd.cli.budget import minutes_in
from edgepd.cli.output import moment
from edgepd.errors import RequestError
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import DECISION, FULL_BUDGET, READINGS, FakeDaemon, Json, error

SHOW = "GET /edgepd/v1/budget"
PAUSE = "POST /edgepd/v1/budget/pause"
RESUME = "DELETE /edgepd/v1/budget/pause"


def test_everything_at_once(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(SHOW, FULL_BUDGET)
    result = edgepd("budget", "show")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "learning  1.5 of the weight 4 of new feedback that starts a short run\n"
        "budget    12.1 of 60 minutes used today, battery 62 %, on mains\n"
        "CPU time  10.0 minutes today\n"
        "to learn  weight 1.5 since the last run, 12.0 since the last consolidation; 40 examples in all\n"
        "preset    laptop\n"
        "\n"
        "limits\n"
        "  cpu_percent  50   config.toml\n"
        "  ac_only      yes  default\n"
        "  quiet_hours  -\n"
        "\n"
        "machine\n"
        "  mains power         yes\n"
        "  battery             62 %\n"
        "  temperature         56 °C\n"
        "  CPU used by others  12 %\n"
        "  memory available    3210 MiB\n"
        "  memory pressure     0.0 %\n"
        "  disk pressure       0.2 %\n"
        "  disk free           51200 MiB\n"
        "\n"
        "decisions\n"
        f"  {moment(1990.0)}  wait   1.5 of the weight 4 of new feedback that starts a short run\n"
        f"  {moment(1000.0)}  start  12 examples are new\n"
    )
    assert json.loads(edgepd("budget", "show", "--json").stdout) == FULL_BUDGET


def test_a_sensor_that_is_not_there_is_not_known(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(SHOW, {**FULL_BUDGET, "readings": dict.fromkeys(READINGS), "decisions": []})
    text = edgepd("budget", "show").stdout
    assert text.count("not known") == 8
    assert "budget    12.1 of 60 minutes used today\n" in text
    assert "decisions" not in text


def test_a_run_that_is_held(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    child = {"pid": 4711, "paused": "on battery at 62 %", "cpu_percent": 40.6, "rss_mb": 512.4}
    more = {"cpu_limit_percent": 50.0, "planned_mb": 700.0}
    demand = {**FULL_BUDGET["demand"], "forgotten": "baked"}
    daemon.on(SHOW, {**FULL_BUDGET, "trainer": child, "automatic": False}, {**FULL_BUDGET, "trainer": child | more})
    text = edgepd("budget", "show").stdout
    assert "trainer   pid 4711, CPU 41 %, memory 512 MiB, paused: on battery at 62 %\n" in text
    assert "preset    laptop, training starts only when it is asked for\n" in text
    assert "pid 4711, CPU 41 % of 50 %, memory 512 MiB of 700 MiB, paused" in edgepd("budget", "show").stdout
    daemon.on(SHOW, {**FULL_BUDGET, "demand": demand})
    assert "a baked run, because of what was forgotten" in edgepd("budget", "show").stdout


@pytest.mark.parametrize(
    ("args", "minutes", "until"),
    [
        ((), None, "until you resume it"),
        (("30m",), 30.0, f"until {moment(3800.0)}"),
        (("2h",), 120.0, f"until {moment(3800.0)}"),
    ],
)
def test_pause(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], minutes: float | None, until: str) -> None:
    held: Json = {**FULL_BUDGET, "paused": True, "paused_until": None if minutes is None else 3800.0}
    daemon.on(PAUSE, held)
    result = edgepd("budget", "pause", *args)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"training is paused {until}; edgepd budget resume ends that\n"
    assert json.loads(edgepd("budget", "pause", *args, "--json").stdout) == held
    assert daemon.asked("/edgepd/v1/budget/pause") == [{"minutes": minutes}] * 2


def test_resume_says_what_comes_of_it(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(RESUME, {**FULL_BUDGET, "decision": {**DECISION, "reason": "idle for 12 s of 5 minutes"}})
    result = edgepd("budget", "resume")
    assert (result.exit_code, result.stdout) == (0, "training is no longer paused: idle for 12 s of 5 minutes\n")


def test_a_refusal_of_the_daemon(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(PAUSE, error(400, "invalid_request", "body.minutes: 1e9 is too much"))
    result = edgepd("budget", "pause", "99999999d")
    assert (result.exit_code, result.stderr) == (2, "Error: body.minutes: 1e9 is too much\n")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30m", 30),
        ("30min", 30),
        ("2h", 120),
        ("1h30m", 90),
        ("1.5h", 90),
        ("1d", 1440),
        ("1d2h3m", 1563),
        (" 2H ", 120),
        ("0.5m", 0.5),
    ],
)
def test_durations(text: str, minutes: float) -> None:
    assert minutes_in(text) == minutes


@pytest.mark.parametrize("text", ["", "30", "0m", "0h0m", "m", "-5m", "30s", "2h ago", "1m2h", "nan", "1e3m", "１h x"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(RequestError, match="is not a duration; write it as 30m, 2h, 1h30m or 1d"):
        minutes_in(text)


def test_a_wrong_duration_does_not_reach_the_daemon(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("budget", "pause", "soon")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: 'soon' is not a duration")
    assert daemon.requests == []
