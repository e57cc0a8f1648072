"""Baking as seen from the disk: whole or not at all, in flat memory, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from edgepd.errors import FormatError, StoreError
from edgepd_quant import bake as module
from edgepd_quant.adapter_file import write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.types import GGMLType
from tests.quant.baking import delta_for, left_behind
from tests.tiny_gguf import tiny_llama, write_gguf

LARGE_BYTES = 64 << 20
LARGE_NAMES = tuple(f"blk.{layer}.ffn_up.weight" for layer in range(16))

# What the children do: read the delta and bake it, the way the trainer does.
PREAMBLE = """
import resource, signal, sys
from pathlib import Path
from edgepd.errors import StoreError
from edgepd_quant.adapter_file import read_adapter
from edgepd_quant.bake import bake
folder = Path(sys.argv[1])
base, out = folder / "base.gguf", folder / "out" / "baked.gguf"
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of 64 MB in Q8_0, two deltas for all of it, and an empty folder "out"."""
    folder = tmp_path_factory.mktemp("large")
    columns, rows = 4096, LARGE_BYTES // len(LARGE_NAMES) // (4096 // 32 * 34)
    row = np.tile(np.frombuffer(np.float16(0.01).tobytes() + bytes(range(32)), dtype=np.uint8), columns // 32)
    tensors = {name: (np.tile(row, (rows, 1)), int(GGMLType.Q8_0)) for name in LARGE_NAMES}
    base = write_gguf(folder / "base.gguf", {}, tensors)
    for seed in (1, 2):
        write_adapter(folder / f"delta-{seed}.gguf", delta_for(base, LARGE_NAMES, seed=seed))
    (folder / "out").mkdir()
    return folder


def child(folder: Path, script: str) -> subprocess.Popen[str]:
    """Run the script after PREAMBLE in a new process whose output can be read."""
    command = [sys.executable, "-P", "-c", PREAMBLE + script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def output_of(folder: Path, script: str) -> list[str]:
    """Run the script to its end and return the words that it printed."""
    with child(folder, script) as process:
        words = process.communicate(timeout=120)[0].split()
        assert process.returncode == 0
        return words


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cleared(folder: Path) -> list[str]:
    """Empty the folder and return what was in it."""
    names = left_behind(folder)
    for name in names:
        (folder / name).unlink()
    return names


BAKE_FOREVER = """
deltas = [read_adapter(folder / f"delta-{seed}.gguf") for seed in (1, 2)]
print("ready", flush=True)
while True:
    for delta in deltas:
        bake(base, delta, out)
        print("baked", flush=True)
"""


def test_a_kill_leaves_the_old_file_or_the_new_one(large: Path) -> None:
    before = digest(large / "base.gguf")
    complete = output_of(
        large,
        """
for seed in (1, 2):
    bake(base, read_adapter(folder / f"delta-{seed}.gguf"), folder / "out" / f"{seed}.gguf")
""",
    )
    assert complete == []
    whole = {digest(large / "out" / f"{seed}.gguf") for seed in (1, 2)}
    assert len(whole) == 2
    cleared(large / "out")
    moments = random.Random(5)
    interrupted, present = 0, 0
    for first in (True, True, True, False, False, False, False):  # in the first baking, then over an old file
        with child(large, BAKE_FOREVER) as process:
            assert process.stdout is not None
            for _ in range(1 if first else 2):
                process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        if (large / "out" / "baked.gguf").exists():
            present += 1
            assert digest(large / "out" / "baked.gguf") in whole
        else:
            assert first
        others = [name for name in cleared(large / "out") if name != "baked.gguf"]
        assert all(name.startswith(".baked.gguf.") and name.endswith(".tmp") for name in others)
        assert len(others) <= 1
        interrupted += len(others)
    assert interrupted >= 2
    assert present >= 4
    assert digest(large / "base.gguf") == before


def test_memory_does_not_grow_with_the_file(large: Path) -> None:
    grown, changed = output_of(
        large,
        """
def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

delta = read_adapter(folder / "delta-1.gguf")
before = kilobytes("VmRSS:")
report = bake(base, delta, out)
print(kilobytes("VmHWM:") - before, report.changed_bytes)
""",
    )
    cleared(large / "out")
    assert int(changed) > 1_000_000
    assert int(grown) < 12 << 10


def test_a_disk_that_fills_up_in_the_middle(large: Path) -> None:
    """The limit on the size of a file stands for the full disk: the kernel refuses the write in the middle."""
    words = output_of(
        large,
        """
resource.setrlimit(resource.RLIMIT_FSIZE, (40 << 20, 40 << 20))
try:
    bake(base, read_adapter(folder / "delta-1.gguf"), out)
except StoreError as error:
    print(error)
""",
    )
    assert " ".join(words).startswith(f"{large / 'out' / 'baked.gguf'}: cannot be written: File too large; check the")
    assert left_behind(large / "out") == []


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_no_room_is_noticed_late(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no room for what they took only when it is to be patched, or made durable."""
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    delta = delta_for(base)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match=r"out\.gguf: cannot be written: No space left on device"):
        bake(base, delta, tmp_path / "out.gguf")
    assert left_behind(tmp_path) == ["base.gguf"]


def test_tiles_and_plain_copy_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q5_1, seed=1)
    whole = bake(base, delta_for(base), tmp_path / "whole.gguf")

    def unsupported(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(module, "TILE_BYTES", 500)  # neither a whole number of rows nor of pages
    tiled = bake(base, delta_for(base), tmp_path / "tiled.gguf")
    assert (tmp_path / "tiled.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert tiled.changed_bytes == whole.changed_bytes
    assert tiled.mean_relative_rounding == pytest.approx(whole.mean_relative_rounding)


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    needed = base.stat().st_size + module.DISK_MARGIN_BYTES
    with pytest.raises(StoreError, match=f"needs {needed} bytes free in .* but there are 1000"):
        bake(base, delta_for(base), tmp_path / "out.gguf")
    assert left_behind(tmp_path) == ["base.gguf"]


def test_the_base_is_never_overwritten(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    before = base.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(base)
    for out in (base, link):
        with pytest.raises(StoreError, match="is the base itself"):
            bake(base, delta_for(base), out)
    assert base.read_bytes() == before


def test_missing_folder_and_broken_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    delta = delta_for(base)
    with pytest.raises(StoreError, match="there is no such folder"):
        bake(base, delta, tmp_path / "absent" / "out.gguf")
    base.write_bytes(base.read_bytes()[:1000])
    with pytest.raises(FormatError):
        bake(base, delta, tmp_path / "out.gguf")


def test_a_wrong_write_is_noticed_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    out = tmp_path / "out.gguf"
    out.write_bytes(b"the generation before")
    write = module._write

    def faulty(target: BinaryIO, content: bytes | memoryview, position: int) -> int:
        return write(target, bytes(content)[:-1] + bytes([content[-1] ^ 1]), position)

    monkeypatch.setattr(module, "_write", faulty)
    with pytest.raises(StoreError, match="not as written"):
        bake(base, delta_for(base), out)
    assert out.read_bytes() == b"the generation before"
    assert left_behind(tmp_path) == ["base.gguf", "out.gguf"]
