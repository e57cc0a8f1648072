from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from edgepd.errors import StoreError
from edgepd_profiles import feedback, health, interactions, migrations, registry
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
RELEASED = {
    "m001_interactions": M001,
    "m002_feedback": M002,
    "m003_registry": M003,
    "m004_kind": M004,
    "m005_health": M005,
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


@pytest.mark.parametrize("steps", range(1, 6))
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
        store.write(check_search).result()
        store.write(lambda conn: conn.execute("DELETE FROM interactions WHERE seq IN (1, 4)").close()).result()
        store.write(check_search).result()
        with store.read() as conn:
            assert matches(conn, "hello OR two OR zebra") == [2]
            assert conn.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
            assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
    Store.open(tmp_path / "new.db").close()
    assert schema(path) == schema(tmp_path / "new.db")


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
