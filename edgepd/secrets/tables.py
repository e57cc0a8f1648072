"""The words, lengths and looks by which secrets are told from ordinary text (see edgepd.secrets).

The idea: what is a list and no rule stands here. The invariant: every pattern is linear in the length of the text that
it is tried on. What this does not do: decide anything.
"""

from __future__ import annotations

import re

NOT_ACCOUNTS = re.compile("(?i)acct|bcc|cc|e-?mail|from|mail|mailto|reply-to|sips?|sms|to|xmpp|an|von|de")
NOT_VALUES = re.compile(
    "(?i)again|any|bool|bytes|case-insensitive|case-sensitive|changed|char|correct|disabled|empty|enabled"
    "|expired|false|field|forgotten|hidden|incorrect|input|int|invalid|issue|long|lost|missing|needed|nil"
    "|none|null|number|object|optional|option|policy|protected|protection|provided|question|random"
    "|recovery|refused|rejected|required|reset|secret|short|str|string|strong|text|the|this|that|too|true"
    "|undefined|unknown|unset|used|valid|varchar|very|void|weak|wrong|yes|your|not|also|now|never|only"
    "|still|simple|stored|safe|same"
)
IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "BA": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22},
    **{"DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GR": 27, "HR": 21, "HU": 28},
    **{"IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22},
    **{"MK": 19, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19},
    **{"SK": 24, "SM": 27, "TR": 26, "UA": 29, "XK": 20, "BR": 29, "KZ": 20, "PK": 24, "QA": 29, "KW": 30},
}
# By issuer: the first digits and the length, so that telephone numbers, time stamps and ISBNs are not even summed.
CARD_NUMBER = re.compile(
    "4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2[2-7][0-9]{14}|3[47][0-9]{13}|3[068][0-9]{12}|35[0-9]{14}|6[0-9]{15,18}"
)
PUBLIC = re.compile(r"sha[0-9]{1,3}[-:]|AAAA[BCE]")  # checksums of packages, public keys of SSH
RUNS = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[A-Z]")
PIN = re.compile("[0-9]{4,8}|[0-9]{3}[ -][0-9]{3}")
SYMBOL = re.compile(r"[!#$%&*+?@^~]")
ABOUT_PASSWORDS = re.compile("(?i)passw|secret|token|kennwort|mot de passe|enter|forgot")
MODEL_NAME = re.compile(r"(?i)v?[a-z]{1,8}[-_]?[0-9]{1,4}[a-z]?")  # sha256, base64, utf-8, area51
QUANTITY = re.compile(
    r"(?i)v?[0-9]+(?:\.[0-9]+)+[a-z0-9.-]*|[0-9]{4}-[0-9]{2}-[0-9]{2}.*|[0-9]{1,2}:[0-9]{2}.*|[0-9.,]+"
    r"(?:%|[kmg]?i?b|[km]|ms|st|nd|rd|th|px|x|[kc]m|s|min|h|g|kg|-?(?:bits?|bytes?|chars?|characters?|digits?|letters?|days?))"
)
PLACEHOLDER = re.compile(
    r"(?i)\$[{(].*|\$[a-z_]+|%\w+%|%\(.*|<.*>|\{.*\}|(.)\1*|\.{2,}.*|x{3,}.*|\*{2,}.*|_{2,}.*|your[-_ ].*|.*://.*"
    r"|(?:my|a|the)[-_]?(?:password|token|secret)|(?:password|token|secret|pass|key)[0-9]?|example|changeme|redacted"
)
# Names of a program: settings.TOKEN_2, next_token_2
EXPRESSION = re.compile(
    r"(?i)[a-z_]\w*(?:\.[a-z_]\w*)+|\w*_(?:password|token|secret|key|pass)(?:_\w*)?|0x[0-9a-f]{1,8}"
)
BEFORE_ON_LINE = re.compile(r"""(?:^|\n)[ \t>*"'-]*(?:[\w-]+[ \t]){0,2}\w*$""")

LABELS = r"""
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
LABELLED = (
    r"(?ix)"
    + LABELS
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
