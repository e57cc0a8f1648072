from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.cli.demo_script import LESSONS
from edgepd_profiles.examples import Example
from edgepd_profiles.preferences import MAX_WORDS, describe

LEAD = "Answer the way this user likes it."
PLAIN = (
    "Bread needs flour, water, salt and time.",
    "Rivers carve valleys over thousands of years.",
    "Ask the pharmacist before mixing both pills.",
    "Chess was first played somewhere in India.",
    "Nobody has counted every star so far.",
)


def examples(*answers: str) -> list[Example]:
    asked = [{"role": "user", "content": "Tell me."}]
    return [Example(f"e{n}", f"e{n}", float(n), asked, answer, 1.0) for n, answer in enumerate(answers)]


def test_the_demo_user() -> None:
    assert describe(examples(*(answer for _, answer in LESSONS))) == (
        f'{LEAD} Begin with "In short:". End with "Over to you!". Keep it short: about 14 words.'
    )


@pytest.mark.parametrize(
    ("answers", "rules"),
    [
        (PLAIN, "Keep it short: about 7 words."),
        ([a.lower() for a in PLAIN], "Keep it short: about 7 words. Write everything in lower case."),
        ([f"- {a}\n- {b}" for a, b in zip(PLAIN, PLAIN[1:] + PLAIN[:1], strict=True)],
         "Keep it short: about 16 words. Write a list with a bullet for each point."),
        ([f"1. {a}\n2. {b}" for a, b in zip(PLAIN, PLAIN[1:] + PLAIN[:1], strict=True)],
         "Keep it short: about 16 words. Write a numbered list."),
        ([f"{a} Arr, the seas be calm, {n} ye matey says!" for n, a in enumerate(PLAIN)],
         'End with "ye matey says!". Keep it short: about 16 words. Use words such as arr, calm, seas.'),
        ([f"{g} Ann,\n{a}\nKind regards,\nJo" for g, a in zip(
            ("Dear", "Hello", "Hi", "Dear", "Hey"), PLAIN, strict=True)],
         'Begin with a greeting. End with "Kind regards, Jo". Keep it short: about 12 words. Use words such as ann.'),
        ([f"Dear {n},\n{a}\n{bye}" for n, a, bye in zip(
            ("Ann", "Bob", "Cleo", "Dan", "Eve"), PLAIN,
            ("Kind regards,\nA", "Best wishes", "Yours faithfully,\nB", "Sincerely", "Regards,\nC"), strict=True)],
         'Begin with "Dear". End with a formal closing line. Keep it short: about 11 words.'),
        ([a.replace(".", "!") for a in PLAIN], "Keep it short: about 7 words. Use exclamation marks."),
        ([f"{a} {e}" for a, e in zip(PLAIN, "🍞🌊💊🏰⭐", strict=True)], "Keep it short: about 8 words. Use emoji."),
        ([" ".join(f"w{n}x{k}" for k in range(130 + n)) for n in range(5)],
         "Answer in detail: about 130 words. Write everything in lower case."),
    ],
)  # fmt: skip
def test_what_stands_out_is_said(answers: list[str], rules: str) -> None:
    assert describe(examples(*answers)) == f"{LEAD} {rules}"


def test_what_three_of_five_share_is_usual_and_what_two_share_is_not() -> None:
    shared = [f"Well now: {a}" for a in PLAIN]
    assert 'Begin with "Well now:".' in str(describe(examples(*shared[:3], *PLAIN[3:])))
    assert "Begin" not in str(describe(examples(*shared[:2], *PLAIN[2:])))


def test_common_words_are_no_opening_of_ones_own() -> None:
    answers = [f"The {word} is here." for word in ("dog", "cat", "cow", "hen", "pig")]
    assert "Begin" not in str(describe(examples(*answers)))


def test_nothing_is_said_where_nothing_stands_out() -> None:
    lengths = (10, 60, 80, 150, 90)
    assert describe(examples(*(" ".join([f"W{n}x{k}" for k in range(m)]) for n, m in enumerate(lengths)))) is None
    assert describe([]) is None
    assert describe(examples(*PLAIN[:3])) is None


def test_only_wanted_answers_are_read() -> None:
    unwanted = [replace(e, desirable=False) for e in examples(*(f"Arr! {a}" for a in PLAIN * 3))]
    assert describe([*examples(*PLAIN), *unwanted]) == describe(examples(*PLAIN))
    assert describe(unwanted) is None


def test_quotes_in_a_phrase_do_not_end_it() -> None:
    assert "Begin with \"So 'it goes':\"." in str(describe(examples(*(f'So "it goes": {a}' for a in PLAIN))))


@given(st.lists(st.text("ab!.-\n 1A", max_size=60), max_size=8), st.randoms(use_true_random=False))
def test_any_answers_in_any_order_give_one_short_text(answers: list[str], shuffler: random.Random) -> None:
    found = describe(examples(*answers))
    shuffled = list(answers)
    shuffler.shuffle(shuffled)
    assert describe(examples(*shuffled)) == found
    assert found is None or (found.startswith(LEAD) and len(LEAD) < len(found) and len(found.split()) <= MAX_WORDS)


def test_what_would_be_too_much_is_left_out() -> None:
    opening, closing = "Here comes what you wanted to know about:", "That is what I know about it today!"
    answers = [
        f"{opening}\n- {a} Oho!\n- alpha beta gamma\n{e} {closing}" for a, e in zip(PLAIN, "🍞🌊💊🏰⭐", strict=True)
    ]
    found = str(describe(examples(*answers)))
    assert found.startswith(f'{LEAD} Begin with "{opening}". End with "{closing}".')
    assert len(found.split()) <= MAX_WORDS
