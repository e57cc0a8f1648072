"""What both trainers of `make bench-training` record, in the same way.

The idea: each trainer is a process that reads a JSON object from its input and prints one; this is what lies between.
All times count from the moment at which the process was started, and leave out what was spent on evaluating, which is
measured for the comparison and not a part of training. The standard library only: the peer's environment has nothing
of ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Steps:
    """Notes wall time, CPU time and loss of every optimiser step."""

    def __init__(self, started: float, evaluate: Callable[[], float], eval_every: int, total: int) -> None:
        """`started` is time.monotonic() of when the process was started, which all processes of a machine share.

        `evaluate` is called after every `eval_every` steps (0: never) and after the last of `total`.
        """
        self._started, self._evaluate, self._every, self._total = started, evaluate, eval_every, total
        self._away = self._away_cpu = 0.0
        self.load: tuple[float, float] | None = None  # (wall, CPU) seconds until the first forward pass
        self.steps: list[dict[str, Any]] = []

    def forward(self) -> None:
        """To be called when a forward pass begins: the first one ends the time of loading."""
        if self.load is None:
            self.load = self._now()

    def step(self, loss: float, tokens: int) -> None:
        """To be called after each step; `tokens` are real ones, prompt and answer, no padding."""
        wall, cpu = self._now()
        number = len(self.steps) + 1
        held_out = None
        if self._every and (number % self._every == 0 or number == self._total):
            began, began_cpu = time.monotonic(), time.process_time()
            held_out = self._evaluate()
            self._away += time.monotonic() - began
            self._away_cpu += time.process_time() - began_cpu
        self.steps.append({"wall_s": wall, "cpu_s": cpu, "loss": loss, "tokens": tokens, "held_out": held_out})

    def result(self) -> dict[str, Any]:
        """Sum up. The first step, in which memory is allocated and pages are read, does not count for the speed."""
        if self.load is None or not self.steps:
            raise RuntimeError("no step was made")
        begun = {"wall_s": self.load[0], "cpu_s": self.load[1]}
        first = self.steps[0] if len(self.steps) > 1 else begun
        counted = self.steps[1:] or self.steps
        walls = [step["wall_s"] for step in (begun, *self.steps)]
        durations = [b - a for a, b in zip(walls, walls[1:], strict=False)]
        tokens = sum(step["tokens"] for step in counted)
        return {
            "load_s": self.load[0],
            "first_step_s": self.steps[0]["wall_s"],
            "step_s": statistics.median(durations[1:] or durations),
            "tokens_per_second": tokens / (counted[-1]["wall_s"] - first["wall_s"]),
            "tokens_per_cpu_second": tokens / (counted[-1]["cpu_s"] - first["cpu_s"]),
            "evaluating_s": self._away,
            "peak_rss_mb": peak_rss_mb(),
            "steps": self.steps,
        }

    def _now(self) -> tuple[float, float]:
        return time.monotonic() - self._started - self._away, time.process_time() - self._away_cpu


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB.

    Not ru_maxrss, in which a process that was started by a larger one begins with the size of that one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
