"""Is a text still in any file? Cut it into pieces, and look for the bytes of each piece.

The idea: a file may hold a text as UTF-8, or inside of JSON with its escapes, and a database spreads a long one over
pages; so a long text is represented by short pieces of it, and a piece by all its spellings. Thousands of pieces are
looked for in one pass: any spelling of LEAST bytes contains a group of GRAM bytes that begins at a multiple of STRIDE
in the file, so it is enough to look up those groups in a set, which happens in C.
The invariant: a piece that stands in a file in one of its spellings is found, wherever it lies; memory does not depend
on the size of files. What this does not do: look into compressed or encrypted files, or at blocks that no file has.
"""

from __future__ import annotations

import json
import stat
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

LEAST = 12  # bytes of a piece, not below GRAM + STRIDE - 1; shorter ones may be anywhere by chance
WHOLE = 200  # bytes of a text that is a single piece
WINDOW = 60  # bytes of each piece of a longer one
WINDOWS = 8  # pieces of a longer text at most
DISTINCT = 5  # different bytes of a piece; a line of dashes tells nothing
GRAM = 8  # bytes of an array item of type Q
STRIDE = 4
CHUNK = 1024 * 1024


@dataclass
class Searched:
    """What was searched, and what was found: for each file the number of pieces in it, and the pieces themselves."""

    files: int = 0
    total_bytes: int = 0
    found: list[tuple[Path, int]] = field(default_factory=list)
    pieces: set[bytes] = field(default_factory=set)
    unreadable: list[Path] = field(default_factory=list)


def pieces(text: str) -> list[bytes]:
    """Return the UTF-8 of the text if it is at most WHOLE bytes long, else of WINDOWS parts of it, from end to end.

    Windows are cut between characters. What is too short or too monotonous to be told from chance is left out.
    """
    content = text.strip().encode("utf-8", "surrogatepass")
    if len(content) <= WHOLE:
        return [content] if _is_distinct(content) else []
    step = (len(content) - WINDOW) / (WINDOWS - 1)
    starts = [round(n * step) for n in range(WINDOWS)]
    windows = (_whole_characters(content[start : start + WINDOW]) for start in starts)
    return list(dict.fromkeys(window for window in windows if _is_distinct(window)))


def around(text: str, start: int, end: int) -> list[bytes]:
    """Return the piece of a text around the characters from `start` to `end`, if it is distinct enough."""
    room = max(0, (WINDOW - (end - start)) // 2)
    return pieces(text[max(0, start - room) : end + room])


def spellings(piece: bytes) -> set[bytes]:
    """Return the bytes by which a piece of UTF-8 may stand in a file: plain, and in JSON with and without ASCII."""
    text = piece.decode("utf-8", "surrogatepass")
    plain, ascii_only = (json.dumps(text, ensure_ascii=only)[1:-1] for only in (False, True))
    return {piece, plain.encode("utf-8", "surrogatepass"), ascii_only.encode()}


class Matcher:
    """Finds which of many pieces stand in bytes."""

    def __init__(self, wanted: Iterable[bytes]) -> None:
        """Prepare the search for pieces of at least LEAST bytes; shorter ones are not looked for."""
        self.longest = 0
        self._spelled: dict[int, list[tuple[bytes, bytes]]] = {}  # by group: spelling and piece
        spelled = [(s, piece) for piece in set(wanted) for s in spellings(piece) if len(s) >= LEAST]
        common = Counter(s[n : n + GRAM] for s, _ in spelled for n in range(len(s) - GRAM + 1))
        for spelling, piece in spelled:
            self.longest = max(self.longest, len(spelling))
            for gram in _rarest(spelling, common):
                self._spelled.setdefault(_group(gram), []).append((spelling, piece))
        self._groups = frozenset(self._spelled)

    def found_in(self, content: bytes | bytearray) -> set[bytes]:
        """Return the pieces that stand in the content."""
        found: set[bytes] = set()
        for shift in range(0, GRAM, STRIDE):
            whole = (len(content) - shift) // GRAM * GRAM
            if whole <= 0:
                continue
            groups = array("Q")
            with memoryview(content) as view:
                groups.frombytes(view[shift : shift + whole])
            for group in self._groups.intersection(groups):
                found.update(piece for spelling, piece in self._spelled[group] if spelling in content)
        return found


def search_files(directory: Path, needles: Collection[bytes], skip: Collection[Path] = ()) -> Searched:
    """Search all regular files below a directory for pieces, and say in which and how many stand there.

    `skip` are files or directories that are left out. Symbolic links are not followed. Files that vanish meanwhile are
    passed over; `unreadable` has those that cannot be read.
    """
    matcher, result = Matcher(needles), Searched()
    for file in _regular_files(directory, set(skip)):
        found: set[bytes] = set()
        try:
            with file.open("rb") as opened:
                for chunk in _overlapping(opened, matcher.longest, result):
                    found |= matcher.found_in(chunk)
        except FileNotFoundError:
            continue
        except OSError:
            result.unreadable.append(file)
            continue
        result.files += 1
        if found:
            result.found.append((file, len(found)))
            result.pieces |= found
    return result


def _regular_files(directory: Path, skip: Collection[Path]) -> Iterator[Path]:
    try:
        entries = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry in skip:
            continue
        try:
            mode = entry.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode):
            yield from _regular_files(entry, skip)
        elif stat.S_ISREG(mode):
            yield entry


def _overlapping(file: BinaryIO, overlap: int, result: Searched) -> Iterator[bytes]:
    """Yield a file in chunks, each with the end of the one before, and count its bytes."""
    before = b""
    while chunk := file.read(CHUNK):
        result.total_bytes += len(chunk)
        both = before + chunk
        yield both
        before = both[-overlap:] if overlap else b""


def _rarest(spelling: bytes, common: Mapping[bytes, int]) -> set[bytes]:
    """Return STRIDE groups in a row, those that the fewest pieces share: many texts begin alike.

    Of as many places in a row, one is a multiple of STRIDE, wherever the piece lies.
    """
    rows = [[spelling[n : n + GRAM] for n in range(s, s + STRIDE)] for s in range(len(spelling) - GRAM - STRIDE + 2)]
    return set(min(rows, key=lambda row: max(common[gram] for gram in row)))


def _whole_characters(content: bytes) -> bytes:
    """Return a part of UTF-8 without the halves of characters at its ends."""
    return content.decode("utf-8", "ignore").encode()


def _is_distinct(content: bytes) -> bool:
    return len(content) >= LEAST and len(set(content)) >= DISTINCT


def _group(content: bytes) -> int:
    return int.from_bytes(content, sys.byteorder)
