"""The schema of the profile, as ordered steps.

The idea: each step is a function m001_..., m002_... that runs in one transaction together with the record
that it was applied. The invariant: a step that has been released is never edited; a change is a new step at
the end.
What this does not do: go back to an older schema, or open files (see store.py).

What was applied is recorded in the table that sqlite-utils uses, so that its tools understand the file. The dozen
lines that apply the steps are our own because importing sqlite-utils loads numpy, which costs 14 MB of memory in a
daemon that is to stay below 60 MB.

Later parts add kinds of feedback and of generations, so those columns carry no CHECK: SQLite cannot change
one without rebuilding the table. The Python functions validate them.
"""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime

from edgepd.errors import StoreError
from edgepd_profiles.events_schema import EVENT_TABLES
from edgepd_profiles.living_schema import FEEDBACK_SEQ, LIVING_TABLES
from edgepd_profiles.profile_schema import PROFILE_TABLES, SEARCH
from edgepd_profiles.rows import last_user_text

MIGRATION_SET = "edgepd_profiles"
BATCH = 1000  # rows that are rewritten at a time
# As sqlite-utils creates them, letter by letter.
RECORD = """CREATE TABLE IF NOT EXISTS "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
)"""
RECORD_INDEX = """CREATE UNIQUE INDEX IF NOT EXISTS "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name")"""


def m001_interactions(db: sqlite3.Connection) -> None:
    """Exchanges with the model. `seq` is the order of arrival, which survives a clock that is set back."""
    db.execute(
        """
        CREATE TABLE interactions (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            conversation TEXT NOT NULL,
            created_at REAL NOT NULL,
            app TEXT NOT NULL,
            model TEXT NOT NULL,
            generation INTEGER NOT NULL,
            messages TEXT NOT NULL,
            response TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('streaming', 'done', 'cancelled', 'failed', 'interrupted')),
            finish_reason TEXT,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            ttft_ms REAL,
            duration_ms REAL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX interactions_streaming ON interactions (seq) WHERE state = 'streaming'")


def m002_feedback(db: sqlite3.Connection) -> None:
    """What the user said about an exchange: at most one row of each kind."""
    db.execute(
        """
        CREATE TABLE feedback (
            interaction TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
            kind TEXT NOT NULL,
            value INTEGER,
            text TEXT,
            source TEXT NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (interaction, kind)
        ) STRICT
        """
    )


def m003_registry(db: sqlite3.Connection) -> None:
    """Generations, the order in which they were active, and training runs.

    The unique indexes are the last line of defence: one base generation and one active generation per base
    model, one training run at a time.
    """
    db.execute(
        """
        CREATE TABLE generations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            parent INTEGER REFERENCES generations (id),
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            base_sha256 TEXT NOT NULL,
            file_sha256 TEXT,
            adapter_file TEXT,
            model_file TEXT,
            created_at REAL NOT NULL,
            activated_at REAL,
            example_ids TEXT NOT NULL,
            data_hash TEXT NOT NULL,
            config TEXT NOT NULL,
            scores TEXT NOT NULL,
            reason TEXT NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX generations_of_base ON generations (base_sha256, id)")
    db.execute("CREATE UNIQUE INDEX one_base ON generations (base_sha256) WHERE kind = 'base'")
    db.execute("CREATE UNIQUE INDEX one_active ON generations (base_sha256) WHERE state = 'active'")
    db.execute(
        """
        CREATE TABLE activations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            base_sha256 TEXT NOT NULL,
            generation INTEGER NOT NULL REFERENCES generations (id),
            previous INTEGER REFERENCES generations (id),
            at REAL NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX activations_of_generation ON activations (generation, id)")
    db.execute(
        """
        CREATE TABLE runs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            started_at REAL NOT NULL,
            ended_at REAL,
            parent_generation INTEGER REFERENCES generations (id),
            generation INTEGER REFERENCES generations (id),
            reason TEXT NOT NULL,
            numbers TEXT NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE UNIQUE INDEX one_running ON runs (state) WHERE state = 'running'")


def m004_kind(db: sqlite3.Connection) -> None:
    """What kind of exchange it was: chat, tools or completion. Only plain chats can be learned from as yet."""
    db.execute("ALTER TABLE interactions ADD COLUMN kind TEXT NOT NULL DEFAULT 'chat'")


def m005_health(db: sqlite3.Connection) -> None:
    """Pins, boots and strikes, and what a throw-away child found out about files.

    A boot is `running`, `ended` (cleanly) or `crashed`; `loaded` and `answered` say whether its generation, which is
    the one that was active last, was loaded and finished an answer. What an earlier edgepd activated has to be
    confirmed; the base has not.
    """
    db.execute("ALTER TABLE generations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE generations ADD COLUMN confirmed_at REAL")
    db.execute("ALTER TABLE generations ADD COLUMN healthy INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE generations ADD COLUMN strikes INTEGER NOT NULL DEFAULT 0")
    db.execute("UPDATE generations SET confirmed_at = created_at WHERE kind = 'base'")
    db.execute(
        """
        CREATE TABLE boots (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            base_sha256 TEXT NOT NULL,
            generation INTEGER NOT NULL REFERENCES generations (id),
            state TEXT NOT NULL,
            loaded INTEGER NOT NULL DEFAULT 0,
            answered INTEGER NOT NULL DEFAULT 0,
            started_at REAL NOT NULL,
            ended_at REAL
        ) STRICT
        """
    )
    db.execute(
        """
        CREATE TABLE probes (
            fingerprint TEXT NOT NULL PRIMARY KEY,
            passed INTEGER NOT NULL,
            reason TEXT NOT NULL,
            at REAL NOT NULL
        ) STRICT
        """
    )


def m006_profile(db: sqlite3.Connection) -> None:
    """The user profile: search, apps, facts, features, selection, suggestions, surveys, and what is to be done.

    `prompt` is the text of the last user message. Everything that belongs to an exchange goes with its row. Only
    exchanges that have ended are in `interaction_search`, which triggers keep up to date whatever program writes.
    """
    db.execute("ALTER TABLE interactions ADD COLUMN prompt TEXT NOT NULL DEFAULT ''")
    # What of the profile was put before the question: {"profile": bool, "facts": [ids], "shots": [ids]}.
    db.execute("ALTER TABLE interactions ADD COLUMN personal TEXT NOT NULL DEFAULT '{}'")
    # Nothing streams while the schema changes; what a killed daemon left must not be indexed twice.
    db.execute("UPDATE interactions SET state = 'interrupted' WHERE state = 'streaming'")
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM interactions").fetchone()
    for first in range(0, last + 1, BATCH):  # all the messages of a long history would not fit into memory
        rows = db.execute("SELECT seq, messages FROM interactions WHERE seq >= ? AND seq < ?", (first, first + BATCH))
        prompts = [(last_user_text(json.loads(messages)), seq) for seq, messages in rows]
        db.executemany("UPDATE interactions SET prompt = ? WHERE seq = ?", prompts)
    db.execute("CREATE INDEX interactions_of_app ON interactions (app, seq)")
    db.execute("CREATE INDEX interactions_of_conversation ON interactions (conversation, seq)")
    db.execute("CREATE INDEX interactions_by_time ON interactions (created_at)")
    db.execute("CREATE INDEX feedback_by_time ON feedback (at)")
    db.execute("CREATE INDEX feedback_preferred_over ON feedback (text) WHERE kind = 'preferred'")
    for statement in SEARCH:
        db.execute(statement)
    for table in PROFILE_TABLES:
        db.execute(table)


def m007_living(db: sqlite3.Connection) -> None:
    """What the scheduler has to remember: the order of feedback, what of it was learned, days, and decisions."""
    for statement in (*FEEDBACK_SEQ, *LIVING_TABLES):
        db.execute(statement)


def m008_events(db: sqlite3.Connection) -> None:
    """What the user did, the user's map of it, the models that were tuned on it, and which chats become events."""
    for statement in EVENT_TABLES:
        db.execute(statement)


STEPS = (
    m001_interactions,
    m002_feedback,
    m003_registry,
    m004_kind,
    m005_health,
    m006_profile,
    m007_living,
    m008_events,
)


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the schema up to date, all pending steps in one transaction.

    The connection must have isolation_level None. Raises StoreError, with nothing changed, if the file was
    written by a newer edgepd.
    """
    # IMMEDIATE: of two processes that open an old file at once, one migrates and the other waits.
    conn.execute("BEGIN IMMEDIATE")
    try:
        applied = _applied(conn)
        unknown = applied - {step.__name__ for step in STEPS}
        if unknown:
            raise StoreError(
                f"the profile was written by a newer edgepd (schema step "
                f"{max(unknown)}; this one knows up to {STEPS[-1].__name__}); upgrade edgepd"
            )
        conn.execute(RECORD)
        conn.execute(RECORD_INDEX)
        for step in STEPS:
            if step.__name__ not in applied:
                step(conn)
                conn.execute(
                    "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, ?, ?)",
                    (MIGRATION_SET, step.__name__, str(datetime.now(UTC))),
                )
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")


def _applied(conn: sqlite3.Connection) -> set[str]:
    """Return the names of the steps that the file has; none for a file that is new."""
    if not conn.execute("SELECT 1 FROM sqlite_schema WHERE name = '_sqlite_migrations'").fetchone():
        return set()
    rows = conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (MIGRATION_SET,))
    return {name for (name,) in rows}
