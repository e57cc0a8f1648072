"""Which events may be stored: the form of their names, times and offsets.

The idea: names are shown, learned from and written into models, so what cannot be shown or looks like a secret is
refused when it comes. The invariant: every refusal is a sentence that says what is wrong and holds no name.
What this does not do: store anything (see events.py).
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from edgepd import secrets
from edgepd.errors import RequestError
from edgepd_profiles import apps
from edgepd_profiles.apps import MAX_NAME_CHARS

MAX_OFFSET_S = 18 * 3600  # as java.time.ZoneOffset; real ones lie between -12 and +14 hours
AHEAD_S = 86_400.0  # of now, for clocks that are wrong
UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: control, half characters, separators of lines


@dataclass(frozen=True)
class New:
    """Something that happened at `at`, in unix seconds, where local time was `utc_offset_s` ahead of UTC.

    `intent` is what it was for in the words of its sender; `context` is "" if nothing is known of it. `interaction` is
    the exchange that it is, None if an app sent it.
    """

    at: float
    event: str
    intent: str
    context: str
    utc_offset_s: int
    app: str
    interaction: str | None = None


class Rules:
    """Checks events against a present moment. A name is looked at once, however many events have it."""

    def __init__(self, now: float) -> None:
        """`now` is in unix seconds."""
        self._now = now
        self._fit: set[str] = set()

    def check(self, new: New) -> None:
        """Raise RequestError for an event that cannot be stored."""
        self.name(new.event, "event")
        self.name(new.intent, "intent")
        if new.context:
            self.name(new.context, "context")
        apps.refuse_bad_name(new.app)
        if not math.isfinite(new.at) or new.at < 0:
            raise RequestError(f"the time of the event is {new.at}; give unix seconds, from 0")
        if new.at > self._now + AHEAD_S:
            raise RequestError(
                f"the event happened {(new.at - self._now) / 3600:.0f} hours from now; give a time that has been, or "
                "set the clock of the machine right"
            )
        if isinstance(new.utc_offset_s, bool) or not isinstance(new.utc_offset_s, int):
            raise RequestError(f"the UTC offset is {new.utc_offset_s!r}, not a whole number of seconds")
        if abs(new.utc_offset_s) > MAX_OFFSET_S:
            raise RequestError(
                f"the UTC offset is {new.utc_offset_s} s, but must be between -{MAX_OFFSET_S} and {MAX_OFFSET_S}"
            )

    def name(self, name: str, what: str) -> None:
        """Raise RequestError for a name that cannot be stored; `what` is what it is the name of."""
        if name in self._fit:
            return
        if not name.strip():
            raise RequestError(f"the {what} is empty; give it a name")
        if len(name) > MAX_NAME_CHARS:
            raise RequestError(f"the {what} has {len(name)} characters, but at most {MAX_NAME_CHARS} are allowed")
        for place, character in enumerate(name):
            if unicodedata.category(character) in UNSHOWN:
                raise RequestError(
                    f"the {what} has the character U+{ord(character):04X} at position {place}, which cannot be shown; "
                    "use plain text"
                )
        found = secrets.find(name)
        if found:
            raise RequestError(
                f"the {what} seems to have a secret in it ({found[0].kind}), and names are shown and learned from; "
                "leave it out"
            )
        self._fit.add(name)
