"""A process that takes what nobody else wants.

The idea: the kernel knows better than any program who is waiting for what, so the trainer tells it once that everybody
else comes first: for CPU time (nice 19 and SCHED_IDLE, see sched(7)), for the disk (ioprio_set(2)), and for memory (the
first one to be killed, see proc(5) on oom_score_adj). A scheduling class belongs to a thread and not to a process, so
every thread that is there already is told; later ones inherit it. The invariant: a system that refuses any of this is
no reason not to train. A stopped process cannot notice that its parent has ended, so the kernel is asked to end it.
What this does not do: limit anything. On an idle machine a process of SCHED_IDLE is as fast as any other; on a busy one
it stands still, as it should.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

NICE = 19
MOST_DISPENSABLE = "1000"  # of oom_score_adj, which goes from -1000 to 1000
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CPUS = Path("/sys/devices/system/cpu")
THREADS = Path("/proc/self/task")


def end_with_parent() -> list[str]:
    """Have the kernel kill this process when the thread that started it ends; see PR_SET_PDEATHSIG in prctl(2).

    Returns a sentence if the system has no such thing.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "prctl"):
        return ["this system cannot end the trainer together with the daemon"]
    zero = ctypes.c_ulong(0)
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), zero, zero, zero) != 0:
        return [f"the trainer will not end together with the daemon: {os.strerror(ctypes.get_errno())}"]
    if os.getppid() != parent:  # which ended just before, so that no signal will come
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def become_background(cores: int) -> list[str]:
    """Step behind everybody else, on at most so many CPUs; return a sentence for each thing that was refused."""
    wishes: list[tuple[str, Callable[[int], None]]] = [
        ("nice 19", _be_nice),
        ("SCHED_IDLE", _be_idle),
        ("idle input and output", _read_and_write_last),
        ("fewer CPUs", lambda thread: _keep_to(thread, cores)),
    ]
    refused = []
    for what, wish in wishes:
        for thread in _threads():
            try:
                wish(thread)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue  # a thread that has ended
            except (OSError, AttributeError, psutil.Error) as error:  # not allowed, or unknown to this system
                refused.append(f"the trainer has to do without {what}: {error}")
                break
    # An autogroup (sched(7)) is a session's share of the CPU; nice counts only inside it, so it needs one of its own.
    files = {"/proc/self/oom_score_adj": MOST_DISPENSABLE}
    if os.getsid(0) == os.getpid():
        files["/proc/self/autogroup"] = str(NICE)
    for path, value in files.items():
        try:
            Path(path).write_text(value)
        except OSError as error:
            refused.append(f"the trainer has to do without {path}: {error.strerror}")
    return refused


def background_cpus(allowed: Iterable[int], count: int, siblings: Callable[[int], frozenset[int]]) -> set[int]:
    """Return `count` of the allowed CPUs, the last ones; of no core a second thread while another core has none.

    `siblings` gives the CPUs that share a core with one, itself included.
    """
    allowed = sorted(allowed)
    ranks: list[tuple[int, int]] = []
    taken: dict[frozenset[int], int] = {}
    for cpu in reversed(allowed):
        core = siblings(cpu)
        ranks.append((taken.get(core, 0), -cpu))
        taken[core] = taken.get(core, 0) + 1
    return {-negative for _, negative in sorted(ranks)[: max(1, count)]}


def core_of(cpu: int, cpus: Path = CPUS) -> frozenset[int]:
    """Return the CPUs that share a core with this one, or it alone where the system does not say."""
    try:
        text = (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return frozenset({cpu})
    found = {cpu}
    for part in text.strip().split(","):  # such as "0,4" or "0-1"
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _threads() -> list[int]:
    """Return the threads of this process; 0, which stands for the calling one, where the system does not list them."""
    return sorted(int(task.name) for task in THREADS.iterdir()) if THREADS.exists() else [0]


def _be_nice(thread: int) -> None:
    os.setpriority(os.PRIO_PROCESS, thread, NICE)


def _be_idle(thread: int) -> None:
    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def _read_and_write_last(thread: int) -> None:
    psutil.Process(thread or None).ionice(psutil.IOPRIO_CLASS_IDLE)


def _keep_to(thread: int, cores: int) -> None:
    allowed = os.sched_getaffinity(thread)
    if cores < len(allowed):
        os.sched_setaffinity(thread, background_cpus(allowed, cores, core_of))
