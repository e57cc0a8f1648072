"""The checks of `edgepd doctor`, each with a situation made for it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edgepd.cli import service_manager, service_units
from edgepd.cli.doctor_checks import machine, model, native, places, records, resources, serving
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.config import load, paths
from edgepd.models import Catalog
from edgepd_profiles import registry, runs
from edgepd_profiles.integrity import Finding
from edgepd_profiles.store import Store
from tests.cli.fake_daemon import HEALTH, STATUS, FakeDaemon
from tests.daemon.fake_machines import ANY, LAPTOP_ON_BATTERY, plant
from tests.tiny_gguf import tiny_llama, write_gguf


@pytest.fixture
def situation(home: Path, tmp_path: Path) -> Situation:
    """A machine with 8 GiB and two processors, and nothing of edgepd."""
    return Situation(paths(), False, load(home / "config.toml", {}), root=plant(tmp_path / "root", ANY))


def told(situation: Situation, toml: str) -> Situation:
    """The same with these settings."""
    situation.paths.config_file.write_text(toml)
    return replace(situation, settings=load(situation.paths.config_file, {}))


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def printing(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


# Packages and processor


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("numpy>=1.26", None),
        ("numpy (>=1.26,<3)", None),
        ("numpy>=2.4.6", None),
        ("numpy>=2.4.6.0", None),
        ("numpy>=2.5", "numpy is 2.4.6, but edgepd needs >=2.5"),
        ("numpy<2,>=1.26", "numpy is 2.4.6, but edgepd needs <2,>=1.26"),
        ("torch>=2.4", None),  # 2.13 is newer than 2.4, and +cpu is no number
        ("absent>=1", "absent is not installed"),
        ('absent>=1; extra == "dev"', None),
    ],
)
def test_requirement(monkeypatch: pytest.MonkeyPatch, line: str, problem: str | None) -> None:
    installed = {"numpy": "2.4.6", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(machine, "_version", installed.get)
    assert machine.unmet(line) == problem


def test_processor_without_vector_units_is_told(situation: Situation) -> None:
    plant(situation.root, {"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu sse4_2\n"})
    finding = only(machine.processor(situation))
    assert finding.problem is None
    assert finding.detail.startswith("sse4_2; neither AVX2 nor NEON")


def test_processor_of_arm(situation: Situation) -> None:
    plant(situation.root, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n"})
    assert only(machine.processor(situation)).detail == "asimd asimddp bf16; bf16 in hardware"


def test_physical_cores(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu{}/topology/{}"
    pairs = {folder.format(n, "core_cpus_list"): "0,2" if n % 2 == 0 else "1,3" for n in range(4)}
    plant(tmp_path, pairs)
    assert machine.physical_cores(tmp_path, {0, 1, 2, 3}) == 2
    assert machine.physical_cores(tmp_path, {0, 2}) == 1
    assert machine.physical_cores(tmp_path / "none", {0}) is None
    plant(tmp_path / "old", {folder.format(0, "thread_siblings_list"): "0-1"})
    assert machine.physical_cores(tmp_path / "old", {0}) == 1


def test_more_threads_than_processors(situation: Situation) -> None:
    finding = only(machine.cores(told(situation, "[serve]\nthreads = 256\n")))
    assert finding.problem is not None
    assert finding.problem.startswith("serve.threads = 256, but only ")
    assert only(machine.cores(situation)).problem is None


# llama.cpp


def test_llama_cpp_that_is_installed_has_every_symbol(situation: Situation) -> None:
    assert {"llama_decode", "llama_set_adapters_lora", "llama_sampler_sample"} <= set(native.used_symbols())
    finding = only(native.llama_cpp(situation))
    assert finding.problem is None, finding
    assert finding.detail.startswith("llama-cpp-python ")


@pytest.mark.parametrize(
    ("program", "problem", "advice"),
    [
        (
            f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})",
            "its process ends with SIGILL when it is loaded, so it was built for another processor",
            native.REBUILD,
        ),
        (
            """print('{"error": "OSError: no libllama.so"}')""",
            "it cannot be loaded: OSError: no libllama.so",
            native.REINSTALL,
        ),
        (
            """print('{"missing": ["llama_decode"], "version": "0.1", "system": ""}')""",
            "llama-cpp-python 0.1 lacks llama_decode",
            "pip install --upgrade edgepd llama-cpp-python",
        ),
        ("import sys; sys.exit('boom')", "the process that loads it ended with 1: boom", native.REINSTALL),
    ],
)
def test_llama_cpp_that_is_unusable(situation: Situation, program: str, problem: str, advice: str) -> None:
    assert only(native.llama_cpp(situation, printing(program))) == Finding("llama.cpp", problem, advice)


@pytest.mark.parametrize(("system", "lacks"), [("CPU : FMA = 1 | ", True), ("CPU : AVX2 = 1 | FMA = 1 | ", False)])
def test_llama_cpp_without_what_the_processor_has(situation: Situation, system: str, lacks: bool) -> None:
    plant(situation.root, {"proc/cpuinfo": "flags : avx2 fma\n"})
    program = f"""print('{{"missing": [], "version": "0.1", "system": "{system}"}}')"""
    problem = only(native.llama_cpp(situation, printing(program))).problem
    assert problem == ("it was built without AVX2, which this processor has" if lacks else None)


# The model


@pytest.fixture
def installed(situation: Situation, tmp_path: Path) -> Path:
    """A tiny model in the catalog: its file."""
    return Catalog(situation.paths.models_dir).add(str(tiny_llama(tmp_path / "tiny.gguf", qtype=8, seed=1))).path


def test_no_model(situation: Situation) -> None:
    finding = only(model.model(situation))
    assert (finding.problem is not None, finding.advice) == (True, "edgepd model add default")


def test_model_that_is_good(situation: Situation, installed: Path) -> None:
    whole, trainable = model.model(situation)
    assert (whole.problem, trainable.problem) == (None, None)
    assert whole.detail.startswith("tiny, ")
    assert trainable.detail == "architecture llama"


def test_model_that_was_changed_in_place(situation: Situation, installed: Path) -> None:
    installed.chmod(0o600)
    contents = bytearray(installed.read_bytes())
    contents[-1] ^= 1
    installed.write_bytes(contents)
    finding = only(model.model(situation))
    assert finding.problem is not None
    assert "is not what was installed: its SHA-256 is " in finding.problem
    assert finding.advice is not None
    assert finding.advice.startswith("edgepd model remove tiny; edgepd model add /")


def test_large_model_is_read_as_a_whole_only_when_asked(
    situation: Situation, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "HASHED_BYTES", 10)
    installed.chmod(0o600)
    installed.write_bytes(installed.read_bytes()[:-1] + b"\x55")
    assert model.model(situation)[0].problem is None
    assert model.model(replace(situation, deep=True))[0].problem is not None


def test_model_that_cannot_be_trained(situation: Situation, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", {"general.architecture": "mamba"}, {})
    Catalog(situation.paths.models_dir).add(str(file))
    finding = model.model(situation)[1]
    assert finding.problem is not None
    assert "odd can be served, but not trained: " in finding.problem
    assert "architecture 'mamba' cannot be trained" in finding.problem


# Memory, disk, sensors, budget


def test_memory(situation: Situation) -> None:
    assert only(resources.memory(situation)) == Finding("memory", detail="7812 MiB, of which 2000 MiB are available")


def test_memory_that_is_too_small_for_the_settings(situation: Situation) -> None:
    finding = only(resources.memory(told(situation, "[train]\nmemory_mb = 7500\n")))
    assert finding.problem is not None
    assert finding.problem.startswith("train.memory_mb = 7500, the model, and the 400 MiB")
    assert only(resources.memory(told(situation, "[train]\nmemory_mb = 7000\n"))).problem is None


def test_limit_of_the_cgroup_counts(situation: Situation) -> None:
    plant(situation.root, {"sys/fs/cgroup/memory.max": str(2**31), "sys/fs/cgroup/memory.current": "0"})
    finding = only(resources.memory(situation))
    assert finding.detail.startswith("2048 MiB")
    assert finding.advice == "set budget.preset to sbc, which asks for less"
    assert only(resources.memory(told(situation, '[budget]\npreset = "sbc"\n'))).advice is None


def test_memory_that_is_too_small_for_the_model(situation: Situation, installed: Path) -> None:
    plant(situation.root, {"proc/meminfo": "MemTotal: 102400 kB\nMemAvailable: 51200 kB\n"})
    problem = only(resources.memory(situation)).problem
    assert problem is not None
    assert problem.endswith("and there are 100 MiB, of which 50 MiB are available")


def test_room_for_training(situation: Situation) -> None:
    situation.paths.backups_dir.mkdir(parents=True)
    (situation.paths.backups_dir / "one").write_bytes(bytes(3 * 2**20))
    assert "backups 3 " in only(resources.disk(situation)).detail
    assert resources.sizes(situation)["backups"] == 3 * 2**20
    finding = only(resources.disk(told(situation, "[budget]\nmin_free_disk_mb = 1_000_000_000\n")))
    assert finding.problem is not None
    assert finding.problem.startswith("nothing is trained, because budget.min_free_disk_mb is 1000000000")


def test_sensors_of_a_laptop(situation: Situation) -> None:
    plant(situation.root, LAPTOP_ON_BATTERY)
    sensors, pressure = resources.sensors(situation)
    assert sensors.detail.startswith("mains power off, battery 63, temperature 62, ")
    assert "holds nothing" not in sensors.detail
    assert pressure.detail.startswith("memory 1.5 %, disk 12.34 %")


def test_missing_sensors_are_told_with_the_settings_that_hold_nothing(situation: Situation) -> None:
    (situation.root / "proc/pressure/io").unlink()
    sensors, pressure = resources.sensors(situation)
    assert (sensors.problem, pressure.problem) == (None, None)
    assert "no temperature, so budget.max_temperature_c holds nothing" in sensors.detail
    assert "no mains power, so budget.ac_only holds nothing" in sensors.detail
    assert pressure.detail == "the kernel does not tell (PSI), so budget.max_io_pressure hold nothing"


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[budget]\nminutes_per_day = 0\n", "budget.minutes_per_day is 0"),
        ("[budget]\nquiet_hours = '00:00-12:00,11:00-24:00'\n", "budget.quiet_hours cover the whole day"),
        ("[budget]\nquiet_hours = '9-5'\n", "budget.quiet_hours = '9-5': "),
        ("[budget]\nmin_free_disk_mb = 1_000_000_000\n", "budget.min_free_disk_mb is 1000000000, but the disk has "),
        ("[budget]\nmin_available_mb = 8000\n", "budget.min_available_mb is 8000, but there are 7812 MiB in all"),
        ("[budget]\nhard_memory_mb = 500\n[train]\nmemory_mb = 700\n", "budget.hard_memory_mb is 500"),
        ("[train]\nmin_examples = 10\n[select]\nslots = 5\n", "train.min_examples is 10, but select.slots keeps 5"),
    ],
)
def test_budget_that_can_never_be_met(situation: Situation, toml: str, problem: str) -> None:
    finding = only(resources.budget(told(situation, toml)))
    assert finding.problem is not None
    assert finding.problem.startswith(problem)
    assert finding.advice is not None


@pytest.mark.parametrize(
    "toml",
    [
        "",
        "[budget]\nminutes_per_day = 0\nautomatic = false\n",
        "[budget]\nquiet_hours = '00:00-23:59'\n",
        "[budget]\nhard_memory_mb = 900\n[train]\nmemory_mb = 700\n",
        "[budget]\npreset = 'always-on'\n",
    ],
)
def test_budget_that_can_be_met(situation: Situation, toml: str) -> None:
    assert only(resources.budget(told(situation, toml))).problem is None


# Places


def test_socket_that_others_may_use(situation: Situation) -> None:
    path = situation.paths.socket
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        assert only(places.socket(situation)).problem is None
        path.chmod(0o666)
        finding = only(places.socket(situation))
        assert finding.problem == f"other users of this machine have rights on {path}"
        assert finding.advice == f"chmod 600 {path}"
        path.chmod(0o600)
        path.parent.chmod(0o755)
        assert only(places.socket(situation)).advice == f"chmod 700 {path.parent}"
        path.parent.chmod(0o700)
        situation.paths.token.write_text("secret")
        situation.paths.token.chmod(0o644)
        assert only(places.socket(situation)).advice == f"chmod 600 {situation.paths.token}"


def test_socket_of_a_killed_daemon(situation: Situation) -> None:
    path = situation.paths.socket
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
    finding = only(places.socket(situation))
    assert finding.problem is None
    assert finding.detail.endswith("left by a daemon that was killed, the next one takes its place")


def test_something_else_is_where_the_socket_should_be(situation: Situation) -> None:
    situation.paths.runtime_dir.mkdir()
    situation.paths.socket.write_text("")
    assert str(only(places.socket(situation)).problem).endswith("is not a socket, so no daemon can listen there")


def test_without_a_runtime_directory(
    situation: Situation, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EDGEPD_HOME")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert "XDG_RUNTIME_DIR is not set" in only(places.runtime_directory(situation)).detail
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    finding = only(places.runtime_directory(situation))
    assert "which is not there, so the socket is " in finding.detail
    assert finding.advice is not None


def test_machine_without_systemd(situation: Situation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    finding = only(places.service(situation))
    assert (finding.problem, finding.detail) == (None, "there is no systemd for you")


LOADED = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "Result": "success",
    "NRestarts": "0",
}


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, situation: Situation) -> dict[str, str]:
    """A manager of systemd; what it says of the service can be changed."""
    said = dict(LOADED)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(service_manager, "version", lambda: 252)
    monkeypatch.setattr(service_manager, "lingers", lambda: True)
    both = {service_units.SERVICE: said, service_units.SOCKET: dict(LOADED)}
    monkeypatch.setattr(service_manager, "units", lambda *_names: both)
    return said


def install() -> None:
    for name, text in service_units.wanted_units(252).items():
        service_units.write(service_units.units_dir() / name, text)


def test_service_that_is_not_installed(situation: Situation, systemd: dict[str, str]) -> None:
    finding = only(places.service(situation))
    assert (finding.problem, finding.detail) == (None, "not installed")


def test_service_as_it_should_be(situation: Situation, systemd: dict[str, str]) -> None:
    install()
    assert only(places.service(situation)) == Finding("service", detail="installed and active")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"ActiveState": "failed", "Result": "oom-kill", "NRestarts": "5"},
            "edgepd.service has failed (oom-kill, 5 restarts)",
        ),
        ({"NeedDaemonReload": "yes"}, "systemd has not read the units as they are now"),
        ({"UnitFileState": "disabled"}, "edgepd.service is disabled, so it does not start by itself"),
    ],
)
def test_service_that_needs_something(
    situation: Situation, systemd: dict[str, str], change: dict[str, str], problem: str
) -> None:
    install()
    systemd.update(change)
    finding = only(places.service(situation))
    assert finding.problem == problem
    assert finding.advice is not None


def test_service_of_another_python(
    situation: Situation, systemd: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr(sys, "executable", "/opt/other/bin/python3")
    finding = only(places.service(situation))
    assert finding.problem == "not as edgepd would write it from this shell: edgepd.service"


def test_units_that_the_user_has_changed_are_no_problem(situation: Situation, systemd: dict[str, str]) -> None:
    install()
    file = service_units.units_dir() / service_units.SERVICE
    file.write_text(file.read_text() + "# mine\n")
    finding = only(places.service(situation))
    assert (finding.problem, finding.detail) == (
        None,
        "installed and active; changed or written by you: edgepd.service",
    )


# What the profile and the daemon tell


def test_clock_that_was_set_back(situation: Situation) -> None:
    with Store.open(situation.paths.profile) as store:
        store.write(lambda conn: runs.start_run(conn, "live", None, at=time.time() - 60)).result()
        assert only(records.clock(situation)).problem is None
        store.write(lambda conn: conn.execute("UPDATE runs SET started_at = started_at + 7200")).result()
    finding = only(records.clock(situation))
    assert finding.problem is not None
    assert finding.problem.startswith("the clock was set back: it is ")


def ended_run(conn: sqlite3.Connection, state: str) -> None:
    run = runs.start_run(conn, "live", None)
    runs.finish_run(conn, run.id, state, reason="no memory")


@pytest.mark.parametrize(
    ("states", "problem"),
    [(("failed",), False), (("failed", "failed"), True), (("failed", "failed", "rejected"), False)],
)
def test_runs_that_failed_in_a_row(situation: Situation, states: tuple[str, ...], problem: bool) -> None:
    with Store.open(situation.paths.profile) as store:
        for state in states:
            store.write(partial(ended_run, state=state)).result()
    finding = only(records.training_runs(situation))
    assert (finding.problem is not None) is problem
    assert "no memory" in (finding.problem or finding.detail)


def test_no_profile_no_findings(situation: Situation) -> None:
    assert only(records.clock(situation)).problem is None
    assert records.training_runs(situation) == records.generations(situation) == records.rescued(situation) == []


def test_generation_without_its_file(situation: Situation) -> None:
    folder = situation.paths.generations_dir
    folder.mkdir(parents=True)
    (folder / "a.gguf").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc: FIPS 180-4, appendix
    with Store.open(situation.paths.profile) as store:
        base = store.write(lambda conn: registry.ensure_base(conn, "ab" * 32)).result()
        made = store.write(
            lambda conn: registry.add(
                conn,
                parent=base.id,
                kind="live",
                base_sha256="ab" * 32,
                state="candidate",
                adapter_file="a.gguf",
                file_sha256=digest,
            )
        ).result()
        assert only(records.generations(situation)).detail == "2, of which 2 have files"
        store.write(lambda conn: registry.activate(conn, "ab" * 32, made.id, base.id)).result()
    assert only(records.generations(situation)).problem is None
    (folder / "a.gguf").write_bytes(b"abd")
    finding = only(records.generations(situation))
    assert finding.problem == f"generation {made.id}, which serves, has another file than was made"
    (folder / "a.gguf").unlink()
    finding = only(records.generations(situation))
    assert finding.problem == f"generation {made.id} (active) lacks its file {folder / 'a.gguf'}"
    assert finding.advice == "edgepd adapters rollback"


def test_problems_that_the_daemon_knows_of(situation: Situation, daemon: FakeDaemon) -> None:
    daemon.on("GET /healthz", HEALTH | {"pid": 4711})
    daemon.on("GET /edgepd/v1/status", STATUS | {"problems": ["the disk is full"], "needs_restart": ["serve.slots"]})
    findings = {finding.what: finding for finding in serving.daemon(situation)}
    assert findings["daemon"].problem is None
    assert findings["daemon says"].problem == "the disk is full"
    assert findings["reload"].detail.endswith(": serve.slots")
    assert findings["learning"].detail == STATUS["budget"]["decision"]["reason"]


def test_directory_that_cannot_be_written(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(places.directories(situation)).problem is None
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    home = situation.paths.data_dir.parent
    finding = only(places.directories(situation))
    assert finding.problem == f"{home} cannot be written by you, so nothing can be stored"
    assert finding.advice == f"chmod u+rwx {home}"
