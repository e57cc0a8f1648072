"""Whether llama.cpp can follow a grammar without drowning in the ways to read what has been written so far.

The idea: llama.cpp keeps one stack of positions for each way to read the text, and to judge a token it walks along
every path through the token's characters. `root ::= "a" root "b" | "a" root "c" | "a"` doubles the stacks with each
"a", and `(" "+)*` doubles the paths through a token of 64 spaces: both freeze the engine for good. So before a
grammar gets there, every place where one character can be read in two ways is followed here: over all texts until
the ways have come together again or exceed `MAX_STACKS`, and over repetitions of one character, which long tokens
consist of, until they exceed `MAX_PATHS`. A stack holds positions, the top first; what is below the place where the
ways parted is unknown and filled in, for all of them alike, when one of them returns to it.
The invariant: whatever is accepted has a bounded number of stacks. What this does not do: accept every harmless
grammar; one that takes more than `MAX_STEPS` to judge is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edgepd.errors import RequestError
from edgepd_daemon.gbnf.lookahead import Lookahead
from edgepd_daemon.gbnf.reader import Span
from edgepd_daemon.gbnf.rules import CHARACTERS, END, Rules

MAX_STACKS = 500  # live at once; each costs a walk over the vocabulary, about 1 ms for 50,000 tokens
MAX_PATHS = 20_000  # through one token; llama.cpp walks about a million in a second
MAX_RUN = 40  # characters of a token of one repeated character that are followed
MAX_HEIGHT = 32  # of ways that parted; what doubles at every few levels exceeds MAX_STACKS before
MAX_STEPS = 500_000  # one or two seconds; ordinary schemas take a hundredth of it

Stack = tuple[int, ...]
Stacks = frozenset[Stack]


def refuse_growth(rules: Rules) -> None:
    """Raise RequestError if the stacks or paths of these rules can grow without a sensible bound."""
    _Growth(rules).judge()


class _Growth:
    """The state of a judgement."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._steps = 0
        self._sites = _return_sites(rules)
        self._ahead = Lookahead(rules, self._sites)
        bounds = {bound for spans in set(rules.spans) for low, high in spans for bound in (low, high + 1)}
        self._bounds = sorted(bounds)

    def judge(self) -> None:
        forks = self._forks()
        if forks and not self._has_few_stacks():
            self._explore(forks)

    def _forks(self) -> list[Stacks]:
        """Return what follows after each place where one character can be read in several ways."""
        forks: list[Stacks] = []
        for start in self._starts():
            for variant in self._settle(start, 0):
                for low, high, stacks in self._partings(variant):
                    forks.append(stacks)
                    for character in self._characters(low, high):
                        self._count_paths(Counter(variant), character, MAX_RUN)
        return forks

    def _starts(self) -> Iterable[Stacks]:
        """Yield the beginning and each place behind a character or a call, where it is not certain how to go on."""
        kinds, root = self._rules.kinds, self._rules.root
        if self._ahead.unsure(root):
            yield frozenset((start,) for start in self._rules.starts[root])
        for position in range(1, len(kinds)):
            if kinds[position] >= 0 and kinds[position - 1] != END and self._ahead.unsure_at(position):
                yield frozenset([(position,)])

    def _explore(self, forks: list[Stacks]) -> None:
        """Follow ways that parted over all texts."""
        seen: set[Stacks] = set()
        todo = list(forks)
        while todo:
            stacks = self._past_what_is_common(_trimmed(todo.pop()))
            if stacks in seen or max(map(len, stacks)) > MAX_HEIGHT:
                continue
            seen.add(stacks)
            for variant in self._settle(stacks, 0):
                todo += [following for _, _, following in self._partings(variant)]

    def _past_what_is_common(self, stacks: Stacks) -> Stacks:
        """Skip what all of the ways read alike and at the end of which they are certain to arrive together."""
        some = next(iter(stacks))
        shortest = min(map(len, stacks))
        common = 0
        while (
            common + 1 < shortest
            and all(stack[common] == some[common] for stack in stacks)
            and self._ahead.certain_from(some[common])
        ):
            common += 1
        return frozenset(stack[common:] for stack in stacks)

    def _has_few_stacks(self) -> bool:
        """Return whether there are few stacks in all, as in a grammar without recursion."""
        seen: set[Stack] = set()
        todo: list[Stack] = [(start,) for start in self._rules.starts[self._rules.root]]
        while todo:
            for stack in self._expand(todo.pop())[0]:
                if stack not in seen:
                    seen.add(stack)
                    todo.append(_advanced(stack))
            if len(seen) > MAX_STACKS:
                return False
        return True

    def _settle(self, stacks: Stacks, depth: int) -> list[Stacks]:
        """Return the stacks that have a character on top, once for each context that makes a difference."""
        settled: set[Stack] = set()
        ended: set[int] = set()
        for stack in stacks:
            tops, ends = self._expand(stack)
            settled |= tops
            ended |= ends
        if len(settled) > MAX_STACKS:
            raise _too_ambiguous()
        variants = [frozenset(settled)]
        if ended and depth < MAX_HEIGHT:
            tops_spans = [span for stack in settled for span in self._rules.spans[stack[0]]]
            for site in self._contexts(settled, ended):
                spans, ends_too = self._ahead.first_at(site)
                if ends_too or _overlap(spans, tops_spans):
                    below = frozenset({*(stack + (site,) for stack in settled), (site,)})
                    variants += self._settle(below, depth + 1)
        return variants

    def _contexts(self, settled: Iterable[Stack], ended: Iterable[int]) -> set[int]:
        """Return the positions to which all of these can return."""
        owners = {*ended, *(self._rules.owners[stack[-1]] for stack in settled)}
        return set.intersection(*(self._sites[owner] for owner in owners))

    def _expand(self, stack: Stack) -> tuple[set[Stack], set[int]]:
        """Follow calls and returns up to characters; also return the rules that ended with nothing known below."""
        kinds, owners, starts = self._rules.kinds, self._rules.owners, self._rules.starts
        tops: set[Stack] = set()
        ended: set[int] = set()
        seen: set[Stack] = set()
        todo = [stack]
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen.add(current)
            self._spend()
            position, below = current[0], current[1:]
            kind = kinds[position]
            if kind == CHARACTERS:
                tops.add(current)
            elif kind != END:
                below = below if kinds[position + 1] == END else (position + 1, *below)
                todo += [(start, *below) for start in starts[kind]]
            elif below:
                todo.append(below)
            else:
                ended.add(owners[position])
        return tops, ended

    def _partings(self, stacks: Stacks) -> list[tuple[int, int, Stacks]]:
        """Return for each range of characters that several stacks can read what is left of them behind it."""
        if len(stacks) < 2:
            return []
        events: list[tuple[int, bool, Stack]] = []
        for stack in stacks:
            for low, high in self._rules.spans[stack[0]]:
                events += [(low, True, stack), (high + 1, False, stack)]
        events.sort(key=lambda event: event[0])
        found: dict[Stacks, tuple[int, int]] = {}
        open_now: set[Stack] = set()
        for index, (bound, opens, stack) in enumerate(events):
            (open_now.add if opens else open_now.discard)(stack)
            following = events[index + 1][0] if index + 1 < len(events) else bound
            if following > bound and len(open_now) > 1:
                self._spend(len(open_now))
                found.setdefault(frozenset(open_now), (bound, following - 1))
        return [(low, high, frozenset(map(_advanced, group))) for group, (low, high) in found.items()]

    def _characters(self, low: int, high: int) -> list[int]:
        """Return one character for each part of the range that the grammar tells apart."""
        return [low, *(bound for bound in self._bounds if low < bound <= high)]

    def _count_paths(self, paths: Counter[Stack], character: int, left: int) -> None:
        """Read the same character again and again and count the paths through it."""
        while left > 0 and paths:
            left -= 1
            following: Counter[Stack] = Counter()
            ended: Counter[int] = Counter()
            for stack, count in paths.items():
                if _contains(self._rules.spans[stack[0]], character):
                    tops, ends = self._expand(_advanced(stack))
                    following.update(dict.fromkeys(tops, count))
                    ended.update(dict.fromkeys(ends, count))
            if following.total() + ended.total() > MAX_PATHS:
                raise _too_ambiguous()
            for site in self._contexts(following, ended) if ended and following else ():
                self._count_below(following, ended.total(), site, character, left)
            paths = following

    def _count_below(self, paths: Counter[Stack], ended: int, site: int, character: int, left: int) -> None:
        """Go on counting with some of the paths returned to `site`."""
        spans, _ = self._ahead.first_at(site)
        if _contains(spans, character):
            below = Counter({stack + (site,): count for stack, count in paths.items()})
            below.update(dict.fromkeys(self._expand((site,))[0], ended))
            self._count_paths(below, character, left)

    def _spend(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise _too_ambiguous()


def _return_sites(rules: Rules) -> list[set[int]]:
    """Return for each rule the positions at which reading can go on after it; a call at the end returns further."""
    sites: list[set[int]] = [set() for _ in rules.starts]
    last_in: list[set[int]] = [set() for _ in rules.starts]  # for each rule: the rules that it ends with
    for position, kind in enumerate(rules.kinds):
        if kind < 0:
            continue
        if rules.kinds[position + 1] == END:
            last_in[rules.owners[position]].add(kind)
        else:
            sites[kind].add(position + 1)
    todo = list(range(len(sites)))
    while todo:
        number = todo.pop()
        for called in last_in[number]:
            if not sites[number] <= sites[called]:
                sites[called] |= sites[number]
                todo.append(called)
    return sites


def _advanced(stack: Stack) -> Stack:
    return (stack[0] + 1, *stack[1:])


def _trimmed(stacks: Stacks) -> Stacks:
    """Drop the positions at the bottom that all stacks share."""
    shortest = min(map(len, stacks))
    shared = 0
    some = next(iter(stacks))
    while shared + 1 < shortest and all(stack[-1 - shared] == some[-1 - shared] for stack in stacks):
        shared += 1
    return frozenset(stack[: len(stack) - shared] for stack in stacks)


def _overlap(some: Iterable[Span], others: Iterable[Span]) -> bool:
    others = list(others)
    return any(low <= end and start <= high for low, high in some for start, end in others)


def _contains(spans: Iterable[Span], character: int) -> bool:
    return any(low <= character <= high for low, high in spans)


def _too_ambiguous() -> RequestError:
    return RequestError(
        "the grammar is too ambiguous, or too large to tell: the same text can be read in too many ways;"
        " let alternatives start with different characters and do not repeat what is already a repetition"
    )
