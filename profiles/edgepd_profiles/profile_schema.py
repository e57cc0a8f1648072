"""The tables of the user profiling layer, as migration step m006 makes them.

The idea: one statement for each table, with what its columns mean. Everything that was derived from an exchange goes
with its row (ON DELETE CASCADE), so that forgetting one leaves nothing of it behind.
The invariant: once released, nothing here is edited; a change is a new step in migrations.py.
What this does not do: run anything.
"""

from __future__ import annotations

# The index has no copy of the text (content=), so an entry must be taken out with the words it was put in with.
SEARCH = (
    """
    CREATE VIRTUAL TABLE interaction_search USING fts5 (
        prompt, response, content = 'interactions', content_rowid = 'seq', tokenize = 'unicode61 remove_diacritics 2'
    )
    """,
    """
    CREATE TRIGGER interactions_inserted AFTER INSERT ON interactions WHEN new.state != 'streaming' BEGIN
        INSERT INTO interaction_search (rowid, prompt, response) VALUES (new.seq, new.prompt, new.response);
    END
    """,
    """
    CREATE TRIGGER interactions_ended AFTER UPDATE ON interactions
    WHEN old.state = 'streaming' AND new.state != 'streaming' BEGIN
        INSERT INTO interaction_search (rowid, prompt, response) VALUES (new.seq, new.prompt, new.response);
    END
    """,
    """
    CREATE TRIGGER interactions_deleted AFTER DELETE ON interactions WHEN old.state != 'streaming' BEGIN
        INSERT INTO interaction_search (interaction_search, rowid, prompt, response)
            VALUES ('delete', old.seq, old.prompt, old.response);
    END
    """,
    "INSERT INTO interaction_search (interaction_search) VALUES ('rebuild')",
)

PROFILE_TABLES = (
    # What an app may do; one that is not listed keeps its exchanges to itself, is stored, and may teach.
    """
    CREATE TABLE apps (
        name TEXT NOT NULL PRIMARY KEY,
        shared INTEGER NOT NULL DEFAULT 0,
        stored INTEGER NOT NULL DEFAULT 1,
        teaches INTEGER NOT NULL DEFAULT 1
    ) STRICT
    """,
    # What the user said of himself; app '' is for all.
    """
    CREATE TABLE facts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        app TEXT NOT NULL,
        text TEXT NOT NULL,
        at REAL NOT NULL,
        UNIQUE (app, text)
    ) STRICT
    """,
    # Sums of the profile P_u by channel and era ("active@42"), within which weights fade: see folding.py.
    """
    CREATE TABLE features (
        app TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        channel TEXT NOT NULL,
        mass REAL NOT NULL,
        total REAL NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (app, kind, name, channel)
    ) STRICT, WITHOUT ROWID
    """,
    # How far the sums of an app have come, since when, and by which half-life and version of the reading.
    """
    CREATE TABLE profile_state (
        app TEXT NOT NULL PRIMARY KEY,
        upto INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 0,
        half_life_days REAL NOT NULL DEFAULT 0,
        reset_seq INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    # What the user set by hand or pinned; it stands over what was observed.
    """
    CREATE TABLE feature_edits (
        app TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        pinned INTEGER NOT NULL DEFAULT 0,
        at REAL NOT NULL,
        PRIMARY KEY (app, kind, name)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE embeddings (
        interaction TEXT NOT NULL PRIMARY KEY REFERENCES interactions (id) ON DELETE CASCADE,
        model_sha256 TEXT NOT NULL,
        vector BLOB NOT NULL,
        entropy REAL NOT NULL
    ) STRICT
    """,
    # The bins of the selection: pool `examples` (with feedback) or `questions` (to be asked about).
    """
    CREATE TABLE bins (
        pool TEXT NOT NULL,
        interaction TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
        entropy REAL NOT NULL,
        domain_score REAL NOT NULL,
        dissimilarity REAL NOT NULL,
        domain INTEGER NOT NULL,
        reason TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (pool, interaction)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX bins_of_interaction ON bins (interaction)",
    # How far a pool has seen the exchanges or the feedback, and under which policy.
    """
    CREATE TABLE pools (
        pool TEXT NOT NULL PRIMARY KEY,
        policy TEXT NOT NULL,
        seen INTEGER NOT NULL DEFAULT 0,
        offered INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    """
    CREATE TABLE lexicons (
        domain INTEGER NOT NULL,
        word TEXT NOT NULL,
        weight REAL NOT NULL,
        PRIMARY KEY (domain, word)
    ) STRICT, WITHOUT ROWID
    """,
    # What the user was asked about an answer (annotation queue), and what came of it.
    """
    CREATE TABLE questions (
        interaction TEXT NOT NULL PRIMARY KEY REFERENCES interactions (id) ON DELETE CASCADE,
        asked_at REAL NOT NULL,
        outcome TEXT
    ) STRICT
    """,
    # Pairs like an example that the served model made.
    """
    CREATE TABLE similar_pairs (
        id TEXT NOT NULL PRIMARY KEY,
        interaction TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
        prompt TEXT NOT NULL,
        response TEXT NOT NULL,
        similarity REAL NOT NULL,
        at REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX similar_pairs_of ON similar_pairs (interaction)",
    """
    CREATE TABLE suggestions (
        id TEXT NOT NULL PRIMARY KEY,
        app TEXT NOT NULL,
        text TEXT NOT NULL,
        reason TEXT NOT NULL,
        source TEXT REFERENCES interactions (id) ON DELETE CASCADE,
        shown_at REAL NOT NULL,
        outcome TEXT,
        outcome_at REAL
    ) STRICT
    """,
    "CREATE INDEX suggestions_shown ON suggestions (app, shown_at)",
    "CREATE INDEX suggestions_of_source ON suggestions (source)",
    """
    CREATE TABLE surveys (
        id TEXT NOT NULL PRIMARY KEY,
        app TEXT NOT NULL,
        question TEXT NOT NULL,
        asked_at REAL NOT NULL,
        outcome TEXT,
        value INTEGER,
        text TEXT,
        answered_at REAL
    ) STRICT
    """,
    # What was forgotten, in numbers only, and what is still to be done because of it.
    """
    CREATE TABLE receipts (
        id TEXT NOT NULL PRIMARY KEY,
        at REAL NOT NULL,
        what TEXT NOT NULL,
        counts TEXT NOT NULL,
        state TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE wanted_runs (
        kind TEXT NOT NULL PRIMARY KEY,
        reason TEXT NOT NULL,
        at REAL NOT NULL
    ) STRICT
    """,
)
