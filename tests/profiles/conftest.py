"""What all tests of the profile share: an empty profile in memory, and one interaction to put into it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

import pytest

from edgepd_profiles import interactions, migrations
from edgepd_profiles.interactions import Interaction


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    migrations.migrate(connection)
    yield connection
    connection.close()


@pytest.fixture
def log(conn: sqlite3.Connection) -> Callable[..., Interaction]:
    """Store a finished interaction; keyword arguments replace its fields."""

    def log_one(interaction_id: str, **fields: object) -> Interaction:
        values: dict[str, object] = {
            "id": interaction_id,
            "conversation": "c1",
            "created_at": 1000.0,
            "app": "cli",
            "model": "smollm2",
            "generation": 1,
            "messages": [{"role": "user", "content": "Name a colour."}],
            "response": "Blue.",
            "state": "done",
        }
        interaction = Interaction(**(values | fields))  # type: ignore[arg-type]
        interactions.begin(conn, interaction)
        return interaction

    return log_one
