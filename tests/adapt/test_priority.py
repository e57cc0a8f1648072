"""A process that steps behind all others, and ends with the one that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepd.adapt.priority import background_cpus, core_of

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

BACKGROUND = """
import json, os, psutil, sys, threading
from pathlib import Path
from edgepd.adapt.priority import become_background
ended = threading.Event()
thread = threading.Thread(target=ended.wait)
thread.start()
refused = become_background(1)
found = {}
for task in Path("/proc/self/task").iterdir():
    tid = int(task.name)
    found[tid] = [
        os.getpriority(os.PRIO_PROCESS, tid), os.sched_getscheduler(tid), psutil.Process(tid).ionice()[0],
        sorted(os.sched_getaffinity(tid)),
    ]
late = []
thread = threading.Thread(target=lambda: late.append([os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]))
thread.start()
ended.set()
thread.join()
score = Path("/proc/self/oom_score_adj").read_text()
print(json.dumps([refused, list(found.values()), late, score]))
"""

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""

CHILD = """
import os, signal, sys, time
from edgepd.adapt.priority import end_with_parent
assert end_with_parent() == []
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has it")
def test_every_thread_steps_back_also_one_that_was_there_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BACKGROUND], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    refused, threads, late, score = json.loads(done.stdout)
    allowed = os.sched_getaffinity(0)
    expected = [19, os.SCHED_IDLE, 3, sorted(background_cpus(allowed, 1, core_of))]
    assert len(threads) >= 2
    assert threads == [expected] * len(threads)
    assert late == [expected[:2]]
    assert score.strip() == "1000"
    assert refused == []


def test_what_is_refused_is_said_and_nothing_else_suffers() -> None:
    program = (
        "import os\n"
        "from edgepd.adapt import priority\n"
        "def refuse(*_): raise PermissionError(1, 'Operation not permitted')\n"
        "os.sched_setscheduler = refuse\n"
        "print(priority.become_background(10_000))\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    said, nice = done.stdout.splitlines()
    assert said == "['the trainer has to do without SCHED_IDLE: [Errno 1] Operation not permitted']"
    assert nice == "19"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux can do this")
def test_a_stopped_child_does_not_outlive_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 10
    while state(child) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(child) == "T"
    parent.send_signal(signal.SIGKILL)
    parent.communicate()  # the pipe is at its end when both have ended
    while state(child) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(child) in ("", "Z")


def state(pid: int) -> str:
    """The letter of proc(5), nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize(
    ("cores", "allowed", "count", "expected"),
    [
        ([{0}, {1}, {2}, {3}], {0, 1, 2, 3}, 2, {2, 3}),
        ([{0, 1}, {2, 3}], {0, 1, 2, 3}, 2, {1, 3}),  # threads of a core are neighbours
        ([{0, 2}, {1, 3}], {0, 1, 2, 3}, 2, {2, 3}),  # second threads come last
        ([{0, 1}, {2, 3}], {0, 1, 2, 3}, 3, {1, 2, 3}),
        ([{0, 1}, {2, 3}], {0, 1, 2}, 1, {2}),
        ([{0}, {1}], {0, 1}, 0, {1}),
        ([{0}, {1}], {0, 1}, 5, {0, 1}),
    ],
)
def test_which_cpus_are_taken(cores: list[set[int]], allowed: set[int], count: int, expected: set[int]) -> None:
    """The last ones, and second threads of a core only where there is no other core."""

    def siblings(cpu: int) -> frozenset[int]:
        return next(frozenset(core) for core in cores if cpu in core)

    assert background_cpus(allowed, count, siblings) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0,4\n", {0, 4}), ("2-3\n", {2, 3}), ("0-1,4-5\n", {0, 1, 4, 5}), ("", {4}), ("?", {4})]
)
def test_the_cpus_of_a_core(tmp_path: Path, text: str, expected: set[int]) -> None:
    cpu = 4 if 4 in expected else min(expected)
    directory = tmp_path / f"cpu{cpu}" / "topology"
    directory.mkdir(parents=True)
    (directory / "thread_siblings_list").write_text(text)
    assert core_of(cpu, tmp_path) == expected
    assert core_of(9, tmp_path) == {9}
