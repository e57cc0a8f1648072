"""What the store remembers for the scheduler, as migration step m007 makes it.

The idea: feedback is numbered by a clock of its own, which ticks with every change of the table and never goes back, so
that "what came since" is a range of an index, whatever the clock of the machine does. Triggers turn it, so that it
holds whatever program writes.
The invariants: of two writes the later one has the larger `feedback.seq`; no number is given twice; once released,
nothing here is edited, and a change is a new step in migrations.py.
What this does not do: run anything.
"""

from __future__ import annotations

_TICK = "UPDATE feedback_clock SET tick = tick + 1;"
_NUMBER = f"""{_TICK}
        UPDATE feedback SET seq = (SELECT tick FROM feedback_clock) WHERE rowid = new.rowid;"""  # noqa: S608 - ours

FEEDBACK_SEQ = (
    # The order of writes: INSERT and REPLACE, and UPDATE of anything but this. Larger is later.
    "ALTER TABLE feedback ADD COLUMN seq INTEGER NOT NULL DEFAULT 0",
    """
    UPDATE feedback SET seq = o.seq
    FROM (SELECT rowid AS row, row_number() OVER (ORDER BY at, rowid) AS seq FROM feedback) AS o
    WHERE feedback.rowid = o.row
    """,
    # One row. Removal ticks as well, so that who finds the tick that he knows knows the feedback, too.
    """
    CREATE TABLE feedback_clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        tick INTEGER NOT NULL
    ) STRICT
    """,
    "INSERT INTO feedback_clock (one, tick) SELECT 1, count(*) FROM feedback",
    f"""
    CREATE TRIGGER feedback_given AFTER INSERT ON feedback BEGIN
        {_NUMBER}
    END
    """,
    f"""
    CREATE TRIGGER feedback_changed AFTER UPDATE OF interaction, kind, value, text, source, at ON feedback BEGIN
        {_NUMBER}
    END
    """,
    f"""
    CREATE TRIGGER feedback_removed AFTER DELETE ON feedback BEGIN
        {_TICK}
    END
    """,
    # What may decide what an exchange teaches (examples.py). A dwell on each answer of years is not in it.
    """
    CREATE INDEX feedback_teaching ON feedback (seq)
        WHERE kind IN ('edit', 'preferred', 'thumb') OR kind = 'rating' AND value != 3
    """,
)

LIVING_TABLES = (
    # Up to which feedback a training run of a kind has seen what there was, and was judged.
    """
    CREATE TABLE learned_marks (
        kind TEXT NOT NULL PRIMARY KEY,
        seq INTEGER NOT NULL
    ) STRICT
    """,
    # As the feedback is in order of time here, the last run that was judged saw all that was given before it began.
    """
    INSERT INTO learned_marks (kind, seq)
    SELECT r.kind, (SELECT coalesce(max(f.seq), 0) FROM feedback AS f WHERE f.at <= r.started_at)
    FROM (SELECT kind, started_at, max(id) FROM runs WHERE state IN ('promoted', 'rejected') GROUP BY kind) AS r
    """,
    # Since when a run has been due, in unix seconds, if one is; so that patience outlasts a restart.
    """
    CREATE TABLE due_since (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        at REAL NOT NULL
    ) STRICT
    """,
    # What training took of the machine on a local day ('YYYY-MM-DD'), in seconds; `asked_s` are runs of the user.
    """
    CREATE TABLE training_days (
        day TEXT NOT NULL PRIMARY KEY,
        at_work_s REAL NOT NULL DEFAULT 0,
        cpu_s REAL NOT NULL DEFAULT 0,
        asked_s REAL NOT NULL DEFAULT 0
    ) STRICT
    """,
    # What the scheduler decided, where it was not the same as before.
    """
    CREATE TABLE decisions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        action TEXT NOT NULL,
        kind TEXT,
        constraint_name TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT
    """,
    # Who stopped a run that was interrupted: 'user' or 'edgepd'; NULL: nobody meant to.
    "ALTER TABLE runs ADD COLUMN stopped_by TEXT",
    # It was not noted until now; what is not known to be a failure does not count as one.
    "UPDATE runs SET stopped_by = 'edgepd' WHERE state = 'interrupted'",
)
