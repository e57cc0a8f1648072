"""Predicting what comes next."""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.settings.declare import setting


@dataclass(frozen=True)
class Intent:
    """Predicting what you do next, from the events that apps send and from what you ask."""

    enabled: bool = setting(True, "whether events are kept, and what comes next is predicted; the switch for all of it")
    new_events: int = setting(40, "new events after which the model of what comes next is tuned again", minimum=1)
    min_events: int = setting(40, "events below which it is not tuned", minimum=10)
    max_events: int = setting(2000, "newest events from which is predicted and learned", minimum=50, maximum=100_000)
    held_out_share: float = setting(
        0.2,
        "newest share of the events by which a tuned model is judged, and which it does not learn from",
        minimum=0.05,
        maximum=0.5,
    )
    seed: int = setting(0, "seed of the tuning; the same events and seed give the same model", minimum=0)
    warm: bool = setting(
        True, "whether the system prompt of the app that is likely next is computed ahead, while edgepd is idle"
    )
    warm_min_probability: float = setting(
        0.3, "probability of an app being next from which on its prompt is computed ahead", minimum=0.01, maximum=1
    )
    warm_tokens: int = setting(2048, "longest prompt that is computed ahead, in tokens", minimum=16, maximum=131_072)
    window_hours: float = setting(
        12.0,
        "hours that unasked training waits at most for a time in which you are likely to be away; 0: it does not",
        minimum=0,
        maximum=168,
    )
