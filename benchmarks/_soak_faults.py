"""Faults of the machine that a soak can make without hurting anybody: a full disk and a slow one.

The idea: the benchmark starts itself again in namespaces of its own, where it may mount a file system of a few hundred
megabytes that is gone with it, whoever runs it; fsync is delayed from outside by strace. Where the system has or
permits neither, the fault is left out and a sentence says so.
What this does not do: break the hardware, or compile anything.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSIDE = "EDGEPD_SOAK_INSIDE"  # set in the environment of the second start
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
DISK_MB = 640
FSYNC_US = 200_000
ATTACH_SECONDS, DETACH_SECONDS = 1.0, 30.0
MIB = 1024 * 1024


def go_inside() -> None:
    """Start this program again where it may mount, if the system permits that; else return."""
    if os.environ.get(INSIDE) or shutil.which(UNSHARE[0]) is None:
        return
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0:
        command = [*UNSHARE, sys.executable, *sys.argv]
        os.execvpe(UNSHARE[0], command, os.environ | {INSIDE: "1"})  # noqa: S606 - no shell, and an own command line


class Disk:
    """A small file system of its own, or a plain folder where that cannot be."""

    def __init__(self) -> None:
        """Mount it. Its path is short, because a socket lies below it."""
        self.folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))  # noqa: S108 - see above
        self.limited = False
        self.why_not = "there is no unshare, or the system does not permit user namespaces"
        if os.environ.get(INSIDE):
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0700", "tmpfs", str(self.folder)]
            mounted = subprocess.run(command, capture_output=True, text=True, check=False)
            self.limited = mounted.returncode == 0
            self.why_not = mounted.stderr.strip()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room at all for the length of the block."""
        filler = self.folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                for size in (MIB, 4096):
                    self._fill(file.fileno(), bytes(size))
            yield
        finally:
            filler.unlink(missing_ok=True)

    def _fill(self, descriptor: int, piece: bytes) -> None:
        try:
            while os.write(descriptor, piece) == len(piece):
                continue
        except OSError:
            return  # it is full, which was wanted

    def close(self) -> None:
        """Unmount and remove it."""
        if self.limited:
            command = ["umount", "-l", str(self.folder)]
            subprocess.run(command, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def can_slow_down() -> bool:
    """Return whether strace is there and may be attached to a process of ours."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-o", os.devnull, "-e", "inject=fsync:delay_enter=1", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def slow_disk(pid: int) -> Iterator[None]:
    """Delay each fsync and fdatasync of a process and the children it starts (strace(1), "Tampering")."""
    calls = "fsync,fdatasync"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}"]
    command += ["-e", f"inject={calls}:delay_enter={FSYNC_US}", "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(ATTACH_SECONDS)
    if tracer.poll() is not None:
        raise RuntimeError(f"strace ended with {tracer.returncode}")
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of what it traces
        tracer.wait(DETACH_SECONDS)
