"""That the user wants no training for a while, kept over restarts.

The idea: a small file that says until when, or that it holds until it is taken back. The invariants: a pause that began
in this process lasts as long as was said, whatever is done to the clock; of one that is read from the file only the
clock can tell; a file that cannot be read holds training, because the user has asked for that.
What this does not do: stop a run (the supervisor does at its next look).
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

from edgepd.atomic import replacing
from edgepd.errors import StoreError
from edgepd_daemon.sensors.clocks import boottime

log = logging.getLogger(__name__)


class UserPause:
    """What the user has asked for. The file is read once, at the start."""

    def __init__(self, path: Path) -> None:
        """`path` is the file, which need not be there."""
        self._path = path
        self._until = _read(path)
        self._ends_at: float | None = None  # by a clock that nobody sets, if it began here

    @property
    def until(self) -> float | None:
        """Until when training is held, in unix seconds; inf until it is taken back; None if it is not."""
        if self._until is None:
            return None
        if self._ends_at is not None:
            self._until = time.time() + self._ends_at - boottime()
        if time.time() >= self._until:
            self._until = self._ends_at = None
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:  # it holds nothing any more: what it says is over
                log.warning("%s cannot be removed: %s", self._path, error.strerror)
        return self._until

    def begin(self, minutes: float | None) -> None:
        """Hold training for so many minutes, or until `end`. Raises StoreError if that cannot be written down."""
        until = math.inf if minutes is None else time.time() + 60 * minutes
        with replacing(self._path) as file:
            file.write(json.dumps({"until": None if minutes is None else until}).encode())
        self._until = until
        self._ends_at = None if minutes is None else boottime() + 60 * minutes

    def end(self) -> None:
        """Hold training no longer. Raises StoreError if the next daemon would hold it again; this one does not."""
        self._until = self._ends_at = None
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be removed: {error.strerror}; remove it yourself") from error


def _read(path: Path) -> float | None:
    try:
        until = json.loads(path.read_text(encoding="utf-8"))["until"]
        return math.inf if until is None else float(until)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
