"""What the fake daemon answers about facts, forgetting and moving away, and an import that looks at its lines.

What this does not do: keep anything.
"""

from __future__ import annotations

import json

from tests.cli.fake_daemon import Asked, Json, Reply

FACT: Json = {"id": 3, "app": "", "text": "My sister is called Ada", "at": 1000.0}
FOUND: list[Json] = [
    {"kind": "fact", "text": "My sister is called Ada", "prompt": None, "id": 3, "score": 4.5, "at": 1000.0},
    {
        "kind": "answer",
        "text": "Ada likes\ntea.",
        "prompt": "What does Ada like?",
        "id": "i7",
        "score": 2.5,
        "at": 2000.0,
    },
]
SUGGESTIONS: list[Json] = [
    {"id": "s_1", "text": "Plan my week", "reason": "you ask this on Mondays"},
    {"id": "s_2", "text": "Shorten the\nletter", "reason": "it often comes next"},
]
COUNTS: Json = {
    "interactions": 1200,
    "carried_along": 1,
    "facts": 1,
    "suggestions": 0,
    "surveys": 2,
    "generations": 2,
    "backups": 2,
    "saved_conversations": 1,
}
PLAN: Json = {
    "id": "",
    "at": 3000.0,
    "what": "what contains a text",
    "counts": COUNTS,
    "generations": [4, 6],
    "active": 3,
    "retraining": True,
    "verified": None,
}
RECEIPT: Json = PLAN | {
    "id": "r_1",
    "state": "done",
    "verified": {"files": 37, "bytes": 3 * 2**19, "found": 0, "kept_elsewhere": 0},
}
NOTHING: Json = PLAN | {"counts": dict.fromkeys(COUNTS, 0) | {"backups": 1}, "generations": [], "retraining": False}


def planned(receipt: Json = PLAN) -> Json:
    return {"receipt": receipt, "dry_run": True}


def done(receipt: Json = RECEIPT) -> Json:
    return {"receipt": receipt, "dry_run": False}


def importing(asked: Asked) -> Reply | None:
    """Take a line with messages, know one that says so, count a fact, and refuse the rest."""
    if (asked.method, asked.path) != ("POST", "/edgepd/v1/import"):
        return None
    answer: Json = {"added": 0, "known": 0, "facts": 0, "refused": []}
    for number, line in enumerate(asked.body["lines"], start=1):
        try:
            value = json.loads(line)
        except ValueError:
            answer["refused"].append({"line": number, "reason": "not JSON"})
            continue
        answer["known" if value.get("known") else "facts" if value.get("fact") else "added"] += 1
    return Reply(answer)
