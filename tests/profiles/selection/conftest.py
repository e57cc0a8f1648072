"""What the tests of the selection share: judged and embedded exchanges."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable

import numpy as np
import pytest

from edgepd_profiles.interactions import Interaction
from edgepd_profiles.selection import embeddings


@pytest.fixture
def judge(conn: sqlite3.Connection) -> Callable[..., None]:
    """Store feedback as feedback.py does: a kind again keeps its row and has another time."""

    def judge_one(interaction: str, kind: str = "thumb", value: int | None = 1, at: float = 2000.0) -> None:
        conn.execute(
            "INSERT INTO feedback (interaction, kind, value, source, at) VALUES (?, ?, ?, 'user', ?)"
            "ON CONFLICT (interaction, kind) DO UPDATE SET value = excluded.value, at = excluded.at",
            (interaction, kind, value, at),
        )

    return judge_one


@pytest.fixture
def embed(conn: sqlite3.Connection) -> Callable[..., None]:
    """Give an exchange a vector of two numbers by its angle, and an entropy."""

    def embed_one(interaction: str, degrees: float, entropy: float = 0.5, model: str = "m1") -> None:
        vector = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
        assert embeddings.store(conn, interaction, model, vector, entropy)

    return embed_one


@pytest.fixture
def judged(log: Callable[..., Interaction], judge: Callable[..., None]) -> Callable[..., None]:
    """Store an exchange with a thumb up, the n-th at the time n."""

    def make(n: int, response: str = "Blue.") -> str:
        log(f"i{n:03}", response=response)
        judge(f"i{n:03}", at=float(n))
        return f"i{n:03}"

    return make
