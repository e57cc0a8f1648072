"""What the user did, and the models that were tuned on it, as migration step m008 makes the tables.

The idea: an event of a chat goes with its exchange; one that an app sent stands for itself. The user's map stands
beside the events, not in them, so that a change of it holds for all and can be taken back.
The invariants: `events.seq` is never given twice, also after everything was forgotten; a model that saw an event which
is gone says so itself, whatever program deleted it; once released, nothing here is edited.
What this does not do: run anything.
"""

from __future__ import annotations

CHATS_TAKEN = 5000  # newest chats of before that become events

EVENT_TABLES = (
    # `at` is unix seconds, and local time was `utc_offset_s` ahead of UTC then. `interaction` is NULL if an app sent
    # it.
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        utc_offset_s INTEGER NOT NULL,
        app TEXT NOT NULL,
        context TEXT NOT NULL,
        event TEXT NOT NULL,
        intent TEXT NOT NULL,
        interaction TEXT REFERENCES interactions (id) ON DELETE CASCADE,
        UNIQUE (app, at, event)
    ) STRICT
    """,
    "CREATE INDEX events_by_time ON events (at)",
    "CREATE INDEX events_of_interaction ON events (interaction)",
    # Of several names of one event that the user has mapped there is one row; its intent stands over the sender's.
    """
    CREATE TABLE intent_map (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        event TEXT NOT NULL UNIQUE,
        intent TEXT NOT NULL,
        at REAL NOT NULL
    ) STRICT
    """,
    # Tuned models: `seq` is that of the newest event they saw, `outlived` whether any that they saw, or an intent of
    # the map, is gone since.
    """
    CREATE TABLE intent_students (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        state TEXT NOT NULL,
        file TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        run INTEGER REFERENCES runs (id),
        seq INTEGER NOT NULL,
        scores TEXT NOT NULL,
        reason TEXT NOT NULL,
        outlived INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    "CREATE UNIQUE INDEX one_active_student ON intent_students (state) WHERE state = 'active'",
    """
    CREATE TRIGGER events_gone AFTER DELETE ON events BEGIN
        UPDATE intent_students SET outlived = 1 WHERE seq >= old.seq AND NOT outlived;
    END
    """,
    # An intent that leaves the map is searched for nowhere, and in every model that was tuned before. REPLACE fires no
    # trigger of deleting (sqlite.org/lang_conflict.html), so a row that takes the place of another has its own.
    """
    CREATE TRIGGER mapped_gone AFTER DELETE ON intent_map BEGIN
        UPDATE intent_students SET outlived = 1 WHERE NOT outlived;
    END
    """,
    """
    CREATE TRIGGER mapped_anew BEFORE INSERT ON intent_map
    WHEN EXISTS (SELECT 1 FROM intent_map WHERE event = new.event) BEGIN
        UPDATE intent_students SET outlived = 1 WHERE NOT outlived;
    END
    """,
    # Which exchanges of before, by their `seq`, are still to become events; no row: none. The machine's time zone and
    # the setting intent.enabled have a say in that, so the daemon does it, and not this step.
    """
    CREATE TABLE chats_to_take (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        next INTEGER NOT NULL,
        last INTEGER NOT NULL
    ) STRICT
    """,
    f"""
    INSERT INTO chats_to_take (one, next, last)
    SELECT 1, min(seq), max(seq)
    FROM (SELECT seq FROM interactions WHERE kind = 'chat' ORDER BY seq DESC LIMIT {CHATS_TAKEN})
    HAVING count(*) > 0
    """,  # noqa: S608 - a number of ours
)
