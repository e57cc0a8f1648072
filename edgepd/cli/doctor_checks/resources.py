"""Memory, disk, sensors, and whether the budget can ever be met.

The idea: what the settings ask of this machine is compared with what it has. The invariant: what only passes (memory
that is in use just now, a battery that is low) is told, but is no problem.
What this does not do: decide whether to train now; the daemon's scheduler does.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from edgepd.cli.doctor_checks.model import find
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.errors import ConfigError, EdgepdError
from edgepd_daemon.readings import Sensors
from edgepd_daemon.scheduler.quiet_hours import MINUTES_PER_DAY, QuietHours
from edgepd_daemon.sensors.files import number, text
from edgepd_profiles.integrity import Finding

MIB = 2**20
SMALL_MB = 3072  # of memory in all, below which the preset for single-board computers fits better
SERVING_MB = 150  # that the daemon takes besides the model, measured with SmolLM2
# Sensors by field of Readings: what they are called, and the setting that holds nothing without them.
SENSORS = {
    "on_ac": ("mains power", "budget.ac_only"),
    "battery_percent": ("battery", "budget.min_battery_percent"),
    "temperature_c": ("temperature", "budget.max_temperature_c"),
    "other_cpu_percent": ("processors", "budget.max_other_cpu_percent"),
    "available_mb": ("memory", "budget.min_available_mb"),
}
PRESSURE = {"memory_pressure": "budget.max_memory_pressure", "io_pressure": "budget.max_io_pressure"}


def memory(situation: Situation) -> list[Finding]:
    """Check that the model fits into memory, and training beside it."""
    total, available = (
        total_mb(situation),
        _sensors(situation).read(busy=False, idle_s=0, trainer_pid=None).available_mb,
    )
    if total is None:
        return [Finding("memory", detail="the kernel does not tell how much there is")]
    settings = situation.settings
    told = f"{total:.0f} MiB" + (f", of which {available:.0f} MiB are available" if available is not None else "")
    try:
        size = find(situation).size_bytes / MIB
    except EdgepdError:
        size = 0.0  # the check of the model tells
    if size + SERVING_MB > total:
        problem = f"the model needs {size + SERVING_MB:.0f} MiB, and there are {told}"
        return [Finding("memory", problem, "edgepd model add default; edgepd model use NAME")]
    wanted = settings.train.memory_mb
    if wanted and size + SERVING_MB + wanted + settings.budget.min_available_mb > total:
        problem = (
            f"train.memory_mb = {wanted}, the model, and the {settings.budget.min_available_mb} MiB of "
            f"budget.min_available_mb are more than there are: {told}"
        )
        return [Finding("memory", problem, f"lower train.memory_mb in {situation.paths.config_file}, or set it to 0")]
    if total < SMALL_MB and settings.budget.preset == "laptop":
        return [Finding("memory", advice="set budget.preset to sbc, which asks for less", detail=told)]
    return [Finding("memory", detail=told)]


def disk(situation: Situation) -> list[Finding]:
    """Check that there is room for training, and say what takes it."""
    where = situation.paths
    parts = " ".join(f"{name} {size / MIB:.0f}" for name, size in sizes(situation).items())
    free, needed = free_mb(where.data_dir), situation.settings.budget.min_free_disk_mb
    told = f"{free:.0f} MiB are free; MiB in use: {parts}"
    if free < needed:
        problem = f"nothing is trained, because budget.min_free_disk_mb is {needed} and {told}"
        return [Finding("room for training", problem, "edgepd adapters list (then `edgepd adapters delete ID`)")]
    return [Finding("room for training", detail=told)]


def sizes(situation: Situation) -> dict[str, int]:
    """Return the bytes that each part of the data directory takes."""
    where = situation.paths
    folders = {
        "generations": where.generations_dir,
        "backups": where.backups_dir,
        "conversations": where.states_dir,
        "runs": where.runs_dir,
        "models": where.models_dir,
    }
    profile = where.profile
    files = [profile, profile.with_name(f"{profile.name}-wal")]
    return {"profile": sum(map(_size, files))} | {name: tree_bytes(folder) for name, folder in folders.items()}


def tree_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; 0 if it is not there, without what cannot be read."""
    return sum(_size(Path(at) / name) for at, _folders, names in os.walk(folder) for name in names)


def free_mb(folder: Path) -> float:
    """Return the free MiB where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free / MIB


def sensors(situation: Situation) -> list[Finding]:
    """Say which sensors there are, what they show, and which settings hold nothing without one."""
    device = _sensors(situation)
    sources, now = device.describe(), device.read(busy=False, idle_s=0, trainer_pid=None)
    found, missing = [], []
    for field, (name, key) in SENSORS.items():
        value = getattr(now, field)
        shown = "" if value is None else f" {value:.0f}" if isinstance(value, float) else f" {'on' if value else 'off'}"
        if sources[field]:
            found.append(f"{name}{shown}")
        else:
            missing.append(f"no {name}, so {key} holds nothing")
    findings = [Finding("sensors", detail="; ".join([", ".join(found), *missing]))]
    blind = [key for field, key in PRESSURE.items() if not sources[field]]
    if blind:
        detail = f"the kernel does not tell (PSI), so {' and '.join(blind)} hold nothing"
        return [*findings, Finding("pressure", advice="boot the kernel with psi=1 to have it", detail=detail)]
    shown = f"memory {now.memory_pressure} %, disk {now.io_pressure} % of the last ten seconds"
    return [*findings, Finding("pressure", detail=shown)]


def budget(situation: Situation) -> list[Finding]:
    """Check that the budget allows training at some time."""
    problems = [*impossible(situation)]
    if not problems:
        told = "by itself" if situation.settings.budget.automatic else "only when you ask for it"
        return [Finding("budget", detail=f"preset {situation.settings.budget.preset}, trains {told}")]
    advice = f"change it in {situation.paths.config_file}, then: edgepd daemon reload"
    return [Finding("budget", problem, advice) for problem in problems]


def impossible(situation: Situation) -> list[str]:
    """Return a sentence for each setting that nothing is ever trained with."""
    settings, asked = situation.settings, situation.settings.budget
    total_disk = shutil.disk_usage(_existing(situation.paths.data_dir)).total / MIB
    total = total_mb(situation)
    found = []
    try:
        if QuietHours.parse(asked.quiet_hours).minutes_left(0) >= MINUTES_PER_DAY:
            found.append("budget.quiet_hours cover the whole day, so nothing is ever trained by itself")
    except ConfigError as error:
        found.append(str(error))
    if asked.automatic and asked.minutes_per_day == 0:
        found.append("budget.minutes_per_day is 0, so nothing is ever trained although budget.automatic is true")
    if asked.min_free_disk_mb > total_disk:
        found.append(
            f"budget.min_free_disk_mb is {asked.min_free_disk_mb}, but the disk has {total_disk:.0f} MiB in all"
        )
    if total is not None and asked.min_available_mb > total:
        found.append(f"budget.min_available_mb is {asked.min_available_mb}, but there are {total:.0f} MiB in all")
    if 0 < asked.hard_memory_mb <= settings.train.memory_mb:
        found.append(
            f"budget.hard_memory_mb is {asked.hard_memory_mb} and train.memory_mb {settings.train.memory_mb}, so "
            "training is ended for what it was allowed to use"
        )
    if settings.train.min_examples > settings.select.slots:
        found.append(
            f"train.min_examples is {settings.train.min_examples}, but select.slots keeps {settings.select.slots}"
        )
    return found


def total_mb(situation: Situation) -> float | None:
    """Return the memory of the machine, or of the cgroup that limits this process further, in MiB; None if unknown."""
    line = re.search(r"^MemTotal:\s+(\d{1,15}) kB", text(situation.root / "proc/meminfo") or "", re.MULTILINE)
    amounts = [int(line[1]) * 1024] if line else []
    # Each source but meminfo is a file that holds a limit, in bytes.
    amounts += [limit for name in _sensors(situation).describe()["available_mb"] if (limit := number(Path(name)))]
    return min(amounts) / MIB if amounts else None


def _sensors(situation: Situation) -> Sensors:
    return Sensors(situation.paths.data_dir, root=situation.root)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
