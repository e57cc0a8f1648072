"""The units in systemd/: accepted by systemd, hardened as far as is said, and in agreement with the code.

Needs systemd-analyze, which runs without a running systemd. Where it is not installed these tests are skipped, unless
EDGEPD_TEST_SYSTEMD=1 says that it has to be there (.ci/run does).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgepd.cli import service_manager, service_text
from edgepd.cli import service_units as units
from edgepd.config import paths
from edgepd.errors import ConfigError, ConflictError, ModelError
from edgepd_daemon import listener, service

CHECKOUT = Path(__file__).parent.parent
EXPOSURE_FILE = CHECKOUT / "build" / "bench" / "exposure.txt"
# What `systemd-analyze security` of systemd 252 says, of ten. Most of the rest are capabilities, which a user's process
# has none of, and what needs a mount namespace; with the drop-in of docs/service.md both are counted.
EXPOSURE_LIMIT = 6.3
EXPOSURE_LIMIT_STRICT = 2.0


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's config.toml out, which decides whether a port may be opened."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def analyze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = shutil.which("systemd-analyze")
    if found is None and os.environ.get("EDGEPD_TEST_SYSTEMD") == "1":
        pytest.fail("systemd-analyze is not installed; it is in Debian's package systemd")
    if found is None:
        pytest.skip("systemd-analyze is not installed")
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return found


def installed_version(analyze: str) -> int:
    told = subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"\d+", told)[0])


def write_units(directory: Path, systemd: int, **environment: str) -> dict[str, Path]:
    directory.mkdir()
    env = {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_CONFIG_HOME": str(directory)} | environment
    made = units.wanted_units(systemd, env=env)
    for name, text in made.items():
        (directory / name).write_text(text)
    return {name: directory / name for name in made}


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def plain() -> dict[str, dict[str, list[str]]]:
    made = units.wanted_units(units.OLDEST, env={"XDG_RUNTIME_DIR": "/run/user/1000"})
    return {name: directives(text) for name, text in made.items()}


def verify(analyze: str, files: dict[str, Path]) -> str:
    names = [str(path) for path in files.values()]
    done = subprocess.run([analyze, "--user", "verify", *names], capture_output=True, text=True, timeout=60)
    return f"{done.returncode}{done.stdout}{done.stderr}"


def exposure(analyze: str, unit: Path) -> float:
    command = [analyze, "--user", "security", "--offline=true", "--no-pager", str(unit)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told.stdout)
    assert found, told.stdout + told.stderr
    return float(found[1])


def strict_drop_in() -> str:
    """The block of docs/service.md that begins with PrivateUsers."""
    text = (CHECKOUT / "docs" / "service.md").read_text()
    found = re.search(r"```ini\n(\[Service\]\nPrivateUsers=.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_systemd_accepts_the_units(analyze: str, tmp_path: Path) -> None:
    version = installed_version(analyze)
    assert verify(analyze, write_units(tmp_path / "plain", version)) == "0"
    odd = tmp_path / "a b%c$d"
    assert verify(analyze, write_units(odd, version, EDGEPD_HOME=str(odd), EDGEPD_MODELS_DIR='/m "x"\\y')) == "0"


def test_a_mistake_in_a_unit_would_be_noticed(analyze: str, tmp_path: Path) -> None:
    files = write_units(tmp_path / "units", installed_version(analyze))
    service_file = files[units.SERVICE]
    service_file.write_text(service_file.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "'WatchdogSecs'" in verify(analyze, files)


def test_exposure(analyze: str, tmp_path: Path) -> None:
    files = write_units(tmp_path / "units", installed_version(analyze))
    score = exposure(analyze, files[units.SERVICE])
    strict = tmp_path / "strict" / units.SERVICE
    strict.parent.mkdir()
    strict.write_text(files[units.SERVICE].read_text() + strict_drop_in())
    with_drop_in = exposure(analyze, strict)
    EXPOSURE_FILE.parent.mkdir(parents=True, exist_ok=True)
    EXPOSURE_FILE.write_text(f"edgepd.service {score}, with the drop-in of docs/service.md {with_drop_in}\n")
    assert score <= EXPOSURE_LIMIT
    assert with_drop_in <= EXPOSURE_LIMIT_STRICT
    assert verify(analyze, {units.SERVICE: strict}) == "0"


def test_every_template_is_installed(plain: dict[str, dict[str, list[str]]]) -> None:
    assert sorted(path.name for path in (CHECKOUT / "systemd").iterdir()) == sorted(units.UNITS)
    assert sorted(plain) == sorted(units.UNITS)
    for text in units.wanted_units(units.OLDEST).values():
        assert not re.search(r"@[A-Z_]+@", text)


def test_newer_directives_are_for_newer_versions() -> None:
    old, new = (directives(units.wanted_units(version)[units.SERVICE]) for version in (253, 254))
    assert new.keys() - old.keys() == {"RestartSteps", "RestartMaxDelaySec"}
    assert old.keys() <= new.keys()


def test_the_service_agrees_with_the_daemon(plain: dict[str, dict[str, list[str]]]) -> None:
    unit = plain[units.SERVICE]
    watchdog_s, stop_s, start_s = (int(unit[key][0]) for key in ("WatchdogSec", "TimeoutStopSec", "TimeoutStartSec"))
    assert watchdog_s >= 10 * service.WATCH_SECONDS
    assert stop_s > 2 * service.DRAIN_SECONDS
    assert start_s + stop_s < service_manager.JOB_SECONDS
    useless = sorted(error.exit_code for error in (ConfigError, ModelError, ConflictError))
    assert unit["RestartPreventExitStatus"] == [" ".join(map(str, useless))]
    assert shlex.split(unit["ExecStart"][0]) == [sys.executable, "-P", "-m", "edgepd_daemon"]
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX"]


def test_the_socket_is_where_clients_look(plain: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    unit = plain[units.SOCKET]
    told = unit["ListenStream"][0].replace("%t", "/run/user/1000")
    assert told == str(paths({"XDG_RUNTIME_DIR": "/run/user/1000"}).socket)
    assert (unit["SocketMode"], unit["DirectoryMode"]) == (["0600"], ["0700"])
    assert unit["Backlog"] == [str(listener.BACKLOG)]
    home = {"EDGEPD_HOME": "/h/100%", "XDG_RUNTIME_DIR": "/run/user/1000"}
    moved = directives(units.wanted_units(units.OLDEST, env=home)[units.SOCKET])["ListenStream"]
    assert [path.replace("%%", "%") for path in moved] == [str(paths(home).socket)]


def test_training_stands_behind_everything(plain: dict[str, dict[str, list[str]]]) -> None:
    """Weights count among siblings: the slice above the trainer's is the one beside other programs."""
    for name in units.SLICES:
        assert (plain[name]["CPUWeight"], plain[name]["IOWeight"]) == (["idle"], ["1"])
    assert units.SLICES == ("edgepd.slice", "edgepd-trainer.slice")
    assert plain[units.SERVICE]["OOMPolicy"] == ["continue"]


def test_the_environment_is_carried_and_settings_are_not() -> None:
    env = {"EDGEPD_HOME": "rel", "XDG_DATA_HOME": "/d 1", "EDGEPD_SERVE_SLOTS": "9", "XDG_RUNTIME_DIR": "/run/x"}
    unit = directives(units.wanted_units(units.OLDEST, env=env)[units.SERVICE])
    carried = [value for value in unit["Environment"] if not value.startswith("PYTHON")]
    assert carried == [f"EDGEPD_HOME={Path('rel').absolute()}", '"XDG_DATA_HOME=/d 1"']


@pytest.mark.parametrize("path", ["/a\nExecStart=/bin/sh", "/a\x1b[2J", "/a ", "/a\\"])
def test_a_path_that_would_break_out_of_its_line_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written in a unit file"):
        units.wanted_units(units.OLDEST, env={"EDGEPD_MODELS_DIR": path})
    with pytest.raises(ConfigError, match="cannot be written in a unit file"):
        units.autostart_entry({"EDGEPD_MODELS_DIR": path})


def test_the_autostart_entry_is_quoted_for_desktops() -> None:
    entry = units.autostart_entry({"EDGEPD_HOME": '/a "$b` 5%'})
    line = next(line for line in entry.splitlines() if line.startswith("Exec="))
    # The value of a key has its backslashes doubled; below them is a quoted argument.
    argument = '"EDGEPD_HOME=/a \\"\\$b\\` 5%%"'
    assert line.startswith(f"Exec=env {argument.replace(chr(92), chr(92) * 2)} {sys.executable}")


def test_the_state_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "unit"
    assert units.state_of(file) == "missing"
    units.write(file, units.signed("[Unit]\nA=1\n"))
    assert units.state_of(file) == "ours"
    file.write_text(file.read_text() + "B=2\n")
    assert units.state_of(file) == "edited"
    assert units.difference(file, units.signed("[Unit]\nA=1\nC=3\n")) == ["-B=2", "+C=3"]
    file.write_text("[Unit]\n")
    assert units.state_of(file) == "foreign"


def test_the_page_tells_how_to_linger() -> None:
    assert service_text.LINGER.rpartition(": ")[2] in (CHECKOUT / "docs" / "service.md").read_text()
