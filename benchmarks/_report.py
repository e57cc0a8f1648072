"""What all benchmarks share: the machine, the table, the goals, and the JSON file beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from edgepd.config import paths
from edgepd.models import Catalog

OUTPUT = Path("build/bench")
MODEL = "smollm2-135m-instruct-q4_1"


@dataclass(frozen=True)
class Goal:
    """A figure and what it should be. A missed goal is reported; it is not an error."""

    name: str
    value: float
    goal: str
    met: bool


@dataclass
class Report:
    """The result of one benchmark."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def at_most(self, name: str, value: float, limit: float, unit: str) -> None:
        """Record a goal that is met at or below `limit`."""
        self.goals.append(Goal(name, value, f"<= {limit:g} {unit}", value <= limit))

    def at_least(self, name: str, value: float, limit: float, unit: str) -> None:
        """Record a goal that is met at or above `limit`."""
        self.goals.append(Goal(name, value, f">= {limit:g} {unit}", value >= limit))

    def finish(self) -> None:
        """Print the tables and write build/bench/NAME.json."""
        console = Console()
        if self.rows:
            table = Table(*self.rows[0], title=self.name)
            for row in self.rows:
                table.add_row(*(_shown(value) for value in row.values()))
            console.print(table)
        goals = Table("goal", "measured", "wanted", "met", title="goals")
        for goal in self.goals:
            goals.add_row(goal.name, _shown(goal.value), goal.goal, "yes" if goal.met else "NO")
        console.print(goals)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        target = OUTPUT / f"{self.name}.json"
        target.write_text(json.dumps(asdict(self) | {"machine": machine()}, indent=2) + "\n")
        console.print(f"written: {target}")


def quick() -> bool:
    """Whether QUICK=1 asks for fewer repetitions."""
    return os.environ.get("QUICK", "") not in ("", "0")


def model_path() -> Path:
    """Return the default model, which `make bench-X` installs. Raises NotFoundError without it."""
    return Catalog(paths().models_dir).find(MODEL).path


def median_seconds(job: Callable[[], object], runs: int) -> float:
    """Return the median wall time of `runs` calls after one that is not counted."""
    job()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """Describe the machine."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
