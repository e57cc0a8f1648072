"""What the wanted answers have in common, said in a short system prompt.

The idea: read off the answers that the user wrote or accepted what most of them share (how long they are, how they
begin and end, how they are laid out) and say it in plain English, so that the model can be told instead of taught. It
is the arm that an adapter has to beat. The invariant: the same examples give the same text, in any order, and what
does not clearly stand out is not said.
What this does not do: look at prompts, unwanted answers or topics, or know languages other than English. Part 5 reads
features of the whole profile, with weights that fade, and takes the place of this reading.
"""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from edgepd_profiles.examples import Example

MIN_ANSWERS = 4  # of fewer nothing can be said to be usual
USUAL = 0.6  # share of the answers that something is to be found in
MAX_WORDS = 60
MAX_PHRASE = 8  # words of an opening or closing phrase
SHORT, LONG = 40, 120  # words of an answer
MAX_OWN_WORDS = 3

_ITEM = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\d+[.)]\s+", re.MULTILINE)
_GREETING = re.compile(r"\s*(?:dear|hello|hi|hey|good (?:morning|afternoon|evening|day)|greetings)\b", re.IGNORECASE)
_FAREWELL = re.compile(
    r"\b(?:regards|sincerely|faithfully|truly|wishes|respectfully|cheers|thanks|cordially)\b[^.?]{0,40}$", re.IGNORECASE
)
_COMMON = frozenset(  # words that say nothing about a style
    re.findall(
        r"\w+",
        "a about after all also an and any are as at be because been before but by can could did do does down each "
        "every few first for from get give go good had has have he her here him his how i if in into is it its "
        "just keep know like little made make many may me more most much must my need new no not now of off often "
        "on once one only or other our out over own put same see she should so some still such take than that the "
        "their them then there these they thing things this those time to too two under until up us use used very "
        "want was way we well were what when where which while who why will with without work would yes you your",
    )
)


def describe(examples: Sequence[Example]) -> str | None:
    """Return a system prompt of at most MAX_WORDS words, or None if the wanted answers have nothing in common.

    What is said first counts most, and what would be too much is left out.
    """
    answers = sorted(e.response.strip() for e in examples if e.desirable and e.response.strip())
    if len(answers) < MIN_ANSWERS:
        return None
    said = ["Answer the way this user likes it."]
    for rule in _rules(answers):
        if sum(len(part.split()) for part in (*said, rule)) <= MAX_WORDS:
            said.append(rule)
    return " ".join(said) if len(said) > 1 else None


def _rules(answers: Sequence[str]) -> Iterable[str]:
    """Yield a sentence for each thing that stands out, the most telling first."""
    opening = _phrase([a.split() for a in answers])
    closing = _phrase([a.split()[::-1] for a in answers])[::-1]
    if opening:
        yield f"Begin with {_quoted(opening)}."
    elif _usual(answers, lambda a: _GREETING.match(a) is not None):
        yield "Begin with a greeting."
    if closing:
        yield f"End with {_quoted(closing)}."
    elif _usual(answers, lambda a: _FAREWELL.search(a) is not None):
        yield "End with a formal closing line."
    yield from _length([len(a.split()) for a in answers])
    if _usual(answers, lambda a: len(_NUMBERED.findall(a)) >= 2):
        yield "Write a numbered list."
    elif _usual(answers, lambda a: len(_ITEM.findall(a)) >= 2):
        yield "Write a list with a bullet for each point."
    if _usual(answers, lambda a: a == a.lower() != a.upper()):
        yield "Write everything in lower case."
    inner = [_without(a.split(), opening, closing) for a in answers]
    if _usual(inner, lambda a: "!" in a):
        yield "Use exclamation marks."
    if _usual(inner, lambda a: any(unicodedata.category(c) == "So" for c in a)):
        yield "Use emoji."
    own = _own_words(inner)
    if own:
        yield f"Use words such as {', '.join(own)}."


def _length(lengths: Sequence[int]) -> Iterable[str]:
    median = round(statistics.median(lengths))
    if sum(n <= SHORT for n in lengths) >= 0.8 * len(lengths):
        yield f"Keep it short: about {median} {'word' if median == 1 else 'words'}."
    elif sum(n >= LONG for n in lengths) >= 0.8 * len(lengths):
        yield f"Answer in detail: about {round(median, -1)} words."


def _usual(answers: Sequence[str], test: Callable[[str], bool]) -> bool:
    return sum(map(test, answers)) >= USUAL * len(answers)


def _phrase(answers: Sequence[Sequence[str]]) -> list[str]:
    """Return the longest run of words that most answers (lists of words) begin with, if it says something."""
    found: list[str] = []
    needed = USUAL * len(answers)
    for length in range(1, MAX_PHRASE + 1):
        begins = Counter(tuple(words[:length]) for words in answers if len(words) > length)
        phrase, count = max(begins.items(), key=lambda item: (item[1], item[0]), default=((), 0))
        if not phrase or count < needed:
            break
        found, needed = list(phrase), max(needed, 0.9 * count)  # a longer phrase must be nearly as usual
    bare = [word.strip(".,;:!?").lower() for word in found]
    tells = any(word and word not in _COMMON for word in bare) or len(found) > 1
    return found if tells and not _ITEM.match(" ".join(found) + " ") else []


def _without(words: list[str], opening: list[str], closing: list[str]) -> str:
    if opening and words[: len(opening)] == opening:
        words = words[len(opening) :]
    if closing and words[-len(closing) :] == closing:
        words = words[: -len(closing)]
    return " ".join(words)


def _own_words(answers: Sequence[str]) -> list[str]:
    """Return the words, the most usual first, that most answers have although they are about different things."""
    having = Counter(word for a in answers for word in set(re.findall(r"[^\W\d_]+", a.lower())))
    usual = [(-n, w) for w, n in having.items() if n >= USUAL * len(answers) and len(w) > 1 and w not in _COMMON]
    return [word for _, word in sorted(usual)[:MAX_OWN_WORDS]]


def _quoted(words: Sequence[str]) -> str:
    return '"' + " ".join(words).replace('"', "'") + '"'
