"""How many threads to decode with just now: as many as are set, fewer while others want the processor.

The idea: llama.cpp's threads wait for each other some hundred times per token. On a machine with other work, one of
them is always the one that was put aside, and the others spin: on two cores beside one busy program, two threads
were measured at 3 tokens/s where one thread does 40. So when the threads do not get the processor time that they
could use, fewer are tried, and kept if that is faster; from time to time more are tried again, and kept if that is.
A trial is broken off as soon as it takes twice as long as what it is compared with.
Invariant: between 1 and the number that is set; one that is set to 1 never changes.
What this does not do: measure prefill, which waits less often for each token, or promise equal results: another
number of threads adds up attention in another order, which moves logits by rounding errors.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 8  # decoding steps that are compared with each other
BUSY_SHARE = 0.8  # of the processor time that all threads could use; with less, somebody else has it
FASTER = 1.1  # by which a trial must be faster to be kept
FIRST_PAUSE_SECONDS = 2.0  # until the next trial after one that failed
LONGEST_PAUSE_SECONDS = 60.0


@dataclass
class _Window:
    """The steps of one comparison."""

    sequences: int = 0
    steps: int = 0
    wall: float = 0.0
    cpu: float = 0.0


class Governor:
    """Chooses the number of threads from the times of decoding steps."""

    def __init__(self, threads: int) -> None:
        """Start with all of `threads`."""
        self.maximum = threads
        self.threads = threads
        self._window = _Window()
        self._reference: float | None = None  # seconds per step before the trial that is going on
        self._before = threads  # the trial's
        self._now = 0.0
        self._next_trial = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def settled(self) -> int:
        """The threads for what is not decoding: without the trial that may be going on."""
        return self.threads if self._reference is None else self._before

    def observe(self, sequences: int, wall: float, cpu: float) -> int:
        """Take in one step that decoded one token of each of `sequences`; return the threads for the next.

        `wall` is its duration and `cpu` the processor time that the process used meanwhile, both in seconds.
        """
        if self.maximum == 1:
            return 1
        self._now += wall
        if sequences != self._window.sequences:
            self._break_off()
            self._window = _Window(sequences)
        window = self._window
        window.steps += 1
        window.wall += wall
        window.cpu += cpu
        if self._reference is not None and window.wall > 2 * STEPS * self._reference:
            self._end_trial(kept=False)
        elif window.steps >= STEPS:
            self._compare(window)
        return self.threads

    def _compare(self, window: _Window) -> None:
        per_step = window.wall / window.steps
        if self._reference is not None:
            self._end_trial(kept=per_step * FASTER < self._reference)
            return
        share = window.cpu / (window.wall * self.threads)
        self._window = _Window(window.sequences)
        if self._now < self._next_trial:
            return
        if share < BUSY_SHARE and self.threads > 1:
            self._try(self.threads - 1, per_step)
        elif self.threads < self.maximum:
            self._try(self.threads + 1, per_step)

    def _try(self, threads: int, reference: float) -> None:
        self._before, self.threads, self._reference = self.threads, threads, reference

    def _end_trial(self, *, kept: bool) -> None:
        if kept:
            self._pause = FIRST_PAUSE_SECONDS
        else:
            self.threads = self._before
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._next_trial = self._now + self._pause
        self._reference = None
        self._window = _Window(self._window.sequences)

    def _break_off(self) -> None:
        """Go back to what was before a trial, because what is being compared has changed."""
        if self._reference is not None:
            self.threads = self._before
            self._reference = None
