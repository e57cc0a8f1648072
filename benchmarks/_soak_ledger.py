"""What a client was told, and what must therefore hold whatever happens to the daemon.

The idea: everything the daemon has acknowledged is written down on the client's side; the profile, read directly and
without the daemon, is compared with that after each crash and at the end. The functions return what is missing, in
sentences, so that a count of zero means that everything was looked at and found.
What this does not do: talk to the daemon.
"""

from __future__ import annotations

import bisect
import random
import shutil
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

NEEDLE_FROM = 4  # letters of a canary; the full-text index may not repeat the first ones of neighbours
CHUNK = 4 * 1024 * 1024


@dataclass
class Answer:
    """What a client has seen of one answer. Times are unix seconds."""

    row: str
    canary: str
    sent: float
    first: float
    generation: int
    text: str = ""
    ended: bool = False
    acknowledged: bool = False  # it ended, and the daemon said that it is stored
    forgotten: bool = False
    unsure: bool = False  # a request to forget it was cut short
    slow_disk: bool = False  # while it was asked for


@dataclass
class Ledger:
    """Everything that was acknowledged. The lists may be appended to from any thread."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: dict[str, Answer] = field(default_factory=dict)
    feedback: dict[tuple[str, str], int | str] = field(default_factory=dict)  # (row, kind) -> what was given
    tried: set[tuple[str, str]] = field(default_factory=set)  # given, acknowledged or not
    forgotten: dict[str, str] = field(default_factory=dict)  # canary -> receipt
    stale: dict[int, float] = field(default_factory=dict)  # generation -> when its receipt came, unix seconds
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        """Count something."""
        with self.lock:
            self.counts[what] += number

    def fail(self, sentence: str) -> None:
        """Note what must not happen and is no loss."""
        with self.lock:
            self.failures.append(sentence)
        print(f"FAILURE: {sentence}", flush=True)

    def alive(self) -> list[Answer]:
        """Return the answers that were stored and are to be kept."""
        with self.lock:
            return [a for a in self.answers.values() if a.acknowledged and not a.forgotten and not a.unsure]


def canary(chooser: random.Random) -> str:
    """Return a word that nobody else says, and that does not look like a password."""
    return "".join(chooser.choice("bcdfghjklmnprstvwz") + chooser.choice("aeiou") for _ in range(6))


@contextmanager
def copied(profile: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of the database as it lies on the disk, with its WAL, outside of the daemon's directories.

    Nothing may write to it meanwhile.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in profile.parent.glob(f"{profile.name}*"):
            if file.is_file() and not file.name.endswith("-shm"):
                shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / profile.name)) as conn:
            yield conn


def corruption(conn: sqlite3.Connection) -> list[str]:
    """Return what SQLite finds wrong."""
    try:
        found = [str(row[0]) for row in conn.execute("PRAGMA integrity_check(5)")]
        broken = [f"row {r} of {t} refers to a missing {p}" for t, r, p, _ in conn.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [line for line in found if line != "ok"] + broken


def lost_answers(conn: sqlite3.Connection, ledger: Ledger) -> list[str]:
    """Return the answers that a client has an id of and the profile lacks, or has with another text."""
    stored = {r: (t, s) for r, t, s in conn.execute("SELECT id, response, state FROM interactions")}
    missing = []
    with ledger.lock:
        answers = [a for a in ledger.answers.values() if not a.forgotten and not a.unsure]
    for answer in answers:
        if answer.row not in stored:
            missing.append(f"answer {answer.row} is gone")
            continue
        response, state = stored[answer.row]
        if answer.acknowledged and not (state == "done" and response.startswith(answer.text)):
            missing.append(f"answer {answer.row} is {state} with {response!r}, but {answer.text!r} was seen")
        elif not (response.startswith(answer.text) or answer.text.startswith(response)):
            missing.append(f"answer {answer.row} has {response!r}, but {answer.text!r} was seen")
    return missing


def lost_feedback(conn: sqlite3.Connection, ledger: Ledger) -> list[str]:
    """Return the feedback that was acknowledged and is not as it was given."""
    rows = conn.execute("SELECT interaction, kind, value, text FROM feedback")
    stored = {(row, kind): text if kind == "edit" else value for row, kind, value, text in rows}
    with ledger.lock:
        gone = {a.row for a in ledger.answers.values() if a.forgotten or a.unsure}
        wanted = {key: value for key, value in ledger.feedback.items() if key[0] not in gone}
    return [
        f"{kind} {value!r} on {row} is stored as {stored.get((row, kind))!r}"
        for (row, kind), value in wanted.items()
        if stored.get((row, kind)) != value
    ]


def returned(conn: sqlite3.Connection, ledger: Ledger) -> list[str]:
    """Return the forgotten answers that are there again."""
    stored = {row for (row,) in conn.execute("SELECT id FROM interactions")}
    with ledger.lock:
        return [
            f"answer {a.row} was forgotten and is there"
            for a in ledger.answers.values()
            if a.forgotten and a.row in stored
        ]


def activations(conn: sqlite3.Connection) -> list[tuple[float, int]]:
    """Return when which generation became active, in the order in which that happened."""
    return [
        (float(at), int(number)) for at, number in conn.execute("SELECT at, generation FROM activations ORDER BY id")
    ]


def serving(history: Sequence[tuple[float, int]], since: float, until: float) -> set[int]:
    """Return the generations that were active at some moment of a span; `history` is ordered by time."""
    times = [at for at, _ in history]
    before = bisect.bisect_right(times, since) - 1
    return {number for _, number in history[max(0, before) : bisect.bisect_right(times, until)]}


def wrong_generations(
    history: Sequence[tuple[float, int]], ledger: Ledger, *, slack: float = 1.0, slow: float = 15.0
) -> list[str]:
    """Return the answers of a generation that was not active between the question and its first token.

    A switch is recorded a little before new requests get the new generation: within `slack` seconds, or `slow` while
    the disk is. An answer to a question that came after a receipt must not come from a generation that it names.
    """
    wrong = []
    with ledger.lock:
        answers, stale = list(ledger.answers.values()), dict(ledger.stale)
    for answer in answers:
        since = answer.sent - (slow if answer.slow_disk else slack)
        allowed = serving(history, since, answer.first)
        if answer.generation not in allowed:
            wrong.append(f"{answer.row} came from generation {answer.generation}, but {sorted(allowed)} served")
        elif answer.sent > stale.get(answer.generation, float("inf")):
            wrong.append(f"{answer.row} came from generation {answer.generation}, which was taught what is forgotten")
    return wrong


def found_in_files(folder: Path, canaries: Collection[str], skip: Collection[Path] = ()) -> list[str]:
    """Return the files below a folder that hold one of the words, with the word."""
    needles = {word: word[NEEDLE_FROM:].encode() for word in canaries}
    found = []
    for path in sorted(folder.rglob("*")):
        if not needles or path.is_symlink() or not path.is_file() or any(path.is_relative_to(other) for other in skip):
            continue
        try:
            with path.open("rb") as file:
                found += [f"{word} is in {path.name}" for word in _held(file, needles)]
        except FileNotFoundError:
            continue  # removed since it was listed
    return found


def _held(file: BinaryIO, needles: Mapping[str, bytes]) -> set[str]:
    """Return the words whose needles a file holds, reading it in pieces that overlap."""
    overlap, tail = max(map(len, needles.values())) - 1, b""
    held: set[str] = set()
    while piece := file.read(CHUNK):
        window = tail + piece
        held |= {word for word, needle in needles.items() if needle in window}
        tail = window[-overlap:]
    return held


def nearest_rank(values: Sequence[float], share: float) -> float:
    """Return the quantile as the smallest value that at least this share does not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else float("nan")
