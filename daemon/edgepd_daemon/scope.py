"""A control group of its own for the trainer, from the user's service manager.

The idea: nice and SCHED_IDLE count among the processes of one control group only; between groups the kernel shares by
the weights of the groups. So where a systemd user manager runs, the trainer is started in a transient scope that has
next to no weight, and a limit of memory, CPU time and tasks that holds even if the daemon is not there to enforce it.
`systemd-run --scope` makes the scope for itself and then becomes the command (systemd-run(1)), so that the process
keeps its pid, its pipes and its parent. The invariant: without any of this training works as well.
What this does not do: start anything (training_child.py does), or change a limit of a scope that runs.

Directives: systemd.resource-control(5), all of them allowed for scopes. MemoryHigh= counts the page cache too, which is
given back first; what is not given back is slowed down. MemoryMax= is what the kernel kills above. A dash in the name
of a slice is its place in the tree: a-b.slice lies in a.slice (systemd.slice(5)), and if that has the weight of
everybody else then so has all that is in it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RUN = "systemd-run"
SLICE = "edgepd-trainer.slice"
ROOT_SLICE = "-.slice"  # of the user manager
SYSTEM_FOLDERS = (Path("/etc/systemd/user"), Path("/usr/local/lib/systemd/user"), Path("/usr/lib/systemd/user"))
# Threads of torch and llama.cpp, on a machine with many cores; only what runs wild comes near it.
MOST_TASKS = 1024


@dataclass(frozen=True)
class Limits:
    """What the trainer may take. `cpu_percent` is of `cores` cores; memory is resident, in MiB, None: no limit."""

    cpu_percent: float
    cores: int
    memory_mb: int | None = None  # above which it is slowed down
    hard_memory_mb: int | None = None  # above which the kernel kills it


def available(environment: Mapping[str, str]) -> bool:
    """Return whether there is a user manager to ask. It may refuse nevertheless."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    manager = Path(runtime) / "systemd" / "private" if runtime else None
    return manager is not None and manager.exists() and shutil.which(RUN, path=environment.get("PATH")) is not None


def command(worker: Sequence[str], limits: Limits, environment: Mapping[str, str]) -> list[str]:
    """Return the command line that starts `worker` in a scope with these limits."""
    found = [RUN, "--user", "--scope", "--quiet", "--collect", f"--slice={home(environment)}"]
    for name, value in properties(limits).items():
        found += ["-p", f"{name}={value}"]
    return [*found, "--", *worker]


def properties(limits: Limits) -> dict[str, str]:
    """Return the settings of the scope."""
    # Not "idle", which systemd knows since version 252 only; 1 is a hundredth of what everybody else has.
    found = {"CPUWeight": "1", "IOWeight": "1", "TasksMax": str(MOST_TASKS)}
    if limits.cpu_percent < 100:
        found["CPUQuota"] = f"{math.ceil(limits.cpu_percent * limits.cores)}%"  # of one core
    if limits.memory_mb is not None:
        found["MemoryHigh"] = f"{limits.memory_mb}M"
    if limits.hard_memory_mb is not None:
        found["MemoryMax"] = f"{limits.hard_memory_mb}M"
    return found


def home(environment: Mapping[str, str]) -> str:
    """Return the slice that the scope goes into: ours if it is installed with all above it, else the root.

    A slice without a unit file would be made with the weight of everybody else.
    """
    folders = _folders(environment)
    parts = SLICE.removesuffix(".slice").split("-")
    needed = ["-".join(parts[: n + 1]) + ".slice" for n in range(len(parts))]
    installed = all(any((folder / name).exists() for folder in folders) for name in needed)
    return SLICE if installed else ROOT_SLICE


def _folders(environment: Mapping[str, str]) -> list[Path]:
    """Return where unit files of the user are, as systemd.unit(5) has it."""
    user = Path(environment.get("HOME") or Path.home())
    config = Path(environment.get("XDG_CONFIG_HOME") or user / ".config")
    data = Path(environment.get("XDG_DATA_HOME") or user / ".local" / "share")
    return [config / "systemd" / "user", data / "systemd" / "user", *SYSTEM_FOLDERS]
