"""Questions whose answers a program can check: what a model must not lose while it learns one person's ways.

The idea: short prompts, half of them about the form of the answer, half about plain knowledge and sums, each with
checks that decide alone (IFEval, Zhou et al. 2023, arXiv 2311.07911; the prompts here are our own). The share of them
that the base answers well is compared with the candidate's. A base of 135M parameters gets about half, so that there is
something to lose.
Invariants: a check is a pure function of the answer; the same answers always get the same share; a prompt with a check
that is not known, or with wrong arguments, is an error when the file is read and not a prompt that always fails.
What this does not do: generate the answers, or judge whether a free answer is good.
"""

from __future__ import annotations

import importlib.resources
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgepd.errors import EdgepdError


@dataclass(frozen=True)
class VerifiablePrompt:
    """A question, and (kind, arguments) of each check that its answer must pass."""

    id: str
    prompt: str
    checks: tuple[tuple[str, dict[str, Any]], ...]

    def passes(self, answer: str, ended: bool) -> bool:
        """Say whether `answer` passes all checks. `ended`: the model ended it and it was not cut at a length limit.

        An answer that was cut fails the checks of what its end or its whole must be, whatever it looks like.
        """
        return all(
            (ended or kind not in _NEED_THE_END) and CHECKS[kind](answer.strip(), **arguments)
            for kind, arguments in self.checks
        )


def prompts() -> list[VerifiablePrompt]:
    """Return the bundled prompts, form and knowledge in turn, so that the first few are not all alike."""
    source = importlib.resources.files("edgepd.adapt").joinpath("data", "verifiable.jsonl")
    return parse(source.read_text(encoding="utf-8"))


def parse(text: str) -> list[VerifiablePrompt]:
    """Read prompts from lines of JSON: {"id", "prompt", "checks": [{"kind", argument: value, ...}, ...]}.

    Raises EdgepdError, with the number of the line, for a line of another form, an unknown check or wrong arguments.
    """
    found = [_prompt(line, number) for number, line in enumerate(text.splitlines(), 1)]
    if len({prompt.id for prompt in found}) < len(found):
        raise EdgepdError("verifiable prompts: two of them have the same id; give each its own")
    return found


def _prompt(line: str, number: int) -> VerifiablePrompt:
    try:
        row = json.loads(line)
        checks = [(check["kind"], {k: v for k, v in check.items() if k != "kind"}) for check in row["checks"]]
        prompt = VerifiablePrompt(row["id"], row["prompt"], tuple(checks))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgepdError(
            f"verifiable prompts: line {number} is not a prompt with id, prompt and checks: {error!r}"
        ) from error
    if not checks:
        raise EdgepdError(f"verifiable prompts: line {number} has no checks; every answer would pass")
    for kind, arguments in checks:
        if kind not in CHECKS:
            raise EdgepdError(
                f"verifiable prompts: line {number}: unknown check {kind!r}; known are {', '.join(sorted(CHECKS))}"
            )
        try:
            inspect.signature(CHECKS[kind]).bind("", **arguments)
        except TypeError as error:
            raise EdgepdError(f"verifiable prompts: line {number}: check {kind!r}: {error}") from error
    return prompt


def contains(answer: str, *, any_of: Sequence[str]) -> bool:
    """One of these occurs as a whole word or phrase, upper or lower case alike."""
    return any(_occurs(phrase, answer) for phrase in any_of)


def contains_all(answer: str, *, words: Sequence[str]) -> bool:
    """Each of these occurs as a whole word or phrase."""
    return all(_occurs(word, answer) for word in words)


def lacks(answer: str, *, text: str) -> bool:
    """The text, a letter or a word, does not occur, upper or lower case alike; and there is an answer."""
    return bool(answer) and text.lower() not in answer.lower()


def is_one_of(answer: str, *, any_of: Sequence[str]) -> bool:
    """The whole answer is one of these, apart from case, quotation marks and punctuation around it."""
    return _bare(answer) in {_bare(phrase) for phrase in any_of}


def number(answer: str, *, value: float) -> bool:
    """The last number in the answer is this: a model may work towards its result."""
    numbers = re.findall(r"-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?", answer)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == value


def lower_case(answer: str) -> bool:
    """There are letters, and none of them is a capital."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """There are letters, and all of them are capitals."""
    return answer.isupper()


def starts_with(answer: str, *, text: str) -> bool:
    """The answer begins with this text, upper or lower case alike."""
    return answer.lower().startswith(text.lower())


def ends_with(answer: str, *, text: str) -> bool:
    """The answer ends with this text, apart from case and from punctuation after it."""
    return _bare(answer).endswith(_bare(text))


def quoted(answer: str) -> bool:
    """The answer stands in quotation marks."""
    return len(answer) > 2 and (answer[0], answer[-1]) in {('"', '"'), ("“", "”"), ("'", "'")}


def list_items(answer: str, *, count: int) -> bool:
    """The answer has exactly this many lines that are numbered or begin with a bullet."""
    return len(re.findall(r"^[ \t]*(?:[-*•]|[0-9]{1,2}[.)])[ \t]+\S", answer, re.MULTILINE)) == count


def lines(answer: str, *, count: int) -> bool:
    """The answer has exactly this many lines that are not empty."""
    return sum(bool(line.strip()) for line in answer.splitlines()) == count


def words(answer: str, *, most: int, least: int = 1) -> bool:
    """The answer has between `least` and `most` words."""
    return least <= len(answer.split()) <= most


def sentences(answer: str, *, most: int, least: int = 1) -> bool:
    """The answer has between `least` and `most` sentences, as counted by their closing marks."""
    pieces = [piece for piece in re.split(r"(?<=[.!?])[\"')\]]*(?:\s+|$)", answer) if piece.strip()]
    return least <= len(pieces) <= most


def json_object(answer: str, *, key: str, value: Any = None) -> bool:
    """The answer is a JSON object, perhaps in a code fence, that has this key, with this value if one is given."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return isinstance(found, dict) and key in found and value in (None, found[key])


def repeats(answer: str, *, text: str) -> bool:
    """The answer is this text word for word, perhaps in quotation marks."""
    return answer.strip("\"'“” \n") == text


def commas(answer: str, *, count: int) -> bool:
    """The answer has exactly this many commas."""
    return answer.count(",") == count


def _occurs(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None


def _bare(text: str) -> str:
    return text.lower().strip("\"'“”‘’`*.,:;!?()[] \t\n")


CHECKS: Mapping[str, Callable[..., bool]] = MappingProxyType(
    {
        check.__name__: check
        for check in (contains, contains_all, lacks, is_one_of, number, lower_case, upper_case, starts_with, ends_with)
        + (quoted, list_items, lines, words, sentences, json_object, repeats, commas)
    }
)
# A cut answer has shown what it starts with or contains, but not that it is short, or whole, or how it ends.
_NEED_THE_END = frozenset(CHECKS) - {"contains", "contains_all", "starts_with"}
