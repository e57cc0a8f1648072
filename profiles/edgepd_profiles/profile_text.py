"""What is known of the user's taste, said in a short system prompt.

The idea: read off the profile, or off the answers that the user wrote or accepted, what clearly stands out, and say it
in plain English, so that the model can be told instead of taught. An adapter has to beat that.
The invariant: the same profile or examples give the same text, in any order. What was only observed is said from
MIN_COUNT exchanges, a weight of MIN_ALPHA and a share of USUAL on; what was set or pinned by hand is always said, as
long as there is room.
What this does not do: decide whether the text helps; the gate measures that. `describe_examples` looks at no prompts,
unwanted answers or topics.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from edgepd_profiles.examples import Example
from edgepd_profiles.profile import Feature, Profile
from edgepd_profiles.wording import FAREWELL, GREETING, ITEM, NUMBERED, STOP_WORDS

Groups = Mapping[str, Sequence[Feature]]

LEAD = "Answer the way this user likes it."
MAX_WORDS = 60
USUAL = 0.6  # share of the answers that something is to be found in
SHORT, LONG = 40, 120  # words of an answer

MIN_COUNT = 4  # exchanges; of fewer nothing can be said to be usual
MIN_ALPHA = 0.5  # as much as one judged exchange of a half-life ago
MIN_LANGUAGE = 0.8  # share of the wanted answers; the language of the question is right for the others
MIN_ASKED, MIN_INTEREST = 0.05, 0.05  # share of the exchanges: nobody asks about one thing all the time
MAX_INTERESTS = 5

MIN_ANSWERS = 4
MAX_PHRASE = 8  # words of an opening or closing phrase
MAX_OWN_WORDS = 3

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
_WANTED = {
    "format:numbered list": ("Write a numbered list.", "Avoid numbered lists."),
    "format:list": ("Write a list with a bullet for each point.", "Avoid lists."),
    "format:table": ("Use tables.", "Avoid tables."),
    "format:headings": ("Use headings.", "Avoid headings."),
    "format:code": ("Give code in code blocks.", "Avoid code blocks."),
    "format:plain": ("Write plain paragraphs.", ""),
    "tone:greeting": ("Begin with a greeting.", "Leave out greetings."),
    "tone:farewell": ("End with a formal closing line.", "Leave out closing lines."),
    "tone:formal": ("Write formally.", "Do not be formal."),
    "tone:lower case": ("Write everything in lower case.", ""),
    "tone:exclamation": ("Use exclamation marks.", "Avoid exclamation marks."),
    "tone:emoji": ("Use emoji.", "Avoid emoji."),
}
_ASKED = {
    "shorter": "Be brief.",
    "longer": "Go into detail.",
    "simpler": "Explain in simple words.",
    "list": "Write lists.",
    "table": "Use tables.",
    "plain": "Write plain paragraphs.",
    "code": "Give the code only.",
    "casual": "Write casually.",
    "formal": "Write formally.",
    "no-emoji": "Avoid emoji.",
}
# So usual that it need not be said unless the user set it.
_TOO_USUAL = {"format:plain", "language:en"}


def describe(profile: Profile, max_words: int = MAX_WORDS) -> str | None:
    """Return a system prompt of at most `max_words` words from the profile, or None if nothing stands out.

    Preferences come first, then the language, then interests. Where there is not room for all, what was set by hand
    goes before what was observed.
    """
    groups = {kind: sorted(group, key=lambda f: (-f.alpha, f.name)) for kind, group in profile.groups.items()}
    sentences = list(dict.fromkeys((*_preferences(groups), *_languages(groups), *_interests(groups))))
    said: set[str] = set()
    room = max_words - len(LEAD.split())
    for by_hand in (True, False):
        for sentence, of_user in sentences:
            words = len(sentence.split())
            if of_user is by_hand and sentence not in said and words <= room:
                said.add(sentence)
                room -= words
    ordered = dict.fromkeys(sentence for sentence, _ in sentences if sentence in said)
    return " ".join((LEAD, *ordered)) if ordered else None


def _preferences(groups: Groups) -> Iterator[tuple[str, bool]]:
    """Yield sentences on the form of answers, each with whether the user set it, the most telling first."""
    features = {f.name: f for f in groups.get("preference", [])}
    phrases = [f for f in features.values() if f.name.startswith(("opening:", "closing:"))]
    for word, part in (("Begin", "opening:"), ("End", "closing:")):
        found = [f for f in phrases if f.name.startswith(part) and (_by_hand(f) or _stands_out(f, USUAL))]
        for f in sorted(found, key=lambda f: (not _by_hand(f), -f.alpha, f.name)):
            phrase = f.name.removeprefix(part).split()
            negative = isinstance(f.value, float) and f.value < 0
            yield f"{'Do not ' + word.lower() if negative else word} with {_quoted(phrase)}.", _by_hand(f)
    if "words" in features:
        yield from _words(features["words"])
    for f in sorted(features.values(), key=_place):
        if f in phrases or f.name == "words" or f.name.startswith("language:"):
            continue
        sentence = _sentence(f)
        if sentence and (_by_hand(f) or _worth_saying(f)):
            yield sentence, _by_hand(f)
    for kind in ("context", "quality", "history"):
        yield from ((_plain(f), True) for f in groups.get(kind, []) if _by_hand(f))


def _worth_saying(feature: Feature) -> bool:
    if feature.name.startswith("asked:"):
        return _stands_out(feature, MIN_ASKED)
    return feature.name not in _TOO_USUAL and _stands_out(feature, USUAL)


def _words(feature: Feature) -> Iterator[tuple[str, bool]]:
    if isinstance(feature.value, str):
        yield _plain(feature), True
        return
    about = round(feature.value) if feature.value <= LONG else round(feature.value, -1)
    if not (_by_hand(feature) or (feature.count >= MIN_COUNT and feature.alpha >= MIN_ALPHA)):
        return
    if feature.value <= SHORT:
        yield f"Keep it short: about {about:.0f} {'word' if about == 1 else 'words'}.", _by_hand(feature)
    elif feature.value >= LONG:
        yield f"Answer in detail: about {about:.0f} words.", _by_hand(feature)
    elif _by_hand(feature):
        yield f"Write about {about:.0f} words.", True


def _languages(groups: Groups) -> Iterator[tuple[str, bool]]:
    for f in groups.get("preference", []):
        name = LANGUAGES.get(f.name.removeprefix("language:"), f.name.removeprefix("language:"))
        if not f.name.startswith("language:"):
            continue
        if isinstance(f.value, str):
            yield _plain(f), True
        elif _by_hand(f):
            yield f"{'Answer' if f.value > 0 else 'Do not answer'} in {name}.", True
        elif f.name not in _TOO_USUAL and f.value > 0 and _stands_out(f, MIN_LANGUAGE):
            yield f"Answer in {name}.", False


def _interests(groups: Groups) -> Iterator[tuple[str, bool]]:
    group = groups.get("interest", [])
    yield from ((_plain(f), True) for f in group if isinstance(f.value, str))
    numbers = [f for f in group if isinstance(f.value, float)]
    by_hand = sorted(f.name for f in numbers if _by_hand(f) and f.value > 0)  # type: ignore[operator]
    yield from ((f"The user is interested in {name}.", True) for name in by_hand)
    yield from (
        (f"The user is not interested in {f.name}.", True) for f in numbers if _by_hand(f) and f.name not in by_hand
    )
    often = [f.name for f in numbers if not _by_hand(f) and _stands_out(f, MIN_INTEREST)][:MAX_INTERESTS]
    if often:
        yield f"The user often asks about {', '.join(often)}.", False


def _sentence(feature: Feature) -> str:
    """Return what a preference says as a sentence, "" for one that says nothing to a model."""
    if isinstance(feature.value, str):
        return _plain(feature)
    positive, negative = _WANTED.get(feature.name, ("", ""))
    if feature.name.startswith("asked:"):
        rule = feature.name.removeprefix("asked:")
        code = rule.removeprefix("language:")
        positive = _ASKED.get(rule, "") if code == rule else f"Answer in {LANGUAGES.get(code, code)}."
    sentence = positive if feature.value > 0 else negative
    return sentence or (_plain(feature) if _by_hand(feature) else "")


def _plain(feature: Feature) -> str:
    """Return a feature set by hand as it stands."""
    value = feature.value if isinstance(feature.value, str) else f"{feature.value:g}"
    name = feature.name.replace(":", ", ")
    return f"{name[:1].upper()}{name[1:]}: {value}{'' if value.endswith(('.', '!', '?')) else '.'}"


def _place(feature: Feature) -> tuple[int, str]:
    """Return where a preference is said: in the order of the tables, others after them."""
    known = [*_WANTED, *(f"asked:{rule}" for rule in _ASKED)]
    return known.index(feature.name) if feature.name in known else len(known), feature.name


def _by_hand(feature: Feature) -> bool:
    return feature.edited or feature.pinned


def _stands_out(feature: Feature, share: float) -> bool:
    enough = feature.count >= MIN_COUNT and feature.alpha >= MIN_ALPHA
    return enough and isinstance(feature.value, float) and abs(feature.value) >= share


def describe_examples(examples: Sequence[Example]) -> str | None:
    """Return a system prompt of at most MAX_WORDS words, or None if the wanted answers have nothing in common.

    What is said first counts most, and what would be too much is left out.
    """
    answers = sorted(e.response.strip() for e in examples if e.desirable and e.response.strip())
    if len(answers) < MIN_ANSWERS:
        return None
    said = [LEAD]
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
    elif _usual(answers, lambda a: GREETING.match(a) is not None):
        yield "Begin with a greeting."
    if closing:
        yield f"End with {_quoted(closing)}."
    elif _usual(answers, lambda a: FAREWELL.search(a) is not None):
        yield "End with a formal closing line."
    yield from _length([len(a.split()) for a in answers])
    if _usual(answers, lambda a: len(NUMBERED.findall(a)) >= 2):
        yield "Write a numbered list."
    elif _usual(answers, lambda a: len(ITEM.findall(a)) >= 2):
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
    median = sorted(lengths)[len(lengths) // 2]  # not statistics: 0.7 MB that an idle daemon does without
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
    tells = any(word and word not in STOP_WORDS["en"] for word in bare) or len(found) > 1
    return found if tells and not ITEM.match(" ".join(found) + " ") else []


def _without(words: list[str], opening: list[str], closing: list[str]) -> str:
    if opening and words[: len(opening)] == opening:
        words = words[len(opening) :]
    if closing and words[-len(closing) :] == closing:
        words = words[: -len(closing)]
    return " ".join(words)


def _own_words(answers: Sequence[str]) -> list[str]:
    """Return the words, the most usual first, that most answers have although they are about different things."""
    having = Counter(word for a in answers for word in set(re.findall(r"[^\W\d_]+", a.lower())))
    usual = [
        (-n, w) for w, n in having.items() if n >= USUAL * len(answers) and len(w) > 1 and w not in STOP_WORDS["en"]
    ]
    return [word for _, word in sorted(usual)[:MAX_OWN_WORDS]]


def _quoted(words: Sequence[str]) -> str:
    return '"' + " ".join(words).replace('"', "'") + '"'
