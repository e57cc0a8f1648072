"""A systemctl, journalctl and loginctl that do nothing but remember: put on PATH by tests of `edgepd service`.

Run as a program, it is any of the three, by the name it was started with. Its state is a JSON file beside it:
what was called, what is active or enabled, and what a test wants to go wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STATE = "state.json"
FRESH: dict[str, Any] = {
    "calls": [],
    "active": [],
    "enabled": [],
    "failing": {},  # verb -> what it says on stderr
    "version": "252.38-1~deb12u1",
    "linger": "no",
    "journal": "Nov 22 02:16:01 host edgepd[94]: INFO edgepd_daemon.service: ready\n",
    "pid": "94",
}


class FakeSystemd:
    """The three programs in a directory, and what they were called with."""

    def __init__(self, directory: Path, units_dir: Path) -> None:
        """Write the programs. `units_dir` is where the fake manager looks for units."""
        directory.mkdir()
        self.directory = directory
        self.state_file = directory / STATE
        self.change(**FRESH, units_dir=str(units_dir))
        for name in ("systemctl", "journalctl", "loginctl"):
            program = directory / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} {directory} {name} "$@"\n')
            program.chmod(0o755)

    def change(self, **values: Any) -> None:
        """Change what the programs say."""
        before = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
        self.state_file.write_text(json.dumps(before | values))

    @property
    def state(self) -> dict[str, Any]:
        """What the fake manager believes."""
        state: dict[str, Any] = json.loads(self.state_file.read_text())
        return state

    def took(self) -> list[str]:
        """Return the calls that change something, since the last time, without `systemctl --user`."""
        calls: list[list[str]] = self.state["calls"]
        self.change(calls=[])
        changing = [call[2:] for call in calls if call[:2] == ["systemctl", "--user"] and call[2] != "show"]
        return [" ".join(call) for call in changing]


def main(directory: Path, program: str, arguments: list[str]) -> int:
    file = directory / STATE
    state = json.loads(file.read_text())
    state["calls"].append([program, *arguments])
    code = {"systemctl": systemctl, "journalctl": journalctl, "loginctl": loginctl}[program](state, arguments)
    file.write_text(json.dumps(state))
    return code


def systemctl(state: dict[str, Any], arguments: list[str]) -> int:
    verb, names = arguments[1], [word for word in arguments[2:] if not word.startswith("-")]
    if verb in state["failing"]:
        print(state["failing"][verb], file=sys.stderr)
        return 1
    if verb == "show" and "--property=Version" in arguments:
        print(state["version"])
    elif verb == "show":
        print("\n\n".join(shown(state, name) for name in names))
    else:
        sets = {"start": ("active", True), "restart": ("active", True), "stop": ("active", False)}
        sets |= {"enable": ("enabled", True), "disable": ("enabled", False)}
        what, on = sets.get(verb, ("", False))
        for each in {what, "active" if "--now" in arguments else what} - {""}:
            state[each] = sorted(set(state[each]) | set(names) if on else set(state[each]) - set(names))
    return 0


def shown(state: dict[str, Any], name: str) -> str:
    path = Path(state["units_dir"]) / name
    there, active = path.exists(), name in state["active"]
    values = {
        "Id": name,
        "LoadState": "loaded" if there else "not-found",
        "ActiveState": "active" if active else state.get("inactive", "inactive"),
        "SubState": "running" if active else "dead",
        "UnitFileState": "enabled" if name in state["enabled"] else "disabled",
        "FragmentPath": state.get("fragment", str(path)) if there else "",
        "DropInPaths": "",
        "MainPID": state["pid"] if active else "0",
        "NRestarts": "0",
        "Result": "success",
        "ExecMainStatus": "0",
        "StatusText": "tiny ready, 0 running, 0 waiting" if active else "",
        "NeedDaemonReload": "no",
    }
    return "\n".join(f"{key}={value}" for key, value in values.items())


def journalctl(state: dict[str, Any], arguments: list[str]) -> int:
    print(state["journal"], end="")
    return 0


def loginctl(state: dict[str, Any], arguments: list[str]) -> int:
    print(state["linger"])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
