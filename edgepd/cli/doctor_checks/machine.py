"""Python, the packages, and the processor.

The idea: what edgepd stands on, as the interpreter, the metadata of the packages and /proc/cpuinfo tell it.
What this does not do: load llama.cpp (see native.py), or measure how fast anything is.
"""

from __future__ import annotations

import importlib.metadata
import operator
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from edgepd.cli.doctor_checks.situation import Situation
from edgepd_profiles.integrity import Finding

OLDEST_PYTHON = (3, 11)
CLAUSE = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([0-9][0-9a-zA-Z.+*-]*)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
COMPARE: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}

# What llama.cpp and torch make use of, as /proc/cpuinfo calls it: "flags" on x86, "Features" on ARM.
X86 = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def python(_situation: Situation) -> list[Finding]:
    """Check version and word size of this interpreter."""
    bits = 64 if sys.maxsize > 2**32 else 32
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    detail = f"{platform.python_version()}, {bits} bit, {kind}, {platform.system()} on {platform.machine()}"
    if bits == 32:
        return [Finding("python", f"this Python is a 32-bit one: {detail}", "install edgepd with a 64-bit Python")]
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("python", f"edgepd needs Python 3.11 or newer: {detail}", "install edgepd with a newer Python")]
    if platform.system() != "Linux":
        return [Finding("python", f"edgepd runs on Linux only: {detail}", "install edgepd on a Linux machine")]
    return [Finding("python", detail=detail)]


def packages(_situation: Situation) -> list[Finding]:
    """Check that every package that edgepd needs is there in a version that it can work with."""
    try:
        wanted = importlib.metadata.requires("edgepd") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("packages", detail="edgepd runs from its sources, not installed")]
    wrong = [problem for line in wanted if (problem := unmet(line))]
    if wrong:
        return [Finding("packages", "; ".join(wrong), "pip install --upgrade edgepd")]
    return [Finding("packages", detail=f"{sum('extra ==' not in line for line in wanted)} are as edgepd needs them")]


def versions() -> dict[str, str]:
    """Return the installed versions of edgepd and of what it needs, by name."""
    try:
        lines = [line for line in importlib.metadata.requires("edgepd") or [] if ";" not in line]
    except importlib.metadata.PackageNotFoundError:
        lines = []
    names = ["edgepd", *(found[0] for line in lines if (found := NAME.match(line)))]
    return {name: version for name in names if (version := _version(name)) is not None}


def unmet(line: str) -> str | None:
    """Return what is wrong with one line of Requires-Dist ("numpy>=1.26,<3"), None if it is met or does not apply.

    Only what stands in edgepd's own metadata is understood: names and versions of numbers; see PEP 508 for the rest.
    """
    requirement, _, marker = line.partition(";")
    name = NAME.match(requirement)
    if name is None or marker.strip():  # extras: nobody needs them; edgepd has no other markers
        return None
    version = _version(name[0])
    if version is None:
        return f"{name[0]} is not installed"
    for sign, bound in CLAUSE.findall(requirement[name.end() :]):
        have, need = _padded(numbers(version), numbers(bound))
        if sign in COMPARE and not COMPARE[sign](have, need):
            return f"{name[0]} is {version}, but edgepd needs {requirement[name.end() :].strip()}"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers before any letters: (1, 26) of "1.26rc1", (2, 4) of "2.4+cpu"."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def processor(situation: Situation) -> list[Finding]:
    """Say what the processor can do, and what it costs that it cannot do more."""
    flags = cpu_flags(situation.root)
    if not flags:
        return [Finding("processor", detail=f"{platform.machine()}; the kernel does not tell what it can do")]
    has = [flag for flag in (*X86, *ARM) if flag in flags]
    words = [" ".join(has) or "no vector units that edgepd knows"]
    if not flags & {"avx2", "asimd"}:
        words.append("neither AVX2 nor NEON: answers and training take several times as long; take a small model")
    words.append("bf16 in hardware" if flags & set(BF16) else "no bf16 in hardware, which edgepd can do without")
    return [Finding("processor", detail="; ".join(words))]


def cpu_flags(root: Path) -> set[str]:
    """Return what the kernel says that the first processor can do; nothing if it does not tell."""
    try:
        text = (root / "proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return set()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(line[1].split()) if line else set()


def cores(situation: Situation) -> list[Finding]:
    """Check that no more threads are asked for than there are processors; more make each answer slower."""
    allowed = os.sched_getaffinity(0)
    physical = physical_cores(situation.root, allowed)
    known = f", on {physical} physical cores" if physical else ""
    detail = f"{len(allowed)} processors may be used{known}"
    asked = {"serve.threads": situation.settings.serve.threads, "train.threads": situation.settings.train.threads}
    many = [f"{key} = {count}" for key, count in asked.items() if count > len(allowed)]
    if many:
        problem = f"{' and '.join(many)}, but only {detail}, and more threads than that are slower than fewer"
        return [Finding("cores", problem, f"set it to 0 in {situation.paths.config_file}")]
    return [Finding("cores", detail=detail)]


def physical_cores(root: Path, allowed: Set[int]) -> int | None:
    """Return how many cores the processors lie on, None where the kernel does not tell.

    Documentation/admin-guide/cputopology.rst; older kernels say thread_siblings_list.
    """
    seen = set()
    for number in allowed:
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        for name in ("core_cpus_list", "thread_siblings_list"):
            try:
                seen.add((folder / name).read_text("ascii").strip())
                break
            except OSError:
                continue
    return len(seen) or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _padded(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return both with the same length: 2.0 is 2."""
    length = max(len(a), len(b))
    return a + (0,) * (length - len(a)), b + (0,) * (length - len(b))
