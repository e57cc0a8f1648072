"""Situations that the tests of the scheduler start from: everything is well, and a run is due."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgepd.settings import Budget
from edgepd_daemon.scheduler.decide import decide
from edgepd_daemon.scheduler.types import Decision, Demand, Readings, Running, State

DAY = 86_400.0
MIN_EXAMPLES = 10
NOON = 720
BUDGET = Budget()
WELL = Readings(
    at=1_800_000_000.0,
    minute_of_day=NOON,
    busy=False,
    idle_s=3600.0,
    on_ac=True,
    battery_percent=80.0,
    temperature_c=50.0,
    other_cpu_percent=5.0,
    available_mb=4000.0,
    memory_pressure=0.0,
    io_pressure=0.0,
    free_disk_mb=50_000.0,
)
LIVE_DUE = Demand(live_weight=5.0, baked_weight=5.0, examples=20)
BOTH_DUE = Demand(live_weight=5.0, baked_weight=50.0, examples=60)
BAKED_DUE = Demand(live_weight=2.0, baked_weight=50.0, examples=60)
TUNING_DUE = Demand(intent_events=40, intent_enough=40)
UNASKED = Running("live", asked=False, reviewing=False, planned_mb=1000.0, paused_s=0.0)
ASKED = replace(UNASKED, asked=True)

# A change of WELL that breaks one constraint, the name of that, and the sentence for a start.
BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"free_disk_mb": 900.0}, "disk", "waits for disk space: 900 MiB are free, 1024 MiB are needed"),
    ({"on_ac": False}, "mains power", "waits for mains power: on battery at 80 %"),
    ({"battery_percent": 39.0}, "battery", "waits for a fuller battery: the battery is at 39 %, 40 % are needed"),
    ({"temperature_c": 85.5}, "temperature", "waits for a cooler machine: it has 85.5 °C, the limit is 85"),
    ({"available_mb": 399.0}, "memory", "waits for free memory: 399 MiB are available, 400 MiB must stay so"),
    (
        {"memory_pressure": 12.5},
        "memory pressure",
        "waits for less demand for memory: programs wait for memory 12.5 % of the time, the limit is 10",
    ),
    ({"busy": True, "idle_s": 0.0}, "busy", "waits for a quiet moment: a question is being answered"),
    ({"idle_s": 4.5}, "busy", "waits for a quiet moment: nothing was asked for 4.5 s, 5 s are needed"),
    ({"idle_s": 150.0}, "idle", "waits for an idle machine: nothing was asked for 2.5 min, 5 min are needed"),
    (
        {"other_cpu_percent": 41.0},
        "other cpu",
        "waits for a less busy processor: other programs use 41 % of it, the limit is 40",
    ),
    (
        {"io_pressure": 55.0},
        "io pressure",
        "waits for a less busy disk: programs wait for it 55 % of the time, the limit is 40",
    ),
]
SOFT = ("idle", "other cpu", "io pressure")


def decided(demand: Demand, *, budget: Budget = BUDGET, readings: Readings = WELL, **state: Any) -> Decision:
    """Decide about this demand, with the rest of the state as given."""
    return decide(State(demand, **state), readings, budget, MIN_EXAMPLES)


def about(running: Running, *, budget: Budget = BUDGET, readings: Readings = WELL, **state: Any) -> Decision:
    """Decide about this run while it goes on."""
    return decided(LIVE_DUE, budget=budget, readings=readings, running=running, **state)
