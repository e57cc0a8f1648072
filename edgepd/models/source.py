"""What a source of models must offer, the rules for names, and the simplest source: a file of the user.

The idea: a source knows the name, the licence and, where it can, the SHA-256 of a model before anything is
transferred; `write` then puts the bytes at a path that the catalog chose. The invariant: the digest that
`write` returns was computed from the very bytes that lie at that path.
What this does not do: give a file its final name, or judge its content. That is the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import ModelError, RequestError
from edgepd.models.files import copy_hashed

Progress = Callable[[int, int], None]  # (bytes done, bytes in total)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# "default" means the selected model and "base" the one without any adapter, in the API and in the settings.
RESERVED_NAMES = frozenset({"default", "base"})


@dataclass(frozen=True)
class Source:
    """One place that a model comes from.

    `write(target, progress)` creates `target` (which does not exist, in a directory that it may use for
    temporary files) and returns the SHA-256 of its bytes as 64 hexadecimal digits.
    """

    name: str
    origin: str
    licence: str
    sha256: str | None
    write: Callable[[Path, Progress], str]
    terms: str | None = None  # address of terms that the user must accept first


def check_name(name: str) -> str:
    """Return `name` if it is a valid model name, else raise RequestError. A name can never be a path."""
    if not NAME.fullmatch(name) or name in RESERVED_NAMES:
        shown = name if len(name) <= 80 else name[:80] + "..."
        raise RequestError(
            f"model name {shown!r} is not allowed; use 1 to 64 of a-z 0-9 . _ - beginning with a letter or "
            "digit, and not 'default' or 'base'"
        )
    return name


def name_from(text: str) -> str:
    """Derive a model name from a file name or another label: lower case, other characters become '-'."""
    return check_name(re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64])


def local_file(path: Path) -> Source:
    """Describe a GGUF file that the user has. It is copied, so that later edits change nothing."""
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; give the path of a .gguf file, or 'default'")

    def write(target: Path, progress: Progress) -> str:
        total = path.stat().st_size
        try:
            file = path.open("rb")
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        with file:
            return copy_hashed([file], target, lambda done: progress(done, total))

    return Source(name_from(path.stem), str(path.absolute()), "unknown", None, write)
