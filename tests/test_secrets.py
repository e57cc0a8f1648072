"""Secrets are found wherever people write them, and ordinary text is left alone."""

from __future__ import annotations

import base64
import importlib.resources
import random
import string
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.secrets import entropy, find, luhn, mod97, scrub

ALNUM = string.ascii_letters + string.digits
PER_KIND = 40
PER_LOOK_ALIKE = 20


def text_of(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choices(alphabet, k=length))


def with_digit(rng: random.Random, alphabet: str, length: int) -> str:
    """Random characters, of which one is a digit and one a letter."""
    mixed = [*text_of(rng, alphabet, length - 2), rng.choice(string.digits), rng.choice(string.ascii_lowercase)]
    rng.shuffle(mixed)
    return "".join(mixed)


def card(rng: random.Random, mark: str = " ") -> str:
    body = rng.choice("45") + "1" + text_of(rng, string.digits, 13)
    number = next(body + digit for digit in string.digits if luhn(body + digit))
    return mark.join(number[i : i + 4] for i in range(0, 16, 4))


def iban(rng: random.Random) -> str:
    body = text_of(rng, string.digits, 18)
    account = next(f"DE{check:02}{body}" for check in range(2, 99) if mod97(f"DE{check:02}{body}"))
    return " ".join(account[i : i + 4] for i in range(0, len(account), 4))


def jwt(rng: random.Random) -> str:
    parts = ['{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{rng.randrange(10**8)}"}}', text_of(rng, ALNUM, 32)]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def pem(rng: random.Random) -> str:
    lines = "\n".join(text_of(rng, ALNUM + "+/", 64) for _ in range(6))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\nQ3x=\n-----END RSA PRIVATE KEY-----"


def code_word(rng: random.Random) -> str:
    word = rng.choice(["zebra", "anvil", "mango", "comet"])
    return f"{rng.randrange(10)}Q-{word}-{rng.randrange(1000, 9999)}-{text_of(rng, string.ascii_uppercase, 2)}"


# (name, how a secret is made, the sentences that it may stand in)
KINDS: list[tuple[str, Callable[[random.Random], str], list[str]]] = [
    (
        "code word",
        code_word,
        [
            "the code word is {}",
            "Our codeword is now {}.",
            "The password for the vault is {}.",
            "secret phrase: {}\nBye",
        ],
    ),
    (
        "pin",
        lambda rng: text_of(rng, string.digits, 4),
        ["my PIN is {}", "PIN: {}", "The PIN of my card is {}.", "door code {}", "the alarm code is now {}, ok?"],
    ),
    (
        "one-time code",
        lambda rng: text_of(rng, string.digits, 6),
        ["Your verification code is {}.", "Your login code:\n\n    {}\n\nIt expires soon.", "TAN: {}"],
    ),
    (
        "hexadecimal token",
        lambda rng: with_digit(rng, "0123456789abcdef", 16),
        ["token={}", "api_key: {}", 'API_TOKEN="{}"', "curl -H 'X-Api-Key: {}'", '{{"access_token": "{}"}}'],
    ),
    (
        "password",
        lambda rng: with_digit(rng, ALNUM + "!#$%&*+?@^", 10),
        [
            "password: {}",
            "Password = {}",
            '{{"password": "{}"}}',
            "the wifi password is {}",
            "DB_PASSWORD={}\n",
            "<password>{}</password>",
            "das Passwort lautet {}",
            "mysql --password {} shop",
        ],
    ),
    (
        "simple password",
        lambda rng: rng.choice(["swordfish", "Sunflower", "dragonfly"]) + rng.choice(["", "12", "77!"]),
        ["User: anna\nPassword: {}\n", 'password = "{}"', "pwd: {}\n"],
    ),
    ("sk", lambda rng: "sk-" + with_digit(rng, ALNUM, 40), ["use {} for now", "OPENAI_API_KEY={}", "({})"]),
    ("ghp", lambda rng: "ghp_" + with_digit(rng, ALNUM, 36), ["{}", "git clone with {}.", '"{}"']),
    ("aws id", lambda rng: "AKIA" + with_digit(rng, string.ascii_uppercase + "234567", 16).upper(), ["{}", "key {},"]),
    (
        "aws secret",
        lambda rng: with_digit(rng, ALNUM + "+/", 40),
        ["aws_secret_access_key = {}", "AWS_SECRET_ACCESS_KEY={}"],
    ),
    ("jwt", jwt, ["Authorization: Bearer {}", "token {}", "the cookie was session={}; path=/"]),
    ("pem", pem, ["{}", "here is the key:\n{}\nplease keep it", "cat <<END\n{}\nEND"]),
    (
        "address",
        lambda rng: with_digit(rng, ALNUM, 9),
        ["postgres://anna:{}@db.example.org/shop", "https://bot:{}@git.example.org", "log in as anna:{}@nas.local"],
    ),
    ("card", card, ["my card is {}", "{}, valid to 08/29", "Visa {} (mine)"]),
    ("plain card", lambda rng: card(rng, ""), ["card number {}", "{}"]),
    ("iban", iban, ["please pay to {}", "IBAN {} BIC", "IBAN: {}."]),
    ("random", lambda rng: with_digit(rng, ALNUM, 32), ["put {} into the form", "https://example.org/share?k={}"]),
]


def wrong_card(rng: random.Random) -> str:
    """A card number of which the last digit is wrong."""
    right = card(rng)
    return right[:-1] + str((int(right[-1]) + 1) % 10)


def wrong_iban(rng: random.Random) -> str:
    """An IBAN with a digit changed, which no check digits survive."""
    right = iban(rng)
    return right[:-1] + str((int(right[-1]) + 1) % 10)


def hexadecimal(rng: random.Random, length: int) -> str:
    return text_of(rng, "0123456789abcdef", length)


NOUNS = ["parser", "buffer", "report", "window", "socket", "garden", "invoice", "weather"]
VERBS = ["reads", "checks", "sends", "builds", "counts", "merges"]


def phrase(rng: random.Random, mark: str, length: int = 4) -> str:
    return mark.join(rng.choice(NOUNS) if n % 2 else rng.choice(VERBS) for n in range(length))


# The same for what looks like a secret and is none, each as common in notes, mails and code as those above.
LOOK_ALIKES: list[tuple[str, Callable[[random.Random], str], list[str]]] = [
    ("wrong card", wrong_card, ["the number {} is refused", "{}"]),
    ("wrong iban", wrong_iban, ["IBAN {} is misspelt", "{}"]),
    ("commit", lambda rng: hexadecimal(rng, 40), ["fixed in {}", "git show {}", "commit {}\nAuthor: Anna"]),
    ("checksum", lambda rng: hexadecimal(rng, 64), ["sha256: {}", "{}  edgepd.tar.gz"]),
    (
        "uuid",
        lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        ["request {}", 'id="{}"', "/runs/{}/log"],
    ),
    ("telephone", lambda rng: text_of(rng, "123456789", 8), ["call +49 30 {}", "phone: 0171 {}", "Fax {}-0"]),
    ("date", lambda rng: f"20{rng.randrange(10, 30)}-0{rng.randrange(1, 9)}-1{rng.randrange(9)}", ["on {}", "due: {}"]),
    ("time stamp", lambda rng: "17" + text_of(rng, string.digits, 11), ["at {} ms", '{{"created": {}}}', "{} {}"]),
    ("isbn", lambda rng: f"978-3-16-{text_of(rng, string.digits, 6)}-0", ["ISBN {}", "the book {} is sold out"]),
    (
        "order",
        lambda rng: text_of(rng, string.digits, 6),
        ["order {} was sent", "Invoice no. {}", "ticket #{}", "bus {}"],
    ),
    ("version", lambda rng: f"{rng.randrange(9)}.{rng.randrange(30)}.{rng.randrange(9)}", ["pip install x=={}", "v{}"]),
    ("snake case", lambda rng: phrase(rng, "_", 6), ["def test_{}() -> None:", "{} = None", "see {}.py"]),
    ("path", lambda rng: "/" + phrase(rng, "/", 6), ["open {}", "file://{}", "https://example.org{}?page=2"]),
    ("camel case", lambda rng: phrase(rng, " ", 5).title().replace(" ", ""), ["class {}2(Base): pass", "new {}();"]),
    (
        "code about secrets",
        lambda rng: rng.choice(NOUNS),
        ["token = next_token({})", "password = {}.password", "api_key: str | None = {}", "PASSWORD=${{{}}}"],
    ),
    (
        "talk of secrets",
        lambda rng: f"{rng.choice(VERBS)} the {rng.choice(NOUNS)}",
        ["the password {}", "The secret is that she {}.", "A token is what {}.", "the PIN of the card {}"],
    ),
    (
        "price",
        lambda rng: f"{rng.randrange(100, 9999)}.{rng.randrange(10, 99)}",
        ["costs {} EUR", "total: {}", "PIN 4 {}"],
    ),
]


# Ordinary text, one piece per line, that looks a little like a secret.
ORDINARY = r"""
The password is wrong, so I asked for a new one.
I forgot my password again and the reset link had expired.
Password: required
The secret is to use cold butter and to rest the dough for 30 minutes.
Her secret was safe with us for 25 years.
The token is refreshed every 30 minutes, the password every 90 days.
Please choose a password of at least 12 characters with 2 digits.
Passwords must not be reused; the code of conduct says so in section 4.2.
The area code is 0161 and the postal code is 90210.
The program ended with exit code 137, the server said 404.
Pin 17 of the board is an input, pin 4 gives 3.3 volts.
The new model costs 1299.00, the old one 899, both with 2 years of guarantee.
Call me on +49 30 901820 or on 0171 5550123 after 18:30.
Our fax number is (212) 555-0134, extension 4821.
We met on 2024-05-17 at 14:30 and again on 03/06/2024.
Release 3.11.9 replaces 3.11.8; version 2.0.0-rc.1 comes next week.
The book has the ISBN 978-3-16-148410-0, the older edition 3-16-148410-X.
Fixed in 9fceb02d0ae598e95dc970b74767f19372d6e4c1, please cherry-pick e83c5163 too.
git checkout -b fix/4821-null-pointer-in-parser && git push
request_id = "123e4567-e89b-12d3-a456-426614174000"
sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
"integrity": "sha512-kQ3xV9bZ0aTqYw7LrN2mP5sUe8HfGj1DcXo4IyBt6RvKzWnEl3MuAhSgFdJpOiCq9Qk2Vx7Zb5Ta0Yw8Lr1Nm==",
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH3xV9bZ0aTqYw7LrN2mP5sUe8HfGj1DcXo4IyBt anna@laptop
def login(name: str, password: str, token: str | None = None) -> Session:
    password = getpass.getpass("Password: ")
    token = next_token(stream)
    secret = os.environ["APP_SECRET"]
    api_key = settings.api_key
    password: SecretStr
    if token == "end_of_text": break
    eos_token = 128009
    max_tokens = 4096; token_count += 1
token = self.tokens[index2]
password=${DB_PASSWORD}
API_KEY=<your key here>
API_KEY=your-api-key-1
password: ********
token: xxxxxxxxxxxxxxxx
"password": "string",
"password": "Please enter your password",
label = "Password:"
class AbstractSingletonProxyFactoryBean2(Base): pass
test_that_the_second_request_of_2024_is_answered_before_the_first
from edgepd_profiles.retrieval_index_version2 import SomethingRatherLongAndCamelCased3D
/usr/local/lib/python3.11/site-packages/numpy/core/include/ndarraytypes.h
https://en.example.org/wiki/List_of_lighthouses_and_lightvessels_in_1911#North
https://example.org/articles/2024/05/17/how-to-repair-a-flat-tyre-in-10-minutes?page=2
http://localhost:8080/edgepd/v1/generations/12/diff/13
To: anna99@example.org, Cc:bert77@example.org
mailto:anna99@example.org?subject=hello
docker pull node:20-alpine@sha256:abcdef0123456789
scp report.pdf anna@nas.local:/backup/2024
The train 4111 leaves at 11.55 from platform 16 and arrives at 13.07.
Order 20240517-000481 was sent with tracking number 1Z999AA10123456784.
The serial number is SN-2204-118-A, the part number 44-1093-77.
Measured: 1715950200123 1715950200456 1715950201789 1715950202012
3.14159265358979 and 2.71828182845904 and 1.41421356237309
4000 8000 1200 1600 are the sizes in millimetres.
0x7ffee3bff6c8 0xdeadbeef 0x0000000000000010
Invoice 2024/118, customer 30391, due in 14 days, 19 % VAT, total 1,428.00 EUR
The combination of 3 herbs and 2 spices is what makes it good.
You need the access code that the landlord has; I do not know it.
Your verification code is on its way.
We pin 12 photos to the wall and pass 3 exams.
Der Schlüssel liegt unter der Matte, das Passwort ist falsch.
Le mot de passe est incorrect depuis 2 jours.
The bearer of this letter is basic and honest.
SGVsbG8= is how the word Hello is written in base 64.
THE GENERAL ASSEMBLY, recalling its resolution 2131 of 1965, DECLARES the following
GB 2024 report: DE12 and FR34 are the regions with the best results.
npm install left-pad@1.3.0 --save-dev
data-testid="user-profile-settings-page-2" class="mt-4 px-2 text-gray-500"
PASSED tests/test_secrets.py::test_recall_and_precision[case-17] in 0.42s
Rowan 6 no 9.00 yes; Elm 12 no 15.00 yes; Maple 60 yes 48.00 no
I am a basic user with 3 accounts and the bearer of 2 passports from 1998.
""".strip().splitlines()


def made(kind: str, seed: int) -> tuple[str, str]:
    """Return (secret, text that holds it)."""
    rng = random.Random(f"{kind} {seed}")
    _, make, frames = next(entry for entry in KINDS if entry[0] == kind)
    secret = make(rng)
    return secret, frames[seed % len(frames)].format(secret)


def is_found(secret: str, text: str) -> bool:
    """Every character of the secret, apart from its punctuation at the end, lies in a span that was found."""
    start = text.index(secret)
    covered = {i for found in find(text) for i in range(found.start, found.end)}
    return set(range(start, start + len(secret.rstrip(".,;:!?*")))) <= covered


def bundled(name: str) -> list[str]:
    text = importlib.resources.files("edgepd.adapt").joinpath("data", name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def test_recall_and_precision() -> None:
    """Precision counts each text once: those with a secret against ordinary ones in which something is found."""
    cases = [(kind, *made(kind, seed)) for kind, _, _ in KINDS for seed in range(PER_KIND)]
    missed = [(kind, text) for kind, secret, text in cases if not is_found(secret, text)]
    ordinary = [*ORDINARY, *bundled("general.txt"), *bundled("anchors.txt")]
    wrong = [(line[f.start : f.end], f.kind, line) for line in ordinary for f in find(line)]
    hits = len(cases) - len(missed)
    recall, precision = hits / len(cases), hits / (hits + len(wrong))
    said = f"recall {recall:.3f} of {len(cases)}, precision {precision:.3f} with {len(ordinary)} ordinary texts"
    assert recall >= 0.95, f"{said}; missed: {missed}"
    assert precision >= 0.95, f"{said}; wrong: {wrong}"
    assert len(wrong) <= 0.02 * len(ordinary), f"{said}; wrong: {wrong}"  # whatever the number of secrets


def test_precision_on_look_alikes() -> None:
    """Of as many generated look-alikes as secrets, hardly any is taken for one, whatever its kind."""
    wrong: dict[str, list[str]] = {}
    for name, make, frames in LOOK_ALIKES:
        for seed in range(PER_LOOK_ALIKE):
            rng = random.Random(f"{name} {seed}")
            text = frames[seed % len(frames)]
            text = text.replace("{}", make(rng)).replace("{{", "{").replace("}}", "}")
            if find(text):
                wrong.setdefault(name, []).append(text)
    total = PER_LOOK_ALIKE * len(LOOK_ALIKES)
    assert total >= 300
    assert sum(map(len, wrong.values())) <= 0.02 * total, wrong
    assert all(len(texts) <= 0.1 * PER_LOOK_ALIKE for texts in wrong.values()), wrong


@pytest.mark.parametrize("kind", [kind for kind, _, _ in KINDS])
def test_scrubbing_leaves_nothing_to_be_found(kind: str) -> None:
    for seed in range(PER_KIND):
        secret, text = made(kind, seed)
        if is_found(secret, text):
            assert secret.rstrip(".,;:!?*") not in scrub(text)
            assert find(scrub(text)) == []


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("my PIN is 4831, do not tell", "my PIN is [labelled secret], do not tell"),
        (
            "PIN: 4831\nthen https://a:b1@c.example/",
            "PIN: [labelled secret]\nthen https://a:[password in address]@c.example/",
        ),
        ("pay to DE89 3704 0044 0532 0130 00", "pay to [iban]"),
        ("The PIN of the garden is green.", "The PIN of the garden is green."),
        ("", ""),
    ],
)
def test_scrub_names_what_was_there(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


@pytest.mark.parametrize("kind", [kind for kind, _, _ in KINDS])
def test_no_kind_is_weak(kind: str) -> None:
    """A mean could hide that one kind is hardly ever found."""
    missed = [text for seed in range(PER_KIND) for secret, text in [made(kind, seed)] if not is_found(secret, text)]
    assert len(missed) <= 0.1 * PER_KIND, missed


@pytest.mark.parametrize(
    ("text", "kind", "secret"),
    [
        ("the code word is 7Q-zebra-9931-KX", "labelled secret", "7Q-zebra-9931-KX"),
        ("Password for the router is hunter2.", "labelled secret", "hunter2"),
        ("my PIN is 4831, do not tell", "labelled secret", "4831"),
        ("token=8f14e45fceea167a", "labelled secret", "8f14e45fceea167a"),
        ("password: correct-horse-9", "labelled secret", "correct-horse-9"),
        ("pay to DE89 3704 0044 0532 0130 00 BANK OF X", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB29NWBK60161331926819", "iban", "GB29NWBK60161331926819"),
        ("4111-1111-1111-1111", "payment card", "4111-1111-1111-1111"),
        ("3782 822463 10005", "payment card", "3782 822463 10005"),
        ("ftp://anna:pa55@host/x", "password in address", "pa55"),
        ("Authorization: Basic YW5uYTpwYTU1d29yZA==", "authorization", "YW5uYTpwYTU1d29yZA=="),
        ("Key: K7PQ2-88XMT-4WJ9D-VR3HB-6TZQ1", "product key", "K7PQ2-88XMT-4WJ9D-VR3HB-6TZQ1"),
    ],
)
def test_the_kind_and_the_exact_span(text: str, kind: str, secret: str) -> None:
    assert [(found.kind, text[found.start : found.end]) for found in find(text)] == [(kind, secret)]


@pytest.mark.parametrize("text", ["4111 1111 1111 1112", "DE88 3704 0044 0532 0130 00", "9781 1111 1111 1111"])
def test_a_wrong_check_digit_is_no_secret(text: str) -> None:
    assert find(text) == []


def test_secrets_in_one_text_come_in_order_and_apart() -> None:
    text = "PIN: 4831\nthen token=8f14e45fceea167a, and https://a:b1@c.example/\nPIN: 4831"
    assert [text[f.start : f.end] for f in find(text)] == ["4831", "8f14e45fceea167a", "b1", "4831"]


def test_a_key_that_two_rules_find_is_reported_once() -> None:
    key = "ghp_" + "a1B2c3D4e5F6g7H8i9" * 2
    assert [(f.kind, f.start, f.end) for f in find(f"token={key}")] == [("access token", 6, 6 + len(key))]


@given(st.text())
def test_spans_lie_in_the_text_in_order(text: str) -> None:
    bounds = [bound for found in find(text) for bound in (found.start, found.end)]
    assert bounds == sorted(bounds)
    assert all(found.end > found.start for found in find(text))
    assert not bounds or bounds[-1] <= len(text)


@given(st.text(alphabet=string.digits, min_size=1, max_size=18), st.integers(0, 17), st.integers(1, 9))
def test_luhn_notices_every_single_wrong_digit(body: str, place: int, change: int) -> None:
    number = next(body + digit for digit in string.digits if luhn(body + digit))
    i = place % len(number)
    assert not luhn(f"{number[:i]}{(int(number[i]) + change) % 10}{number[i + 1 :]}")


def test_entropy_in_closed_form() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy("abcdefgh") == 3


@pytest.mark.parametrize(
    "unit",
    [
        "a", "A1", "1 ", "4-", "eyJa.", "-eyJ", "password ", "password:", "password for a ", "token to ", "://a:",
        "a:b@", "-----BEGIN PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----" + "A" * 30 + "\n", "DE89 ", "AB12C-",
        "sk-", "x.y.", "bearer ", "\n\n\n\n", "'\"", "secret=",
    ],
)  # fmt: skip
@pytest.mark.timeout(30)
def test_no_text_takes_forever(unit: str) -> None:
    """A quadratic search of 100,000 characters takes minutes, a linear one a tenth of a second."""
    text = unit * (100_000 // len(unit))
    assert all(found.end <= len(text) for found in find(text))
