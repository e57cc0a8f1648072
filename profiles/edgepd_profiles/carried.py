"""Which later exchanges repeat a forgotten one, because clients send a conversation anew with every question.

The idea: of what is forgotten, question and answer are remembered in the order of arrival, and every later exchange is
held against that. One that repeats it is forgotten too, and is itself remembered, so that one pass finds all.
Within a conversation that has a name, the question or the answer in any message is enough. Clients without such names
are recognised by the question followed by the answer, from the same app.
What this does not do: find a text that was copied to somewhere else; what is kept elsewhere is counted at the end
(forgetting.kept_elsewhere).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgepd_profiles.rows import text_of

COLUMNS = ("id", "conversation", "messages", "app", "kind", "prompt", "response")
FEW = 64  # forgotten questions that are looked for one by one before messages are read
DISTINCTIVE = 12  # characters from which on a text is recognised within a longer one


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str
    calls: bool  # whether it is a call of tools


class _Memory:
    """What was forgotten so far."""

    def __init__(self) -> None:
        self._said: dict[str, set[str]] = {}  # by conversation: questions and answers
        self._pairs: set[tuple[str, str, str]] = set()  # app, question, answer
        self._tools: set[tuple[str, str]] = set()  # app, question that was answered by a call of tools
        self._words: set[str] = set()  # of each question the longest word, as JSON has it

    def add(self, row: dict[str, Any]) -> None:
        question, answer = row["prompt"].strip(), row["response"].strip()
        if row["kind"] == "tools":
            self._tools.add((row["app"], question))
        self._pairs.add((row["app"], question, answer))
        self._words.add(json.dumps(max(question.split(" "), key=len))[1:-1])
        if row["conversation"] != row["id"]:
            said = self._said.setdefault(row["conversation"], set())
            said |= {text for text in (question, answer) if text}

    def may_be_repeated_by(self, conversation: str, messages: str) -> bool:
        """Return False only if it cannot be, which is told without reading JSON. Words lie within one part."""
        if conversation in self._said or len(self._words) > FEW:
            return True
        return any(word in messages for word in self._words)

    def repeated_by(self, row: dict[str, Any]) -> bool:
        turns = _turns(row["messages"])
        if row["conversation"] != row["id"]:
            said = self._said.get(row["conversation"], ())
            return any(_holds(turn.text, text) for text in said for turn in turns)
        app = row["app"]
        return any(
            asked.role in ("user", "prompt")
            and told.role == "assistant"
            and ((app, asked.text, told.text) in self._pairs or (told.calls and (app, asked.text) in self._tools))
            for asked, told in zip(turns, turns[1:], strict=False)
        )


def carried_along(conn: sqlite3.Connection, chosen: Sequence[str]) -> list[str]:
    """Return the ids of the exchanges that repeat one of `chosen`, and are not among them, in the order of arrival.

    It reads every later exchange that has an earlier answer in its messages.
    """
    rows = conn.execute(
        """
        WITH forgotten AS (SELECT id, seq, conversation FROM interactions WHERE id IN (SELECT value FROM json_each(?)))
        SELECT id, conversation, messages, app, kind, prompt, response FROM interactions
        WHERE seq >= (SELECT min(seq) FROM forgotten)
            AND (instr(messages, '"role":"assistant"') OR id IN (SELECT id FROM forgotten)
                OR conversation IN (SELECT conversation FROM forgotten))
        ORDER BY seq
        """,
        (json.dumps(list(chosen)),),
    )
    known, memory, carried = set(chosen), _Memory(), []
    for name, conversation, messages, *rest in rows:
        if name not in known and not memory.may_be_repeated_by(conversation, messages):
            continue
        row = dict(zip(COLUMNS, (name, conversation, messages, *rest), strict=True))
        if name not in known:
            if not memory.repeated_by(row):
                continue
            carried.append(name)
        memory.add(row)
    return carried


def _turns(messages: str) -> list[_Turn]:
    return [
        _Turn(str(message.get("role")), text_of(message.get("content")).strip(), bool(message.get("tool_calls")))
        for message in json.loads(messages)
    ]


def _holds(text: str, wanted: str) -> bool:
    return text == wanted or (len(wanted) >= DISTINCTIVE and wanted in text)
