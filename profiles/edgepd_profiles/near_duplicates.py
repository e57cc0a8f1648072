"""Which examples say the same thing twice.

The idea: an example is read as two runs of words, the last user message and the response; case, punctuation, spacing
and width of letters do not count. Two are near-duplicates if one is the other with a word replaced, added or left out,
or if they share most of their pairs of adjacent words. A pair of words that a good part of all examples has is style
and does not count in the latter: "In short: ... Over to you!" around two different answers makes nobody's two answers
alike, and must not, or all that such a user ever wrote would be one group with nothing left to judge by.
The invariant: near-duplicates are so in both directions and in any order of the texts, and a prompt alone never makes
two examples alike: what is asked often may be answered in different ways.
What this does not do: see paraphrases, or tell a style from many variants of one text that differ in several words
each. Where they are four or more and a quarter of a small set, what they share is taken for style; where they are
fewer, a style with more boilerplate than content is taken for copies.

Exact overlap over an inverted index is enough here. Sets have at most some thousand examples, and what is frequent,
which is what makes exact comparison quadratic, is left out as style anyway. MinHash, which web corpora need (Lee et al.
2022, arXiv 2107.06499), would save little and miss a pair near the bound now and then, which here is a leak.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

JACCARD = 0.5  # two texts share this part of all their pairs of words, or
CONTAINED = 0.8  # this part of those of the shorter one
MIN_SHARED_OF = 4  # pairs of words below which a text is too short for either
MIN_WORDS_ALONE = 8  # words that a response has at least if it is to count without its prompt
MIN_WORDS_EDITED = 3  # of two words one is most of what is said: replaced, it is another answer
MAX_WORDS_EDITED = 128  # longer texts with a changed word share most pairs of words

# Scripts without spaces between words are read letter by letter: Thai to Lao, Burmese, Khmer, Kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Text:
    """The words of an example, as they are compared."""

    prompt: tuple[str, ...]
    response: tuple[str, ...]


class DisjointSets:
    """The numbers 0 to size - 1 in groups that can be joined."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, n: int) -> int:
        """Return the number that stands for the group of `n`, until the next join."""
        while self._parent[n] != n:
            self._parent[n] = self._parent[self._parent[n]]
            n = self._parent[n]
        return n

    def join(self, a: int, b: int) -> None:
        """Make the groups of `a` and `b` one."""
        self._parent[self.root(a)] = self.root(b)

    def groups(self) -> list[set[int]]:
        """Return all groups, ordered by their smallest numbers."""
        found: dict[int, set[int]] = {}
        for n in range(len(self._parent)):
            found.setdefault(self.root(n), set()).add(n)
        return list(found.values())


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text without case and punctuation; of one that has none, what stands between spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(folded)) or tuple(folded.split())


def read(prompt: str, response: str) -> Text:
    """Return an example as it is compared."""
    return Text(words(prompt), words(response))


def joined(texts: Sequence[Text]) -> DisjointSets:
    """Return the texts' positions in groups: near-duplicates are together, and so are theirs."""
    sets = _edited(texts)
    frequency = _frequency(texts, sets)
    style = _style(frequency, len(sets.groups()))
    distinct = list({text: n for n, text in enumerate(texts)}.values())  # equal ones are joined by now
    content = {n: _content(texts[n], style) for n in distinct}
    for compared in (
        {n: prompt | response for n, (prompt, response) in content.items()},
        {n: response for n, (_, response) in content.items()},
    ):
        for n, m in _candidates(compared, frequency):
            if sets.root(m) != sets.root(n) and _share_most(texts[n], texts[m], content[n], content[m]):
                sets.join(n, m)
    return sets


def _candidates(compared: Mapping[int, Set[Pair]], frequency: Mapping[Pair, int]) -> Iterator[tuple[int, int]]:
    """Yield, among others, all of which `_most` is true.

    That takes two thirds of the smaller one's pairs of words at least, as follows from JACCARD. So of any third and one
    more, the two share one; the rarest find the fewest others.
    """
    having: dict[Pair, list[int]] = {}
    for n in sorted(compared, key=lambda n: -len(compared[n])):
        rarest = sorted(compared[n], key=lambda pair: (frequency[pair], pair))[: len(compared[n]) // 3 + 1]
        yield from ((n, m) for m in {m for pair in rarest for m in having.get(pair, ())})
        for pair in compared[n]:
            having.setdefault(pair, []).append(n)


def style_of(texts: Sequence[Text]) -> frozenset[Pair]:
    """Return the pairs of words that are style: those in a quarter of the texts, or in many (see `_style`)."""
    sets = _edited(texts)
    return _style(_frequency(texts, sets), len(sets.groups()))


def alike(a: Text, b: Text, style: Set[Pair]) -> bool:
    """Say whether two texts are near-duplicates among texts with this style."""
    if not set(_edit_keys(a)).isdisjoint(_edit_keys(b)):
        return True
    return _share_most(a, b, _content(a, style), _content(b, style))


def _edited(texts: Sequence[Text]) -> DisjointSets:
    """Join the texts of which one is the other with at most one word replaced, added or left out."""
    sets = DisjointSets(len(texts))
    first: dict[int, int] = {}
    for n, text in enumerate(texts):
        for key in _edit_keys(text):
            sets.join(n, first.setdefault(key, n))
    return sets


def _edit_keys(text: Text) -> Iterator[int]:
    """Yield the hash of a text and those of it with each one of its words left out.

    Two texts have one in common exactly if at most one word is to be replaced, added or left out between them, their
    order apart (and hashes of 61 bits, which are as good as the words themselves).
    """
    prompt, response = (sum(map(hash, part)) for part in (text.prompt, text.response))
    yield hash((prompt, response))
    if len(text.response) >= MIN_WORDS_EDITED and len(text.prompt) + len(text.response) <= MAX_WORDS_EDITED:
        for word in {*text.prompt}:
            yield hash((prompt - hash(word), response))
        for word in {*text.response}:
            yield hash((prompt, response - hash(word)))


def _frequency(texts: Sequence[Text], edited: DisjointSets) -> Counter[Pair]:
    """Return in how many of the groups each pair of words is found.

    Groups and not texts are counted: a text that was copied ten times with a changed word has ten times the same, but
    it is no style.
    """
    found: Counter[Pair] = Counter()
    for group in edited.groups():
        found.update({pair for n in group for part in (texts[n].prompt, texts[n].response) for pair in _pairs(part)})
    return found


def _style(frequency: Counter[Pair], groups: int) -> frozenset[Pair]:
    """Return the pairs of words that a quarter of the groups have, or of more than 32 groups eight, or a tenth.

    They must be four groups at least, so that a text and two copies of it are never a style. In a large set what a few
    have in common may count as copies, since leaving all of them on one side costs little there.
    """
    bound = max(4, min(math.ceil(groups / 4), max(8, groups // 10)))
    return frozenset(pair for pair, count in frequency.items() if count >= bound)


def _pairs(part: Sequence[str]) -> Iterator[Pair]:
    return zip(part, part[1:], strict=False)


def _content(text: Text, style: Set[Pair]) -> tuple[set[Pair], set[Pair]]:
    """Return the pairs of words of prompt and response that are not style."""
    return set(_pairs(text.prompt)) - style, set(_pairs(text.response)) - style


def _share_most(
    a: Text, b: Text, content_a: tuple[set[Pair], set[Pair]], content_b: tuple[set[Pair], set[Pair]]
) -> bool:
    """Say whether the texts share most of their content, and the responses alone at least some of it.

    Responses that are long enough may be enough by themselves.
    """
    (prompt_a, response_a), (prompt_b, response_b) = content_a, content_b
    if min(len(a.response), len(b.response)) >= MIN_WORDS_ALONE and _most(response_a, response_b):
        return True
    if response_a and response_b:
        agree = 3 * len(response_a & response_b) >= min(len(response_a), len(response_b))
    else:
        agree = a.response == b.response
    return agree and _most(prompt_a | response_a, prompt_b | response_b)


def _most(a: set[Pair], b: set[Pair]) -> bool:
    shorter = min(len(a), len(b))
    if shorter < MIN_SHARED_OF:
        return False
    shared = len(a & b)
    return shared >= JACCARD * (len(a) + len(b) - shared) or shared >= CONTAINED * shorter
