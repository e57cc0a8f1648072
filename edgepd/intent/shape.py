"""How large a predictor is: what a file of weights must say besides them.

The invariant: a shape read from a file is within LIMITS, so that whatever is allocated from it is small.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

WEEKDAYS, DAY_SLOTS = 7, 48  # the row after the last of each stands for "before the first event"
# Borders between time spans, in hours: since the event before the one to predict.
GAP_HOURS = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48, 72, 96, 168)
GAPS = len(GAP_HOURS) + 1
LIMITS = {"intents": 512, "events": 4096, "contexts": 512, "width": 192, "layers": 32, "heads": 16, "window": 512}


@dataclass(frozen=True)
class Shape:
    """Sizes of a predictor. `width` is d of PITuning, section 3.2.1: each token is 4 d wide.

    `open_names`: slots have no meaning of their own, and only names that were seen in the history can be next.
    `offsets`: events are told apart within an intent; without, an event is what its intent is.
    """

    intents: int
    events: int
    contexts: int
    width: int = 32
    layers: int = 4
    heads: int = 4
    window: int = 64  # places that are predicted in one pass, each from those before it
    rank: int = 32  # of the activation unit of the intent attention
    inner: int = 64  # width of the prediction layer
    open_names: bool = False
    offsets: bool = False

    @property
    def hidden(self) -> int:
        """The width D = 4 d of a token."""
        return 4 * self.width

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """Make one of what a file says. Raises ValueError for anything that is unknown, missing or too large."""
        known = {field.name: field.type for field in fields(cls)}
        if set(values) != set(known):
            raise ValueError(f"the shape has the keys {sorted(values)}, not {sorted(known)}")
        for name, value in values.items():
            if known[name] == "bool" and not isinstance(value, bool):
                raise ValueError(f"'{name}' is {value!r}, not true or false")
            least, most = 0 if name in ("contexts", "events") else 1, LIMITS.get(name, 512)
            if known[name] == "int" and (type(value) is not int or not least <= value <= most):
                raise ValueError(f"'{name}' is {value!r}, not a whole number from {least} to {most}")
        if (4 * values["width"]) % values["heads"]:
            raise ValueError(f"{4 * values['width']} numbers cannot be shared by {values['heads']} heads")
        return cls(**values)
