"""How the parts of `make bench-profiles` time things and put them into one table."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _report import Report

from edgepd_profiles.store import Store


class Bench:
    """Measures into a report, one row for each thing."""

    def __init__(self, report: Report, exchanges: int) -> None:
        """`exchanges` is how many there are to measure with."""
        self.report = report
        self.exchanges = exchanges
        self.rng = np.random.default_rng(7)

    def row(self, what: str, seconds: Sequence[float], detail: str = "") -> tuple[float, float, float]:
        """Add a row, and return the percentiles 50, 95 and 99 in milliseconds."""
        p50, p95, p99, most = (float(p) * 1000 for p in np.percentile(seconds, (50, 95, 99, 100), method="higher"))
        # Of few times the high percentiles are nothing but the longest.
        enough = (("p95 ms", p95, 20), ("p99 ms", p99, 100), ("max ms", most, 2))
        cells = {"p50 ms": p50} | {name: value if len(seconds) >= least else "" for name, value, least in enough}
        self.report.rows.append({"what": what, "times": len(seconds), **cells, "detail": detail})
        print(f"{what}: {p50:.4g} ms {detail}", flush=True)
        return p50, p95, p99

    def times(self, what: str, job: Callable[[], object], runs: int, detail: str = "") -> tuple[float, float, float]:
        """Add a row with the times of `runs` calls."""
        return self.row(what, [timed(job)[0] for _ in range(runs)], detail)

    def once(self, what: str, job: Callable[[], Any], detail: Callable[[Any], str] = lambda _: "") -> Any:
        """Add a row with the time of one call, and return its result."""
        seconds, result = timed(job)
        self.row(what, [seconds], detail(result))
        return result


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    started = time.perf_counter()
    result = job()
    return time.perf_counter() - started, result


def reading(store: Store, job: Callable[[sqlite3.Connection], Any]) -> Callable[[], Any]:
    """Return a call that does a job in a snapshot of its own."""

    def call() -> Any:
        with store.read() as conn:
            return job(conn)

    return call


def size_of(path: Path) -> str:
    """Say how large the file is."""
    return f"{path.stat().st_size / 1e6:.0f} MB"
