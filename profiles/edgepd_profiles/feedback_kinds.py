"""Which kinds of feedback there are, through which channel each one comes, and what it says of an answer.

The idea: the five channels are those of ASLS (appendix A.1, table 8); each kind of feedback on an exchange belongs to
exactly one. A kind's satisfaction is one number, so that channels that ask for different things can be compared.
The invariant: this module imports nothing, so that whoever reads feedback can import it.
What this does not do: store anything (feedback.py), or weigh the channels (settings: profile.*_weight).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CHANNELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "active": ("thumb", "rating", "edit", "comment", "preferred"),
        "passive": ("copied", "dwell", "abandoned"),
        "survey": ("survey",),
        "implicit": ("regenerated", "corrected"),
        "suggestion": ("taken", "ignored"),
    }
)
KINDS = tuple(kind for kinds in CHANNELS.values() for kind in kinds)
COLUMNS = "interaction, kind, value, text, source, at"  # of the table, as Feedback has them; it has more

# What a kind without a value says of the answer, in [-1, 1]. Only what the user says in so many words counts fully.
# The numbers are our own: no paper has any.
_SATISFACTION = {
    "edit": -0.5,  # it was wrong in part, yet worth mending
    "preferred": 0.5,  # better than another answer, which is not to say good
    "copied": 0.6,  # wanted for something; now and then only to be rewritten
    "abandoned": -0.6,  # the user went away while it was shown; now and then because of the telephone
    "regenerated": -0.5,  # another answer to the very same messages was wanted
    "corrected": -0.4,  # another form was wanted: the content may have been right
    "taken": 0.8,  # the suggestion was asked as it stood
    "ignored": -0.2,  # shown and not asked, which is what happens to most of what is shown
}


@dataclass(frozen=True)
class Feedback:
    """One piece of feedback on an exchange; `at` is unix seconds.

    `value` is 1 or -1 for a thumb, 1 to 5 for a rating or a survey, milliseconds for a dwell. `text` is the corrected
    answer for an edit, the words of a comment, the id of the other answer for a preference, the rule that noticed it
    for the implicit kinds, the id of the survey or suggestion for theirs.
    """

    interaction: str
    kind: str
    value: int | None
    text: str | None
    source: str
    at: float


def channel_of(kind: str) -> str:
    """Return the channel of a kind. Raises ValueError for one that is not known."""
    for channel, kinds in CHANNELS.items():
        if kind in kinds:
            return channel
    raise ValueError(f"feedback kind {kind!r} is not known; use one of {', '.join(KINDS)}")


def satisfaction(given: Feedback) -> float | None:
    """Return what a piece of feedback says of the answer, from -1 (bad) to 1 (good); None if it says nothing of it.

    A thumb is -1 or 1, a rating or survey (value - 3) / 2. A comment is words, and a long look may be interest or
    trouble, so neither comment nor dwell says anything here. `_SATISFACTION` has the rest and why.
    """
    if given.kind == "thumb" and given.value is not None:
        return float(given.value)
    if given.kind in ("rating", "survey") and given.value is not None:
        return (given.value - 3) / 2
    return _SATISFACTION.get(given.kind)
