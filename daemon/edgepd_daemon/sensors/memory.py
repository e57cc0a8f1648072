"""Memory that is available: to the machine, and within the limits of the cgroups that this process is in.

The idea: MemAvailable of proc_meminfo(5), or less where a cgroup allows less. Of each cgroup from ours to the top, of
either version, what is left is its limit less its use, plus what the kernel drops first when it needs memory
(inactive_file). Version 2 has two limits: above memory.high a process is slowed down, above memory.max it is killed;
the lower one counts. (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.)
What this does not do: follow a process that is moved to another cgroup, look at swap, or know what belongs to whom.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgepd_daemon.sensors.files import number, text

MIB = 2**20
AVAILABLE = re.compile(r"^MemAvailable:\s+([0-9]{1,15}) kB", re.MULTILINE)
UNLIMITED = 2**60  # bytes; version 1 says almost 2^63 where there is no limit


@dataclass(frozen=True)
class Accounting:
    """How the files of a version are called."""

    limits: tuple[str, ...]
    use: str
    reclaimable: re.Pattern[str]  # in memory.stat


V1 = Accounting(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", re.compile(r"^total_inactive_file ([0-9]{1,18})$", re.M)
)
V2 = Accounting(("memory.high", "memory.max"), "memory.current", re.compile(r"^inactive_file ([0-9]{1,18})$", re.M))


@dataclass(frozen=True)
class Mount:
    """Where a hierarchy of cgroups is to be seen, and which of its cgroups is the topmost that can be."""

    point: Path
    top: str
    accounting: Accounting


class Memory:
    """Reads the available memory under a root. Which cgroups this process is in is looked up once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._groups = [
            (group, mount.accounting)
            for mount in _mounts(root)
            for group in _upwards(mount, _group_of(root, mount.accounting))
        ]

    def available_mb(self) -> float | None:
        """Return the available memory in MiB, at least 0; None if the kernel does not tell."""
        line = AVAILABLE.search(text(self._root / "proc/meminfo") or "")
        amounts = [int(line[1]) * 1024] if line else []
        amounts += [left for group, files in self._groups if (left := _left(group, files)) is not None]
        return max(0, min(amounts)) / MIB if amounts else None

    def sources(self) -> list[Path]:
        """Return the files whose values bound it now."""
        meminfo = self._root / "proc/meminfo"
        limits = [
            group / name for group, files in self._groups for name in files.limits if _limit(group / name) is not None
        ]
        return [*([meminfo] if AVAILABLE.search(text(meminfo) or "") else []), *limits]


def _left(group: Path, files: Accounting) -> int | None:
    limits = [limit for name in files.limits if (limit := _limit(group / name)) is not None]
    used = number(group / files.use) if limits else None
    if used is None:
        return None
    reclaimable = files.reclaimable.search(text(group / "memory.stat") or "")
    return min(limits) - used + (int(reclaimable[1]) if reclaimable else 0)


def _limit(path: Path) -> int | None:
    """In bytes. "max" is no number, so no limit."""
    limit = number(path)
    return limit if limit is not None and 0 <= limit < UNLIMITED else None


def _mounts(root: Path) -> list[Mount]:
    """Return where cgroups are mounted that limit memory (proc_pid_mountinfo(5))."""
    mounts = []
    for line in (text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 6 or len(kind) < 3:
            continue
        top, point = _unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/")
        if kind[0] == "cgroup2":
            mounts.append(Mount(point, top, V2))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            mounts.append(Mount(point, top, V1))
    return mounts or [Mount(root / "sys/fs/cgroup", "/", V2), Mount(root / "sys/fs/cgroup/memory", "/", V1)]


def _unescaped(field: str) -> str:
    """Spaces, tabs, line ends and backslashes are written there as \\040, \\011, \\012 and \\134."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _group_of(root: Path, files: Accounting) -> str:
    """Return the cgroup of this process (cgroups(7)): lines of number:controllers:path, version 2 without any."""
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        number_, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (files is V2 and number_ == "0" and not controllers) or (files is V1 and "memory" in controllers.split(",")):
            return path
    return "/"


def _upwards(mount: Mount, group: str) -> list[Path]:
    """Return the directories of the group and of those above it, as far as they can be seen."""
    inside = mount.top == "/" or group == mount.top or group.startswith(mount.top + "/")
    below = (group if mount.top == "/" else group[len(mount.top) :]) if inside else ""
    parts = [part for part in below.split("/") if part]
    if ".." in parts:  # outside of our namespace: what is mounted is all that we may see
        parts = []
    return [mount.point.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
