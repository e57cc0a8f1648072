"""From feedback to training examples, and which of them are never trained on.

The idea: an edit teaches its text with weight 1, an accepted or preferred answer teaches itself with less; only text
that the user wrote or accepted is imitated. What the user did not want is kept beside it, for those objectives
that learn from the difference. The split is prequential: the newest examples are held out and decide
promotion.
The invariant: near-duplicates lie on one side of the split, and so does a conversation unless that leaves too little
to judge by, because either would let the held-out score measure memory. For the same reason nothing is held out
that the model was taught before. What the user did not want is never held out, because promotion asks how well
wanted text is predicted.
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

from edgepd_profiles import near_duplicates
from edgepd_profiles.near_duplicates import DisjointSets, Text
from edgepd_profiles.rows import canonical_json, fetch, last_user_text

ALMOST = 0.75  # what a rating of 4 weighs of one of 5


@dataclass(frozen=True)
class Example:
    """One exchange to learn from: `id` is the interaction's, `created_at` the time of the feedback.

    `rejected` is the answer that the user replaced by `response` or liked less. `desirable` is False if the user did
    not want `response`: it is never imitated. `reward`, in [-1, 1], is what `response` itself is worth: 1 for a text
    that the user wrote or accepted, -1 for one with a thumb down.
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

    @property
    def prompt(self) -> str:
        """The text of the last user message; "" if there is none."""
        return last_user_text(self.messages)

    @property
    def source(self) -> str:
        """The id of the exchange that it comes from: its own, but of "x#2", which the model made after it, "x"."""
        return self.id.partition("#")[0]

    @property
    def judges(self) -> bool:
        """Whether it may be held out: what the user wrote or accepted, not what a model made after it."""
        return self.desirable and self.source == self.id

    @property
    def text(self) -> Text:
        """Prompt and response as they are compared with others."""
        return near_duplicates.read(self.prompt, self.response)


def training_examples(
    conn: sqlite3.Connection,
    accepted_weight: float,
    *,
    undesirable: bool = False,
    only: Collection[str] | None = None,
) -> list[Example]:
    """Return what can be learned, ordered by the time of the feedback that decides.

    An edit gives its text with weight 1, and the original answer as `rejected` if that came to its end and differs
    in more than surrounding space. A thumb up without an edit gives the answer with `accepted_weight`, if that is
    above zero and the answer came to its end, not at a length limit: a text that broke off would teach to break off.
    So does a rating of 5, and one of 4 with 0.75 of the weight.
    An answer that was preferred to another is accepted like one with a thumb up, with the other as `rejected` under the
    conditions above; that one may be gone.
    A thumb down without an edit gives nothing, or if `undesirable` is asked for, the answer with weight 1,
    `desirable` False and reward -1, again if it came to its end. So does a rating of 1 or 2; one of 3 says nothing.
    Where there is an edit, it decides, whatever the thumb; without one a thumb decides, whatever the rating; and what
    is bad by that is not wanted even if it was preferred: the better of two bad answers is bad.
    Only plain chats count: an exchange with tools or a bare prompt has a prompt that the chat template does not give.
    Exchanges of an app that may not teach (apps.teaches) are left out.
    With `only`, no others than these ids are read, so that the time does not depend on how many there are.
    """
    chosen = "" if only is None else "AND interaction IN (SELECT value FROM json_each(:only))"
    rows = fetch(
        conn,
        _JUDGED.format(chosen=chosen),
        {"only": None if only is None else json.dumps(sorted(set(only)))},
    )
    found = [(example, row["seq"]) for row in rows if (example := _example(row, accepted_weight, undesirable))]
    return [example for example, _ in sorted(found, key=lambda pair: (pair[0].created_at, pair[1]))]


# One row for each exchange that was judged; time and value of each kind beside each other. `whole` answers may teach.
_JUDGED = """
    SELECT i.id, i.seq, i.conversation, i.messages, i.response AS answer, f.*,
           i.state = 'done' AND i.finish_reason IS NOT 'length' AND trim(i.response) != '' AS whole,
           CASE WHEN o.state = 'done' AND o.finish_reason IS NOT 'length' AND trim(o.response) != ''
                THEN o.response END AS other
    FROM (SELECT interaction,
                 max(text) FILTER (WHERE kind = 'edit') AS edit, max(at) FILTER (WHERE kind = 'edit') AS edit_at,
                 max(value) FILTER (WHERE kind = 'thumb') AS thumb, max(at) FILTER (WHERE kind = 'thumb') AS thumb_at,
                 max(value) FILTER (WHERE kind = 'rating') AS rating,
                 max(at) FILTER (WHERE kind = 'rating') AS rating_at,
                 max(text) FILTER (WHERE kind = 'preferred') AS loser,
                 max(at) FILTER (WHERE kind = 'preferred') AS preferred_at
          FROM feedback WHERE kind IN ('edit', 'thumb', 'rating', 'preferred') {chosen} GROUP BY interaction) AS f
        CROSS JOIN interactions AS i ON i.id = f.interaction
        LEFT JOIN interactions AS o ON o.id = f.loser
    WHERE i.kind = 'chat' AND NOT EXISTS (SELECT 1 FROM apps WHERE apps.name = i.app AND NOT apps.teaches)
"""


def _example(row: dict[str, Any], accepted_weight: float, undesirable: bool) -> Example | None:
    """Return what the feedback on one exchange teaches, or None if that is nothing."""
    answer, whole = row["answer"], row["whole"]
    common = (row["id"], row["conversation"])
    if row["edit"] is not None:
        rejected = _rejected(answer if whole else None, row["edit"])
        return Example(*common, row["edit_at"], json.loads(row["messages"]), row["edit"], 1.0, rejected)
    verdict, share, at = _verdict(row)
    if not whole or not verdict:
        return None
    if verdict < 0:
        if not undesirable:
            return None
        return Example(*common, at, json.loads(row["messages"]), answer, 1.0, desirable=False, reward=-1.0)
    weight = share * accepted_weight
    if weight <= 0:
        return None
    rejected = _rejected(row["other"], answer)
    return Example(*common, at, json.loads(row["messages"]), answer, weight, rejected)


def _verdict(row: dict[str, Any]) -> tuple[int, float, float]:
    """Return whether an unedited answer is wanted (1), unwanted (-1) or neither (0), how much, and since when."""
    thumb, rating = row["thumb"], row["rating"]
    if thumb == -1:
        return -1, 1.0, row["thumb_at"]
    if thumb is None and rating is not None and rating <= 2:
        return -1, 1.0, row["rating_at"]
    if row["loser"] is not None:
        return 1, 1.0, row["preferred_at"]
    if thumb is not None:
        return 1, 1.0, row["thumb_at"]
    if rating is not None and rating >= 4:
        return 1, 1.0 if rating == 5 else ALMOST, row["rating_at"]
    return 0, 0.0, 0.0


def _rejected(other: str | None, wanted: str) -> str | None:
    return other if other is not None and other.strip() != wanted.strip() else None


def split(
    examples: Sequence[Example],
    held_out_fraction: float,
    held_out_before: Collection[str] = (),
    *,
    min_held_out: int = 2,
    taught: Collection[str] = (),
) -> tuple[list[Example], list[Example]]:
    """Return (train, held_out), each in the order given.

    Examples that share a conversation or are near-duplicates form one group. Groups are ordered by their
    newest example, and the newest ones are held out, after those with an id in `held_out_before`: at least
    `min_held_out` examples, and as close to `held_out_fraction` of all as whole groups allow (of two equally close
    cuts, the one that trains on more); where half of that was held out before, no others are added. Never is more
    than half held out. If that leaves fewer than `min_held_out`, as with one long conversation, conversations are cut
    in time and groups too large for the half are trained on; if even so there are fewer, as many as there can be are
    held out, perhaps none. Whether they are enough is for the caller to say.
    `taught` are the ids that the model to be judged may know. They are trained on, and so is what shares a group with
    one: nothing that is held out is a near-duplicate of something taught.
    All of this counts what the user wrote or accepted. What he did not want, and what a model made after an example, is
    trained on, except for that in a group that is held out, which is on neither side. What was rejected makes no
    near-duplicates, and neither does a prompt alone: one that is asked often would be one group.
    Raises ValueError for a fraction outside of (0, 1) and for a `min_held_out` below 1.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction is {held_out_fraction}, but must lie between 0 and 1")
    if min_held_out < 1:
        raise ValueError(f"min_held_out is {min_held_out}, but must be at least 1")
    alike = near_duplicates.joined([example.text for example in examples])
    duplicates = _joined(alike, [example.source for example in examples])
    conversations = _joined(alike, [example.conversation for example in examples])
    cut = _Cut(examples, held_out_fraction, held_out_before, min_held_out, taught)
    groups, best = conversations, set[int]()
    for tried, skip in ((conversations, False), (duplicates, False), (duplicates, True)):
        if len(best) < cut.least and len(found := cut.newest(tried, skip=skip)) > len(best):
            groups, best = tried, found
    out_of_training = {n for group in groups if group & best for n in group}
    train = [example for n, example in enumerate(examples) if n not in out_of_training]
    return train, [example for n, example in enumerate(examples) if n in best]


class _Cut:
    """How many of the examples that may judge are held out, and which groups come first."""

    def __init__(
        self,
        examples: Sequence[Example],
        fraction: float,
        preferred: Collection[str],
        min_held_out: int,
        taught: Collection[str],
    ) -> None:
        self.examples, self.taught = examples, {name.partition("#")[0] for name in taught}
        self.preferred = set(preferred) - self.taught
        judges = sum(example.judges for example in examples)
        self.most = judges // 2
        self.least = min(min_held_out, self.most)
        target = max(min_held_out, math.floor(fraction * judges + 0.5))
        known = sum(example.judges and example.id in self.preferred for example in examples)
        if 2 * known >= target:  # half of what should be held out is enough, if that leaves the rest to be learned
            target = max(min_held_out, min(target, known))
        self.target = target

    def newest(self, groups: list[set[int]], *, skip: bool) -> set[int]:
        """Return the indices that may judge, of whole groups that come closest to the target.

        Groups with a preferred id come first, and then the newest. The first one that does not fit into the half ends
        it or, if `skip` is set, is left to training. If there cannot be `least`, it is as many as there can be.
        """
        best: set[int] = set()
        held_out: set[int] = set()
        for group in self._candidates(groups):
            if len(held_out | group) > self.most:
                if skip:
                    continue
                break
            held_out |= group
            closer = abs(len(held_out) - self.target) < abs(len(best) - self.target)
            if len(best) < self.least or closer:
                best = set(held_out)
        return best

    def _candidates(self, groups: list[set[int]]) -> list[set[int]]:
        """Return the indices that may judge, of each group that nothing was taught of, in the order of holding out."""

        def rank(group: set[int]) -> tuple[bool, float, int]:
            ids = {self.examples[n].id for n in group}
            return not ids.isdisjoint(self.preferred), *max((self.examples[n].created_at, n) for n in group)

        untaught = (g for g in groups if not any(self.examples[n].source in self.taught for n in g))
        wanted = ({n for n in group if self.examples[n].judges} for group in untaught)
        return sorted(filter(None, wanted), key=rank, reverse=True)


def data_hash(examples: Sequence[Example]) -> str:
    """Return the SHA-256 (hex) of the examples' canonical JSON. The order counts, as it does in training.

    A field at its default is left out, so that a field added later does not change the hash of older data.
    """
    content = [
        {f.name: value for f in fields(example) if (value := getattr(example, f.name)) != f.default}
        for example in examples
    ]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _joined(alike: DisjointSets, keys: Sequence[str]) -> list[set[int]]:
    """Join what has the same key as well, and return the groups."""
    first_with: dict[str, int] = {}
    for n, key in enumerate(keys):
        alike.join(n, first_with.setdefault(key, n))
    return alike.groups()
