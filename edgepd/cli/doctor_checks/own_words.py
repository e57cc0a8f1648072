"""Text without a word that is not edgepd's own, for what leaves this machine.

The idea: rather than look for what is private, let pass only what cannot be: a word of letters stays if it stands in
the source code of edgepd, or is one of a few names of systems; else a "…" takes its place. The names of the user and of
the machine, the home directory and long numbers go in any case. The invariant: what the user wrote, named or was told
is not in the result unless edgepd says the same words to everybody; without sources nothing but signs is left.
What this does not do: keep a sentence readable that was never edgepd's.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import edgepd
import edgepd_daemon
import edgepd_profiles
import edgepd_quant

WORD = re.compile(r"[^\W\d_]+")
LONG_NUMBER = re.compile(r"\d{9,}")  # a telephone or an account; sizes are told in MiB
HIDDEN = "…"
SYSTEMS = """
    linux glibc musl x amd arm aarch riscv generic rpi raspi debian ubuntu fedora arch microsoft wsl standard cloud lts
    cpu sse ssse avx fma bmi neon dotprod sve llamafile openmp repack matmul int amx vnni
"""


class OwnWords:
    """Knows edgepd's words, and what it must never tell."""

    def __init__(self, words: frozenset[str], home: Path, names: Sequence[str]) -> None:
        """`words` are lower-case; `names` are those of the user and of the machine."""
        self._words = words
        self._home = str(home)
        self._names = frozenset(part.lower() for name in names for part in WORD.findall(name))

    @classmethod
    def here(cls) -> OwnWords:
        """Read the words of this installation, and the names of this machine and its user."""
        user = [os.environ.get(name, "") for name in ("USER", "LOGNAME")]
        return cls(vocabulary(), Path.home(), [Path.home().name, socket.gethostname(), *user, *_account()])

    def text(self, text: str) -> str:
        """Return the text without any other word."""
        if len(self._home) > 1:
            text = text.replace(self._home, "~")
        text = WORD.sub(lambda found: found[0] if self._own(found[0].lower()) else HIDDEN, text)
        return LONG_NUMBER.sub(HIDDEN, text)

    def of(self, value: object) -> object:
        """Return a value of JSON with all of its texts, those of keys too, without any other word."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.of(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(inner) for inner in value]
        return value if value is None or isinstance(value, bool | int | float) else self.text(str(value))

    def _own(self, word: str) -> bool:
        return word in self._words and word not in self._names


def _account() -> tuple[str, ...]:
    """Return the login and the full name of the user; nothing for one without an account, as in some containers."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return ()
    return entry.pw_name, entry.pw_gecos


def vocabulary() -> frozenset[str]:
    """Return the words of edgepd's source code, in lower case."""
    found = set(SYSTEMS.split())
    for package in (edgepd, edgepd_daemon, edgepd_profiles, edgepd_quant):
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            found.update(WORD.findall(file.read_text("utf-8").lower()))
    return frozenset(found)
