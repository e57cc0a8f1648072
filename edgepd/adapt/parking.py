"""Parking: on SIGTERM a run saves what it has and ends, to go on another time.

The idea: the signal becomes an exception, `ParkNow`, in the main thread, wherever that is; whoever holds a state worth
keeping catches it, saves, and lets it pass. The invariant: what `whole` encloses is done entirely or not begun: there
the exception waits for the end. An exception may get lost where nobody can receive it (Python ignores one in `__del__`
and in a callback of C), so every end of such a section raises it again.
What this does not do: interrupt a call of C. The handler of a signal runs when that has returned, see the section
"Execution of Python signal handlers" of https://docs.python.org/3/library/signal.html.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # the second one is for a trainer that was started by hand


class ParkNow(BaseException):
    """The run is to end now. Not an Exception: no handler of errors shall take it for one."""


class Parking:
    """Whether this process was asked to park, and the sections of it that have to be whole.

    Without `listen` nobody asks. `step` is how many optimiser steps would not be lost now; the training loop sets it.
    """

    def __init__(self) -> None:
        self.step = 0
        self._wanted = False
        self._raised = False
        self._depth = 0

    def listen(self) -> None:
        """Take the signals from now on. Main thread only; raises ValueError elsewhere."""
        for number in SIGNALS:
            signal.signal(number, self._asked)

    def ignore(self) -> None:
        """Let no further signal disturb the end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def whole(self) -> Section:
        """Return a context in which ParkNow is not raised before its end. It may be entered again inside itself."""
        return Section(self)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._wanted = True
        # Once only: the second signal may come while the state is being saved.
        if not self._depth and not self._raised:
            self._raised = True
            raise ParkNow

    def _enter(self) -> None:
        self._depth += 1

    def _leave(self, *, failed: bool) -> None:
        self._depth -= 1
        if self._wanted and not self._depth and not failed:
            self._raised = True
            raise ParkNow


class Section:
    """What is done entirely or not begun."""

    def __init__(self, parking: Parking) -> None:
        self._parking = parking

    def __enter__(self) -> Self:
        self._parking._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parking._leave(failed=kind is not None)
