"""GBNF text as a program of rules, with everything refused that llama.cpp does not survive.

The idea: read a grammar exactly as llama.cpp's parser does (`src/llama-grammar.cpp`) and rewrite repetitions as it
does, so that what is checked here is what runs there. Seen with llama-cpp-python 0.3.36: a rule that calls itself
first through a rule that may be empty hangs (its own check misses most of these), so does `{5,2}`; 100,000 nested
parentheses or rules overflow the C stack; a character class that no character is in ends the whole process when
sampling reaches it; `{0,5000}` silently means no limit.
The invariant: a `Rules` that is returned has a root, no undefined rule, no left recursion, only classes that
contain a character, and bounded size and depth. What this does not do: judge how ambiguous it is (`growth`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepd.errors import RequestError
from edgepd_daemon.gbnf.reader import Reader, Span

MAX_TEXT_BYTES = 512 * 1024
MAX_NESTING = 64
MAX_REPETITIONS = 2000  # above, llama.cpp takes an upper bound for none at all and refuses a lower one
MAX_ELEMENTS = 200_000  # of all rules after repetitions are written out; each costs llama.cpp 8 bytes, us about 100
MAX_LEFT_DEPTH = 4000  # llama.cpp recurses along first rules, about 200 bytes of C stack for each

END = -1  # kinds of elements that are not calls; a call is the number of the rule
CHARACTERS = -2


@dataclass
class Rules:
    """Rules as one list of elements. A position is an index into it; an alternative runs up to an END."""

    kinds: list[int] = field(default_factory=list)  # END, CHARACTERS or the number of the rule that is called
    spans: list[tuple[Span, ...]] = field(default_factory=list)  # the characters allowed, sorted and disjoint
    owners: list[int] = field(default_factory=list)  # the rule that an element belongs to
    starts: list[list[int]] = field(default_factory=list)  # of each rule: where its alternatives start
    names: list[str] = field(default_factory=list)
    root: int = 0


Element = int | tuple[Span, ...]  # a call or a set of characters
Alternatives = list[list[Element]]


def read_rules(text: str) -> Rules:
    """Return the rules of a grammar. Raises RequestError with what is wrong and where."""
    raw = text.encode("utf-8", errors="ignore")
    if len(raw) > MAX_TEXT_BYTES:
        raise RequestError(f"the grammar is larger than {MAX_TEXT_BYTES // 1024} KiB; make it simpler")
    if raw.decode() != text or "\0" in text:
        raise RequestError("the grammar contains a character that cannot occur in text: a surrogate or NUL")
    rules = _Parser(text).parse()
    _refuse_left_recursion(rules)
    return rules


class _Parser:
    """Recursive descent over the text, as in llama.cpp."""

    def __init__(self, text: str) -> None:
        self._in = Reader(text)
        self._numbers: dict[str, int] = {}
        self._bodies: list[Alternatives | None] = []
        self._names: list[str] = []
        self._elements = 0

    def parse(self) -> Rules:
        self._in.skip_space(newlines=True)
        while not self._in.at_end:
            self._rule()
        if "root" not in self._numbers:
            raise RequestError("the grammar has no rule `root`; add one, the answer starts there")
        rules = Rules(names=self._names, root=self._numbers["root"])
        for number, body in enumerate(self._bodies):
            if body is None:
                raise RequestError(f"the grammar uses the rule `{self._names[number]}` but does not define it")
            rules.starts.append([_append(rules, number, sequence) for sequence in body])
        return rules

    def _rule(self) -> None:
        number = self._number(self._in.name())
        self._in.skip_space(newlines=False)
        self._in.expect("::=")
        self._in.skip_space(newlines=True)
        self._bodies[number] = self._alternatives(0)
        if not self._in.at_end:
            self._in.expect_newline()
        self._in.skip_space(newlines=True)

    def _alternatives(self, depth: int) -> Alternatives:
        found = [self._sequence(depth)]
        while self._in.take("|"):
            self._in.skip_space(newlines=True)
            found.append(self._sequence(depth))
        return found

    def _sequence(self, depth: int) -> list[Element]:
        sequence: list[Element] = []
        last = 0  # where the item starts that a repetition is about
        while (item := self._item(depth)) is not None or self._in.peek() in tuple("*+?{"):
            if item is not None:
                last = len(sequence)
                sequence += item
            else:
                self._repeat(sequence, last)
            self._count(len(item or ()))
            self._in.skip_space(newlines=depth > 0)
        return sequence

    def _item(self, depth: int) -> list[Element] | None:
        """Return the elements of a literal, a class, a call or a group; None if something else follows."""
        reader = self._in
        if reader.take('"'):
            return list(reader.literal())
        if reader.take("["):
            return [reader.character_class()]
        if reader.take("."):
            return [reader.any_character()]
        if reader.take("("):
            if depth >= MAX_NESTING:
                raise reader.error(f"more than {MAX_NESTING} nested parentheses")
            reader.skip_space(newlines=True)
            inner = self._alternatives(depth + 1)
            reader.expect(")")
            return [self._new_rule(inner)]
        if reader.peek() in ("<", "!"):
            raise reader.error("references to tokens are not supported; write the text of the token")
        return [self._number(reader.name())] if reader.at_name else None

    def _repeat(self, sequence: list[Element], last: int) -> None:
        """Rewrite the last item of the sequence for the repetition that follows, as llama.cpp does."""
        least, most = self._in.repetition(MAX_REPETITIONS)
        item = sequence[last:]
        if not item:
            raise self._in.error("a repetition of nothing")
        self._count(len(item) * (least + (most - least if most is not None else 1)))
        sequence[last:] = item * least
        rest: int | None = None
        for _ in range(1 if most is None else most - least):
            tail: list[Element] = [] if rest is None else [rest]
            rest = self._new_rule([item + tail, []])
            if most is None:
                self._bodies[rest] = [[*item, rest], []]
        if rest is not None:
            sequence.append(rest)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new_rule(None, name)
        return self._numbers[name]

    def _new_rule(self, body: Alternatives | None, name: str = "( )") -> int:
        self._count(1)
        self._bodies.append(body)
        self._names.append(name)
        return len(self._bodies) - 1

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise RequestError("the grammar is too large once its repetitions are written out; make them smaller")


def _append(rules: Rules, owner: int, sequence: list[Element]) -> int:
    start = len(rules.kinds)
    for element in [*sequence, None]:
        kind = END if element is None else element if isinstance(element, int) else CHARACTERS
        rules.kinds.append(kind)
        rules.spans.append(element if isinstance(element, tuple) else ())
        rules.owners.append(owner)
    return start


def nullable_rules(rules: Rules) -> list[bool]:
    """Return for each rule whether it can be empty."""
    nullable = [False] * len(rules.starts)
    waiting: dict[int, list[int]] = {}  # rule -> positions of calls of it that come first in an alternative so far
    todo = [start for starts in rules.starts for start in starts]
    while todo:
        position = todo.pop()
        while (kind := rules.kinds[position]) >= 0 and nullable[kind]:
            position += 1
        owner = rules.owners[position]
        if kind >= 0:
            waiting.setdefault(kind, []).append(position)
        elif kind == END and not nullable[owner]:
            nullable[owner] = True
            todo += waiting.pop(owner, [])
    return nullable


def _refuse_left_recursion(rules: Rules) -> None:
    """Follow the calls that a rule can make before it has read a character; none may lead back, or too far."""
    nullable = nullable_rules(rules)
    first: list[set[int]] = [set() for _ in rules.starts]
    for number, starts in enumerate(rules.starts):
        for start in starts:
            position = start
            while (kind := rules.kinds[position]) >= 0:
                first[number].add(kind)
                if not nullable[kind]:
                    break
                position += 1
    depths: dict[int, int] = {}  # rules that are done
    for number in range(len(first)):
        path = [(number, iter(first[number]))] if number not in depths else []
        on_path = {number}
        while path:
            current, rest = path[-1]
            following = next((f for f in rest if f not in depths), None)
            if following is None:
                depths[current] = 1 + max((depths[f] for f in first[current]), default=0)
                on_path.discard(current)
                path.pop()
            elif following in on_path:
                numbers = [number for number, _ in path]
                circle = numbers[numbers.index(following) :]
                raise RequestError(
                    f"the grammar's rule `{_shown(rules, circle)}` can call itself before it has read anything;"
                    " rewrite left recursion as a repetition, and repeat nothing that can be empty"
                )
            else:
                path.append((following, iter(first[following])))
                on_path.add(following)
    if max(depths.values()) > MAX_LEFT_DEPTH:
        raise RequestError(f"the grammar's rules call each other more than {MAX_LEFT_DEPTH} deep; make it simpler")


def _shown(rules: Rules, numbers: list[int]) -> str:
    """Return the name of the first of the rules that has one."""
    return next((rules.names[n] for n in numbers if rules.names[n] != "( )"), "root")
