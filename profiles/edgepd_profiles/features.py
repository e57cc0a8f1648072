"""What one exchange says of the user: the function f of ASLS (section 3.2 eq. 3, section 3.3 eq. 5), as named features.

The idea: the five groups of ASLS table 3 (interests, context of use, quality of feedback, preferred form of answers,
history) are five kinds of features with readable names. An exchange contributes a value to each feature that applies.
The paper leaves f open; all that is listed here is our own choice.
The invariant: contributions depend on the exchange and its feedback alone: not on other exchanges, the present time,
the time zone or a setting. So they can be taken out again exactly, in any order. A change of what this module reads
off an exchange (also in wording.py and correction_rules.py) needs a new VERSION, by which old sums are made anew.
What this does not do: add anything up (folding.py). A name begins with "*" where it is a sum that others are compared
with, or is shown in another form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgepd_profiles import correction_rules, wording
from edgepd_profiles.feedback_kinds import Feedback, channel_of, satisfaction
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.rows import text_of

VERSION = 1
KINDS = ("interest", "context", "quality", "preference", "history")  # in the order of ASLS table 3
# The strongest first: the user's own words count before what was inferred. An exchange counts by the strongest it has.
STRENGTH = ("active", "survey", "suggestion", "implicit", "passive", "unjudged")
# The names whose value is an average; that of any other is a share. See profile.py.
MEANS = frozenset({"words", "turns", "satisfaction", "consistency"})
LOGARITHMIC = frozenset({"words"})  # a mean of logarithms: one essay among notes must not make notes of 500 words
MAX_INTERESTS = 8  # words of an exchange
_RULES = frozenset(rule.name for rule in correction_rules.RULES)


class Contribution(NamedTuple):
    """What an exchange adds to one feature; `value` counts as much as the exchange does."""

    kind: str
    name: str
    channel: str
    value: float


def contributions(interaction: Interaction, feedback: Sequence[Feedback]) -> list[Contribution]:
    """Return what an exchange that has ended, with its feedback, adds to the profile: each (kind, name) once.

    All of it counts with the channel of the strongest feedback (STRENGTH). Values are 1 (it is so), -1 (the user did
    not want it so), or what is to be averaged (MEANS).
    """
    channel = min((channel_of(f.kind) for f in feedback), key=STRENGTH.index, default="unjudged")
    found: dict[tuple[str, str], float] = {(kind, "*"): 1.0 for kind in KINDS if kind != "preference"}
    found |= {("interest", word): 1.0 for word in interests(interaction.prompt)}
    found |= {("context", name): 1.0 for name in _context(interaction)}
    found |= {("quality", name): value for name, value in _quality(feedback)}
    found |= {("preference", name): value for name, value in _preferences(interaction, feedback)}
    found |= {("history", name): value for name, value in _history(interaction)}
    return [Contribution(kind, name, channel, value) for (kind, name), value in sorted(found.items())]


def interests(prompt: str) -> list[str]:
    """Return at most MAX_INTERESTS words of a prompt that tell its topic, the most frequent first.

    They are lower case, of 3 to 40 letters, no stop words of English, German, French or Spanish, and no part of a
    secret, an address or a number.
    """
    return [word for word, _ in Counter(wording.content_words(prompt)).most_common(MAX_INTERESTS)]


def wanted(interaction: Interaction, feedback: Sequence[Feedback]) -> tuple[str, int]:
    """Return the text to learn the user's preferences from, and 1 if it was wanted, -1 if not, 0 if nobody knows.

    An edit decides, then a thumb, a preference, a rating; without any of them, whatever else was noticed if it is
    clear (0.5 on average). What the user accepted counts only if it came to its end.
    """
    given = {f.kind: f for f in feedback}
    if "edit" in given:
        return given["edit"].text or "", 1
    answer = interaction.response
    if not answer.strip():
        return "", 0
    decisive = next((given[kind] for kind in ("thumb", "preferred", "rating") if kind in given), None)
    says = [s for f in ([decisive] if decisive else feedback) if (s := satisfaction(f)) is not None]
    mean = sum(says) / len(says) if says else 0.0
    if mean <= -0.5:
        return answer, -1
    complete = interaction.state == "done" and interaction.finish_reason != "length"
    return (answer, 1) if mean >= 0.5 and complete else (answer, 0)


def _context(interaction: Interaction) -> Iterator[str]:
    if interaction.app:
        yield f"app:{interaction.app}"
    # The hour of the week in UTC, Thursday first: the reader turns it into local time, which may change.
    yield f"*hour:{int(interaction.created_at // 3600) % 168}"
    questions = len(_questions(interaction))
    yield f"session:{'first question' if questions <= 1 else '2 to 4 questions' if questions <= 4 else '5 or more'}"
    spoken = wording.language(interaction.prompt)
    if spoken:
        yield f"language:{spoken}"


def _quality(feedback: Sequence[Feedback]) -> Iterator[tuple[str, float]]:
    if feedback:
        yield "judged", 1.0
    yield from ((f"given:{f.kind}", 1.0) for f in feedback)
    says = [s for f in feedback if (s := satisfaction(f)) is not None]
    if says:
        yield "satisfaction", sum(says) / len(says)
    if len(says) > 1:
        yield "consistency", float(min(says) >= 0 or max(says) <= 0)


def _preferences(interaction: Interaction, feedback: Sequence[Feedback]) -> Iterator[tuple[str, float]]:
    """Yield what was asked for, and traits of the wanted text with 1, or of the unwanted one with -1.

    What was asked for is compared with "*exchanges", traits with "*", which counts the texts.
    """
    yield "*exchanges", 1.0
    for f in feedback:
        if f.kind == "corrected" and f.text in _RULES:
            yield f"asked:{f.text}", 1.0
        elif f.kind == "comment" and (rule := correction_rules.match(f.text or "")):
            yield f"asked:{rule}", 1.0
    text, sign = wanted(interaction, feedback)
    if not sign or interaction.kind != "chat" or not text.strip():
        return
    yield "*", float(sign)
    if sign > 0:
        yield "words", math.log(len(text.split()))
    yield from ((name, float(sign)) for name in wording.traits(text.strip()))


def _history(interaction: Interaction) -> Iterator[tuple[str, float]]:
    questions = _questions(interaction)
    yield "turns", float(len(questions))
    if interaction.kind != "chat":
        yield f"kind:{interaction.kind}", 1.0
    if interaction.state != "done":
        yield f"ended:{interaction.state}", 1.0
    earlier = {word for text in questions[-6:-1] for word in wording.content_words(text)}
    if earlier and not earlier.isdisjoint(wording.content_words(interaction.prompt)):
        yield "returns to a topic", 1.0


def _questions(interaction: Interaction) -> list[str]:
    return [text_of(m.get("content")) for m in interaction.messages if m.get("role") in ("user", "prompt")]
