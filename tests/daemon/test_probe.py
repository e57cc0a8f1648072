"""Files are opened by a child first: what it says, what is remembered, and that no broken file ends the daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgepd.errors import AdapterError, EdgepdError, ModelError
from edgepd.llama.probe import REFUSED
from edgepd_daemon.engine.types import Version
from edgepd_daemon.generation_files.checking import same_layout
from edgepd_daemon.probing import PROBE, Prober
from edgepd_profiles import probes
from edgepd_profiles.store import Store
from edgepd_quant.adapter_file import check_adapter
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.daemon.broken import crashing, mutated, opener, with_value
from tests.daemon.running import wait_for
from tests.tiny_gguf import tiny_llama

MUTATIONS = 300
SURVIVED, CRASHED = (0, REFUSED), (-6, -8, -11)  # SIGABRT, SIGFPE, SIGSEGV


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "profile.db") as opened:
        yield opened


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """A version whose file is not even a model; what the child says about it is up to the test."""
    (tmp_path / "model.gguf").write_bytes(b"x")
    return Version(7, tmp_path / "model.gguf", fingerprint="abc")


def child(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def counting(tmp_path: Path, program: str) -> tuple[str, ...]:
    """A child that also leaves a line behind, so that its runs can be counted."""
    return child(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n{program}")


def runs(tmp_path: Path) -> int:
    return (tmp_path / "runs").stat().st_size if (tmp_path / "runs").exists() else 0


def probed(*files: Path) -> tuple[int, dict[str, object]]:
    done = subprocess.run([*PROBE, *map(str, files)], capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def test_the_child_says_that_a_model_and_an_adapter_are_good(tiny_model: Path, tmp_path: Path) -> None:
    adapter = random_lora(tmp_path / "a.gguf", tiny_model, seed=1, deviation=0.1)
    assert probed(tiny_model, adapter) == (0, {"ok": True, "tokens": 9})


def test_the_child_says_why_llama_cpp_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    code, said = probed(tmp_path / "no.gguf")
    assert (code, said["ok"]) == (REFUSED, False)
    assert str(said["reason"]).startswith("llama.cpp cannot load ")
    assert "no.gguf" in str(said["reason"])


def test_the_child_refuses_an_adapter_whose_numbers_are_none(tiny_model: Path, tmp_path: Path) -> None:
    adapter = random_lora(tmp_path / "nan.gguf", tiny_model, seed=1, deviation=float("inf"))
    code, said = probed(tiny_model, adapter)
    assert (code, said["ok"]) == (REFUSED, False)
    assert "nan.gguf: its numbers make the model's answer not a number" in str(said["reason"])


def test_a_crash_is_a_reason_and_is_not_tried_again(store: Store, version: Version, tmp_path: Path) -> None:
    crash = counting(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    prober = Prober(store, crash)
    for _ in range(2):
        assert prober.problem(version) == "llama.cpp crashed on model.gguf (SIGSEGV)"
    assert runs(tmp_path) == 1
    assert Prober(store, crash).problem(version) is not None
    assert runs(tmp_path) == 2  # another daemon tries again, because the machine may have been to blame


def test_a_refusal_has_the_words_of_the_child(store: Store, version: Version) -> None:
    refuse = child('print("noise"); print(\'{"ok": false, "reason": "it is too old"}\'); raise SystemExit(3)')
    assert Prober(store, refuse).problem(version) == "it is too old"


def test_what_passed_is_not_opened_again_by_the_next_daemon(store: Store, version: Version, tmp_path: Path) -> None:
    good = counting(tmp_path, "")
    assert Prober(store, good).problem(version) is None
    assert Prober(store, child("raise SystemExit(3)")).problem(version) is None
    assert runs(tmp_path) == 1


def test_another_build_of_llama_cpp_opens_it_anew(
    store: Store, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = counting(tmp_path, "")
    Prober(store, good).problem(version)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.4.0")
    Prober(store, good).problem(version)
    assert runs(tmp_path) == 2


def test_other_contents_are_opened_anew(store: Store, version: Version, tmp_path: Path) -> None:
    prober = Prober(store, counting(tmp_path, ""))
    prober.problem(version)
    prober.problem(Version(8, version.model, fingerprint="abc"))  # the same under another number
    assert runs(tmp_path) == 1
    prober.problem(Version(7, version.model, fingerprint="abd"))
    assert runs(tmp_path) == 2


def test_what_another_child_has_opened_is_not_opened_again(store: Store, version: Version, tmp_path: Path) -> None:
    Prober(store, counting(tmp_path, "")).note(version)
    assert Prober(store, counting(tmp_path, "")).problem(version) is None
    assert runs(tmp_path) == 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "tried was ended by SIGKILL; free some memory"),
        ("raise RuntimeError", "tried ended with exit code 1; free some memory"),
        ("print('nonsense'); raise SystemExit(3)", "tried ended with exit code 3; free some memory"),
        ("import time; time.sleep(60)", "had not opened model.gguf within 1 s; try again when the machine is idle"),
    ],
)
def test_what_says_nothing_about_the_file_is_no_result(
    store: Store, version: Version, tmp_path: Path, program: str, reason: str
) -> None:
    prober = Prober(store, child(program), seconds=1.0)
    with pytest.raises(ModelError, match=reason):
        prober.problem(version)
    with store.read() as conn:
        assert probes.find(conn, prober._fingerprint(version)) is None
    prober._command = counting(tmp_path, "")
    assert prober.problem(version) is None


def test_a_child_that_cannot_be_started(store: Store, version: Version, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be started: "):
        Prober(store, (str(tmp_path / "missing"),)).problem(version)


def test_a_probe_ends_with_the_daemon(store: Store, version: Version, tmp_path: Path) -> None:
    prober = Prober(store, counting(tmp_path, "import time; time.sleep(60)"))
    errors: list[EdgepdError] = []

    def ask() -> None:
        try:
            prober.problem(version)
        except ModelError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: runs(tmp_path))
    prober.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "SIGKILL" in str(errors[0])


def test_a_file_that_ends_llama_cpp_is_found_out_by_the_child(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    file = crashing(tiny_model, tmp_path / "evil.gguf")
    with GGUFFile.open(file) as model, GGUFFile.open(tiny_model) as base:
        assert same_layout(model, base) is None  # nothing in its header is wrong
    reason = Prober(store).problem(Version(2, file, fingerprint="evil"))
    assert reason == "llama.cpp crashed on evil.gguf (SIGABRT)"


def test_no_mutated_file_gets_past_the_checks_and_the_child(tmp_path: Path) -> None:
    """Whatever is in a file: our parser refuses it, or llama.cpp does in the child, or it can be opened."""
    rng = np.random.default_rng(20)
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=3, layers=1)
    adapter = random_lora(tmp_path / "adapter.gguf", base, seed=1, deviation=0.1)
    broken = tmp_path / "broken.gguf"
    found: Counter[str] = Counter()
    with opener() as opened, GGUFFile.open(base) as model, GGUFFile.open(adapter) as lora:
        assert opened(base, adapter) == 0
        for number in range(MUTATIONS):
            source = (model, lora)[number % 2]
            broken.write_bytes(mutated(rng, source.path.read_bytes(), source.data_offset))
            try:
                if source is lora:
                    check_adapter(broken, model, model.sha256())
                else:
                    GGUFFile.open(broken).close()
            except (AdapterError, ModelError):
                found["parser"] += 1
                continue
            code = opened(base, broken) if source is lora else opened(broken)
            assert code in SURVIVED + CRASHED, f"mutation {number} ended the child with {code}"
            found["opened" if code == 0 else "refused"] += 1
        for key, value in (("llama.block_count", 0), ("llama.block_count", 2**31 - 1)):
            broken.write_bytes(with_value(base.read_bytes(), key, value))
            assert opened(broken) in CRASHED
        assert opened(base, adapter) == 0
    assert found.total() == MUTATIONS
    assert all(found[way] >= 3 for way in ("parser", "refused", "opened")), found
