"""Forgetting, as far as the database goes: rows, what was derived from them, and the generations that learned them.

The idea: `find` says what goes, `needles` what to look for afterwards, and `delete` does it in the caller's
transaction: rows with all that hangs on them, the sums of the profile, words that were collected from them, and every
generation and student that was taught any of it, with the switch to one that never saw it. The receipt says so in
numbers.
The invariant: after that transaction no row holds a forgotten text, nothing that was trained on it can serve, and the
receipt holds none of it. Ids of forgotten exchanges stay in the lineage of generations; they say nothing.
What this does not do: free pages, the index and the WAL (Store.scrub), files of generations and of students (the daemon
removes those of the plan, see students.stale_files), caches and backups (the daemon's part, too), or stop a training
run that is going on, which may still know the text. What was forgotten and is imported again is there again.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterator, Sequence

from edgepd.errors import ConflictError
from edgepd_profiles import profile, registry, students
from edgepd_profiles.byte_search import Matcher, around, pieces
from edgepd_profiles.forget_plan import Plan, find
from edgepd_profiles.forget_selector import Selector
from edgepd_profiles.lineage import Switch
from edgepd_profiles.receipts import (
    Receipt,
    Wanted,
    finished,
    new_receipt,
    put,
    receipt,
    receipts,
    settled,
    unfinished,
    want,
    wanted,
)
from edgepd_profiles.scrubbing import purge_index
from edgepd_profiles.text_search import folded, texts_of

__all__ = [
    "Plan",
    "Receipt",
    "Selector",
    "Switch",
    "Wanted",
    "delete",
    "find",
    "finished",
    "kept_elsewhere",
    "needles",
    "purge_index",
    "receipt",
    "receipts",
    "settled",
    "unfinished",
    "want",
    "wanted",
]

REASON = "it was taught what has been forgotten since"
SAMPLE = 500  # exchanges at most that pieces are taken of; of more, evenly from all
MAX_PIECES = 10_000

# Every column in which a text of the user may be.
TEXTS = (
    ("interactions", "prompt, response, messages"),
    ("feedback", "text"),
    ("facts", "text"),
    ("similar_pairs", "prompt, response"),
    ("suggestions", "text, reason"),
    ("surveys", "text"),
    ("feature_edits", "name, value"),
    ("features", "name"),
    ("lexicons", "word"),
    ("events", "event, intent, context"),
    ("intent_map", "event, intent"),
)
# Names of apps, which are no text to be forgotten, but may be the same as one.
NAMES = (("interactions", "app"), ("events", "app"), ("apps", "name"), ("receipts", "what"))
EMPTIED = (  # what goes with everything; feedback, embeddings, bins, questions and pairs go with their exchange
    "suggestions",
    "events",
    "interactions",
    "facts",
    "surveys",
    "features",
    "feature_edits",
    "profile_state",
    "pools",
    "lexicons",
    "wanted_runs",
    "decisions",
    "intent_map",
    "chats_to_take",
)


def delete(conn: sqlite3.Connection, plan: Plan, at: float, *, expected: Switch | None = None) -> Receipt:
    """Carry out a plan that was made in this transaction, and return the receipt, which is `begun`.

    `expected` is the switch of the base model that serves, if the plan has one, for which the caller has loaded the
    other generation. Raises ConflictError if the plan says otherwise by now; then make a new one in a new transaction.
    """
    if expected is not None and expected not in plan.switches:
        raise ConflictError(
            f"generation {expected.from_id} was to be replaced by {expected.to_id}, but which one serves has changed "
            "meanwhile; try again"
        )
    if plan.everything:
        for table in EMPTIED:
            conn.execute(f"DELETE FROM {table}")  # noqa: S608 - names from above
    else:
        _delete_rows(conn, plan)
    kinds = {} if plan.everything else {_to_retrain(conn, plan, switch): switch for switch in plan.switches}
    stale = registry.retire_stale(conn, plan.generations, plan.switches, REASON, at=at)
    for kind, switch in kinds.items():
        want(conn, kind, f"generation {switch.from_id} {REASON.removeprefix('it ')}", at=at)
    tuned_anew = _take_out_students(conn, plan, at)
    return put(conn, new_receipt(plan.selector.what, plan.counts, [g.id for g in stale], bool(kinds) or tuned_anew, at))


def needles(conn: sqlite3.Connection, plan: Plan) -> list[bytes]:
    """Return pieces of UTF-8 by which the texts that go are recognised in files; call it before `delete`.

    Of more than SAMPLE exchanges, as many are taken, evenly from all. Pieces that are kept in another row are among
    them: see `kept_elsewhere`.
    """
    found: dict[bytes, None] = {}
    for text in _texts_of(conn, plan):
        found.update(dict.fromkeys(pieces(text)))
        if len(found) > MAX_PIECES:
            break
    return list(found)[:MAX_PIECES]


def kept_elsewhere(conn: sqlite3.Connection, wanted_pieces: Collection[bytes]) -> set[bytes]:
    """Return those pieces that rows still hold, because other exchanges or facts have the same text. Reads all rows."""
    matcher, found = Matcher(wanted_pieces), set[bytes]()
    if not wanted_pieces:
        return found
    for table, columns in (*TEXTS, *NAMES):
        for row in conn.execute(f"SELECT {columns} FROM {table}"):  # noqa: S608 - names from above
            found |= matcher.found_in("\0".join(text for text in row if text).encode())
    return found


def _delete_rows(conn: sqlite3.Connection, plan: Plan) -> None:
    for interaction in plan.interactions:
        with profile.refolded(conn, interaction):
            conn.execute("DELETE FROM interactions WHERE id = ?", (interaction,))
    conn.executemany("DELETE FROM facts WHERE id = ?", ((number,) for number in plan.facts))
    conn.executemany("DELETE FROM suggestions WHERE id = ?", ((name,) for name in plan.suggestions))
    conn.executemany("DELETE FROM surveys WHERE id = ?", ((name,) for name in plan.surveys))
    conn.executemany("DELETE FROM events WHERE seq = ?", ((seq,) for seq in plan.events))
    conn.executemany("DELETE FROM intent_map WHERE event = ?", ((name,) for name in plan.mapped))
    conn.executemany("DELETE FROM feature_edits WHERE app = ? AND kind = ? AND name = ?", plan.edits)
    if plan.selector.app is not None:
        for table in ("features", "profile_state"):
            conn.execute(f"DELETE FROM {table} WHERE app = ?", (plan.selector.app,))  # noqa: S608 - names from above
    if plan.interactions:
        # Words of exchanges, which are collected anew from those that stay. The sums of the profile were refolded.
        conn.execute("DELETE FROM lexicons")


def _take_out_students(conn: sqlite3.Connection, plan: Plan, at: float) -> bool:
    """Take what was tuned on what goes out of service; return whether the one that predicted has to be made anew."""
    predicted = students.active(conn)
    students.mark_stale(conn, plan.students)
    anew = predicted is not None and predicted.id in plan.students and not plan.everything
    if anew:
        want(conn, "intent", f"the tuned model of what comes next {REASON.removeprefix('it ')}", at=at)
    return anew


def _to_retrain(conn: sqlite3.Connection, plan: Plan, switch: Switch) -> str:
    """Return the kind of training run that makes up for a generation: what of it was taught decides."""
    lost = registry.get(conn, switch.from_id)
    baked = (registry.get(conn, number) for number in plan.generations)
    stands_on = lost.model_file is not None and any(
        g.kind == "baked" and g.model_file == lost.model_file for g in baked
    )
    return "baked" if stands_on else "live"


def _texts_of(conn: sqlite3.Connection, plan: Plan) -> Iterator[str]:
    """Yield the texts that go with a plan."""
    by_key = (
        ("facts", plan.facts),
        ("surveys", plan.surveys),
        ("suggestions", plan.suggestions),
    )
    for table, keys in by_key:
        condition = "1" if plan.everything else "id IN (SELECT value FROM json_each(?))"
        parameters = () if plan.everything else (json.dumps(keys),)
        rows = conn.execute(f"SELECT text FROM {table} WHERE {condition} LIMIT {SAMPLE}", parameters)  # noqa: S608
        yield from (text for (text,) in rows.fetchall() if text)
    yield from _names_of(conn, plan)
    for interaction in _sample_of_all(conn) if plan.everything else _sample(plan.interactions):
        for table, columns in TEXTS[:4]:
            if table == "facts":
                continue
            key = "id" if table == "interactions" else "interaction"
            for row in conn.execute(f"SELECT {columns} FROM {table} WHERE {key} = ?", (interaction,)):  # noqa: S608
                yield from _said(row, table, plan.selector.search)


def _names_of(conn: sqlite3.Connection, plan: Plan) -> Iterator[str]:
    """Yield the names of events that go, of chats their topics alone, and those on the map."""
    named = """
        SELECT DISTINCT event, CASE WHEN interaction IS NULL THEN intent END, context FROM events
        WHERE ? OR seq IN (SELECT value FROM json_each(?)) LIMIT ?
    """
    mapped = "SELECT event, intent FROM intent_map WHERE ? OR event IN (SELECT value FROM json_each(?)) LIMIT ?"
    for sql, keys in ((named, plan.events), (mapped, plan.mapped)):
        for row in conn.execute(sql, (plan.everything, json.dumps(keys), SAMPLE)).fetchall():
            yield from (name for name in row if name)


def _said(row: tuple[str | None, ...], table: str, search: str | None) -> Iterator[str]:
    """Yield the texts of a row; of messages, which repeat what was said before, only what was searched for."""
    own = row[:2] if table == "interactions" else row
    yield from (text for text in own if text)
    if search is None:
        return
    wanted_text = folded(search.strip())
    messages = [*texts_of(json.loads(row[2]))] if table == "interactions" and row[2] else []
    for text in (*own, *messages):
        start = folded(text).find(wanted_text) if text else -1
        if text and start >= 0 and len(folded(text)) == len(text):
            yield from (piece.decode("utf-8", "surrogatepass") for piece in around(text, start, start + len(search)))


def _sample(ids: Sequence[str]) -> Sequence[str]:
    return ids[:: max(1, math.ceil(len(ids) / SAMPLE))]


def _sample_of_all(conn: sqlite3.Connection) -> list[str]:
    first, last = conn.execute("SELECT min(seq), max(seq) FROM interactions").fetchone()
    if first is None:
        return []
    step = max(1, math.ceil((last - first + 1) / SAMPLE))
    rows = conn.execute("SELECT id FROM interactions WHERE (seq - ?) % ? = 0 ORDER BY seq", (first, step))
    return [name for (name,) in rows]
