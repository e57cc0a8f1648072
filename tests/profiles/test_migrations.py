from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from edgepd.errors import StoreError
from edgepd_profiles import demand, events, feedback, health, interactions, migrations, registry, runs
from edgepd_profiles.store import Store

# What the steps did when they were released, one after another, each with some rows. Never edit: profiles that people
# have look like this.
M001 = """
CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT, applied_at TEXT);
CREATE UNIQUE INDEX idx__sqlite_migrations_migration_set_name ON _sqlite_migrations (migration_set, name);
INSERT INTO _sqlite_migrations VALUES (1, 'edgepd_profiles', 'm001_interactions', '2026-01-01 00:00:00+00:00');
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
) STRICT;
CREATE INDEX interactions_streaming ON interactions (seq) WHERE state = 'streaming';
INSERT INTO interactions VALUES (1, 'i_old', 'c1', 1.0, 'cli', 'smollm2', 1, '[{"content":"Hi","role":"user"}]',
    'Hello.', 'done', 'stop', 3, 2, 10.0, 20.0);
INSERT INTO interactions VALUES (2, 'i_parts', 'c1', 2.0, '', 'smollm2', 1,
    '[{"content":"Hi","role":"user"},{"content":"Hello.","role":"assistant"},
    {"content":[{"text":"Which zebra","type":"text"},{"text":"is this?","type":"text"}],"role":"user"}]',
    'A tame one.', 'cancelled', NULL, 9, 3, 10.0, 20.0);
INSERT INTO interactions VALUES (3, 'i_none', 'c3', 4.0, 'cli', 'smollm2', 1,
    '[{"content":"Be brief.","role":"system"}]', 'Yes.', 'done', 'stop', 3, 2, 10.0, 20.0);
INSERT INTO interactions VALUES (4, 'i_killed', 'c4', 5.0, 'mail', 'smollm2', 1,
    '[{"content":"Count.","role":"user"}]', 'One, two', 'streaming', NULL, 0, 4, NULL, NULL);
"""
M002 = """
CREATE TABLE feedback (
    interaction TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    value INTEGER,
    text TEXT,
    source TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (interaction, kind)
) STRICT;
INSERT INTO feedback VALUES ('i_old', 'edit', NULL, 'Hello, you.', 'user', 6.0);
"""
M003 = """
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
) STRICT;
CREATE INDEX generations_of_base ON generations (base_sha256, id);
CREATE UNIQUE INDEX one_base ON generations (base_sha256) WHERE kind = 'base';
CREATE UNIQUE INDEX one_active ON generations (base_sha256) WHERE state = 'active';
CREATE TABLE activations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    base_sha256 TEXT NOT NULL,
    generation INTEGER NOT NULL REFERENCES generations (id),
    previous INTEGER REFERENCES generations (id),
    at REAL NOT NULL
) STRICT;
CREATE INDEX activations_of_generation ON activations (generation, id);
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
) STRICT;
CREATE UNIQUE INDEX one_running ON runs (state) WHERE state = 'running';
INSERT INTO generations VALUES (1, NULL, 'base', 'retired', 'aa', NULL, NULL, NULL, 1.0, 2.0, '[]', '', '{}', '{}', '');
INSERT INTO generations VALUES (2, 1, 'live', 'active', 'aa', 'ff', 'adapter.gguf', NULL, 3.0, 4.0, '["i_old"]', 'dd',
    '{"rank":8}', '{"held_out":2.5}', 'better');
INSERT INTO activations VALUES (1, 'aa', 1, NULL, 2.0), (2, 'aa', 2, 1, 4.0);
"""
M004 = "ALTER TABLE interactions ADD COLUMN kind TEXT NOT NULL DEFAULT 'chat';"
M005 = """
ALTER TABLE generations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN confirmed_at REAL;
ALTER TABLE generations ADD COLUMN healthy INTEGER NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN strikes INTEGER NOT NULL DEFAULT 0;
UPDATE generations SET confirmed_at = created_at WHERE kind = 'base';
CREATE TABLE boots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    base_sha256 TEXT NOT NULL,
    generation INTEGER NOT NULL REFERENCES generations (id),
    state TEXT NOT NULL,
    loaded INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    started_at REAL NOT NULL,
    ended_at REAL
) STRICT;
CREATE TABLE probes (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    passed INTEGER NOT NULL,
    reason TEXT NOT NULL,
    at REAL NOT NULL
) STRICT;
INSERT INTO boots VALUES (1, 'aa', 2, 'running', 1, 0, 7.0, NULL);
"""
M006 = """
ALTER TABLE interactions ADD COLUMN prompt TEXT NOT NULL DEFAULT '';
ALTER TABLE interactions ADD COLUMN personal TEXT NOT NULL DEFAULT '{}';
UPDATE interactions SET state = 'interrupted' WHERE state = 'streaming';
UPDATE interactions SET prompt = 'Hi' WHERE seq = 1;
UPDATE interactions SET prompt = 'Which zebra is this?' WHERE seq = 2;
UPDATE interactions SET prompt = 'Count.' WHERE seq = 4;
CREATE INDEX interactions_of_app ON interactions (app, seq);
CREATE INDEX interactions_of_conversation ON interactions (conversation, seq);
CREATE INDEX interactions_by_time ON interactions (created_at);
CREATE INDEX feedback_by_time ON feedback (at);
CREATE INDEX feedback_preferred_over ON feedback (text) WHERE kind = 'preferred';
CREATE VIRTUAL TABLE interaction_search USING fts5 (
    prompt, response, content = 'interactions', content_rowid = 'seq', tokenize = 'unicode61 remove_diacritics 2'
);
CREATE TRIGGER interactions_inserted AFTER INSERT ON interactions WHEN new.state != 'streaming' BEGIN
    INSERT INTO interaction_search (rowid, prompt, response) VALUES (new.seq, new.prompt, new.response);
END;
CREATE TRIGGER interactions_ended AFTER UPDATE ON interactions
WHEN old.state = 'streaming' AND new.state != 'streaming' BEGIN
    INSERT INTO interaction_search (rowid, prompt, response) VALUES (new.seq, new.prompt, new.response);
END;
CREATE TRIGGER interactions_deleted AFTER DELETE ON interactions WHEN old.state != 'streaming' BEGIN
    INSERT INTO interaction_search (interaction_search, rowid, prompt, response)
        VALUES ('delete', old.seq, old.prompt, old.response);
END;
INSERT INTO interaction_search (interaction_search) VALUES ('rebuild');
CREATE TABLE apps (
    name TEXT NOT NULL PRIMARY KEY,
    shared INTEGER NOT NULL DEFAULT 0,
    stored INTEGER NOT NULL DEFAULT 1,
    teaches INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE TABLE facts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app TEXT NOT NULL,
    text TEXT NOT NULL,
    at REAL NOT NULL,
    UNIQUE (app, text)
) STRICT;
CREATE TABLE features (
    app TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    channel TEXT NOT NULL,
    mass REAL NOT NULL,
    total REAL NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (app, kind, name, channel)
) STRICT, WITHOUT ROWID;
CREATE TABLE profile_state (
    app TEXT NOT NULL PRIMARY KEY,
    upto INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0,
    half_life_days REAL NOT NULL DEFAULT 0,
    reset_seq INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE feature_edits (
    app TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    at REAL NOT NULL,
    PRIMARY KEY (app, kind, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE embeddings (
    interaction TEXT NOT NULL PRIMARY KEY REFERENCES interactions (id) ON DELETE CASCADE,
    model_sha256 TEXT NOT NULL,
    vector BLOB NOT NULL,
    entropy REAL NOT NULL
) STRICT;
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
) STRICT, WITHOUT ROWID;
CREATE INDEX bins_of_interaction ON bins (interaction);
CREATE TABLE pools (
    pool TEXT NOT NULL PRIMARY KEY,
    policy TEXT NOT NULL,
    seen INTEGER NOT NULL DEFAULT 0,
    offered INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE lexicons (
    domain INTEGER NOT NULL,
    word TEXT NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (domain, word)
) STRICT, WITHOUT ROWID;
CREATE TABLE questions (
    interaction TEXT NOT NULL PRIMARY KEY REFERENCES interactions (id) ON DELETE CASCADE,
    asked_at REAL NOT NULL,
    outcome TEXT
) STRICT;
CREATE TABLE similar_pairs (
    id TEXT NOT NULL PRIMARY KEY,
    interaction TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
    prompt TEXT NOT NULL,
    response TEXT NOT NULL,
    similarity REAL NOT NULL,
    at REAL NOT NULL
) STRICT;
CREATE INDEX similar_pairs_of ON similar_pairs (interaction);
CREATE TABLE suggestions (
    id TEXT NOT NULL PRIMARY KEY,
    app TEXT NOT NULL,
    text TEXT NOT NULL,
    reason TEXT NOT NULL,
    source TEXT REFERENCES interactions (id) ON DELETE CASCADE,
    shown_at REAL NOT NULL,
    outcome TEXT,
    outcome_at REAL
) STRICT;
CREATE INDEX suggestions_shown ON suggestions (app, shown_at);
CREATE INDEX suggestions_of_source ON suggestions (source);
CREATE TABLE surveys (
    id TEXT NOT NULL PRIMARY KEY,
    app TEXT NOT NULL,
    question TEXT NOT NULL,
    asked_at REAL NOT NULL,
    outcome TEXT,
    value INTEGER,
    text TEXT,
    answered_at REAL
) STRICT;
CREATE TABLE receipts (
    id TEXT NOT NULL PRIMARY KEY,
    at REAL NOT NULL,
    what TEXT NOT NULL,
    counts TEXT NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE TABLE wanted_runs (
    kind TEXT NOT NULL PRIMARY KEY,
    reason TEXT NOT NULL,
    at REAL NOT NULL
) STRICT;
INSERT INTO facts VALUES (1, '', 'I live in Ulm.', 8.0);
INSERT INTO wanted_runs VALUES ('live', 'generation 2 was taught what has been forgotten since', 9.0);
"""
M007 = """
ALTER TABLE feedback ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
UPDATE feedback SET seq = o.seq
FROM (SELECT rowid AS row, row_number() OVER (ORDER BY at, rowid) AS seq FROM feedback) AS o
WHERE feedback.rowid = o.row;
CREATE TABLE feedback_clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    tick INTEGER NOT NULL
) STRICT;
INSERT INTO feedback_clock (one, tick) SELECT 1, count(*) FROM feedback;
CREATE TRIGGER feedback_given AFTER INSERT ON feedback BEGIN
    UPDATE feedback_clock SET tick = tick + 1;
    UPDATE feedback SET seq = (SELECT tick FROM feedback_clock) WHERE rowid = new.rowid;
END;
CREATE TRIGGER feedback_changed AFTER UPDATE OF interaction, kind, value, text, source, at ON feedback BEGIN
    UPDATE feedback_clock SET tick = tick + 1;
    UPDATE feedback SET seq = (SELECT tick FROM feedback_clock) WHERE rowid = new.rowid;
END;
CREATE TRIGGER feedback_removed AFTER DELETE ON feedback BEGIN
    UPDATE feedback_clock SET tick = tick + 1;
END;
CREATE INDEX feedback_teaching ON feedback (seq)
    WHERE kind IN ('edit', 'preferred', 'thumb') OR kind = 'rating' AND value != 3;
CREATE TABLE learned_marks (
    kind TEXT NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT;
INSERT INTO learned_marks (kind, seq)
SELECT r.kind, (SELECT coalesce(max(f.seq), 0) FROM feedback AS f WHERE f.at <= r.started_at)
FROM (SELECT kind, started_at, max(id) FROM runs WHERE state IN ('promoted', 'rejected') GROUP BY kind) AS r;
CREATE TABLE due_since (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at REAL NOT NULL
) STRICT;
CREATE TABLE training_days (
    day TEXT NOT NULL PRIMARY KEY,
    at_work_s REAL NOT NULL DEFAULT 0,
    cpu_s REAL NOT NULL DEFAULT 0,
    asked_s REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    action TEXT NOT NULL,
    kind TEXT,
    constraint_name TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
ALTER TABLE runs ADD COLUMN stopped_by TEXT;
UPDATE runs SET stopped_by = 'edgepd' WHERE state = 'interrupted';
INSERT INTO learned_marks VALUES ('live', 1);
"""
RELEASED = {
    "m001_interactions": M001,
    "m002_feedback": M002,
    "m003_registry": M003,
    "m004_kind": M004,
    "m005_health": M005,
    "m006_profile": M006,
    "m007_living": M007,
}


def profile_of(directory: Path, steps: int) -> Path:
    """Return a profile as the first so many steps left it."""
    path = directory / "profile.db"
    conn = sqlite3.connect(path)
    for name, sql in list(RELEASED.items())[:steps]:
        conn.executescript(sql)
        if name != "m001_interactions":
            conn.execute(
                "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('edgepd_profiles', ?, ?)",
                (name, "2026-01-01 00:00:00+00:00"),
            )
    conn.commit()
    conn.close()
    return path


def schema(path: Path) -> list[tuple[str, str]]:
    conn = sqlite3.connect(path)
    rows = conn.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()
    conn.close()
    return [(name, "".join(sql.replace('"', "").split())) for name, sql in rows]


def check_search(conn: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless the index has the words of the table, and no others."""
    conn.execute("INSERT INTO interaction_search (interaction_search, rank) VALUES ('integrity-check', 1)")


def matches(conn: sqlite3.Connection, words: str) -> list[int]:
    rows = conn.execute("SELECT rowid FROM interaction_search WHERE interaction_search MATCH ? ORDER BY 1", (words,))
    return [seq for (seq,) in rows]


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_profile_of_every_earlier_step_is_migrated(tmp_path: Path, steps: int) -> None:
    path = profile_of(tmp_path, steps)
    with Store.open(path) as store:
        with store.read() as conn:
            rows = conn.execute("SELECT id, state, prompt, response, kind, personal FROM interactions ORDER BY seq")
            assert rows.fetchall() == [
                ("i_old", "done", "Hi", "Hello.", "chat", "{}"),
                ("i_parts", "cancelled", "Which zebra is this?", "A tame one.", "chat", "{}"),
                ("i_none", "done", "", "Yes.", "chat", "{}"),
                ("i_killed", "interrupted", "Count.", "One, two", "chat", "{}"),
            ]
            assert (matches(conn, "zebra"), matches(conn, "hello"), matches(conn, "two")) == ([2], [1], [4])
            given = [each.text for each in feedback.of(conn, "i_old")]
            assert given == (["Hello, you."] if steps >= 2 else [])
            assert [g.id for g in registry.listing(conn, "aa")] == ([1, 2] if steps >= 3 else [])
            assert conn.execute("SELECT next, last FROM chats_to_take").fetchall() == [(1, 4)]
            assert events.newest_seq(conn) == 0, "the machine's time zone is no part of a migration"
        store.write(check_search).result()
        store.write(lambda conn: conn.execute("DELETE FROM interactions WHERE seq IN (1, 4)").close()).result()
        store.write(check_search).result()
        with store.read() as conn:
            assert matches(conn, "hello OR two OR zebra") == [2]
            assert conn.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
            assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
    Store.open(tmp_path / "new.db").close()
    assert schema(path) == schema(tmp_path / "new.db")


@pytest.mark.parametrize("steps", range(3, 7))
def test_old_feedback_is_numbered_by_its_time_and_what_old_runs_judged_is_known(tmp_path: Path, steps: int) -> None:
    """Otherwise an upgrade would be followed by training on everything that is known already."""
    path = profile_of(tmp_path, steps)
    old = sqlite3.connect(path)
    old.executescript(
        """
        INSERT INTO feedback VALUES ('i_parts', 'thumb', 1, NULL, 'cli', 9.0),
            ('i_none', 'edit', NULL, 'No.', 'cli', 5.0), ('i_none', 'thumb', -1, NULL, 'cli', 9.0),
            ('i_killed', 'edit', NULL, 'One, two, three', 'cli', 7.0);
        INSERT INTO runs VALUES (1, 'live', 'promoted', 6.0, 6.5, 1, 2, '', '{}'),
            (2, 'live', 'failed', 9.5, 9.6, 2, NULL, '', '{}'), (3, 'baked', 'rejected', 5.5, 5.6, 2, NULL, '', '{}'),
            (4, 'live', 'interrupted', 9.7, 9.8, 2, NULL, 'the trainer was killed by signal 15', '{}');
        """
    )
    old.commit()
    old.close()
    with Store.open(path) as store:
        with store.read() as conn:
            rows = conn.execute("SELECT interaction, kind FROM feedback ORDER BY seq").fetchall()
            assert rows == [
                ("i_none", "edit"), ("i_old", "edit"), ("i_killed", "edit"), ("i_parts", "thumb"), ("i_none", "thumb"),
            ]  # fmt: skip
            assert [n for (n,) in conn.execute("SELECT seq FROM feedback ORDER BY seq")] == [1, 2, 3, 4, 5]
            marks = conn.execute("SELECT kind, seq FROM learned_marks ORDER BY kind").fetchall()
            assert marks == [("baked", 1), ("live", 2)]
            assert demand.newest(conn) == 5
            # i_parts was cancelled and teaches nothing; i_old and i_killed came after the consolidation began.
            assert demand.measure(conn, 0.5) == (1.0, 2.0)
            assert runs.failures_in_a_row(conn) == 0
        store.write(lambda conn: feedback.set_edit(conn, "i_old", "Hello to you.", at=0.0)).result()
        with store.read() as conn:
            assert conn.execute("SELECT seq FROM feedback WHERE interaction = 'i_old'").fetchall() == [(6,)]
            assert demand.measure(conn, 0.5) == (2.0, 2.0)


def test_old_chats_become_events_where_the_user_was_and_only_chats_of_apps_that_are_stored(tmp_path: Path) -> None:
    path = profile_of(tmp_path, 7)
    old = sqlite3.connect(path)
    old.executescript(
        """
        INSERT INTO apps VALUES ('mail', 0, 0, 1);
        UPDATE interactions SET kind = 'tools' WHERE id = 'i_none';
        INSERT INTO interactions (seq, id, conversation, created_at, app, model, generation, messages, response, state,
            prompt_tokens, completion_tokens, prompt)
        VALUES (9, 'i_again', 'c9', 2.0, '', 'm', 1, '[]', '', 'done', 0, 0, 'Which zebra is this?');
        """
    )
    old.commit()
    old.close()
    with Store.open(path) as store:
        taken = [store.write(lambda c: events.take_chats(c, 2, offset=lambda at: int(at) * 60)).result() for _ in "123"]
        assert taken == [2, 2, 0], "i_killed came from an app that is not stored, and i_again is the same question"
        with store.read() as conn:
            assert events.history(conn) == [
                events.Stored(1.0, "chat:", "cli", "", 60, "cli", "i_old", 1),
                events.Stored(2.0, "chat:zebra", "chat", "", 120, "", "i_parts", 2),
            ]
            assert conn.execute("SELECT count(*) FROM chats_to_take").fetchone() == (0,)
            assert (demand.intent_events(conn), demand.measure(conn, 0.5)) == (2, (0.0, 1.0))


def test_the_newest_chats_are_taken_and_none_is_waited_for_in_an_empty_profile(tmp_path: Path) -> None:
    path = profile_of(tmp_path, 7)
    old = sqlite3.connect(path)
    insert = """
        INSERT INTO interactions (seq, id, conversation, created_at, app, model, generation, messages, response, state,
            prompt_tokens, completion_tokens, kind) VALUES (?, ?, '', 1.0, '', 'm', 1, '[]', '', 'done', 0, 0, ?)
    """
    old.executemany(insert, ((n, f"i_{n}", "chat" if n % 2 else "tools") for n in range(5, 12_006)))
    old.commit()
    old.close()
    with Store.open(path) as store, store.read() as conn:
        assert conn.execute("SELECT next, last FROM chats_to_take").fetchone() == (2007, 12_005)
    with Store.open(tmp_path / "new.db") as store, store.read() as conn:
        assert conn.execute("SELECT count(*) FROM chats_to_take").fetchone() == (0,)


def test_half_a_character_in_an_old_message_does_not_stop_the_migration(tmp_path: Path) -> None:
    """JSON may hold one, as "\\ud800", but the new column cannot."""
    path = profile_of(tmp_path, 5)
    old = sqlite3.connect(path)
    old.execute(
        "UPDATE interactions SET messages = ? WHERE seq = 3", (r'[{"content":"Half \ud800 sign","role":"user"}]',)
    )
    old.commit()
    old.close()
    with Store.open(path) as store, store.read() as conn:
        assert conn.execute("SELECT prompt FROM interactions WHERE seq = 3").fetchone() == ("Half ? sign",)
        assert interactions.get(conn, "i_none").messages == [{"content": "Half \ud800 sign", "role": "user"}]


def test_the_check_of_the_search_index_can_fail(conn: sqlite3.Connection) -> None:
    """The tests rely on it, and it depends on the version of SQLite whether it compares with the table."""
    check_search(conn)
    conn.execute("INSERT INTO interaction_search (rowid, prompt, response) VALUES (7, 'of', 'nothing')")
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        check_search(conn)


def test_a_profile_without_boots_and_pins_is_migrated_and_keeps_its_generations(tmp_path: Path) -> None:
    path = profile_of(tmp_path, 4)
    with Store.open(path) as store:
        with store.read() as conn:
            base, live = registry.listing(conn, "aa")
        assert (base.confirmed_at, base.pending) == (1.0, False)
        assert live == registry.Generation(
            2, 1, "live", "active", "aa", "ff", "adapter.gguf", None, 3.0, 4.0, ["i_old"], "dd",
            {"rank": 8}, {"held_out": 2.5}, "better", pinned=False, confirmed_at=None, healthy=0, strikes=0,
        )  # fmt: skip
        assert live.pending

        def die_twice(conn: sqlite3.Connection) -> health.Fallback | None:
            health.loading(conn, health.booted(conn, "aa", 2))
            health.at_boot(conn, "aa")
            health.loading(conn, health.booted(conn, "aa", 2))
            return health.at_boot(conn, "aa")

        fallback = store.write(die_twice).result()
        assert fallback is not None
        assert (fallback.from_id, fallback.to_id) == (2, 1)
    Store.open(tmp_path / "new.db").close()
    assert schema(path) == schema(tmp_path / "new.db")


def test_opening_again_applies_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        with Store.open(tmp_path / "profile.db") as store, store.read() as conn:
            names = [name for (name,) in conn.execute("SELECT name FROM _sqlite_migrations ORDER BY id")]
            assert names == [step.__name__ for step in migrations.STEPS]


def test_a_migration_that_fails_leaves_the_profile_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.db"
    Store.open(path).close()
    before = schema(path)

    def m099_half(db: Database) -> None:
        db.execute("CREATE TABLE half (n INTEGER)")
        raise KeyError("power cut")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, m099_half))
    with pytest.raises(KeyError, match="power cut"):
        Store.open(path)
    assert schema(path) == before


def test_a_profile_of_a_newer_edgepd_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    with Store.open(path) as store:
        store.write(
            lambda conn: conn.execute(
                "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('edgepd_profiles', 'm099_later')"
            ).close()
        ).result()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer edgepd .schema step m099_later.*upgrade edgepd"):
        Store.open(path)
    assert path.read_bytes() == before
