"""From feedback to training examples, and which of them are never trained on.

The idea: an edit teaches its text with weight 1, an accepted answer teaches itself with less; only text that
the user wrote or accepted is imitated. What the user did not want is kept beside it, for those objectives
that learn from the difference. The split is prequential: the newest examples are held out and decide
promotion.
The invariant: near-identical examples lie on one side of the split, and so does a conversation unless it
holds most of what there is, because either would let the held-out score measure memory. What the user did
not want is never held out, because promotion asks how well wanted text is predicted.
What this does not do: scrub secrets, or choose among too many examples.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from edgepd_profiles.rows import canonical_json, fetch

MIN_HELD_OUT = 2


@dataclass(frozen=True)
class Example:
    """One exchange to learn from: `id` is the interaction's, `created_at` the time of the feedback.

    `rejected` is the answer that the user replaced by `response`. `desirable` is False if the user did not want
    `response`: it is never imitated. `reward`, in [-1, 1], is what `response` itself is worth: 1 for a text that
    the user wrote or accepted, -1 for one with a thumb down.
    """

    id: str
    conversation: str
    created_at: float
    messages: list[dict[str, Any]]
    response: str
    weight: float
    rejected: str | None = None
    desirable: bool = True
    reward: float = 1.0


def training_examples(conn: sqlite3.Connection, accepted_weight: float, *, undesirable: bool = False) -> list[Example]:
    """Return what can be learned, ordered by the time of the feedback.

    An edit gives its text with weight 1, and the original answer as `rejected` if that came to its end and differs
    in more than surrounding space. A thumb up without an edit gives the answer with `accepted_weight`, if that is
    above zero and the answer came to its end: a text that broke off would teach the model to break off.
    A thumb down without an edit gives nothing, or if `undesirable` is asked for, the answer with weight 1,
    `desirable` False and reward -1, again if it came to its end. Where there is an edit, it decides, whatever the
    thumb. Only plain chats count: an exchange with tools or a bare prompt has a prompt that the chat template does
    not give.
    """
    rows = fetch(
        conn,
        """
        SELECT i.id, i.conversation, f.at, i.messages, i.response AS answer, f.text, f.value,
               i.state = 'done' AND trim(i.response) != '' AS complete
        FROM feedback AS f JOIN interactions AS i ON i.id = f.interaction
        WHERE i.kind = 'chat' AND (f.kind = 'edit' OR (f.kind = 'thumb' AND NOT EXISTS
            (SELECT 1 FROM feedback AS e WHERE e.interaction = i.id AND e.kind = 'edit')))
        ORDER BY f.at, i.seq
        """,
    )
    found: list[Example] = []
    for row in rows:
        messages, text, answer = json.loads(row["messages"]), row["text"], row["answer"]
        common = (row["id"], row["conversation"], row["at"], messages)
        if text is not None:
            rejected = answer if row["complete"] and answer.strip() != text.strip() else None
            found.append(Example(*common, text, 1.0, rejected))
        elif row["complete"] and row["value"] == 1 and accepted_weight > 0:
            found.append(Example(*common, answer, accepted_weight))
        elif row["complete"] and row["value"] == -1 and undesirable:
            found.append(Example(*common, answer, 1.0, desirable=False, reward=-1.0))
    return found


def split(
    examples: Sequence[Example], held_out_fraction: float, held_out_before: Collection[str] = ()
) -> tuple[list[Example], list[Example]]:
    """Return (train, held_out), each in the order given.

    Examples that share a conversation or are near-identical form one group. Groups are ordered by their
    newest example, and the newest ones are held out, after those with an id in `held_out_before`: at least 2
    examples, and as close to `held_out_fraction` of all as whole groups allow (of two equally close cuts, the one
    that trains on more); where half of that was held out before, no others are added. If that leaves less
    than half to train on, as with one long conversation, conversations are cut in time. If even so no cut
    leaves at least 2 held out and 1 to train on, held_out is empty.
    All of this counts desirable examples only. Undesirable ones are trained on, except for those in a group
    that is held out, which are on neither side. Two examples that differ in `response` are not near-identical,
    whatever was rejected: a prompt that is asked often and answered alike would be one group.
    Raises ValueError for a fraction outside of (0, 1).
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction is {held_out_fraction}, but must lie between 0 and 1")
    desirable = sum(example.desirable for example in examples)
    target = max(MIN_HELD_OUT, math.floor(held_out_fraction * desirable + 0.5))
    known = sum(example.desirable and example.id in held_out_before for example in examples)
    if 2 * known >= target:  # half of what should be held out is enough, if that leaves the rest to be learned
        target = max(MIN_HELD_OUT, min(target, known))
    groups = _groups(examples, by_conversation=True)
    best = _newest(examples, groups, target, held_out_before)
    if not best or len(best) > desirable / 2:
        groups = _groups(examples, by_conversation=False)
        best = _newest(examples, groups, target, held_out_before)
    out_of_training = {n for group in groups if group & best for n in group}
    train = [example for n, example in enumerate(examples) if n not in out_of_training]
    return train, [example for n, example in enumerate(examples) if n in best]


def _newest(examples: Sequence[Example], groups: list[set[int]], target: int, preferred: Collection[str]) -> set[int]:
    """Return the desirable indices of whole groups that come closest to `target`, or nothing.

    Groups with a preferred id come first, and then the newest.
    """

    def rank(group: set[int]) -> tuple[bool, float, int]:
        return any(examples[n].id in preferred for n in group), *max((examples[n].created_at, n) for n in group)

    wanted = [{n for n in group if examples[n].desirable} for group in groups]
    wanted = sorted(filter(None, wanted), key=rank)
    best: set[int] = set()
    held_out: set[int] = set()
    for group in reversed(wanted[1:]):
        held_out |= group
        if len(held_out) >= MIN_HELD_OUT and (not best or abs(len(held_out) - target) < abs(len(best) - target)):
            best = set(held_out)
    return best


def data_hash(examples: Sequence[Example]) -> str:
    """Return the SHA-256 (hex) of the examples' canonical JSON. The order counts, as it does in training.

    A field at its default is left out, so that a field added later does not change the hash of older data.
    """
    content = [
        {f.name: value for f in fields(example) if (value := getattr(example, f.name)) != f.default}
        for example in examples
    ]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _groups(examples: Sequence[Example], *, by_conversation: bool) -> list[set[int]]:
    """Join the indices of examples with one normal form or, if asked for, one conversation, over several steps."""
    parent = list(range(len(examples)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    first_with: dict[tuple[str, str], int] = {}
    for n, example in enumerate(examples):
        keys = [("text", _normal_form(example))]
        if by_conversation:
            keys.append(("conversation", example.conversation))
        for key in keys:
            parent[root(n)] = root(first_with.setdefault(key, n))
    groups: dict[int, set[int]] = {}
    for n in range(len(examples)):
        groups.setdefault(root(n), set()).add(n)
    return list(groups.values())


def _normal_form(example: Example) -> str:
    """Return the text of an example without what does not make it a different one: case and spacing."""
    messages = [{key: _normal(str(value)) for key, value in message.items()} for message in example.messages]
    return canonical_json([messages, _normal(example.response)])


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
