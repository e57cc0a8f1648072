"""What is kept, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.settings.declare import setting


@dataclass(frozen=True)
class Keep:
    """What is kept, and for how long."""

    retired: int = setting(
        5, "retired generations whose files are kept, besides pinned ones and the way back", minimum=1, maximum=1000
    )
    interactions: int = setting(
        1_000_000, "interactions that are kept; the oldest without feedback go first; 0 keeps all", minimum=0
    )
    days: float = setting(0.0, "age after which interactions without feedback go, in days; 0 keeps them", minimum=0)
    backup_days: float = setting(1.0, "days between backups of the profile; 0 makes none", minimum=0, maximum=3650)
    backups: int = setting(2, "backups of the profile that are kept", minimum=1, maximum=100)


@dataclass(frozen=True)
class Log:
    """What is kept of the interactions."""

    interactions: bool = setting(True, "whether interactions are stored in the profile at all")
    level: str = setting("info", "log level of the daemon", choices=("debug", "info", "warning", "error"))
