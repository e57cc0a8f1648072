"""What the checks of `edgepd doctor` look at.

What this does not do: find anything out; doctor.py does, once for all checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgepd.config import Paths
from edgepd.settings import Settings
from edgepd_profiles.integrity import Finding


@dataclass(frozen=True)
class Situation:
    """The installation. `locked` says that a daemon, or another command, owns the data directory.

    `settings` are the defaults where `settings_problem` says why they cannot be read. The files of the kernel are read
    below `root`. `deep` asks for checks that read whole files, however large.
    """

    paths: Paths
    locked: bool
    settings: Settings
    settings_problem: str | None = None
    root: Path = Path("/")
    deep: bool = False


Check: TypeAlias = Callable[[Situation], list[Finding]]
