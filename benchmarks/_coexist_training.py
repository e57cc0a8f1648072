"""A daemon that trains for as long as one likes to look, and what its trainer takes of the machine meanwhile.

The idea: so few examples that nothing stops a run early, and so many epochs that it does not end; a run that ends all
the same is started again. CPU seconds and states are read from /proc, where nobody can embellish them.
What this does not do: serve anybody (see _coexist_latency.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _http import stream
from _mail import made_up
from _peers import BATCH_TOKENS, CONTEXT_TOKENS, SLOTS, THREADS
from _soak_daemon import Lost, Mortal, ask
from serving import Texts, user

MAILS = 20  # corrected; a quarter is held out, and on fifteen or fewer nothing stops a run early
MEMORY_MB = 700
BUDGET_PERCENT = 50.0
WINDOW_S = 60.0
BEGIN_SECONDS = 300.0  # within which a run must have made its first step
STILL_SECONDS = 10.0  # within which a trainer must stand still when somebody asks
POLL_S = 0.0005
MIB = 2**20

SERVING: dict[str, object] = {
    "serve.slots": SLOTS,
    "serve.context_tokens": CONTEXT_TOKENS,
    "serve.batch_tokens": BATCH_TOKENS,
    "serve.threads": THREADS,
    "profile.prompt": "off",
    "profile.retrieval": "off",
    "budget.automatic": False,
}
LASTING: dict[str, object] = {"train.fast_seconds": 86_400, "train.epochs": 1000, "train.memory_mb": MEMORY_MB}


def teach(daemon: Mortal, mails: int = MAILS) -> None:
    """Ask for mails and correct the answers."""
    ((_, pairs),) = made_up(1, mails).items()
    for subject, body in pairs:
        question = {"messages": [user(f"Write an email with the subject: {subject}")], "max_tokens": 4}
        answer = daemon.must("POST", "/v1/chat/completions", question)
        given = {"interaction_id": answer["interaction_id"], "edit": body}
        daemon.must("POST", "/edgepd/v1/feedback", given)


class Training:
    """The run that goes on in a daemon."""

    def __init__(self, daemon: Mortal) -> None:
        """Nothing is started yet."""
        self._daemon = daemon
        self.process: psutil.Process | None = None
        self.run = 0
        self.begun = 0  # runs

    def begin(self) -> None:
        """Start a run, or take the one that goes on, and wait for its first step. Raises RuntimeError without one."""
        status, told = ask(self._daemon.connect, "POST", "/edgepd/v1/training", {"kind": "live"})
        if status == 409:  # one that made way has been continued
            told = {"run": self._daemon.get("/edgepd/v1/training?limit=1")["runs"][0]}
        elif status != 202:
            raise RuntimeError(f"no run was started: {status} {told}")
        self.run = int(told["run"]["id"])
        self.begun += 1
        self.process = self._daemon.trainer()
        deadline = time.monotonic() + BEGIN_SECONDS
        while self.steps() < 1:
            told = self._told()
            if told["run"]["state"] != "running" or time.monotonic() > deadline:
                raise RuntimeError(f"the run has not made a step: {told}")
            time.sleep(0.2)

    def ensure(self) -> None:
        """Start another run if this one has ended."""
        if self._told()["run"]["state"] != "running":
            self.begin()

    def end(self) -> None:
        """Stop the run, and wait until its child is gone."""
        ask(self._daemon.connect, "DELETE", f"/edgepd/v1/training/{self.run}")  # it may have ended by itself
        if self.process is not None:
            self.process.wait(30)

    def steps(self) -> int:
        """Return how many optimiser steps the run has made."""
        progress = self._told()["progress"]
        return int(progress["done"]) if progress and progress["stage"] == "train" else 0

    def _told(self) -> dict[str, Any]:
        return self._daemon.get(f"/edgepd/v1/training/{self.run}")

    def cpu_s(self) -> float:
        """Return the CPU seconds that the child has used; 0 if it is gone."""
        return 0.0 if self.process is None else cpu_seconds(self.process)


@dataclass(frozen=True)
class Sample:
    """The trainer at one moment; CPU seconds of all runs so far."""

    at: float  # monotonic seconds
    cpu_s: float
    rss_mb: float  # MiB


def watch(daemon: Mortal, seconds: float) -> tuple[list[Sample], int]:
    """Look at the trainer each second while nobody asks anything; return what was seen, and how many runs it took."""
    training = Training(daemon)
    training.begin()
    samples: list[Sample] = []
    spent, last = 0.0, training.cpu_s()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(1)
        training.ensure()
        now = training.cpu_s()
        spent, last = spent + (now - last if now >= last else now), now
        try:
            rss = training.process.memory_info().rss / MIB if training.process else 0.0
        except psutil.Error:
            continue
        samples.append(Sample(time.monotonic(), spent, rss))
    training.end()
    return samples, training.begun


def window_percents(samples: Sequence[Sample], cores: int, window_s: float = WINDOW_S) -> list[float]:
    """Return the share of all cores that was used in each span of that length, in percent."""
    shares, end = [], 0
    for first in samples:
        while end < len(samples) and samples[end].at - first.at < window_s:
            end += 1
        if end == len(samples):
            break
        last = samples[end]
        shares.append(100 * (last.cpu_s - first.cpu_s) / (last.at - first.at) / cores)
    return shares


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def pauses(daemon: Mortal, texts: Texts, times: int) -> tuple[list[float], list[float], int]:
    """Ask again and again while a run is at work.

    Return the milliseconds from sending to the child standing still, the seconds from the last token to its going on,
    and how often it did not stand still at all.
    """
    training = Training(daemon)
    training.begin()
    stopped_ms, resumed_s, missed = [], [], 0
    for _ in range(times):
        training.ensure()
        if training.process is None or not _until(training.process.pid, still=False, seconds=60):
            raise RuntimeError("the trainer does not go on")
        time.sleep(1)  # at work, not just waking up
        stopped: list[float] = []
        pid = training.process.pid
        watcher = threading.Thread(target=lambda p=pid, s=stopped: _until(p, still=True, seconds=STILL_SECONDS, at=s))
        began = time.perf_counter()
        watcher.start()
        stream(daemon.connect, {"messages": [user(texts.words(20))], "max_tokens": 24})
        ended = time.perf_counter()
        watcher.join()
        if not stopped or stopped[0] > ended:
            missed += 1
            continue
        stopped_ms.append((stopped[0] - began) * 1000)
        on: list[float] = []
        if _until(pid, still=False, seconds=60, at=on):
            resumed_s.append(on[0] - ended)
    training.end()
    return stopped_ms, resumed_s, missed


def _until(pid: int, *, still: bool, seconds: float, at: list[float] | None = None) -> bool:
    """Wait until a process is stopped (state T of proc_pid_stat(5)), or is not; note when in `at`."""
    deadline = time.perf_counter() + seconds
    path = Path(f"/proc/{pid}/stat")
    while (now := time.perf_counter()) < deadline:
        try:
            state = path.read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False  # it has ended
        if (state == "T") == still:
            if at is not None:
                at.append(now)
            return True
        time.sleep(POLL_S)
    return False


@dataclass(frozen=True)
class Adaptation:
    """What one adaptation has cost."""

    state: str
    verdict_cpu_s: float
    verdict_s: float
    whole_cpu_s: float  # with the review of what serves already


def adapt_once(daemon: Mortal) -> Adaptation:
    """Train once on the live path, and count the child's CPU seconds to the verdict and to its end."""
    began = time.monotonic()
    run = int(daemon.must("POST", "/edgepd/v1/training", {"kind": "live"})["run"]["id"])
    child = daemon.trainer()
    if child is None:
        raise RuntimeError("there is no trainer")
    verdict: tuple[str, float, float] | None = None
    used = 0.0
    while is_there(child):
        used = max(used, cpu_seconds(child))
        if verdict is None:
            state = str(daemon.get(f"/edgepd/v1/training/{run}")["run"]["state"])
            if state != "running":
                verdict = state, used, time.monotonic() - began
        time.sleep(0.2)
    if verdict is None:
        verdict = "ended at once", used, time.monotonic() - began
    return Adaptation(*verdict, used)


def is_there(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process; 0 if it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def today(daemon: Mortal) -> dict[str, Any]:
    """Return what the daemon itself says of its budget; empty if it says nothing."""
    try:
        status, told = ask(daemon.connect, "GET", "/edgepd/v1/budget")
    except Lost:
        return {}
    return {name: told.get(name) for name in ("decision", "today", "trainer")} if status == 200 else {}
