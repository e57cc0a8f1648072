"""The dashboard of `edgepd watch`: what it shows in which state, that it keeps to the terminal, and how it plots."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgepd.cli.dashboard import dashboard, unreachable
from edgepd.cli.plot import BLOCKS, PLAIN, bar, plot, sparkline
from tests.cli.fake_daemon import ACTIVITY, DECISION, PREDICTION, READINGS, RUN, Json

NOW = 2000.0
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
CHILD: Json = {"pid": 4711, "paused": None, "cpu_percent": 41.0, "rss_mb": 512.4}
LAST: Json = {**RUN, "id": 4, "kind": "baked", "state": "rejected", "reason": "perplexity rose", "numbers": {}}
CURVE = [[step, 4.0 - step / 100] for step in range(1, 101)]
TRAINING: Json = {"run": {**RUN, "id": 5}, "progress": PROGRESS, "last": LAST}


def look(**changed: Any) -> Json:
    """What the daemon does, with these changes; those of `budget` and `engine` change a part."""
    engine = {**ACTIVITY["engine"], "tokens_per_second": 0.0, **changed.pop("engine", {})}
    budget = {**ACTIVITY["budget"], **changed.pop("budget", {})}
    return {**ACTIVITY, "engine": engine, "budget": budget, **changed}


def drawn(view: Json, width: int = 80, height: int = 24, speeds: tuple[float, ...] = (), **console: Any) -> list[str]:
    """Return the lines that fill a terminal of this size."""
    file = StringIO()
    made = Console(file=file, width=width, height=height, **{"force_terminal": False, "_environ": {}, **console})
    made.print(dashboard(view, speeds, made, NOW), height=height)
    return file.getvalue().splitlines()


def said(view: Json, **options: Any) -> str:
    return "\n".join(drawn(view, **options))


def test_nothing_happens() -> None:
    text = said(look(), speeds=(0.0, 0.0))
    assert "edgepd  tiny, generation 3 (live)" in text
    for piece in ("serving", "ready", "0 of 4 running, 0 waiting", "0.0 tokens/s", "180 MiB"):
        assert piece in text
    for piece in ("12 of 60 min", "battery 62 %, on mains", "56 °C, others 12 % CPU", "memory 0.0 %, disk 0.2 %"):
        assert piece in text
    assert "none is going on" in text
    assert [line.split() for line in drawn(look())[-12:] if "3.22->2.90" in line] == [
        ["│", "3", "live", "active", "3.22->2.90", "10", "min", "││", "3", "min", "edit", "editor", "│"]
    ]
    assert "problems" not in text


def test_a_training_run_with_all_that_is_known_of_it() -> None:
    child = CHILD | {"cpu_limit_percent": 50.0, "planned_mb": 700.0}
    text = said(look(training=TRAINING, curve=CURVE, budget={"trainer": child}))
    assert "5 (live) train 4/16" in text
    assert "[#####...............] 25%  1 min 15 s left" in text
    assert "180 tokens/s, CPU 41 % of 50 %, memory 512 MiB of 700 MiB" in text
    assert "3.990 at step 1, 3.000 at step 100, held-out 2.750" in text
    assert "run 4 (baked) rejected: perplexity rose" in text
    assert "█▇" in text


def test_prediction_has_one_line_and_its_runs_a_name() -> None:
    tuning = {**RUN, "id": 5, "kind": "intent"}
    text = said(look(prediction=PREDICTION, training={"run": tuning, "progress": None, "last": tuning | {"id": 4}}))
    assert "foreseen  42% first, 75% in three" in text
    assert "5 (tuning what is next) starting" in text
    assert "run 4 (tuning what is next) run 4 has started" in text
    assert "foreseen  switched off" in said(look(prediction=PREDICTION | {"enabled": False}))


@pytest.mark.parametrize("prediction", [None, PREDICTION])
def test_all_panels_are_there_on_eighty_columns_and_twenty_four_lines(prediction: Json | None) -> None:
    view = look(training=TRAINING, curve=CURVE, budget={"trainer": CHILD}, prediction=prediction)
    lines = drawn(view)
    assert len(lines) == 24
    assert all(len(line) == 80 for line in lines[1:])
    titles = [
        title
        for title in ("serving", "budget", "training", "generations", "feedback")
        if f"─ {title} ─" in "\n".join(lines)
    ]
    assert titles == ["serving", "budget", "training", "generations", "feedback"]
    assert "…" not in "\n".join(lines)


def test_a_run_that_begins_and_one_without_a_curve() -> None:
    begun: Json = {"run": {**RUN, "id": 5}, "progress": None, "last": None}
    assert "5 (live) starting" in said(look(training=begun))
    first = {**begun, "progress": {**PROGRESS, "held_out_loss": None}}
    text = said(look(training=first, curve=[[1, 2.5]]))
    assert "loss      2.500 " in text
    assert "at step" not in text
    assert "loss" not in said(look(training={**begun, "progress": {"stage": "load", "done": 0, "total": 0}}))
    assert "3.000 at step 9" in said(look(training=first, curve=[[1, 4.0], [5, None], [9, 3.0]]))


@pytest.mark.parametrize("where", ["progress", "trainer"])
def test_a_run_that_is_paused_says_why(where: str) -> None:
    why = "an answer is being generated"
    progress = {**PROGRESS, "paused": why if where == "progress" else None}
    child = CHILD | {"paused": why if where == "trainer" else None}
    view = look(training={**TRAINING, "progress": progress}, budget={"trainer": child})
    assert f"paused    {why}" in said(view)


def test_sensors_that_are_not_there_are_left_out() -> None:
    text = said(look(budget={"readings": dict.fromkeys(READINGS)}))
    for piece in ("power", "machine", "pressure", "None", "°C"):
        assert piece not in text
    some = {**dict.fromkeys(READINGS), "temperature_c": 70.0, "io_pressure": 3.0, "on_ac": False}
    lines = said(look(budget={"readings": some}))
    for piece in ("power     on battery ", "machine   70 °C ", "pressure  disk 3.0 % "):
        assert piece in lines


def test_a_pause_quiet_hours_and_a_day_without_a_limit() -> None:
    limits = {**ACTIVITY["budget"]["limits"], "quiet_hours": "22:00-07:00"}
    today = {"at_work_s": 726.0, "limit_s": None, "cpu_s": 0.0}
    text = said(look(budget={"paused": True, "limits": limits, "today": today}))
    for piece in ("user      paused until you", "quiet     22:00-07:00", "today     12.1 minutes used today"):
        assert piece in text
    assert "0 of 0 min" not in said(look(budget={"today": {**today, "limit_s": 0.0}}))


def test_a_model_that_loads() -> None:
    text = said(look(engine={"state": "loading", "loading_percent": 50.0, "tokens_per_second": None}))
    assert "loading [#####.....] 50%" in text
    assert "speed     - " in text


def test_problems_are_red_and_at_the_bottom_and_never_pushed_out() -> None:
    view = look(training=TRAINING, curve=CURVE, problems=["the disk is full", "restart it"])
    for height in (10, 24, 40):
        lines = drawn(view, height=height)
        assert len(lines) == height
        text = "\n".join(lines)
        assert "the disk is full" in text
        assert text.index("restart it") > text.index("serving")
    coloured = said(view, force_terminal=True, color_system="standard")
    assert "\x1b[31mthe disk is full" in coloured
    many = said(look(problems=[f"problem {number}" for number in range(9)]))
    assert "and 6 more; edgepd status has them all" in many


def test_no_colours_if_none_are_wanted() -> None:
    view = look(training=TRAINING, curve=CURVE, problems=["the disk is full"])
    coloured = said(view, force_terminal=True, color_system="standard", _environ={"NO_COLOR": "1"})
    assert "\x1b[3" not in coloured.replace("\x1b[39", "")


def test_what_the_daemon_says_is_text_without_markup_or_control_characters() -> None:
    evil = "a [bold]b[/bold] \x1b]0;title\x07 \x9b2J\nc"
    row = {"at": 1.0, "kind": evil, "value": None, "app": evil}
    generation = {**ACTIVITY["generations"][0], "kind": evil, "state": evil}
    view = look(
        model=evil,
        problems=[evil],
        feedback=[row],
        generations=[generation],
        training={**TRAINING, "progress": {**PROGRESS, "stage": evil, "paused": evil}},
        budget={"decision": {**DECISION, "action": evil, "reason": evil}},
    )
    for height in (24, 60):
        text = said(view, width=160, height=height)
        assert text.isprintable() is False  # because of the ends of lines, and nothing else
        assert text.replace("\n", "").isprintable()
        assert "a [bold]b[/bold] \N{REPLACEMENT CHARACTER}]0;title" in text


def test_a_tall_terminal_makes_the_curve_taller() -> None:
    view = look(training=TRAINING, curve=CURVE)

    def filled(height: int) -> int:
        return sum("█" in line for line in drawn(view, height=height))

    assert filled(24) == 2
    assert filled(40) == 8


def test_a_narrow_terminal_shows_fewer_panels_one_below_the_other() -> None:
    view = look(training=TRAINING, curve=CURVE, budget={"trainer": CHILD})
    text = said(view, width=50, height=24)
    assert "││" not in text
    assert text.index("─ serving ─") < text.index("─ training ─")
    assert "─ generations ─" not in text
    assert "─ budget ─" in said(view, width=50, height=40)


def test_an_older_daemon_has_fewer_panels() -> None:
    new = ("budget", "curve", "generations", "feedback", "memory")
    view = {name: value for name, value in look(training=TRAINING).items() if name not in new}
    text = said(view)
    assert "5 (live) train 4/16" in text
    assert "─ budget ─" not in text


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    training=st.booleans(),
    curve=st.lists(st.none() | st.floats(-10, 10), max_size=30),
    problems=st.lists(st.text(max_size=200), max_size=5),
    reason=st.text(max_size=200),
    speeds=st.lists(st.floats(0, 1000), max_size=250),
)
def test_nothing_is_drawn_outside_the_terminal(
    width: int,
    height: int,
    training: bool,
    curve: list[float | None],
    problems: list[str],
    reason: str,
    speeds: list[float],
) -> None:
    view = look(
        curve=[[step, loss] for step, loss in enumerate(curve, 1)],
        problems=problems,
        budget={"decision": {**DECISION, "reason": reason}, "trainer": CHILD if training else None},
        **({"training": TRAINING} if training else {}),
    )
    file = StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=False, _environ={})
    rendered = console.render_lines(dashboard(view, speeds, console, NOW), console.options.update(height=height))
    assert len(rendered) == height
    assert {sum(segment.cell_length for segment in line) for line in rendered} == {width}


def test_a_daemon_that_does_not_answer() -> None:
    file = StringIO()
    Console(file=file, width=80, _environ={}).print(unreachable("no daemon [answers] on \x1b[2J/run/edgepd.sock"))
    assert "the daemon does not answer; waiting" in file.getvalue()
    assert "no daemon [answers] on \N{REPLACEMENT CHARACTER}[2J/run/edgepd.sock" in file.getvalue()


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([1.0], 5, "▁"),
        ([3.0, 3.0, 3.0], 5, "▁▁▁"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, "▁▂▃▄▅▆▇█"),
        ([7.0, 0.0], 5, "█▁"),
        ([0.0, None, math.nan, math.inf, 7.0], 9, "▁   █"),
        ([0.0, 2.0, 6.0, 8.0], 2, "▁█"),
        ([1.0, 2.0, 3.0], 0, ""),
    ],
)
def test_sparkline(values: list[float | None], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_sparkline_from_zero_and_one_of_plain_characters() -> None:
    assert sparkline([7.0, 7.0], 5, low=0.0) == "██"
    assert sparkline([0.0, 0.0], 5, low=0.0) == "▁▁"
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, levels=PLAIN) == PLAIN


def test_a_plot_of_two_lines_has_twice_the_levels() -> None:
    assert plot([float(n) for n in range(16)], 16, 2) == ["        " + BLOCKS, BLOCKS + "████████"]


@given(
    values=st.lists(st.none() | st.floats(-1e6, 1e6), max_size=300),
    width=st.integers(1, 100),
    height=st.integers(1, 8),
)
def test_a_plot_is_as_wide_as_its_points_and_no_wider_than_its_room(
    values: list[float | None], width: int, height: int
) -> None:
    lines = plot(values, width, height)
    assert {len(line) for line in lines} == {min(len(values), width)}
    assert len(lines) == height
    for above, below in zip(lines, lines[1:], strict=False):
        assert all(b == BLOCKS[-1] for a, b in zip(above, below, strict=True) if a != " ")  # columns have no holes


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
