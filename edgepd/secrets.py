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


class Secret(NamedTuple):
    """A secret at text[start:end]. `kind` is the name of the rule that found it."""

    kind: str
    start: int
    end: int


_NOT_ACCOUNTS = re.compile("(?i)acct|bcc|cc|e-?mail|from|mail|mailto|reply-to|sips?|sms|to|xmpp|an|von|de")
_NOT_VALUES = re.compile(
    "(?i)again|any|bool|bytes|case-insensitive|case-sensitive|changed|char|correct|disabled|empty|enabled"
    "|expired|false|field|forgotten|hidden|incorrect|input|int|invalid|issue|long|lost|missing|needed|nil"
    "|none|null|number|object|optional|option|policy|protected|protection|provided|question|random"
    "|recovery|refused|rejected|required|reset|secret|short|str|string|strong|text|the|this|that|too|true"
    "|undefined|unknown|unset|used|valid|varchar|very|void|weak|wrong|yes|your|not|also|now|never|only"
    "|still|simple|stored|safe|same"
)
_IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "BA": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22},
    **{"DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GR": 27, "HR": 21, "HU": 28},
    **{"IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22},
    **{"MK": 19, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19},
    **{"SK": 24, "SM": 27, "TR": 26, "UA": 29, "XK": 20, "BR": 29, "KZ": 20, "PK": 24, "QA": 29, "KW": 30},
}
# By issuer: the first digits and the length, so that telephone numbers, time stamps and ISBNs are not even summed.
_CARD_NUMBER = re.compile(
    "4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2[2-7][0-9]{14}|3[47][0-9]{13}|3[068][0-9]{12}|35[0-9]{14}|6[0-9]{15,18}"
)
_PUBLIC = re.compile(r"sha[0-9]{1,3}[-:]|AAAA[BCE]")  # checksums of packages, public keys of SSH
_RUNS = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[A-Z]")
_PIN = re.compile("[0-9]{4,8}|[0-9]{3}[ -][0-9]{3}")
_SYMBOL = re.compile(r"[!#$%&*+?@^~]")
_ABOUT_PASSWORDS = re.compile("(?i)passw|secret|token|kennwort|mot de passe|enter|forgot")
_MODEL_NAME = re.compile(r"(?i)v?[a-z]{1,8}[-_]?[0-9]{1,4}[a-z]?")  # sha256, base64, utf-8, area51
_QUANTITY = re.compile(
    r"(?i)v?[0-9]+(?:\.[0-9]+)+[a-z0-9.-]*|[0-9]{4}-[0-9]{2}-[0-9]{2}.*|[0-9]{1,2}:[0-9]{2}.*|[0-9.,]+"
    r"(?:%|[kmg]?i?b|[km]|ms|st|nd|rd|th|px|x|[kc]m|s|min|h|g|kg|-?(?:bits?|bytes?|chars?|characters?|digits?|letters?|days?))"
)
_PLACEHOLDER = re.compile(
    r"(?i)\$[{(].*|\$[a-z_]+|%\w+%|%\(.*|<.*>|\{.*\}|(.)\1*|\.{2,}.*|x{3,}.*|\*{2,}.*|_{2,}.*|your[-_ ].*|.*://.*"
    r"|(?:my|a|the)[-_]?(?:password|token|secret)|(?:password|token|secret|pass|key)[0-9]?|example|changeme|redacted"
)
# Names of a program: settings.TOKEN_2, next_token_2
_EXPRESSION = re.compile(
    r"(?i)[a-z_]\w*(?:\.[a-z_]\w*)+|\w*_(?:password|token|secret|key|pass)(?:_\w*)?|0x[0-9a-f]{1,8}"
)
_BEFORE_ON_LINE = re.compile(r"""(?:^|\n)[ \t>*"'-]*(?:[\w-]+[ \t]){0,2}\w*$""")

_LABELS = r"""
    (?: (?P<word> pass (?:word|wd|phrase|code) | passwort | kennwort | wachtwoord | mot\ de\ passe | contraseña | pwd
          | (?<![a-z]) pass (?![a-z]) )
      | (?P<key> token | secret | (?:api|access|auth|secret|private|signing|encryption|licen[cs]e|account|wi-?fi
          |wlan|master) [ _-]? key | credential | schlüssel )
      | (?P<pin> (?<![a-z]) (?:pin|puk|tan|otp|cvv|cvc) (?![a-z]) (?:[ -]?code)?
          | (?:door|gate|alarm|access|entry|security|verification|confirmation|log-?in|one-time|lock|unlock|safe
          |recovery|backup|authentication|2fa|bestätigungs|tür) [ _-]? code | combination )
      | (?P<codeword> (?:code|safe|magic|secret)[ -]?word (?![a-z]) | codewort | secret\ (?:code|phrase) )
    )
"""
# label, perhaps "for the router", then a sign, a verb or only spaces, then the value
_LABELLED = re.compile(
    r"(?ix)"
    + _LABELS
    + r"""
    (?P<of> [ ] (?:for|of|to|on|at|für|von|zu|pour|de|du|para) (?:[ ][\w'-]{1,24}){1,4}? )?
    ["'\])`*]{0,2}
    (?: [ \t]{0,4} (?P<sign> := | => | -> | [:=>] ) \s{0,12}
      | [ ] (?P<verb> (?:is|was|be|ist|war|lautet|est|es|becomes?|remains|to)
          (?:[ ](?:now|still|set[ ]to|jetzt))? [ ]? :? ) [ ]
      | (?(of) (?!) | [ ]{1,2} (?=[^\s]{0,60}[0-9]) ) )
    (?: (?P<mark>["'`]) (?P<quoted>[^"'`\n]{1,120}) (?P=mark)
      | (?P<bare> [^\s"'`<>(){}\[\]=|\\/] [^\s"'`<>(){}\[\]|]{0,120}+ ) (?![(\[{]) (?P<end> [ \t"']*+ (?=\n|$) )? )
    """
)


class _Rule(NamedTuple):
    kind: str
    pattern: re.Pattern[str]
    check: Callable[[re.Match[str]], tuple[int, int] | None]  # the span that is secret


def find(text: str) -> list[Secret]:
    """Return the secrets in `text`, first to last. Where rules overlap, their union counts as the first rule's kind."""
    found = []
    for rank, rule in enumerate(_RULES):
        for match in rule.pattern.finditer(text):
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
    return match.span() if _CARD_NUMBER.fullmatch(digits) and luhn(digits) else None


def _if_iban(match: re.Match[str]) -> tuple[int, int] | None:
    """Cut the candidate at the length that its country uses, because upper-case words may follow it."""
    length, end = _IBAN_LENGTHS.get(match[0][:2], 0), match.start()
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
    return match.span("secret") if mixed and not _NOT_ACCOUNTS.fullmatch(match["name"]) else None


def _if_random(match: re.Match[str]) -> tuple[int, int] | None:
    """Accept a long run that is neither words nor a number in base 16: keys of unknown makers."""
    value = match["secret"]
    if _PUBLIC.match(value):
        return None
    pieces = [piece for piece in re.split(r"[^A-Za-z0-9]", value) if len(piece) >= 16]
    return match.span("secret") if any(map(_looks_random, pieces)) else None


def _looks_random(piece: str) -> bool:
    """Say whether letters and digits change too often for a name: words are longer than random runs."""
    runs = _RUNS.findall(piece)
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
    if len(value) < 3 or _PLACEHOLDER.fullmatch(value) or (kind != "pin" and _QUANTITY.fullmatch(value)):
        return None
    if match["quoted"] is not None:
        plausible = _plausible_quoted(kind, value)
    else:
        plausible = not _EXPRESSION.fullmatch(value) and _plausible_bare(kind, value, match)
    return (start, start + len(value)) if plausible else None


def _plausible_quoted(kind: str, value: str) -> bool:
    if kind == "pin":
        return _PIN.fullmatch(value) is not None
    if kind == "key":
        return len(value) >= 8 and _has_digit_and_letter(value) and " " not in value
    # A sentence between quotation marks is a label or a message of a program.
    if len(value) < 4 or (" " in value and value != value.lower()):
        return False
    return not _ABOUT_PASSWORDS.search(value) and not _NOT_VALUES.fullmatch(value)


def _plausible_bare(kind: str, value: str, match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 1) : match.start()]
    apart = match["sign"] is None and match["verb"] is None and before != "-"  # only spaces, and not `--password x`
    if kind == "pin":
        return _PIN.fullmatch(value) is not None or (not apart and len(value) >= 4 and _has_digit_and_letter(value))
    if apart:
        return len(value) >= 6 and _has_digit_and_letter(value) and not _MODEL_NAME.fullmatch(value)
    if kind == "key":
        return len(value) >= 6 and _has_digit_and_letter(value)
    if len(value) < 4:
        return False
    if any(c.isdigit() for c in value) or (match["sign"] and _SYMBOL.search(value)):
        return True
    if kind == "codeword":  # at the end of a sentence: `the safe word is important to them` tells none
        return (match["end"] is not None or match["bare"] != value) and not _NOT_VALUES.fullmatch(value)
    alone = _BEFORE_ON_LINE.search(match.string, max(0, match.start() - 24), match.start()) and match["end"] is not None
    return bool(match["sign"] and alone and re.fullmatch("[A-Z]?[a-z-]+", value) and not _NOT_VALUES.fullmatch(value))


def _has_digit_and_letter(value: str) -> bool:
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


_RULES = (
    _Rule(
        "private key",
        re.compile(
            r"(?P<secret>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:\s|\\[rn])*+"
            r"(?:[A-Za-z-]{1,20}: [^\n]*+\s++)*+"
            r"(?:[A-Za-z0-9+/=]{16,}+(?:\s|\\[rn])*+)++"
            r"(?:[A-Za-z0-9+/=]{1,15}(?:\s|\\[rn])++){0,2}(?:-----END [A-Z0-9 ]{0,40}-----)?)"
        ),
        _secret_group,
    ),
    _Rule(
        "json web token",
        re.compile(r"(?<![\w-])(?P<secret>eyJ[\w-]{8,}+\.eyJ[\w-]{4,}+\.[\w-]{10,}+)", re.ASCII),
        _secret_group,
    ),
    _Rule(
        "access token",
        re.compile(
            r"(?<![A-Za-z0-9_-])(?:sk-|[sr]k_(?:live|test)_|gh[opusr]_|github_pat_|gl(?:pat|dt|rt|soat)-|xox[abeoprs]-|xapp-|hf_"
            r"|npm_|pypi-|dop_v1_|shp(?:at|ss|ca|pa)_|ya29\.|SG\.|AIza|AKIA|ASIA|whsec_|lin_api_|sq0(?:atp|csp)-|key-|r8_|gsk_"
            r"|pat_|tvly-|nvapi-|glsa_|hvs\.|ATATT)(?P<secret>[\w.-]{12,250}+)",
            re.ASCII,
        ),
        _if_mixed,
    ),
    _Rule(
        "authorization",
        re.compile(
            r"(?i)(?<![a-z])(?:bearer|basic)[ ]{1,2}(?P<secret>(?=[a-z+/_.~-]{0,60}[0-9])[a-z0-9+/_.~-]{12,400}+={0,2})"
        ),
        _secret_group,
    ),
    _Rule(
        "password in address",
        re.compile(r"(?i)\b[a-z][a-z0-9+.-]{1,16}://[^\s/:@\"'<>]{0,64}:(?P<secret>(?![<{$%*])[^\s/@\"'<>]{1,128})@"),
        _secret_group,
    ),
    _Rule(
        "password in address",
        re.compile(
            r"(?<![\w.:/@-])(?P<name>[\w.-]{2,32}):(?P<secret>[^\s:/@\"'<>]{4,64})@(?!sha[0-9])[A-Za-z0-9][\w-]{0,62}"
        ),
        _if_account,
    ),
    _Rule("payment card", re.compile(r"(?<![\w.+/-])[2-6](?:[ -]?[0-9]){12,18}(?![\w/-]|\.[0-9])"), _if_card),
    _Rule("iban", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{1,4}){3,9}(?![A-Za-z0-9])"), _if_iban),
    _Rule(
        "product key", re.compile(r"(?<![A-Za-z0-9-])[A-Z0-9]{5}(?:-[A-Z0-9]{5}){3,5}(?![A-Za-z0-9-])"), _if_product_key
    ),
    _Rule("labelled secret", _LABELLED, _if_labelled),
    _Rule(
        "random string",
        re.compile(r"(?<![A-Za-z0-9+/_.@%-])(?P<secret>[A-Za-z0-9+/_-]{20,200}+={0,2})(?![A-Za-z0-9+/_-])"),
        _if_random,
    ),
)
