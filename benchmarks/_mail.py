"""What the benchmarks of training learn from: mails of real people, or of two who exist in a formula only.

The mails are the Annotated Enron Subject Line Corpus (github.com/ryanzhumich/AESLC, CC BY-NC-SA 4.0), one JSON object a
line with `user`, `folder`, `n`, `subject` and `body`. It is not part of edgepd: EDGEPD_AESLC names the file.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepd.adapt.examples import Example, encode
from edgepd.chat import ChatFormat
from edgepd.errors import NotFoundError
from edgepd.llama import Model

TRAIN, HELD_OUT = 32, 12  # mails of a writer: the first ones, and those after them
BODY_TOKENS = range(20, 121)
TOO_ALIKE = 0.8  # share of words in common from which on a mail is taken for a copy of an earlier one
MAX_TOKENS = 512


@dataclass(frozen=True)
class Writer:
    """One person's mails as token ids: dicts of `tokens` and `supervised_from`."""

    name: str
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def corpus_path() -> Path | None:
    """Return the file that EDGEPD_AESLC names, if it names one. Raises NotFoundError if that is not there."""
    given = os.environ.get("EDGEPD_AESLC")
    if not given:
        return None
    if not Path(given).is_file():
        raise NotFoundError(f"EDGEPD_AESLC names {given}, which is not a file")
    return Path(given)


def writers(model: Path, count: int, train: int = TRAIN, held_out: int = HELD_OUT) -> list[Writer]:
    """Return the first `count` writers by name who have enough mails; made-up ones if there is no corpus.

    Raises NotFoundError if there are not as many.
    """
    corpus = corpus_path()
    mails = made_up(count, 2 * (train + held_out)) if corpus is None else read(corpus)
    found: list[Writer] = []
    with Model(model, vocab_only=True) as tokenizer:
        chat = ChatFormat(tokenizer)
        for name in sorted(mails):
            usable = encoded(chat, name, mails[name], train + held_out)
            if len(usable) == train + held_out:
                found.append(Writer(name, usable[:train], usable[train:]))
            if len(found) == count:
                return found
    raise NotFoundError(f"only {len(found)} of {count} writers have {train + held_out} usable mails")


def read(corpus: Path) -> dict[str, list[tuple[str, str]]]:
    """Return (subject, body) of the sent mails of each user, in the order of their numbers in the folder."""
    numbered: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    with gzip.open(corpus, "rt", encoding="utf-8") as file:
        for line in file:
            mail = json.loads(line)
            if mail["folder"] == "sent":
                numbered[mail["user"]].append((mail["n"], mail["subject"], mail["body"].strip()))
    return {user: [(subject, body) for _, subject, body in sorted(mails)] for user, mails in numbered.items()}


def encoded(chat: ChatFormat, user: str, mails: Iterable[tuple[str, str]], wanted: int) -> list[dict[str, Any]]:
    """Return the first `wanted` mails of usable length as token ids, without copies of one another."""
    found: list[dict[str, Any]] = []
    earlier: list[set[str]] = []
    for subject, body in mails:
        words = set(re.findall(r"\w+", body.lower()))
        if len(chat.answer(body)) - 1 not in BODY_TOKENS or any(_alike(words, other) for other in earlier):
            continue
        earlier.append(words)
        messages = [{"role": "user", "content": f"Write an email with the subject: {subject}"}]
        example = encode(chat, Example(user, messages, body), MAX_TOKENS)
        found.append({"tokens": list(example.tokens), "supervised_from": example.supervised_from})
        if len(found) == wanted:
            break
    return found


def _alike(a: set[str], b: set[str]) -> bool:
    return len(a & b) >= TOO_ALIKE * len(a | b)


_WORDS = {
    "who": ["Ana", "Bo", "Chidi", "Dora", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kai", "Lena", "Mato", "Nia"],
    "what": ["budget", "lease", "trip", "pump", "garden", "audit", "talk", "roof", "invoice", "boat", "menu", "survey"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow"],
    "place": ["Lisbon", "Oslo", "Turin", "Graz", "Bergen", "Porto", "Gdansk", "Bari", "Malmo", "Trieste"],
    "count": [str(n) for n in range(2, 60)],
}
_HABITS = (  # how a writer begins and ends, and what is between
    (
        ("hey {who}!", "x Lu"),
        ("quick one about the {what} :)", "can't do {day}, sorry!!", "{who} says {place} is lovely, so why not?"),
        ("bring {count} of the {what} ones pls", "no idea where the {what} went, {who} had it", "call me {day}?"),
    ),
    (
        ("Dear {who},", "Sincerely yours, M. Ortega"),
        ("I write concerning the {what} in {place}.", "On {day} the {what} will not be possible."),
        ("Kindly send {count} copies to {who}.", "The office in {place} has approved {count} of them."),
    ),
)


def made_up(writers: int, mails: int) -> dict[str, list[tuple[str, str]]]:
    """Return mails of writers who each have habits of their own."""
    return {
        f"made-up-{w}": [_mail(_HABITS[w % len(_HABITS)], f"{w} {n}") for n in range(mails)] for w in range(writers)
    }


def _mail(habit: Sequence[Sequence[str]], seed: str) -> tuple[str, str]:
    (greeting, farewell), *middle = habit
    sentences = [
        greeting,
        *(_pick(pool, f"{seed} {i} {n}") for n, pool in enumerate(middle) for i in range(2)),
        farewell,
    ]
    filled = (
        sentence.format(**{name: _pick(words, f"{seed} {n} {name}") for name, words in _WORDS.items()})
        for n, sentence in enumerate(sentences)
    )
    subject = f"{_pick(_WORDS['what'], seed)}, {_pick(_WORDS['day'], seed)}"
    return subject, " ".join(filled)


def _pick(choices: Sequence[str], seed: str) -> str:
    return choices[zlib.crc32(seed.encode()) % len(choices)]
