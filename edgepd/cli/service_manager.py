"""systemctl, loginctl and journalctl: every call of `edgepd service` to systemd goes through here.

The idea: one function runs a program and returns what it said; the others turn that into values and errors. The
invariant: only the user's own manager is spoken to (`--user`), and no call asks for a password or opens a pager.
What this does not do: know what is in the units (see service_units.py).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from edgepd.errors import EdgepdError, NotFoundError

CALL_SECONDS = 30.0
JOB_SECONDS = 400.0  # more than TimeoutStartSec= and TimeoutStopSec= of the service together

PROPERTIES = (
    *("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "FragmentPath", "DropInPaths"),
    *("MainPID", "NRestarts", "Result", "ExecMainStatus", "StatusText", "NeedDaemonReload"),
)
INSTEAD = (
    "without it, start the daemon by hand with `edgepd daemon run`, or at login to a desktop with "
    "`edgepd service install --autostart`"
)


def call(program: str, *arguments: str, seconds: float = CALL_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a program of systemd to its end and return what it printed. Raises NotFoundError if it is not there."""
    found = shutil.which(program)
    if found is None:
        raise NotFoundError(f"there is no {program} on this machine, so it seems to be without systemd; {INSTEAD}")
    environment = {**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    try:
        return subprocess.run(
            [found, *arguments], env=environment, capture_output=True, text=True, timeout=seconds, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise EdgepdError(f"{program} {' '.join(arguments)} has not ended within {seconds:.0f} s") from error


def follow(program: str, *arguments: str) -> int:
    """Run a program on this terminal until it ends, and return its exit code. Raises NotFoundError."""
    found = shutil.which(program)
    if found is None:
        raise NotFoundError(f"there is no {program} on this machine, so it seems to be without systemd; {INSTEAD}")
    return subprocess.run([found, *arguments]).returncode


def version() -> int:
    """Return the version of the user's manager, such as 252. Raises NotFoundError if none answers."""
    done = call("systemctl", "--user", "show", "--property=Version", "--value")
    number = re.match(r"\d+", done.stdout.strip())
    if done.returncode != 0 or number is None:
        said = done.stderr.strip() or "it says nothing"
        raise NotFoundError(
            f"systemd runs no manager for this user, or it cannot be reached ({said}); log in as this user instead of "
            f"with su or sudo; {INSTEAD}"
        )
    return int(number[0])


def systemctl(*arguments: str, seconds: float = JOB_SECONDS) -> str:
    """Run `systemctl --user` and return what it printed. Raises EdgepdError with its words if it fails."""
    done = call("systemctl", "--user", *arguments, seconds=seconds)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EdgepdError(f"systemctl --user {' '.join(arguments)}: {said}; `edgepd service logs` may say more")
    return done.stdout


def units(*names: str) -> dict[str, dict[str, str]]:
    """Return PROPERTIES of units by name; one that does not exist has the LoadState not-found. Raises EdgepdError."""
    text = systemctl("show", f"--property={','.join(PROPERTIES)}", "--", *names)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
    return {block["Id"]: block for block in blocks if "Id" in block}


def lingers() -> bool | None:
    """Return whether the user's manager goes on after logout, None where nobody knows."""
    try:
        done = call("loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value")
    except NotFoundError:
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())
