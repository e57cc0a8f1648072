"""What the presets of `budget.preset` set, unless it is set otherwise.

The idea: the defaults are those of a laptop; the other presets say only what differs.
What this does not do: override anything that the user has set.
"""

from __future__ import annotations

from collections.abc import Mapping

# By preset and dotted key. A single-board computer has a small heat sink and little memory, of which training
# takes half of what is free there as everywhere; a machine that is always on may learn whenever nobody uses it.
PRESETS: Mapping[str, Mapping[str, float | str | bool]] = {
    "laptop": {},
    "sbc": {
        "budget.cpu_percent": 50.0,
        "budget.minutes_per_day": 180.0,
        "budget.min_available_mb": 200,
        "budget.min_free_disk_mb": 512,
        "budget.ac_only": False,
        "budget.max_temperature_c": 75.0,
        "budget.idle_minutes": 2.0,
        "serve.slots": 2,
        "serve.saved_state_mb": 64,
    },
    "always-on": {
        "budget.cpu_percent": 80.0,
        "budget.minutes_per_day": 360.0,
        "budget.ac_only": False,
        "budget.min_battery_percent": 0.0,
        "budget.max_temperature_c": 90.0,
        "budget.idle_minutes": 1.0,
        "budget.max_other_cpu_percent": 60.0,
    },
}
