"""Every setting, declared once.

The idea: each field of a section is one setting with its default, range and documentation; config.py reads them and
docs/config.md lists them. The invariant: what is not declared here cannot be set.
What this does not do: read or check values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgepd.settings.budget import Budget
from edgepd.settings.intent import Intent
from edgepd.settings.keeping import Keep, Log
from edgepd.settings.personal import Profile, Select
from edgepd.settings.presets import PRESETS
from edgepd.settings.serving import Serve
from edgepd.settings.training import Gate, Train

__all__ = ["PRESETS", "Budget", "Gate", "Intent", "Keep", "Log", "Profile", "Select", "Serve", "Settings", "Train"]


@dataclass(frozen=True)
class Settings:
    """All sections. `origins` maps each key that is not at its default to where its value came from."""

    serve: Serve = Serve()
    train: Train = Train()
    gate: Gate = Gate()
    profile: Profile = Profile()
    select: Select = Select()
    budget: Budget = Budget()
    intent: Intent = Intent()
    keep: Keep = Keep()
    log: Log = Log()
    origins: Mapping[str, str] = field(default_factory=dict)
