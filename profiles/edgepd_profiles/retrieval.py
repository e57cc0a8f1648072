"""The texts that are most like a question: exchanges for the gate, and whatever is remembered while serving.

The idea: BM25 (Robertson and Zaragoza 2009) by an FTS5 index that lives in memory as long as the object. `Index` is
what the gate measures with: all words of prompt and response of each wanted example, asked with the new prompt only,
because the response is what is to be predicted. `Words` is what serving uses: it holds the content words of texts that
come and go, under numbers, and no text.
The invariants: from an Index neither the example itself nor a near-duplicate of it comes back, because that would show
the model the answer that it is judged by; nor does an answer that the user did not want. From Words nothing comes back
that shares no content word with the question.
What this does not do: understand. A text that says the same in other words is not found.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from types import TracebackType

from edgepd_profiles import near_duplicates
from edgepd_profiles.examples import Example

MAX_TERMS = 200  # of a pasted document, the first words; the time that FTS5 takes grows with their number
STEM = 7  # letters of a word that count

# Words without content, and what requests begin with, in English, German, French and Spanish; without accents. What is
# one of them in one language and a thing in another (war, son, hat) is left out.
_STOP_WORDS = """
    a about after again all also am an and any are as at be because been before being but by can could did do does
    doing down every few for from get give had has have having he help her here him his how i if in into is it its
    just know let like ll make me more most much my need no not now of off on once only or other our out over please
    re say same she should show so some such tell than that the their them then there these they this those to too
    under up us use ve very want was we were what when where which while who whom why will with would write you your
    explain don aber als auch auf aus bei bin bis bist bitte da damit dann das dass dein deine dem den denn der des
    dich die dir doch du durch ein eine einem einen einer eines er erklare es euch fur gib habe haben hier ich ihm
    ihn ihr ihre im ist ja kann kannst kein keine konnen mach mal mehr mein meine meinem meinen meiner meines mich
    mir mit muss nach nicht noch nun nur ob oder sag schreib sehr sein seine sich sie sind uber um und uns unser
    unter vom von vor warum wenn wer werden wie wir wird wo zeig zu zum zur au aux avec ce ces cet cette comme dans
    de donne elle en est et etre eu il ils j je l la le les leur lui m ma mais meme mes moi mon n ne nos notre nous
    ou par pas plus pour pourquoi qu quand que quel quelle qui quoi s sa sans se ses si sont suis sur t ta te tes
    toi ton tu un une vos votre vous y c d ecris explique dis al algo como con cual cuando del dime donde e el ella
    ellos entre eres esa ese eso esta estan este esto estoy fue ha hace las lo los mas mi mis mucho muy o para pero
    por porque puede puedes quien ser sin sobre soy su sus ti tiene tengo tus una uno unos ya yo escribe explica
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
# What is taken off if four letters are left. A plural s goes before.
_ENDING = re.compile("(?<=.{4})(?:ing|ern|en|er|em|ed|e)$")


class Index:
    """A searchable pool of examples. Use it in a `with` statement, in the thread that made it."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = [example for example in pool if example.desirable]
        self._texts = [example.text for example in self._pool]
        self._style = near_duplicates.style_of(self._texts)
        self._conn = sqlite3.connect(":memory:")
        self._conn.execute("CREATE VIRTUAL TABLE pool USING fts5(words, tokenize = 'unicode61')")
        # The words as they are compared, so that scripts without spaces can be searched too.
        rows = ((n, " ".join(_terms(text.prompt + text.response))) for n, text in enumerate(self._texts))
        self._conn.executemany("INSERT INTO pool (rowid, words) VALUES (?, ?)", rows)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the index; it cannot be searched any more."""
        self._conn.close()

    def similar(self, example: Example, k: int = 2) -> list[Example]:
        """Return at most `k` examples whose words are most like the prompt of `example`, the best first.

        Of two that are equally like it, the later one in the pool comes first. There are fewer than `k` where fewer
        share a word with it.
        """
        found: list[Example] = []
        with closing(_ranked(self._conn, _terms(example.text.prompt))) as ranked:
            for n, _ in ranked:
                if len(found) >= k:
                    break
                same = self._pool[n].id == example.id
                if not same and not near_duplicates.alike(self._texts[n], example.text, self._style):
                    found.append(self._pool[n])
        return found


def similar(pool: Sequence[Example], example: Example, k: int = 2) -> list[Example]:
    """Return at most `k` examples of `pool` that are most like the prompt of `example`; see `Index.similar`.

    To ask more than once of one pool, keep an Index: it is made anew here.
    """
    with Index(pool) as index:
        return index.similar(example, k)


class Words:
    """The content words of texts under whole numbers, in memory. One thread at a time, whichever.

    What was dropped is no longer found, but its words stay in memory until `close`.
    """

    def __init__(self) -> None:
        self._conn = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        # Without a copy of the text (content), so that it can only grow; hence the rows have numbers of their own.
        self._conn.execute("CREATE VIRTUAL TABLE pool USING fts5(words, content = '', tokenize = 'unicode61')")
        self._keys: list[int | None] = []  # by row
        self._rows: dict[int, int] = {}  # by key

    def __len__(self) -> int:
        """Return how many texts can be found."""
        return len(self._rows)

    @property
    def dropped(self) -> int:
        """How many texts are still in memory that cannot be found any more."""
        return len(self._keys) - len(self._rows)

    def put(self, texts: Iterable[tuple[int, str]]) -> None:
        """Add (key, text) pairs. A key that is known gets the new text."""
        known: dict[str, str] = {}
        self._conn.execute("BEGIN")
        try:
            for key, text in texts:
                self.drop(key)
                self._rows[key] = len(self._keys)
                self._keys.append(key)
                row = (self._rows[key], " ".join(content(text, known)))
                self._conn.execute("INSERT INTO pool (rowid, words) VALUES (?, ?)", row)
        finally:
            self._conn.execute("COMMIT")

    def drop(self, key: int) -> None:
        """Find `key` no more; nothing happens if it is not known."""
        row = self._rows.pop(key, None)
        if row is not None:
            self._keys[row] = None

    def ranked(self, query: str) -> Generator[tuple[int, float], None, None]:
        """Yield (key, BM25 score above 0) for each text that shares a content word with `query`, the best first.

        Of two that are equally like it, the one that was put in later comes first. Close it before the next change.
        """
        with closing(_ranked(self._conn, content(query))) as ranked:
            for row, score in ranked:
                key = self._keys[row]
                if key is not None:
                    yield key, score

    def close(self) -> None:
        """Free the words; nothing can be found any more."""
        self._conn.close()


def content(text: str, known: dict[str, str] | None = None) -> list[str]:
    """Return the words of a text that say what it is about, in order, as they are compared.

    Stop words and accents are left out, words lose simple endings and what follows their seventh letter: "allergies"
    and "allergic" are one, so are "Kind" and "Kindern"; "internet" and "international" are two. In scripts without
    spaces, two adjacent characters make a word. `known` saves time if it is passed with many texts.
    """
    known = {} if known is None else known
    found: list[str] = []
    previous = ""  # character of a script without spaces
    for word in near_duplicates.words(text):
        if len(word) == 1 and word >= "\u0e00":
            if previous and not (_is_hiragana(previous) and _is_hiragana(word)):  # those are endings and particles
                found.append(previous + word)
            previous = word
            continue
        previous = ""
        if word not in known:
            known[word] = _stem(word)
        found.append(known[word])
    return list(filter(None, found))


def about(text: str) -> frozenset[str]:
    """Return what a text is about: its content words, or if it has none, all words. Equal for the same question."""
    return frozenset(content(text)) or frozenset(near_duplicates.words(text))


def same_question(a: str, b: str) -> bool:
    """Say whether two prompts ask the same: they have the same content words, or are near-duplicates."""
    if about(a) == about(b):
        return True
    return near_duplicates.alike(near_duplicates.read("", a), near_duplicates.read("", b), frozenset())


def _ranked(conn: sqlite3.Connection, terms: Sequence[str]) -> Generator[tuple[int, float], None, None]:
    asked = " OR ".join('"' + t.replace('"', '""') + '"' for t in list(dict.fromkeys(terms))[:MAX_TERMS])
    if not asked:
        return
    # Quoted, nothing is an operator. The rank of FTS5 is BM25 with its sign turned.
    rows = conn.execute("SELECT rowid, -rank FROM pool WHERE pool MATCH ? ORDER BY rank, rowid DESC", (asked,))
    with closing(rows):
        yield from rows


def _terms(words: Sequence[str]) -> list[str]:
    """Leave out what FTS5 has no name for, and may not even take: lone signs, NUL, half characters."""
    return [word for word in words if any(map(str.isalnum, word))]


def _stem(word: str) -> str:
    """Return the part of a word that counts; "" for a stop word and for what has no letter and no digit."""
    if not word.isascii():
        word = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    if word in STOP_WORDS or not any(map(str.isalnum, word)):
        return ""
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui":
        word = word[:-1]
    ending = _ENDING.search(word)
    if ending:
        word = word[: ending.start()]
    elif len(word) > 4 and word[-1] == "y":
        word = word[:-1] + "i"
    return word[:STEM]


def _is_hiragana(character: str) -> bool:
    return "\u3040" <= character <= "\u309f"
