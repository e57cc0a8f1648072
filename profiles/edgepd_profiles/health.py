"""Whether what serves can be trusted: boots, strikes, and the fallback from a generation that brings the daemon down.

The idea is that of an A/B update of an operating system: what is newly active is pending until it has served in good
health, and unclean exits in a row make the last confirmed one active by themselves. `boots` records every start of the
daemon; the row of a process that died is still `running` when the next one starts.
The invariant: an unclean exit is counted once, in the transaction that looks at it, against the generation that was
active when it happened (`registry.activate` keeps the row of the running boot up to date), never against the base, and
not if that generation had never been loaded in that boot, or had finished an answer: then a power cut is likelier than
a crash at its hands.
Nothing here compares times, because the clock may have been set back.
What this does not do: find out why a process died, or check files. See probes.py for what is opened in a child first.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from edgepd_profiles import lineage, registry

STRIKES = 2  # unclean exits without a finished answer in between, after which another generation serves
HEALTHY_ANSWERS = 3  # finished answers without an unclean exit in between, after which a generation is confirmed
KEPT_BOOTS = 100


@dataclass(frozen=True)
class Fallback:
    """A switch that was made because `from_id` seems to bring the daemon down. `reason` is a sentence's end."""

    from_id: int
    to_id: int
    reason: str


def at_boot(conn: sqlite3.Connection, base_sha256: str, *, at: float | None = None) -> Fallback | None:
    """Settle how the previous boot of this base model ended, and fall back if that was one time too many.

    Call it before `booted`; calling it again changes nothing. After STRIKES unclean exits the last confirmed
    generation before the struck one (else the base) is active, and the struck one is retired with the reason.
    """
    rows = conn.execute(
        """
        SELECT generation, loaded AND NOT answered FROM boots
        WHERE base_sha256 = ? AND state = 'running' ORDER BY id DESC LIMIT 1
        """,
        (base_sha256,),
    ).fetchall()
    if not rows:
        return None
    conn.execute("UPDATE boots SET state = 'crashed' WHERE base_sha256 = ? AND state = 'running'", (base_sha256,))
    generation_id, suspect = rows[0]
    conn.execute(
        """
        UPDATE generations SET strikes = strikes + ?, healthy = CASE WHEN confirmed_at IS NULL THEN 0 ELSE healthy END
        WHERE id = ? AND kind != 'base'
        """,
        (suspect, generation_id),
    )
    struck = registry.get(conn, generation_id)
    # Another one may be active by now; then there is nothing to fall back from.
    if struck.state != "active" or struck.strikes < STRIKES:
        return None
    to = lineage.last_confirmed(conn, struck)
    registry.activate(conn, base_sha256, to.id, struck.id, at=at)
    reason = f"withdrawn after {struck.strikes} unclean exits of edgepd in which it had not finished an answer"
    registry.set_state(conn, struck.id, "retired", reason=reason)
    return Fallback(struck.id, to.id, reason)


def booted(conn: sqlite3.Connection, base_sha256: str, generation: int, *, at: float | None = None) -> int:
    """Record that the daemon starts with this generation active; return the id of the boot for `ended`.

    Only the last KEPT_BOOTS boots are kept, and whatever is not settled yet for another base model.
    """
    cursor = conn.execute(
        "INSERT INTO boots (base_sha256, generation, state, started_at) VALUES (?, ?, 'running', ?)",
        (base_sha256, generation, time.time() if at is None else at),
    )
    assert cursor.lastrowid is not None  # noqa: S101 - an INSERT into a rowid table always sets it
    conn.execute(
        """
        DELETE FROM boots
        WHERE state != 'running' AND id NOT IN (SELECT id FROM boots ORDER BY id DESC LIMIT ?)
        """,
        (KEPT_BOOTS,),
    )
    return cursor.lastrowid


def loading(conn: sqlite3.Connection, boot_id: int) -> None:
    """Record that the active generation is about to be loaded: from now on a crash may be its doing."""
    conn.execute("UPDATE boots SET loaded = 1 WHERE id = ? AND loaded = 0", (boot_id,))


def ended(conn: sqlite3.Connection, boot_id: int, *, at: float | None = None) -> None:
    """Record that a boot came to a clean end. One that has ended already stays as it is."""
    conn.execute(
        "UPDATE boots SET state = 'ended', ended_at = ? WHERE id = ? AND state = 'running'",
        (time.time() if at is None else at, boot_id),
    )


def answered(conn: sqlite3.Connection, generation_id: int, *, at: float | None = None) -> bool:
    """Record that an answer of this generation came to its end; the HEALTHY_ANSWERS-th one confirms it.

    Returns whether further answers matter. False holds until another generation is activated or the daemon starts
    again; ask again then. Only the active generation is counted. Raises NotFoundError.
    """
    generation = registry.get(conn, generation_id)
    if generation.kind == "base":
        return False
    if generation.state != "active":
        return generation.confirmed_at is None
    conn.execute(
        "UPDATE boots SET answered = 1 WHERE base_sha256 = ? AND generation = ? AND state = 'running'",
        (generation.base_sha256, generation_id),
    )
    if generation.confirmed_at is not None:
        conn.execute("UPDATE generations SET strikes = 0 WHERE id = ?", (generation_id,))
        return False
    healthy = generation.healthy + 1
    confirmed = healthy >= HEALTHY_ANSWERS
    conn.execute(
        "UPDATE generations SET strikes = 0, healthy = ?, confirmed_at = ? WHERE id = ?",
        (healthy, (time.time() if at is None else at) if confirmed else None, generation_id),
    )
    return not confirmed
