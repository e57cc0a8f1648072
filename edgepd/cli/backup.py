"""`edgepd backup`, `backups`, `restore`, `export` and `import`: copies of the profile, to keep and to carry away.

The idea: while the daemon runs it makes the backup, and otherwise this does. A backup is put back only while nobody
else has the profile open, which the daemon's lock tells.
What this does not do: read the profile for an export; the daemon does, and streams it.
"""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from edgepd.atomic import replacing
from edgepd.cli.output import columns, connect, json_option, moment, note, progress_console, show
from edgepd.client import Json
from edgepd.config import load, paths
from edgepd.errors import ConflictError, DaemonNotRunningError, NotFoundError, RequestError, StoreError
from edgepd_daemon.listener import hold_lock
from edgepd_profiles import backup as backup_files
from edgepd_profiles.store import Store

CHUNK_LINES = 500  # as many as the daemon takes at once
CHUNK_BYTES = 4 * 2**20  # half of the largest request that it takes unless told otherwise
LINE_BYTES = 2 * 2**20  # as a JSON string in a request it may be twice as long
REFUSED_SHOWN = 20
COUNTED = ("added", "known", "facts", "events", "mapped_events")  # what the daemon says of an import


@click.command()
@json_option
def backup(as_json: bool) -> None:
    """Make a backup of the profile now; the daemon makes one now and then by itself.

    Answers go on meanwhile. It works without the daemon, too.
    """
    try:
        with connect() as client:
            made = client.backup()
    except DaemonNotRunningError:
        made = _make()
    show(made, f"{made['path']}: {_size(made['bytes'])}", as_json)


def _make() -> Json:
    """Make a backup while no daemon runs."""
    where = paths()
    if not where.profile.exists():
        raise NotFoundError(f"there is no profile at {where.profile} yet, so there is nothing to back up")
    with hold_lock(where.lock), Store.open(where.profile) as store:
        keep = load(where.config_file).keep.backups
        made = backup_files.make(store, backup_files.directory_of(where.profile), keep, time.time())
    return {"path": str(made), "bytes": made.stat().st_size}


@click.command()
@json_option
def backups(as_json: bool) -> None:
    """List the backups of the profile, the newest first. Works without the daemon."""
    found = backup_files.listing(backup_files.directory_of(paths().profile))
    rows = [(moment(each.at), _size(each.bytes), str(each.path)) for each in found]
    text = columns([("made", "size", "file"), *rows]) if rows else "no backups; make one with: edgepd backup"
    show({"backups": [{"path": str(b.path), "at": b.at, "bytes": b.bytes} for b in found]}, text, as_json)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def restore(file: Path, as_json: bool) -> None:
    """Put a backup in the place of the profile. The daemon must be stopped.

    FILE is checked first, and the present profile is kept aside under the name that is printed.

    \b
    edgepd backups
    edgepd daemon stop
    edgepd restore FILE
    """
    where = paths()
    with hold_lock(where.lock):
        aside = backup_files.restore(file, where.profile)
    lines = [f"the profile is that of {file} again"]
    lines += [f"the one until now is kept as {aside}"] if aside else []
    show({"restored": str(file.absolute()), "aside": str(aside) if aside else None}, "\n".join(lines), as_json)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def export(file: Path, force: bool, as_json: bool) -> None:
    """Write everything that is kept to FILE or to standard output, as JSONL in the OpenAI chat format.

    Each line is one exchange with the answer you wanted, as other programs take it for fine-tuning; what only edgepd
    understands is in "edgepd", and `edgepd import` reads it back. With a FILE, which only you may read, --json prints
    how much it was.

    \b
    edgepd export mine.jsonl
    edgepd export | gzip > mine.jsonl.gz
    """
    if str(file) == "-":
        with connect() as client:
            for line in client.export():
                sys.stdout.buffer.write(line.encode() + b"\n")
        sys.stdout.buffer.flush()
        return
    target = file.absolute()
    _check_target(target, force=force)
    lines = 0
    with connect() as client, replacing(target) as written:
        for line in client.export():
            written.write(line.encode() + b"\n")
            lines += 1
    size = target.stat().st_size
    show({"file": str(target), "lines": lines, "bytes": size}, f"{target}: {lines:,} lines, {_size(size)}", as_json)


def _check_target(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise RequestError(f"{target} is a folder; name the file to write in it, such as {target / 'edgepd.jsonl'}")
    if target.exists() and not force:
        raise ConflictError(f"{target} exists; choose another name, or replace it with --force")
    if not target.parent.is_dir():
        raise StoreError(f"{target.parent} is not a folder; make it first, or choose another name")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@json_option
def import_file(file: Path, as_json: bool) -> None:
    """Read exchanges, facts and events from FILE, or from standard input if it is "-".

    FILE is what `edgepd export` wrote, or any JSONL of {"messages": [...]} as for fine-tuning at OpenAI. What is known
    already is not taken twice, so an import that was broken off can be run again. Ends with 2 if lines were refused.
    """
    done: Json = {**dict.fromkeys(COUNTED, 0), "refused": []}
    console = progress_console()
    with connect() as client, click.open_file(str(file), "rb") as lines, console.status("importing") as status:
        for numbers, chunk in _chunks(lines, done["refused"]):
            answer = client.import_lines(chunk)
            for name in COUNTED:
                done[name] += answer.get(name, 0)
            done["refused"] += [each | {"line": numbers[each["line"] - 1]} for each in answer["refused"]]
            status.update(f"importing: line {numbers[-1]:,}")
    done["refused"].sort(key=lambda each: each["line"])
    events = f" and {done['events']:,} events" if done["events"] else ""
    text = (
        f"{done['added']:,} exchanges and {done['facts']:,} facts{events} added, {done['known']:,} were known already"
    )
    show(done, text, as_json)
    if refused := done["refused"]:
        if not as_json:
            _note_refused(refused)
        click.get_current_context().exit(RequestError.exit_code)


def _note_refused(refused: list[Json]) -> None:
    for each in refused[:REFUSED_SHOWN]:
        note(f"line {each['line']}: {each['reason']}")
    more = len(refused) - REFUSED_SHOWN
    note(f"{len(refused):,} lines were refused" + (f"; --json shows the other {more:,} as well" if more > 0 else ""))


def _chunks(file: IO[bytes], refused: list[Json]) -> Iterator[tuple[list[int], list[str]]]:
    """Yield line numbers and lines, as many as fit into one request."""
    numbers: list[int] = []
    lines: list[str] = []
    size = 0
    for number, line in _lines(file, refused):
        encoded = len(json.dumps(line, ensure_ascii=False).encode())
        if lines and (len(lines) == CHUNK_LINES or size + encoded > CHUNK_BYTES):
            yield numbers, lines
            numbers, lines, size = [], [], 0
        numbers.append(number)
        lines.append(line)
        size += encoded
    if lines:
        yield numbers, lines


def _lines(file: IO[bytes], refused: list[Json]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are text of a sensible length, with their numbers; memory stays bounded whatever comes."""
    number = 0
    while raw := file.readline(LINE_BYTES + 1):
        number += 1
        if len(raw) > LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LINE_BYTES)
            refused.append(_refusal(number, f"longer than {LINE_BYTES:,} bytes"))
            continue
        try:
            line = raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8").strip()
        except UnicodeDecodeError as error:
            refused.append(_refusal(number, f"not UTF-8 text: byte {error.start} is bad"))
            continue
        if line:
            yield number, line


def _refusal(line: int, reason: str) -> dict[str, Any]:
    return {"line": line, "reason": reason}


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
