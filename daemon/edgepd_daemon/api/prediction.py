"""What the status and the activity say of prediction: which model serves for it, and how often it was right.

The invariant: it loads nothing, so a resting daemon stays small whoever looks.
What this does not do: predict; foresight.py does, and /suggestions shows it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from edgepd_daemon.foresight import Predicted
from edgepd_daemon.services import Services
from edgepd_profiles import events, students


def described(services: Services, conn: sqlite3.Connection, predicted: Predicted) -> dict[str, Any]:
    """Return the fields of "prediction", in the transaction of whoever shows them.

    `predicted` was read before, because it has a transaction of its own. Counts of predictions and of prompts are those
    since the start. "tuned_at" is null where the model that ships with edgepd serves. Of "predicted" events that were
    compared with what was foreseen, "first" were foreseen first, and "among_three" among the first three. Of "warmed"
    prompts "warmed_used" are those that the next question of their app began with.
    """
    warmings = services.warmer.warmings
    active, known = students.active(conn), events.count_after(conn, 0)
    return {
        "enabled": services.settings.intent.enabled,
        "tuned_at": active.at if active else None,
        "events": known,
        "predicted": predicted.made,
        "first": predicted.top1,
        "among_three": predicted.top3,
        "warmed": warmings.made,
        "warmed_used": warmings.hits,
    }
