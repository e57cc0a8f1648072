"""What training may take of the machine, and when."""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.settings.declare import setting


@dataclass(frozen=True)
class Budget:
    """What training may take of the machine, and when. A run that you start yourself waits for nothing but memory."""

    preset: str = setting(
        "laptop",
        "values for the settings that are not set otherwise: a laptop, a single-board computer, a machine that is "
        "always on",
        choices=("laptop", "sbc", "always-on"),
    )
    automatic: bool = setting(True, "whether to train without being asked when there is something to learn")
    cpu_percent: float = setting(
        50.0, "share of all cores that training may use, as the mean of a minute", minimum=1, maximum=100
    )
    asked_cpu_percent: float = setting(
        100.0, "the same for a run that you started yourself and wait for", minimum=1, maximum=100
    )
    minutes_per_day: float = setting(
        60.0, "minutes a day that training may be at work without being asked", minimum=0, maximum=1440
    )
    hard_memory_mb: int = setting(
        0,
        "resident memory above which training is ended and begins again smaller, in MiB; 0 means a quarter more than "
        "what was planned",
        minimum=0,
        maximum=1_048_576,
    )
    min_available_mb: int = setting(
        400, "memory that must stay available for other programs; with less, training makes way", minimum=0
    )
    min_free_disk_mb: int = setting(1024, "disk space that must be free, in MiB", minimum=0)
    ac_only: bool = setting(True, "whether to train on mains power only")
    min_battery_percent: float = setting(40.0, "charge below which nothing is trained", minimum=0, maximum=100)
    max_temperature_c: float = setting(
        85.0, "temperature of the hottest sensor above which training pauses, in °C", minimum=30, maximum=120
    )
    idle_minutes: float = setting(
        5.0, "minutes without a question after which training may start", minimum=0, maximum=1440
    )
    max_other_cpu_percent: float = setting(
        40.0, "share of all cores in use by other programs above which training waits", minimum=0, maximum=100
    )
    max_memory_pressure: float = setting(
        10.0,
        "share of the last ten seconds in which programs waited for memory (PSI) above which training makes way, in "
        "percent",
        minimum=0,
        maximum=100,
    )
    max_io_pressure: float = setting(40.0, "the same for the disk, above which training waits", minimum=0, maximum=100)
    quiet_hours: str = setting(
        "", "times of day at which nothing is trained, such as '22:00-07:00' or '09:00-12:00,14:00-18:00'"
    )
    live_feedback: float = setting(
        4.0, "weight of new feedback that starts a short run; a correction weighs 1", minimum=0.1, maximum=100_000
    )
    baked_feedback: float = setting(
        48.0, "weight of feedback since the last consolidation that starts another one", minimum=0.1, maximum=100_000
    )
    patience_days: float = setting(
        2.0,
        "days after which training that is due no longer waits for an idle machine, only for power, heat, memory, disk "
        "and hours",
        minimum=0,
        maximum=365,
    )
