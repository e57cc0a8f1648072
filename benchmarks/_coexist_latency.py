"""How long users wait while a run is at work, beside how long they wait while none is.

The idea: blocks with and without a run alternate, so that a slow moment of the machine hits both; within a block some
questions come after a pause, in which the run goes on, and some right after the answer before. What the run did in the
pauses is noted, because a run that does nothing disturbs nobody.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from _coexist_training import Training
from _http import stream
from _soak_daemon import Mortal
from serving import Texts, user

GAP_S = 3.0
PROMPT_TOKENS, ANSWER_TOKENS = 20, 32
IDLE, TRAINING = "idle", "while training"
AFTER_PAUSE, AT_ONCE = "after a pause", "back to back"


@dataclass
class Waits:
    """Milliseconds by (mode, pace), and what the runs did in the blocks."""

    ttft: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    between: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    trained_s: float = 0.0  # wall time of the blocks' pauses and answers with gaps
    trained_cpu_s: float = 0.0
    trained_steps: int = 0

    def of(self, kind: dict[tuple[str, str], list[float]], mode: str) -> list[float]:
        """Return the figures of both paces."""
        return [value for pace in (AFTER_PAUSE, AT_ONCE) for value in kind[mode, pace]]


def measure(daemon: Mortal, texts: Texts, rounds: int, questions: int) -> Waits:
    """Alternate blocks of both modes, the first of each round being the last of the one before."""
    waits, training = Waits(), Training(daemon)
    for number in range(rounds):
        for mode in ((IDLE, TRAINING), (TRAINING, IDLE))[number % 2]:
            if mode == TRAINING:
                training.begin()
            _block(daemon, texts, waits, mode, questions, training)
            if mode == TRAINING:
                training.end()
    return waits


def _block(daemon: Mortal, texts: Texts, waits: Waits, mode: str, questions: int, training: Training) -> None:
    _ask(daemon, texts)  # once for nothing: the model may have been unloaded, caches are others'
    began, cpu_s = time.monotonic(), training.cpu_s()
    steps = training.steps() if mode == TRAINING else 0
    for _ in range(questions):
        time.sleep(GAP_S)
        _note(daemon, texts, waits, (mode, AFTER_PAUSE))
    if mode == TRAINING:
        waits.trained_s += time.monotonic() - began
        waits.trained_cpu_s += training.cpu_s() - cpu_s
        waits.trained_steps += training.steps() - steps
    for _ in range(questions):
        _note(daemon, texts, waits, (mode, AT_ONCE))


def _note(daemon: Mortal, texts: Texts, waits: Waits, key: tuple[str, str]) -> None:
    times = _ask(daemon, texts)
    waits.ttft[key].append(times[0] * 1000)
    waits.between[key] += [(b - a) * 1000 for a, b in zip(times, times[1:], strict=False)]


def _ask(daemon: Mortal, texts: Texts) -> list[float]:
    body = {"messages": [user(texts.words(PROMPT_TOKENS))], "max_tokens": ANSWER_TOKENS}
    return stream(daemon.connect, body).times
