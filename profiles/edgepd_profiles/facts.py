"""What the user wants to be known: short texts of his own that are told to the model when they fit a question.

The idea: a fact belongs to the app that it was given to, or to all ("" as app). Facts are few and short, so those that
fit a question are found by the words they share with it (BM25, see retrieval.Words). Some fit every question: those
about answering ("answer in German") and about who the user is ("I am vegetarian").
The invariants: a fact is never changed, only added and removed, and no number is used twice; so a number that was read
is the same fact or none. Remembering the same twice changes nothing. No fact has a secret in it that edgepd knows.
What this does not do: learn facts from exchanges, or understand them. A fact that contradicts another one stands beside
it. Names of apps are no authentication: every program of the same user could give any name.
"""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from edgepd import secrets
from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles import apps
from edgepd_profiles.retrieval import Words
from edgepd_profiles.rows import fetch

MAX_CHARACTERS = 2000
MAX_FACTS = 10_000
FEW = 8  # as long as there are no more, all of them are told
MAX_STANDING = 4

# How facts begin that concern every answer, in English, German, French and Spanish.
_STANDING = re.compile(
    r"""(?ix)
    (?: please | bitte | s'il\ (?:te|vous)\ pla[iî]t | por\ favor )? [ ,]*
    (?: (?: always | never | answer | reply | respond | speak | talk | write | address | call\ me | do\ not | don['’]t
          | keep | use | avoid | be | immer | nie | niemals | antworte | antworten | sprich | schreib | schreibe | nenn
          | nenne | duze | sieze | verwende | benutze | vermeide | halte | toujours | jamais | ne | réponds | répondez
          | parle | parlez | appelle | appelez | tutoie | vouvoie | utilise | évite | siempre | nunca | responde | habla
          | llámame | llamame | usa | evita | no\ uses ) \b
      | (?:i['’]m | i\ am | my\ (?:name|pronouns|language|native\ language|mother\ tongue|job|profession) ) \b
      | (?:ich\ (?:bin|heiße|heisse)) \b | (?:mein\ (?:name|beruf) | meine\ (?:sprache|muttersprache)) \b
      | (?:je\ (?:suis|m['’]appelle) | mon\ (?:nom|prénom|métier) | ma\ langue) \b
      | (?:(?:yo\ )?soy | me\ llamo | mi\ (?:nombre|idioma|profesión)) \b )
    """
)


@dataclass(frozen=True)
class Fact:
    """A text of the user. `app` is "" if it is for all; `at` is unix seconds."""

    id: int
    app: str
    text: str
    at: float


def remember(conn: sqlite3.Connection, text: str, app: str = "", *, at: float | None = None) -> Fact:
    """Store a fact for an app, or for all. Runs of spaces and line breaks become one space.

    If the app has it already, that one is returned as it is. Raises RequestError for a text that is empty, over
    MAX_CHARACTERS, not valid Unicode or that has a secret in it, and if there are MAX_FACTS facts.
    """
    text = " ".join(text.split())
    _refuse_unfit(text)
    apps.refuse_bad_name(app)
    known = _one(conn, "SELECT * FROM facts WHERE app = ? AND text = ?", (app, text))
    if known:
        return known
    if conn.execute("SELECT count(*) FROM facts").fetchone()[0] >= MAX_FACTS:
        raise RequestError(f"there are {MAX_FACTS} facts, which is all that are kept; forget some that are outdated")
    now = time.time() if at is None else at
    number = conn.execute("INSERT INTO facts (app, text, at) VALUES (?, ?, ?)", (app, text, now)).lastrowid
    return get(conn, number or 0)


def get(conn: sqlite3.Connection, fact_id: int, viewer: str | None = None) -> Fact:
    """Return one fact. Raises NotFoundError if there is none with this number that `viewer` may see."""
    shown, parameters = apps.visible_sql(viewer)
    # The fragment has no values in it.
    found = _one(conn, f"SELECT * FROM facts WHERE id = ? AND {shown}", (fact_id, *parameters))  # noqa: S608
    if not found:
        raise NotFoundError(f"fact {fact_id} is not known; `edgepd facts` lists those that are")
    return found


def forget_fact(conn: sqlite3.Connection, fact_id: int, viewer: str | None = None) -> Fact:
    """Remove a fact and return what it was. Raises NotFoundError as `get` does."""
    found = get(conn, fact_id, viewer)
    conn.execute("DELETE FROM facts WHERE id = ?", (fact_id,))
    return found


def listing(conn: sqlite3.Connection, viewer: str | None = None) -> list[Fact]:
    """Return the facts that `viewer` may see, in the order in which they were given."""
    shown, parameters = apps.visible_sql(viewer)
    return [Fact(**row) for row in fetch(conn, f"SELECT * FROM facts WHERE {shown} ORDER BY id", parameters)]  # noqa: S608


def matching(conn: sqlite3.Connection, query: str, k: int, viewer: str | None = None) -> list[Fact]:
    """Return at most `k` facts that share a content word with `query`, the best by BM25 first.

    The index is made anew for each call, which takes long if there are thousands; recall.RecallIndex keeps one.
    """
    known = {fact.id: fact for fact in listing(conn, viewer)}
    words = Words()
    with closing(words):
        words.put((fact.id, fact.text) for fact in known.values())
        with closing(words.ranked(query)) as ranked:
            return [known[number] for number, _ in islice(ranked, k)]


def is_standing(text: str) -> bool:
    """Say whether a fact concerns every answer, by how it begins: about answering, or about who the user is."""
    return _STANDING.match(text) is not None


def _refuse_unfit(text: str) -> None:
    if not text:
        raise RequestError("the fact is empty; give a sentence such as 'I am vegetarian'")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the fact has {len(text)} characters, but at most {MAX_CHARACTERS} are allowed; split it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the fact has half a character at position {error.start}") from error
    found = secrets.find(text)
    if found:
        raise RequestError(
            f"the fact seems to have a secret in it ({found[0].kind}), and facts are put into prompts; leave it out"
        )


def _one(conn: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> Fact | None:
    rows = fetch(conn, sql, parameters)
    return Fact(**rows[0]) if rows else None
