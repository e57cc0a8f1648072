"""What is said of a profile, and of examples, is short, the same each time, and only what stands out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.cli.demo_script import LESSONS
from edgepd_profiles.examples import Example
from edgepd_profiles.profile import Feature, Profile
from edgepd_profiles.profile_text import MAX_WORDS, describe, describe_examples

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
    assert describe_examples(examples(*(answer for _, answer in LESSONS))) == (
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
    assert describe_examples(examples(*answers)) == f"{LEAD} {rules}"


def test_what_three_of_five_share_is_usual_and_what_two_share_is_not() -> None:
    shared = [f"Well now: {a}" for a in PLAIN]
    assert 'Begin with "Well now:".' in str(describe_examples(examples(*shared[:3], *PLAIN[3:])))
    assert "Begin" not in str(describe_examples(examples(*shared[:2], *PLAIN[2:])))


def test_common_words_are_no_opening_of_ones_own() -> None:
    answers = [f"The {word} is here." for word in ("dog", "cat", "cow", "hen", "pig")]
    assert "Begin" not in str(describe_examples(examples(*answers)))


def test_nothing_is_said_where_nothing_stands_out() -> None:
    lengths = (10, 60, 80, 150, 90)
    assert (
        describe_examples(examples(*(" ".join([f"W{n}x{k}" for k in range(m)]) for n, m in enumerate(lengths)))) is None
    )
    assert describe_examples([]) is None
    assert describe_examples(examples(*PLAIN[:3])) is None


def test_only_wanted_answers_are_read() -> None:
    unwanted = [replace(e, desirable=False) for e in examples(*(f"Arr! {a}" for a in PLAIN * 3))]
    assert describe_examples([*examples(*PLAIN), *unwanted]) == describe_examples(examples(*PLAIN))
    assert describe_examples(unwanted) is None


def test_quotes_in_a_phrase_do_not_end_it() -> None:
    assert "Begin with \"So 'it goes':\"." in str(describe_examples(examples(*(f'So "it goes": {a}' for a in PLAIN))))


@given(st.lists(st.text("ab!.-\n 1A", max_size=60), max_size=8), st.randoms(use_true_random=False))
def test_any_answers_in_any_order_give_one_short_text(answers: list[str], shuffler: random.Random) -> None:
    found = describe_examples(examples(*answers))
    shuffled = list(answers)
    shuffler.shuffle(shuffled)
    assert describe_examples(examples(*shuffled)) == found
    assert found is None or (found.startswith(LEAD) and len(LEAD) < len(found) and len(found.split()) <= MAX_WORDS)


def test_what_would_be_too_much_is_left_out() -> None:
    opening, closing = "Here comes what you wanted to know about:", "That is what I know about it today!"
    answers = [
        f"{opening}\n- {a} Oho!\n- alpha beta gamma\n{e} {closing}" for a, e in zip(PLAIN, "🍞🌊💊🏰⭐", strict=True)
    ]
    found = str(describe_examples(examples(*answers)))
    assert found.startswith(f'{LEAD} Begin with "{opening}". End with "{closing}".')
    assert len(found.split()) <= MAX_WORDS


def made(kind: str, *features: Feature) -> Profile:
    return Profile({kind: list(features)}, 10)


@pytest.mark.parametrize(
    ("kind", "feature", "sentence"),
    [
        ("preference", Feature("opening:In short:", 3.0, 0.9, 9), 'Begin with "In short:".'),
        ("preference", Feature("closing:Over to you!", 3.0, 0.9, 9), 'End with "Over to you!".'),
        ("preference", Feature("opening:Sure!", 3.0, -0.9, 9), 'Do not begin with "Sure!".'),
        ("preference", Feature("words", 3.0, 14.4, 9), "Keep it short: about 14 words."),
        ("preference", Feature("words", 3.0, 183.0, 9), "Answer in detail: about 180 words."),
        ("preference", Feature("format:list", 3.0, 0.6, 4), "Write a list with a bullet for each point."),
        ("preference", Feature("format:list", 3.0, -0.7, 4), "Avoid lists."),
        ("preference", Feature("tone:emoji", 3.0, -1.0, 4), "Avoid emoji."),
        ("preference", Feature("asked:shorter", 2.0, 0.05, 4), "Be brief."),
        ("preference", Feature("asked:language:it", 2.0, 0.05, 4), "Answer in Italian."),
        ("preference", Feature("language:de", 2.0, 0.8, 4), "Answer in German."),
        ("interest", Feature("tides", 2.0, 0.05, 4), "The user often asks about tides."),
    ],
)
def test_what_stands_out_in_a_profile_is_said(kind: str, feature: Feature, sentence: str) -> None:
    assert describe(made(kind, feature)) == f"{LEAD} {sentence}"


@pytest.mark.parametrize(
    ("kind", "feature"),
    [
        ("preference", Feature("format:list", 3.0, 0.59, 4)),  # too few of the answers
        ("preference", Feature("format:list", 3.0, 1.0, 3)),  # of too few answers
        ("preference", Feature("format:list", 0.49, 1.0, 40)),  # too long ago
        ("preference", Feature("words", 3.0, 14.0, 3)),
        ("preference", Feature("words", 3.0, 80.0, 9)),  # neither short nor long
        ("preference", Feature("format:plain", 3.0, 1.0, 9)),
        ("preference", Feature("language:en", 3.0, 1.0, 9)),
        ("preference", Feature("language:de", 3.0, 0.79, 9)),
        ("preference", Feature("asked:wrong", 3.0, 0.5, 9)),  # says nothing of a form
        ("interest", Feature("tides", 3.0, 0.04, 9)),
        ("context", Feature("time:morning", 3.0, 1.0, 9)),
        ("quality", Feature("judged", 3.0, 1.0, 9)),
    ],
)
def test_what_does_not_stand_out_in_a_profile_is_not_said(kind: str, feature: Feature) -> None:
    assert describe(made(kind, feature)) is None


@pytest.mark.parametrize(
    ("kind", "name", "value", "sentence"),
    [
        ("preference", "format:list", 0.1, "Write a list with a bullet for each point."),
        ("preference", "format:plain", 1.0, "Write plain paragraphs."),
        ("preference", "words", 80.0, "Write about 80 words."),
        ("preference", "style", "dry humour", "Style: dry humour."),
        ("preference", "style", 2.0, "Style: 2."),
        ("preference", "language:en", 1.0, "Answer in English."),
        ("preference", "language:nl", -1.0, "Do not answer in nl."),
        ("interest", "tides", 1.0, "The user is interested in tides."),
        ("interest", "tides", -1.0, "The user is not interested in tides."),
        ("interest", "tides", "of the North Sea", "Tides: of the North Sea."),
        ("context", "time:morning", "short mails", "Time, morning: short mails."),
    ],
)
def test_what_was_set_by_hand_is_always_said(kind: str, name: str, value: float | str, sentence: str) -> None:
    for pinned in (False, True):
        assert describe(made(kind, Feature(name, 0.0, value, 0, pinned, not pinned))) == f"{LEAD} {sentence}"


def test_preferences_come_first_then_the_language_then_interests() -> None:
    profile = Profile(
        {
            "interest": [Feature("tides", 2.0, 0.2, 4), Feature("ferries", 1.0, 0.1, 4)],
            "preference": [
                Feature("language:de", 4.0, 1.0, 9),
                Feature("tone:emoji", 4.0, 1.0, 9),
                Feature("words", 4.0, 20.0, 9),
                Feature("opening:Kurz:", 4.0, 1.0, 9),
            ],
        },
        10,
    )
    assert describe(profile) == (
        f'{LEAD} Begin with "Kurz:". Keep it short: about 20 words. Use emoji. Answer in German. '
        "The user often asks about tides, ferries."
    )
    assert describe(profile, 18) == f'{LEAD} Begin with "Kurz:". Keep it short: about 20 words. Use emoji.'
    assert describe(profile, 7) is None


def test_what_was_set_by_hand_goes_first_where_there_is_little_room() -> None:
    observed, by_hand = Feature("tone:emoji", 4.0, 1.0, 9), Feature("style", 0.0, "dry humour", 0, edited=True)
    profile = made("preference", observed, by_hand)
    assert describe(profile) == f"{LEAD} Use emoji. Style: dry humour."
    assert describe(profile, 10) == f"{LEAD} Style: dry humour."


FEATURES = st.builds(
    Feature,
    st.sampled_from(["words", "format:list", "tone:emoji", "opening:So:", "language:de", "asked:shorter", "x", "y z"]),
    st.floats(0, 9),
    st.one_of(st.floats(-2, 500), st.text("ab ", min_size=1, max_size=40).filter(str.strip)),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
)


@given(
    st.dictionaries(st.sampled_from(["interest", "context", "preference"]),
                    st.lists(FEATURES, max_size=8, unique_by=lambda f: f.name)),
    st.integers(0, 60),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_profile_gives_one_text_within_its_bound(
    groups: dict[str, list[Feature]], most: int, shuffler: random.Random
) -> None:
    found = describe(Profile(groups, 10), most)
    assert found is None or (found.startswith(LEAD) and len(LEAD.split()) < len(found.split()) <= most)
    shuffled = {kind: shuffler.sample(group, len(group)) for kind, group in groups.items()}
    assert describe(Profile(shuffled, 10), most) == found
