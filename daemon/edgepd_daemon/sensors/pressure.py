"""Pressure stall information: for what share of the last ten seconds some task waited for memory or for the disk.

The idea: the line `some` of /proc/pressure (the kernel's Documentation/accounting/psi.rst). It is of the whole machine
and includes the waiting of training itself, which is meant: what makes training wait keeps others waiting, too.
What this does not do: wait for a threshold. A trigger would need a file open all the time.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgepd_daemon.sensors.files import text

SOME = re.compile(r"^some avg10=([0-9]{1,3}(?:\.[0-9]+)?)\b", re.MULTILINE)


def some_percent(root: Path, resource: str) -> float | None:
    """Return the share in percent for `resource`, "memory" or "io"; None where the kernel does not count it."""
    line = SOME.search(text(path_of(root, resource)) or "")
    return float(line[1]) if line else None


def path_of(root: Path, resource: str) -> Path:
    """Return the file that tells it."""
    return root / "proc/pressure" / resource
