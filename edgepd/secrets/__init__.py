"""Find secrets in text: keys, tokens, passwords, card and account numbers, before a model can learn them.

The idea: a table of rules, each a pattern for candidates and a check that says which part of a candidate is secret, if
any: a checksum where the format has one (cards, IBAN), the look of the value where it has none. What stands behind a
label ("password:", "my PIN is") may look ordinary; what stands alone must look random.
Invariants: only the secret itself is reported, without its label. Spans are in order and do not overlap. The time is
linear in the length of the text: repetitions are bounded or possessive, and a candidate starts only where a run starts.
What this does not do: find names, addresses or other personal data; a password of plain words in running text; a key
of hexadecimal digits without a label, which looks like a commit hash; a phrase of recovery words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from edgepd.secrets.tables import (
    ABOUT_PASSWORDS,
    BEFORE_ON_LINE,
    CARD_NUMBER,
    EXPRESSION,
    IBAN_LENGTHS,
    LABELLED,
    MODEL_NAME,
    NOT_ACCOUNTS,
    NOT_VALUES,
    PIN,
    PLACEHOLDER,
    PUBLIC,
    QUANTITY,
    RUNS,
    SYMBOL,
)


class Secret(NamedTuple):
    """A secret at text[start:end]. `kind` is the name of the rule that found it."""

    kind: str
    start: int
    end: int


class _Rule(NamedTuple):
    kind: str
    pattern: str  # compiled at the first use, by `re` itself: together they are 0.7 MB
    check: Callable[[re.Match[str]], tuple[int, int] | None]  # the span that is secret


def find(text: str) -> list[Secret]:
    """Return the secrets in `text`, first to last. Where rules overlap, their union counts as the first rule's kind."""
    found = []
    for rank, rule in enumerate(_RULES):
        for match in re.compile(rule.pattern).finditer(text):
            span = rule.check(match)
            if span is not None:
                found.append((*span, rank))
    merged: list[tuple[int, int, int]] = []
    for start, end, rank in sorted(found):
        if merged and start < merged[-1][1]:
            first, last, other = merged[-1]
            merged[-1] = (first, max(last, end), min(other, rank))
        else:
            merged.append((start, end, rank))
    return [Secret(_RULES[rank].kind, start, end) for start, end, rank in merged]


def scrub(text: str) -> str:
    """Return `text` with "[<kind>]" in the place of each secret, such as "my PIN is [labelled secret]"."""
    parts, end = [], 0
    for secret in find(text):
        parts += [text[end : secret.start], f"[{secret.kind}]"]
        end = secret.end
    return "".join([*parts, text[end:]])


def entropy(text: str) -> float:
    """Return the Shannon entropy of the characters of `text` in bits per character (Shannon 1948, eq. for H)."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def luhn(digits: str) -> bool:
    """Say whether the last of `digits` is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def mod97(account: str) -> bool:
    """Say whether the check digits of an IBAN, written without spaces, are right (ISO 7064, MOD 97-10)."""
    return int("".join(str(int(c, 36)) for c in account[4:] + account[:4])) % 97 == 1


def _secret_group(match: re.Match[str]) -> tuple[int, int]:
    return match.span("secret")


def _if_mixed(match: re.Match[str]) -> tuple[int, int] | None:
    """Accept what follows a known prefix if it has a digit and varies: `sk-learn-pipelines` does not."""
    value = match["secret"]
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return match.span() if mixed and entropy(value) >= 2.5 and max(map(len, re.split(r"[-_.]", value))) >= 10 else None


def _if_card(match: re.Match[str]) -> tuple[int, int] | None:
    digits = re.sub("[ -]", "", match[0])
    return match.span() if CARD_NUMBER.fullmatch(digits) and luhn(digits) else None


def _if_iban(match: re.Match[str]) -> tuple[int, int] | None:
    """Cut the candidate at the length that its country uses, because upper-case words may follow it."""
    length, end = IBAN_LENGTHS.get(match[0][:2], 0), match.start()
    while length and end < match.end():
        length -= match.string[end] != " "
        end += 1
    if length or end == match.start():
        return None
    if end < match.end() and match.string[end] != " ":
        return None
    return (match.start(), end) if mod97(match.string[match.start() : end].replace(" ", "")) else None


def _if_account(match: re.Match[str]) -> tuple[int, int] | None:
    """Accept name:password@host without a scheme, which is otherwise an address (`Cc:anna@...`) or an image tag."""
    secret = match["secret"]
    mixed = any(c.isdigit() for c in secret) and any(c.isalpha() for c in secret)
    return match.span("secret") if mixed and not NOT_ACCOUNTS.fullmatch(match["name"]) else None


def _if_random(match: re.Match[str]) -> tuple[int, int] | None:
    """Accept a long run that is neither words nor a number in base 16: keys of unknown makers."""
    value = match["secret"]
    if PUBLIC.match(value):
        return None
    pieces = [piece for piece in re.split(r"[^A-Za-z0-9]", value) if len(piece) >= 16]
    return match.span("secret") if any(map(_looks_random, pieces)) else None


def _looks_random(piece: str) -> bool:
    """Say whether letters and digits change too often for a name: words are longer than random runs."""
    runs = RUNS.findall(piece)
    digits = sum(c.isdigit() for c in piece)
    if not 2 <= digits <= len(piece) - 5 or re.fullmatch("[0-9a-f]+|[0-9A-F]+", piece):
        return False
    return len(piece) / len(runs) <= 2.9 and entropy(piece) >= 3.2


def _if_product_key(match: re.Match[str]) -> tuple[int, int] | None:
    mixed = sum(c.isdigit() for c in match[0]) >= 3 and sum(c.isalpha() for c in match[0]) >= 3
    return match.span() if mixed and not re.fullmatch("[0-9A-F-]+", match[0]) else None


def _if_labelled(match: re.Match[str]) -> tuple[int, int] | None:
    """Accept the value behind a label if it looks like one: quoted, with a digit, or alone on its line."""
    kind = next(name for name in ("word", "key", "pin", "codeword") if match[name])
    if match["quoted"] is not None:
        start, value = match.start("quoted"), match["quoted"]
    else:
        start, value = match.start("bare"), match["bare"].rstrip(".,;:!?)*")
    if len(value) < 3 or PLACEHOLDER.fullmatch(value) or (kind != "pin" and QUANTITY.fullmatch(value)):
        return None
    if match["quoted"] is not None:
        plausible = _plausible_quoted(kind, value)
    else:
        plausible = not EXPRESSION.fullmatch(value) and _plausible_bare(kind, value, match)
    return (start, start + len(value)) if plausible else None


def _plausible_quoted(kind: str, value: str) -> bool:
    if kind == "pin":
        return PIN.fullmatch(value) is not None
    if kind == "key":
        return len(value) >= 8 and _has_digit_and_letter(value) and " " not in value
    # A sentence between quotation marks is a label or a message of a program.
    if len(value) < 4 or (" " in value and value != value.lower()):
        return False
    return not ABOUT_PASSWORDS.search(value) and not NOT_VALUES.fullmatch(value)


def _plausible_bare(kind: str, value: str, match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 1) : match.start()]
    apart = match["sign"] is None and match["verb"] is None and before != "-"  # only spaces, and not `--password x`
    if kind == "pin":
        return PIN.fullmatch(value) is not None or (not apart and len(value) >= 4 and _has_digit_and_letter(value))
    if apart:
        return len(value) >= 6 and _has_digit_and_letter(value) and not MODEL_NAME.fullmatch(value)
    if kind == "key":
        return len(value) >= 6 and _has_digit_and_letter(value)
    if len(value) < 4:
        return False
    if any(c.isdigit() for c in value) or (match["sign"] and SYMBOL.search(value)):
        return True
    if kind == "codeword":  # at the end of a sentence: `the safe word is important to them` tells none
        return (match["end"] is not None or match["bare"] != value) and not NOT_VALUES.fullmatch(value)
    alone = BEFORE_ON_LINE.search(match.string, max(0, match.start() - 24), match.start()) and match["end"] is not None
    return bool(match["sign"] and alone and re.fullmatch("[A-Z]?[a-z-]+", value) and not NOT_VALUES.fullmatch(value))


def _has_digit_and_letter(value: str) -> bool:
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


_RULES = (
    _Rule(
        "private key",
        (
            r"(?P<secret>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:\s|\\[rn])*+"
            r"(?:[A-Za-z-]{1,20}: [^\n]*+\s++)*+"
            r"(?:[A-Za-z0-9+/=]{16,}+(?:\s|\\[rn])*+)++"
            r"(?:[A-Za-z0-9+/=]{1,15}(?:\s|\\[rn])++){0,2}(?:-----END [A-Z0-9 ]{0,40}-----)?)"
        ),
        _secret_group,
    ),
    _Rule(
        "json web token",
        r"(?a)(?<![\w-])(?P<secret>eyJ[\w-]{8,}+\.eyJ[\w-]{4,}+\.[\w-]{10,}+)",
        _secret_group,
    ),
    _Rule(
        "access token",
        (
            r"(?a)(?<![A-Za-z0-9_-])(?:sk-|[sr]k_(?:live|test)_|gh[opusr]_|github_pat_|gl(?:pat|dt|rt|soat)-|xox[abeoprs]-|xapp-|hf_"
            r"|npm_|pypi-|dop_v1_|shp(?:at|ss|ca|pa)_|ya29\.|SG\.|AIza|AKIA|ASIA|whsec_|lin_api_|sq0(?:atp|csp)-|key-|r8_|gsk_"
            r"|pat_|tvly-|nvapi-|glsa_|hvs\.|ATATT)(?P<secret>[\w.-]{12,250}+)"
        ),
        _if_mixed,
    ),
    _Rule(
        "authorization",
        (r"(?i)(?<![a-z])(?:bearer|basic)[ ]{1,2}(?P<secret>(?=[a-z+/_.~-]{0,60}[0-9])[a-z0-9+/_.~-]{12,400}+={0,2})"),
        _secret_group,
    ),
    _Rule(
        "password in address",
        (r"(?i)\b[a-z][a-z0-9+.-]{1,16}://[^\s/:@\"'<>]{0,64}:(?P<secret>(?![<{$%*])[^\s/@\"'<>]{1,128})@"),
        _secret_group,
    ),
    _Rule(
        "password in address",
        (r"(?<![\w.:/@-])(?P<name>[\w.-]{2,32}):(?P<secret>[^\s:/@\"'<>]{4,64})@(?!sha[0-9])[A-Za-z0-9][\w-]{0,62}"),
        _if_account,
    ),
    _Rule("payment card", (r"(?<![\w.+/-])[2-6](?:[ -]?[0-9]){12,18}(?![\w/-]|\.[0-9])"), _if_card),
    _Rule("iban", (r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{1,4}){3,9}(?![A-Za-z0-9])"), _if_iban),
    _Rule("product key", (r"(?<![A-Za-z0-9-])[A-Z0-9]{5}(?:-[A-Z0-9]{5}){3,5}(?![A-Za-z0-9-])"), _if_product_key),
    _Rule("labelled secret", LABELLED, _if_labelled),
    _Rule(
        "random string",
        (r"(?<![A-Za-z0-9+/_.@%-])(?P<secret>[A-Za-z0-9+/_-]{20,200}+={0,2})(?![A-Za-z0-9+/_-])"),
        _if_random,
    ),
)
