"""Where one character of lookahead does not tell how to go on.

The idea: the textbook LL(1) conditions. A rule whose alternatives can start with the same character, or that can be
empty and start with a character that can also follow it, is a conflict; reading is certain everywhere else. Nearly
all grammars that are written from JSON schemas have few conflicts or none, and finding that out takes linear time.
What this does not do: judge conflicts; most are harmless (`growth`).
"""

from __future__ import annotations

from collections.abc import Iterable

from edgepd_daemon.gbnf.reader import Span
from edgepd_daemon.gbnf.rules import CHARACTERS, END, Rules, nullable_rules

Spans = tuple[Span, ...]


class Lookahead:
    """What can come first in the rules of a grammar without left recursion, and which of them are uncertain."""

    def __init__(self, rules: Rules, sites: list[set[int]]) -> None:
        """`sites` are for each rule the positions at which reading goes on after it."""
        self._rules = rules
        self._sites = sites
        self._nullable = nullable_rules(rules)
        self._first: list[Spans] = [()] * len(rules.starts)
        self._unsure: list[bool] = [False] * len(rules.starts)  # the rule or one that it can start with
        for number in self._innermost_first():
            self._judge(number)
        for number, starts in enumerate(rules.starts):
            if self._nullable[number] and not self._unsure[number]:
                own = _joined(span for start in starts for span in self.first_at(start)[0])
                self._unsure[number] = _overlapping([own, self._following(number)])
        self._certain = self._without_conflicts()
        for number in self._innermost_first():
            self._unsure[number] |= any(self._unsure[called] for called in self._called_first(number))

    def first_at(self, position: int) -> tuple[Spans, bool]:
        """Return the characters that can come at a position, and whether its rule can end without any."""
        found: list[Span] = []
        while (kind := self._rules.kinds[position]) != END:
            found += self._rules.spans[position] if kind == CHARACTERS else self._first[kind]
            if kind == CHARACTERS or not self._nullable[kind]:
                return tuple(found), False
            position += 1
        return tuple(found), True

    def unsure_at(self, position: int) -> bool:
        """Return whether what comes at a position can be a conflict."""
        kinds = self._rules.kinds
        while (kind := kinds[position]) >= 0:
            if self._unsure[kind]:
                return True
            if not self._nullable[kind]:
                return False
            position += 1
        return False

    def certain_from(self, position: int) -> bool:
        """Return whether there is no conflict at all from a position to the end of its alternative."""
        kinds = self._rules.kinds
        while (kind := kinds[position]) != END:
            if kind >= 0 and not self._certain[kind]:
                return False
            position += 1
        return True

    def unsure(self, number: int) -> bool:
        """Return whether a rule can start with a conflict."""
        return self._unsure[number]

    def _judge(self, number: int) -> None:
        alternatives = [_joined(self.first_at(start)[0]) for start in self._rules.starts[number]]
        self._first[number] = _joined(span for spans in alternatives for span in spans)
        empty = sum(self.first_at(start)[1] for start in self._rules.starts[number])
        self._unsure[number] = empty > 1 or _overlapping(alternatives)

    def _following(self, number: int) -> Spans:
        """Return the characters that can follow a rule."""
        found: list[Span] = []
        seen = {number}
        todo = [number]
        while todo:
            for site in self._sites[todo.pop()]:
                spans, ends = self.first_at(site)
                found += spans
                owner = self._rules.owners[site]
                if ends and owner not in seen:
                    seen.add(owner)
                    todo.append(owner)
        return _joined(found)

    def _without_conflicts(self) -> list[bool]:
        """Return for each rule whether neither it nor any rule below it is a conflict."""
        callers: list[set[int]] = [set() for _ in self._unsure]
        for position, kind in enumerate(self._rules.kinds):
            if kind >= 0:
                callers[kind].add(self._rules.owners[position])
        certain = [not unsure for unsure in self._unsure]
        todo = [number for number, unsure in enumerate(self._unsure) if unsure]
        while todo:
            for caller in callers[todo.pop()]:
                if certain[caller]:
                    certain[caller] = False
                    todo.append(caller)
        return certain

    def _called_first(self, number: int) -> Iterable[int]:
        for start in self._rules.starts[number]:
            position = start
            while (kind := self._rules.kinds[position]) >= 0:
                yield kind
                if not self._nullable[kind]:
                    break
                position += 1

    def _innermost_first(self) -> list[int]:
        """Return all rules, each after the rules that it can start with; there are no circles among these."""
        order: list[int] = []
        done: set[int] = set()
        for number in range(len(self._rules.starts)):
            todo = [(number, False)]
            while todo:
                current, expanded = todo.pop()
                if expanded:
                    order.append(current)
                elif current not in done:
                    done.add(current)
                    todo.append((current, True))
                    todo += [(called, False) for called in self._called_first(current) if called not in done]
        return order


def _joined(spans: Iterable[Span]) -> Spans:
    found: list[Span] = []
    for low, high in sorted(set(spans)):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def _overlapping(sets: list[Spans]) -> bool:
    spans = sorted(span for each in sets for span in each)
    return any(following[0] <= span[1] for span, following in zip(spans, spans[1:], strict=False))
