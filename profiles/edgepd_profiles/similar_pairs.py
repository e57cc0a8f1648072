"""Pairs like an example, made by the served model, to have more to learn from (Qin et al., arXiv 2311.12275).

The idea: the model is asked for a question and an answer like those of an example; a pair is kept if it shares enough
words with the example to be about it, and not so many that it is a copy. The paper has only the lower bound.
The invariant: a pair goes with its interaction, and one that is older than the newest correction of its example is not
given out, because it imitates a text that the user has replaced.
What this does not do: run the model, or decide which examples get pairs. Make them for examples that are trained on
only: a pair of a held-out one would tell the model what it is judged by.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from edgepd.errors import NotFoundError
from edgepd_profiles import near_duplicates
from edgepd_profiles.examples import Example
from edgepd_profiles.rows import fetch

MAX_CHARACTERS = 2000  # of a question and of an answer: the pair has to fit into the context with its example

INSTRUCTION = (
    "Here are a question and its answer. Write one other question on the same subject, and answer it in the same "
    "style, length and language. Reply with two parts only, beginning with 'Question:' and 'Answer:'."
)
# The labels as models write them: perhaps in bold, as a heading, or numbered.
_LABEL = r"(?:^|\n)[ \t>#*_\d.)]*\b{}[ \t*_]*\d*[ \t]*:[ \t*_]*"
_PARTS = re.compile(_LABEL.format("question") + r"(.*?)" + _LABEL.format("answer") + r"(.*)", re.IGNORECASE | re.DOTALL)
_NEXT = re.compile(_LABEL.format("(?:question|answer)"), re.IGNORECASE)


@dataclass(frozen=True)
class SimilarPair:
    """A pair that was made from an example: `id` is the example's with "#" and a number, `similarity` is ROUGE-1."""

    id: str
    interaction: str
    prompt: str
    response: str
    similarity: float
    at: float


def prompt_for(example: Example) -> list[dict[str, Any]]:
    """Return the messages that ask the model for a pair like an example."""
    question, answer = example.prompt[:MAX_CHARACTERS], example.response[:MAX_CHARACTERS]
    return [{"role": "user", "content": f"{INSTRUCTION}\n\nQuestion: {question}\nAnswer: {answer}"}]


def parse(text: str) -> tuple[str, str] | None:
    """Return question and answer from what the model wrote, or None if it did not keep to the form.

    Of several pairs the first one counts, though not its answer alone: what comes after the next label is left out.
    """
    found = _PARTS.search(text)
    if not found:
        return None
    question, answer = found[1].strip(), _NEXT.split(found[2], maxsplit=1)[0].strip()
    if not question or not answer or max(len(question), len(answer)) > MAX_CHARACTERS:
        return None
    return question, answer


def rouge1(a: str, b: str) -> float:
    """Return the F1 of the words that two texts share (ROUGE-1, Lin 2004), in [0, 1]; 0 if one has no words."""
    words_a, words_b = Counter(near_duplicates.words(a)), Counter(near_duplicates.words(b))
    total = words_a.total() + words_b.total()
    return 2 * (words_a & words_b).total() / total if total else 0.0


def similarity(example: Example, prompt: str, response: str) -> float:
    """Return the ROUGE-1 between a pair and the example, question and answer together."""
    return rouge1(f"{example.prompt}\n{example.response}", f"{prompt}\n{response}")


def in_band(similar: float, lowest: float, highest: float) -> bool:
    """Say whether a pair is about its example and no copy of it: settings select.similar_min and similar_max."""
    return lowest <= similar <= highest


def add(
    conn: sqlite3.Connection,
    interaction_id: str,
    prompt: str,
    response: str,
    similar: float,
    *,
    at: float | None = None,
) -> str:
    """Store a pair and return its id; the same pair again has the id that it had. Raises NotFoundError."""
    if not conn.execute("SELECT 1 FROM interactions WHERE id = ?", (interaction_id,)).fetchone():
        raise NotFoundError(f"interaction '{interaction_id}' is not known, so it can have no similar pair")
    pairs = fetch(conn, "SELECT * FROM similar_pairs WHERE interaction = ?", (interaction_id,))
    for pair in pairs:
        if (pair["prompt"], pair["response"]) == (prompt, response):
            return str(pair["id"])
    number = 1 + max((_number(pair["id"]) for pair in pairs), default=0)
    new_id = f"{interaction_id}#{number}"
    conn.execute(
        "INSERT INTO similar_pairs (id, interaction, prompt, response, similarity, at) VALUES (?, ?, ?, ?, ?, ?)",
        (new_id, interaction_id, prompt, response, similar, time.time() if at is None else at),
    )
    return new_id


def of(conn: sqlite3.Connection, ids: Collection[str]) -> list[SimilarPair]:
    """Return the pairs of the interactions with these ids, ordered by interaction and number.

    Those that are older than the correction of their interaction are left out.
    """
    rows = fetch(
        conn,
        """
        SELECT p.* FROM similar_pairs AS p
        WHERE p.interaction IN (SELECT value FROM json_each(?)) AND NOT EXISTS (
            SELECT 1 FROM feedback AS f WHERE f.interaction = p.interaction AND f.kind = 'edit' AND f.at > p.at
        )
        """,
        (json.dumps(sorted(ids)),),
    )
    return sorted((SimilarPair(**row) for row in rows), key=lambda pair: (pair.interaction, _number(pair.id)))


def examples_of(conn: sqlite3.Connection, sources: Sequence[Example], weight: float) -> list[Example]:
    """Return the pairs that were made after these examples as examples, in the order of those, each with `weight`.

    A pair has the instructions of its source, its conversation and its time, and the id "<source>#<n>", so that
    `examples.split` keeps it on the side of its source. There are none of what is not wanted.
    """
    wanted = {source.id: source for source in sources if source.desirable}
    made: dict[str, list[Example]] = {name: [] for name in wanted}
    for pair in of(conn, wanted.keys()):
        source = wanted[pair.interaction]
        instructions = [message for message in source.messages if message.get("role") == "system"]
        messages = [*instructions, {"role": "user", "content": pair.prompt}]
        example = Example(pair.id, source.conversation, source.created_at, messages, pair.response, weight)
        made[source.id].append(example)
    return [example for pairs in made.values() for example in pairs]


def remove(conn: sqlite3.Connection, interaction_id: str) -> int:
    """Delete the pairs of an interaction; return how many there were."""
    return conn.execute("DELETE FROM similar_pairs WHERE interaction = ?", (interaction_id,)).rowcount


def _number(pair_id: str) -> int:
    return int(pair_id.rpartition("#")[2])
