"""What there is to learn that no run has seen yet.

The idea: every piece of feedback has a number that grows with each write (living_schema.py). A run that was judged sets
the mark of its kind to the number that it had seen; what lies beyond the mark is new. Each example is decided by one
row of feedback, and counts if that row is new: a thumb on an answer that was corrected long ago teaches nothing new.
What predicts what comes next is tuned on events instead, whose numbers are their own (events.py): the mark of the kind
`intent` has nothing to do with feedback, with the base model, or with the other marks.
The invariants: what weighs how much is what examples.training_examples says; a mark never goes back; reading costs as
much as there is beyond the mark of the consolidations, however long the history is.
What this does not do: select, leave out near-duplicates or look for secrets. Which runs are due is for the scheduler.
"""

from __future__ import annotations

import sqlite3

from edgepd_profiles import events
from edgepd_profiles.examples import ALMOST
from edgepd_profiles.runs import KINDS

TUNING = "intent"  # the kind of run that learns from events, and not from feedback

_ONE = "SELECT {column} FROM feedback AS {name} WHERE {name}.interaction = f.interaction AND {name}.kind = '{kind}'"
_EDIT, _LOSER = (
    "EXISTS (" + _ONE.format(column="1", name=name, kind=kind) + f" AND {name}.text IS NOT NULL)"
    for name, kind in (("e", "edit"), ("p", "preferred"))
)
_THUMB, _RATING = (
    "(" + _ONE.format(column=f"{name}.value", name=name, kind=kind) + ")"
    for name, kind in (("t", "thumb"), ("r", "rating"))
)
# The rows f that decide what their exchange teaches, with the weight of that, as examples.py tells it of whole rows.
# The condition of the index stands there letter by letter, or SQLite would not use it.
_DECIDING = f"""
    SELECT f.seq,
           CASE WHEN f.kind = 'edit' THEN 1.0
                WHEN f.kind = 'thumb' AND f.value = -1 OR f.kind = 'rating' AND f.value <= 2 THEN :unwanted
                WHEN f.kind = 'rating' AND f.value != 5 THEN {ALMOST} * :accepted
                ELSE :accepted END AS weight
    FROM feedback AS f INDEXED BY feedback_teaching CROSS JOIN interactions AS i ON i.id = f.interaction
    WHERE f.seq > :after AND (f.kind IN ('edit', 'preferred', 'thumb') OR f.kind = 'rating' AND f.value != 3)
        AND i.kind = 'chat' AND NOT EXISTS (SELECT 1 FROM apps WHERE apps.name = i.app AND NOT apps.teaches)
        AND CASE
            WHEN f.kind = 'edit' AND f.text IS NOT NULL THEN 1
            WHEN f.kind = 'edit' OR {_EDIT} THEN 0
            WHEN NOT (i.state = 'done' AND i.finish_reason IS NOT 'length' AND trim(i.response) != '') THEN 0
            WHEN f.kind = 'preferred' THEN f.text IS NOT NULL AND coalesce({_THUMB} != -1, {_RATING} > 2, 1)
            WHEN f.kind = 'thumb' THEN f.value = -1 OR f.value IS NOT NULL AND NOT {_LOSER}
            WHEN f.value <= 2 THEN {_THUMB} IS NULL
            ELSE f.value >= 4 AND {_THUMB} IS NULL AND NOT {_LOSER} END
"""  # noqa: S608 - constants of this module


def measure(conn: sqlite3.Connection, accepted_weight: float, *, undesirable: bool = False) -> tuple[float, float]:
    """Return the weights (live, baked) of what is new to short runs, and of what is new to consolidations.

    A weight is the sum of those of the examples; a correction weighs 1. A consolidation that was judged has seen all
    there was, so what is new to a short run came after the last judged run of any kind. With `undesirable`, answers
    that the user did not want count as well, with 1 each, as they do for the objectives that learn from them.
    """
    marks = dict(conn.execute("SELECT kind, seq FROM learned_marks").fetchall())
    row = conn.execute(
        f"SELECT total(weight) FILTER (WHERE seq > :live), total(weight) FROM ({_DECIDING})",  # noqa: S608 - see above
        _weights(accepted_weight, undesirable) | {"after": marks.get("baked", 0), "live": marks.get("live", 0)},
    ).fetchone()
    return float(row[0]), float(row[1])


def count(conn: sqlite3.Connection, accepted_weight: float, *, undesirable: bool = False, enough: int = 500) -> int:
    """Return how many examples there are in all, counted up to `enough`, the newest first.

    What it costs depends on `enough` and not on the history, unless most of the newest feedback teaches nothing. The
    number is exact below `enough`; of those examples the selection and the search for near-duplicates leave fewer.
    """
    row = conn.execute(
        f"SELECT count(*) FROM ({_DECIDING} AND weight > 0 ORDER BY f.seq DESC LIMIT :enough)",  # noqa: S608
        _weights(accepted_weight, undesirable) | {"after": 0, "enough": enough},
    ).fetchone()
    return int(row[0])


def newest(conn: sqlite3.Connection) -> int:
    """Return a number that no feedback so far exceeds and all feedback to come does; 0 in a new profile.

    It grows with every change of feedback, removal too. Read it in the transaction in which the examples are read.
    """
    return int(conn.execute("SELECT tick FROM feedback_clock").fetchone()[0])


def judged(conn: sqlite3.Connection, kind: str, seq: int) -> None:
    """Note that a run of this kind, which saw the feedback up to `seq`, was promoted or rejected.

    A mark that is further already stays, and nothing is due any more. For the kind `intent`, `seq` is that of events,
    and what is due besides stays due. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a training run cannot be of kind {kind!r}; use one of {', '.join(KINDS)}")
    conn.execute(
        """
        INSERT INTO learned_marks (kind, seq) VALUES (?, ?)
        ON CONFLICT (kind) DO UPDATE SET seq = max(seq, excluded.seq)
        """,
        (kind, seq),
    )
    if kind != TUNING:
        note_due(conn, None)


def begin_again(conn: sqlite3.Connection) -> None:
    """Take all feedback as new: nothing was ever trained for the base model that is served now.

    What predicts what comes next is the same with every base model, so its mark stays.
    """
    conn.execute("DELETE FROM learned_marks WHERE kind != ?", (TUNING,))


def intent_events(conn: sqlite3.Connection, *, enough: int = 1000) -> int:
    """Return how many events no judged tuning run has seen yet, of apps that may teach, counted up to `enough`."""
    row = conn.execute("SELECT seq FROM learned_marks WHERE kind = ?", (TUNING,)).fetchone()
    return _teaching(conn, int(row[0]) if row else 0, enough)


def all_events(conn: sqlite3.Connection, *, enough: int = 1000) -> int:
    """Return how many events there are in all, of apps that may teach, counted up to `enough`."""
    return _teaching(conn, 0, enough)


def events_version(conn: sqlite3.Connection) -> tuple[object, ...]:
    """Return a value that is the same as before only if `intent_events` and `all_events` are, but for what went."""
    mark = conn.execute("SELECT seq FROM learned_marks WHERE kind = ?", (TUNING,)).fetchone()
    return events.newest_seq(conn), mark, tuple(_silent(conn))


def due_since(conn: sqlite3.Connection) -> float | None:
    """Return since when a run has been due, in unix seconds; None if none is."""
    row = conn.execute("SELECT at FROM due_since").fetchone()
    return None if row is None else float(row[0])


def note_due(conn: sqlite3.Connection, at: float | None) -> None:
    """Note that a run is due at `at`, in unix seconds, unless one was already; None: none is."""
    if at is None:
        conn.execute("DELETE FROM due_since")
    else:
        conn.execute("INSERT INTO due_since (one, at) VALUES (1, ?) ON CONFLICT (one) DO NOTHING", (at,))


def version(conn: sqlite3.Connection) -> tuple[object, ...]:
    """Return a value that is the same as before only if `measure` and `count` are.

    It reads a few rows, so that whoever asks again and again need not measure again and again. It holds what the two
    depend on: the feedback, the marks, and which apps may not teach.
    """
    marks = conn.execute("SELECT kind, seq FROM learned_marks WHERE kind != ? ORDER BY kind", (TUNING,)).fetchall()
    return newest(conn), tuple(marks), tuple(_silent(conn))


def _teaching(conn: sqlite3.Connection, after: int, enough: int) -> int:
    """Count the newest events after a `seq`; the cost depends on `enough`, unless most of them teach nothing."""
    row = conn.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM events AS e WHERE e.seq > ? AND {events.TEACHING} "  # noqa: S608 - ours
        "ORDER BY e.seq DESC LIMIT ?)",
        (after, enough),
    ).fetchone()
    return int(row[0])


def _silent(conn: sqlite3.Connection) -> list[tuple[str]]:
    """Return the apps that may not teach."""
    return conn.execute("SELECT name FROM apps WHERE NOT teaches ORDER BY name").fetchall()


def _weights(accepted_weight: float, undesirable: bool) -> dict[str, float]:
    return {"accepted": max(0.0, accepted_weight), "unwanted": 1.0 if undesirable else 0.0}
