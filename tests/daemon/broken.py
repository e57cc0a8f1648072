"""Files that are broken in many ways, and a process that opens them one after the other and survives."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Loads llama.cpp once and opens each pair of files in a fork of itself, as `python -m edgepd.llama.probe` would.
OPENER = """
import json, os, signal, sys
from edgepd.llama import probe
nowhere = os.open(os.devnull, os.O_WRONLY)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        code = 1
        try:
            code = probe.main(json.loads(line))
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
HUGE = (2**64 - 1, 2**63, 2**62 + 1, 2**32, 2**31 - 1)
ODD = (0, 1, 2**31, 2**32 - 1)
NOT_NUMBERS = (0x7E00, 0x7C00, 0xFFFF)  # fp16
FORMATS = {4: "<I", 5: "<i", 6: "<f"}  # of metadata values: uint32, int32, float32


@contextmanager
def opener() -> Iterator[Callable[..., int]]:
    """A function that opens files in a child of their own and returns its exit code, negative for a signal."""
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-P", "-c", OPENER], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def opened(*files: Path) -> int:
            stdin.write(json.dumps([str(file) for file in files]) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield opened


def mutated(rng: np.random.Generator, content: bytes, header_bytes: int) -> bytes:
    """Break a GGUF file in one of five ways: cut off, flipped bits, huge counts, odd numbers, values that are none."""
    data = bytearray(content)
    way = int(rng.integers(5))
    if way == 0:
        del data[int(rng.integers(len(data))) :]
    elif way == 1:
        for at in rng.integers(header_bytes, size=int(rng.integers(1, 4))):
            data[at] ^= 1 << int(rng.integers(8))
    elif way == 2:
        struct.pack_into("<Q", data, int(rng.integers(header_bytes - 8)), HUGE[int(rng.integers(len(HUGE)))])
    elif way == 3:
        struct.pack_into("<I", data, int(rng.integers(header_bytes - 4)), ODD[int(rng.integers(len(ODD)))])
    else:
        at = int(rng.integers(header_bytes, len(data) - 2))
        struct.pack_into("<H", data, at, NOT_NUMBERS[int(rng.integers(len(NOT_NUMBERS)))])
    return bytes(data)


def with_value(content: bytes, key: str, value: float) -> bytes:
    """Replace the number that a GGUF file has under a key of its metadata."""
    data, name = bytearray(content), key.encode()
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    (kind,) = struct.unpack_from("<I", data, at)
    struct.pack_into(FORMATS[kind], data, at + 4, value)
    return bytes(data)


def crashing(model: Path, target: Path) -> Path:
    """Write a copy of a model that llama.cpp loads, and over which it ends its process when it computes something."""
    target.write_bytes(with_value(model.read_bytes(), "llama.attention.layer_norm_rms_epsilon", -1.0))
    return target
