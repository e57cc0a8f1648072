"""llama.cpp: it can be loaded, has every symbol that edgepd uses, and was built for this processor.

The idea: the symbols are read off edgepd's own sources, so that the list cannot grow old; they are looked up in a
throw-away process, which a library for another processor may end.
What this does not do: judge llama.cpp's answers, or load a model.
"""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import edgepd
import edgepd_daemon
from edgepd.cli.doctor_checks.machine import cpu_flags
from edgepd.cli.doctor_checks.situation import Situation
from edgepd_profiles.integrity import Finding

CHILD = Path(__file__).with_name("native_child.py")
CHILD_SECONDS = 60.0
REINSTALL = "pip install --force-reinstall llama-cpp-python"
REBUILD = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
# Features by llama.cpp's name in its line, and the kernel's, with what they mean for speed.
WORTH: Mapping[str, str] = {"AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "NEON": "asimd", "DOTPROD": "asimddp"}


def llama_cpp(situation: Situation, command: tuple[str, ...] = (sys.executable, "-P", str(CHILD))) -> list[Finding]:
    """Check the library. `command` starts the child; the symbols are added to it."""
    try:
        done = subprocess.run([*command, *used_symbols()], capture_output=True, text=True, timeout=CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        return [Finding("llama.cpp", f"it was not loaded within {CHILD_SECONDS:.0f} s", REINSTALL)]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        meaning = ", so it was built for another processor" if name == "SIGILL" else ""
        return [Finding("llama.cpp", f"its process ends with {name} when it is loaded{meaning}", REBUILD)]
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = " ".join(done.stderr.split())[-300:]
        return [Finding("llama.cpp", f"the process that loads it ended with {done.returncode}: {said}", REINSTALL)]
    if "error" in told:
        return [Finding("llama.cpp", f"it cannot be loaded: {' '.join(told['error'].split())}", REINSTALL)]
    if told["missing"]:
        problem = f"llama-cpp-python {told['version']} lacks {', '.join(told['missing'])}"
        return [Finding("llama.cpp", problem, "pip install --upgrade edgepd llama-cpp-python")]
    return [_built(told["version"], told["system"], cpu_flags(situation.root))]


def used_symbols() -> list[str]:
    """Return what edgepd's sources take from the module llama_cpp, sorted."""
    folders = (Path(edgepd.__file__).parent / "llama", Path(edgepd_daemon.__file__).parent / "engine")
    found: set[str] = set()
    for file in (file for folder in folders for file in sorted(folder.glob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "llama_cpp":
                found.add(node.attr)
    return sorted(found)


def _built(version: str, system: str, flags: set[str]) -> Finding:
    """Compare what it was built with to what the processor can do. Its line is "CPU : AVX2 = 1 | FMA = 1 | "."""
    built = [name for name, value in re.findall(r"(\w+) = (\d+)", system) if value != "0"]
    unused = [name for name, flag in WORTH.items() if flag in flags and name not in built]
    detail = f"llama-cpp-python {version}: {' '.join(built)}"
    if unused and built:
        return Finding("llama.cpp", f"it was built without {', '.join(unused)}, which this processor has", REBUILD)
    return Finding("llama.cpp", detail=detail)
