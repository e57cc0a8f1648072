"""Files are opened by a throw-away child before this process touches them.

The idea: llama.cpp can crash on a file, and a crash here would cut every running answer. So whatever was never opened
with the installed build of llama.cpp is opened by `python -m edgepd.llama.probe` first. The result is kept in the
profile under the contents of the files and the build, so that later starts lose no time.
Invariants: one probe at a time; a file that was found bad is not tried again by the same daemon; what says nothing
about the file (no time, no memory, no child) is no result. A result that cannot be stored holds until the daemon ends.
What this does not do: check headers and hashes (see generation_files), or decide what becomes of a generation.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from edgepd.errors import ModelError, StoreError
from edgepd_daemon.engine.types import Version
from edgepd_profiles import probes
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

# -P: a json.py in the working directory must not be taken for the standard one.
PROBE = (sys.executable, "-P", "-m", "edgepd.llama.probe")
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}  # or a failed assertion of llama.cpp starts a debugger on itself
REFUSED = 3  # the exit code with which the child gives a reason
PROBE_SECONDS = 60.0  # plus what a slow disk takes to read the model once
BYTES_PER_SECOND = 20e6
CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP")  # other signals come from outside
TOLD_CHARACTERS = 300  # of what a failed child wrote


class Prober:
    """Opens versions in a child process, each only once. Methods block; call them on a worker thread."""

    def __init__(self, store: Store, command: Sequence[str] = PROBE, seconds: float = PROBE_SECONDS) -> None:
        """`command` is the command line of the child, to which the files are added."""
        self._store = store
        self._command = tuple(command)
        self._seconds = seconds
        self._build = importlib.metadata.version("llama-cpp-python")
        self._known: dict[str, str | None] = {}  # why a fingerprint must not be opened; None if it may be
        self._one_at_a_time = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def problem(self, version: Version) -> str | None:
        """Return why llama.cpp must not open these files here, None if it may.

        Raises ModelError if that could not be found out.
        """
        fingerprint = self._fingerprint(version)
        if self._passed(fingerprint):
            return None
        with self._one_at_a_time:
            if self._passed(fingerprint):
                return None
            if fingerprint not in self._known:
                self._keep(fingerprint, self._ask(version))
            return self._known[fingerprint]

    def note(self, version: Version) -> None:
        """Note that another child process has opened these files."""
        self._keep(self._fingerprint(version), None)

    def close(self) -> None:
        """End a probe that is going on, and allow no other."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()

    def _fingerprint(self, version: Version) -> str:
        return f"{version.fingerprint} llama-cpp-python {self._build}"

    def _passed(self, fingerprint: str) -> bool:
        if fingerprint in self._known:
            return self._known[fingerprint] is None
        with self._store.read() as conn:
            found = probes.find(conn, fingerprint)
        # One that failed may do better now: the memory, the library's CPU variant or a driver may have been to blame.
        if found is None or not found.passed:
            return False
        self._known[fingerprint] = None
        return True

    def _keep(self, fingerprint: str, reason: str | None) -> None:
        self._known[fingerprint] = reason
        try:
            self._store.write(lambda c: probes.record(c, fingerprint, reason is None, reason or "")).result()
        except StoreError as error:
            log.warning("a probe is not remembered: %s", error)

    def _ask(self, version: Version) -> str | None:
        """Let a child open the files. Return what it found; raises ModelError for no result."""
        files = [str(file) for file in (version.model, version.adapter) if file]
        what = " with ".join(file.name for file in (version.model, version.adapter) if file)
        seconds = self._seconds + version.model.stat().st_size / BYTES_PER_SECOND
        code, output, errors = self._run(files, seconds, what)
        line = output.strip().rpartition("\n")[2]
        if code == 0:
            return None
        if code == REFUSED:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return str(json.loads(line)["reason"])
        name = _signal_name(code)
        if name in CRASHES:
            return f"llama.cpp crashed on {what} ({name})"
        how = f"was ended by {name}" if name else f"ended with exit code {code}"
        log.warning("the probe of %s %s: %s", what, how, errors.strip()[-TOLD_CHARACTERS:])
        raise ModelError(
            f"it is not known whether llama.cpp can open {what}: the process that tried {how}; free some memory and "
            "try again"
        )

    def _run(self, files: list[str], seconds: float, what: str) -> tuple[int, str, str]:
        """Run a child to its end; return its exit code and what it wrote. Raises ModelError."""
        try:
            with subprocess.Popen(
                [*self._command, *files],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=os.environ | ENVIRONMENT,
            ) as child:
                self._child = child
                if self._closed:
                    child.kill()
                try:
                    output, errors = child.communicate(timeout=seconds)
                except subprocess.TimeoutExpired as error:
                    child.kill()
                    raise ModelError(
                        f"llama.cpp had not opened {what} within {seconds:.0f} s; try again when the machine is idle"
                    ) from error
                return child.returncode, output, errors
        except OSError as error:
            raise ModelError(f"the process that opens {what} first could not be started: {error}") from error
        finally:
            self._child = None


def _signal_name(code: int) -> str | None:
    if code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"
