"""Small readers for files of the kernel, all of which may be missing, vanish, be empty, or fail when they are read.

The idea: a sensor that cannot be read is no sensor. That is decided here, once, so that the modules above hold
arithmetic only: every failure of the system becomes None here, and a mistake of ours above stays an exception.
psutil reads many of these files, too, but takes another root for /proc only, and not for /sys: a test could not show
it a laptop. It does not know of PSI or of the limits of a cgroup either.
What this does not do: log. A machine without a battery would say so every second.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MOST = 2**20  # bytes that are read of a file; the list of mounts is the longest of them
# Nineteen digits hold every counter of the kernel. Python refuses to read very long numbers.
NUMBER = re.compile(r"[+-]?[0-9]{1,19}")


def text(path: Path) -> str | None:
    """Return what a file holds, without space around it, or None if it cannot be read.

    Thermal zones answer ENODATA or EAGAIN while they are off, PSI EOPNOTSUPP where it is switched off at boot, and a
    battery that is being taken out ENODEV.
    """
    try:
        with path.open("rb") as file:
            return file.read(MOST).decode("utf-8", "replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """Return the number that a file holds, or None if it cannot be read or holds something else."""
    found = text(path)
    return int(found) if found is not None and NUMBER.fullmatch(found) else None


def entries(directory: Path) -> list[Path]:
    """Return what is in a directory, by name; nothing if it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def free_bytes(directory: Path) -> int | None:
    """Return what this user may still write where `directory` is, or will be (statvfs(3), f_bavail)."""
    for place in (directory, *directory.parents):
        try:
            disk = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize
    return None
