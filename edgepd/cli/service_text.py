"""What `edgepd service` prints for people.

What this does not do: ask systemd, or look at files; all that is said here was found out before.
"""

from __future__ import annotations

from typing import Any

from edgepd.cli.output import columns
from edgepd.cli.service_units import EDITED, FOREIGN, MISSING, OUTDATED, SERVICE, SOCKET

LINGER = "it ends when you log out; to keep it running: loginctl enable-linger"


def installed_text(done: dict[str, Any], *, autostart: bool) -> str:
    """Say what was written, what has changed in it, and what to do next."""
    lines = [f"{what}: {', '.join(done[what])}" for what in ("written", "unchanged") if done[what]]
    for name, changes in done["changes"].items():
        lines += [f"changed in {name}:", *(f"  {line}" for line in changes)]
    lines.append(f"in {done['directory']}")
    if autostart:
        return "\n".join([*lines, "your desktop starts the daemon at the next login; now: edgepd daemon run"])
    if done["restart_needed"]:
        lines.append("it runs as it was until: edgepd service stop; edgepd service start")
    elif done["running"]:
        lines.append("the service runs")
    else:
        lines.append("it starts with your session; to start it now: edgepd service start")
    return "\n".join(lines if done["lingers"] else [*lines, LINGER])


def status_text(told: dict[str, Any]) -> str:
    """Say how the service is, in rows, with what to do about it."""
    unit, sock = told["units"][SERVICE], told["units"][SOCKET]
    if unit["LoadState"] != "loaded":
        return "not installed; run: edgepd service install --now"
    rows = [("service", _state(unit)), ("starts", f"at login: {unit['UnitFileState'] or 'no'}")]
    if told["active"]:
        health = told["health"]
        rows.append(("daemon", f"{health['status']}, version {health['version']}" if health else "does not answer"))
        rows.append(("says", unit.get("StatusText") or "nothing"))
    rows.append(("socket", f"{sock['ActiveState']} ({sock['SubState']})" if sock["LoadState"] == "loaded" else "none"))
    if unit["DropInPaths"]:
        rows.append(("drop-ins", unit["DropInPaths"]))
    rows.append(("after logout", {True: "goes on", False: LINGER, None: "unknown"}[told["lingers"]]))
    lines = [columns(rows)]
    stale = [name for name, state in told["files"].items() if state in (OUTDATED, MISSING)]
    edited = [name for name, state in told["files"].items() if state in (EDITED, FOREIGN)]
    lines += (
        [f"not as edgepd would write it from this shell: {', '.join(stale)}; run: edgepd service install"]
        if stale
        else []
    )
    lines += [f"changed or written by you: {', '.join(edited)}"] if edited else []
    lines += [f"Problem: {problem}" for problem in told["problems"]]
    if unit["ActiveState"] == "failed":
        lines.append("read why: edgepd service logs; then: edgepd service start")
    return "\n".join(lines)


def _state(unit: dict[str, str]) -> str:
    text = f"{unit['ActiveState']} ({unit['SubState']})"
    if unit["MainPID"] not in ("", "0"):
        text += f", pid {unit['MainPID']}"
    if unit["Result"] not in ("", "success"):
        text += f", result {unit['Result']}, exit status {unit['ExecMainStatus']}"
    return text + (f", restarted {unit['NRestarts']} times" if unit["NRestarts"] not in ("", "0") else "")
