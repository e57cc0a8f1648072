"""The client's routes about the budget: what training may take of the machine, what it takes, and the user's pause.

The idea and the invariants are those of client.py, which joins these methods into `Client`.
What this does not do: change a limit; that is what config.toml and `Client.reload` are for.
"""

from __future__ import annotations

from edgepd.client_calls import Calls, Json
from edgepd.client_errors import encoded

BUDGET = "/edgepd/v1/budget"


class BudgetCalls(Calls):
    """Each method returns the budget and raises what the daemon names.

    The budget has "preset", "automatic", "paused", "paused_until", "decision", "decisions", "readings", "today",
    "demand", "trainer", and the settings as "limits" and "origins".
    """

    def budget(self) -> Json:
        """Return the budget."""
        return self._call("GET", BUDGET)

    def pause_training(self, minutes: float | None = None) -> Json:
        """Train nothing for so many minutes, or until it is resumed. Raises RequestError for a number that is none."""
        return self._call("POST", f"{BUDGET}/pause", content=encoded({"minutes": minutes}))

    def resume_training(self) -> Json:
        """End the pause, if there is one."""
        return self._call("DELETE", f"{BUDGET}/pause")
