"""The daemon: whether it answers, and what it says is wrong with itself.

What this does not do: start it, or ask it for anything that takes long.
"""

from __future__ import annotations

import shlex

from edgepd.cli.doctor_checks.situation import Situation
from edgepd.client import NOT_SERVING, Client
from edgepd.errors import DaemonNotRunningError, EdgepdError
from edgepd_daemon.listener import find_socket
from edgepd_profiles.integrity import Finding

TIMEOUT_S = 10.0
TROUBLE = "edgepd status; its log says more: edgepd service logs"


def daemon(situation: Situation) -> list[Finding]:
    """Check that a daemon that runs answers, and pass on the problems that it knows of."""
    socket, lock = find_socket(situation.paths), situation.paths.lock
    try:
        with Client(socket, timeout=TIMEOUT_S) as client:
            health = client.health()
            told = f"{health['status']}, version {health['version']}, pid {health['pid']}"
            if health["status"] in NOT_SERVING:
                problem = f"the daemon does not serve: {told}"
                return [Finding("daemon", problem, "start it again and read its log")]
            status = client.status()
    except DaemonNotRunningError:
        if situation.locked:
            problem = f"a process holds {lock}, but no daemon answers on {socket}"
            # The second line of the file is the path of the socket.
            return [Finding("daemon", problem, f"wait a moment, else: kill $(head -n 1 {shlex.quote(str(lock))})")]
        return [Finding("daemon", detail="not running; start it with: edgepd daemon run")]
    except EdgepdError as error:
        return [Finding("daemon", str(error), "edgepd daemon stop, then start it again and read its log")]
    findings = [Finding("daemon", detail=told)]
    findings += [Finding("daemon says", str(problem), TROUBLE) for problem in status["problems"]]
    waiting = status.get("needs_restart")
    if waiting:
        detail = f"not in force until the daemon is started again: {', '.join(waiting)}"
        findings.append(Finding("reload", advice="edgepd daemon stop, then start it again", detail=detail))
    decision = (status.get("budget") or {}).get("decision")
    if decision:
        findings.append(Finding("learning", detail=str(decision["reason"])))
    return findings
