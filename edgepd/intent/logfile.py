"""The rows of a log in CSV or JSONL, each with its line, and the sentences by which a bad one is refused.

The idea: a file is read line by line, so that a file of any size needs little memory; the roles that a row can have
are given with the names of their columns. The invariant: every row is yielded or refused, none is left out.
What this does not do: know what a time or an event is (data.py).
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgepd.errors import RequestError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
MAP_BYTES = 16 * 2**20

Row = tuple[int, dict[str, Any]]  # line, role -> value


@dataclass(frozen=True)
class Limits:
    """What a file may hold at most; more is refused before it fills the memory."""

    line_bytes: int = 65_536
    rows: int = 20_000_000
    users: int = 1_000_000
    names: int = 100_000  # different events, intents and contexts together
    name_chars: int = 200


def rows(path: Path, required: Mapping[str, str], optional: Mapping[str, str], line_bytes: int) -> Iterator[Row]:
    """Yield each row of a .csv, .tsv, .jsonl or .ndjson file; both mappings are role -> column or JSON key.

    Optional ones that a file or object does not have are left out. Empty lines are no rows, as in the csv module.
    Raises RequestError for what is no such file, and for a row that lacks something.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        yield from _csv_rows(path, required, optional, line_bytes)
    elif suffix in JSON_LINES:
        for line, text in _lines(path, line_bytes):
            if text.strip():
                yield line, _object(path, line, text, required, optional)
    else:
        raise RequestError(f"{path}: its kind is not known; name it .csv, .tsv, .jsonl or .ndjson")


def map_rows(path: Path) -> Iterator[Row]:
    """Yield {event, intent} of a map: a .json object, a .csv or a .tsv; the line in a .json file is always 1."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = "".join(text for _, text in _lines(path, MAP_BYTES))
        pairs = _json(path, 1, text, object_pairs_hook=tuple)  # a dict would keep only one of two equal keys
        if not isinstance(pairs, tuple):
            refuse(path, 1, 'is not a JSON object of event and intent, such as {"taxi": "travel"}')
        yield from ((1, {"event": event, "intent": intent}) for event, intent in pairs)
    elif suffix in DELIMITERS:
        yield from _csv_rows(path, {"event": "event", "intent": "intent"}, {}, Limits().line_bytes)
    else:
        raise RequestError(f"{path}: its kind is not known; a map of events to intents is .json, .csv or .tsv")


def name(path: Path, line: int, role: str, value: object, most_chars: int) -> str:
    """Return a name without blanks around it, "" for none; whole numbers are names, too. RequestError for others."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        refuse(path, line, f"the {role} {str(value)[:80]!r} is not a name; write it as text")
    text = str(value).strip()
    if len(text) > most_chars:
        refuse(path, line, f"the {role} {text[:40]!r}... has {len(text)} characters, more than {most_chars}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        refuse(path, line, f"the {role} {text[:80]!r} has a control character or half a character in it; take it out")
    return text


def refuse(path: Path, line: int, problem: str) -> NoReturn:
    """Raise RequestError with the place and the problem."""
    raise RequestError(f"{path}: line {line}: {problem}")


def _csv_rows(path: Path, required: Mapping[str, str], optional: Mapping[str, str], line_bytes: int) -> Iterator[Row]:
    """Yield the rows below the header."""
    lines = (text for _, text in _lines(path, line_bytes))
    reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    places: dict[str, int] = {}
    width = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if not width:
                places, width = _places(path, reader.line_num, cells, required, optional), len(cells)
                continue
            if len(cells) != width:
                advice = "put quotes around a field that has the delimiter in it"
                refuse(path, reader.line_num, f"has {len(cells)} fields, the header has {width}; {advice}")
            yield reader.line_num, {role: cells[place] for role, place in places.items()}
    except csv.Error as error:
        raise RequestError(f"{path}: line {reader.line_num}: is not right as CSV: {error}") from error
    if not width:
        raise RequestError(f"{path}: is empty; its first line has to name the columns")


def _places(
    path: Path, line: int, cells: Sequence[str], required: Mapping[str, str], optional: Mapping[str, str]
) -> dict[str, int]:
    """Return role -> place in a row, from the header."""
    header = [cell.strip() for cell in cells]
    for column in required.values():
        if column not in header:
            refuse(path, line, f"the header has no column {column!r}; it has {', '.join(map(repr, header))[:200]}")
    here = {role: column for role, column in (*required.items(), *optional.items()) if column in header}
    for column in here.values():
        if header.count(column) > 1:
            refuse(path, line, f"the header has the column {column!r} twice; rename one")
    return {role: header.index(column) for role, column in here.items()}


def _object(
    path: Path, line: int, text: str, required: Mapping[str, str], optional: Mapping[str, str]
) -> dict[str, Any]:
    """Return role -> value of a JSON object."""
    found = _json(path, line, text)
    if not isinstance(found, dict):
        refuse(path, line, f"is not a JSON object but {text[:40]!r}; write one object per line")
    for key in required.values():
        if key not in found:
            refuse(path, line, f"has no {key!r}; it has {', '.join(map(repr, found))[:200] or 'nothing'}")
    return {role: found[key] for role, key in (*required.items(), *optional.items()) if key in found}


def _lines(path: Path, most_bytes: int) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line; a line that is too long is not read to its end."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(most_bytes + 1), b""), start=1):
                if len(raw) > most_bytes:
                    refuse(path, number, f"is longer than {most_bytes} bytes; is this the right file?")
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise RequestError(
                        f"{path}: line {number}: byte {error.start} is not UTF-8; save the file as UTF-8"
                    ) from error
                yield number, text
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from error


def _json(path: Path, line: int, text: str, **options: Any) -> Any:
    """Return what the text says; RequestError if it is not JSON, or nested too deep."""
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: line {line}: is not JSON: {str(error)[:120]}") from error
