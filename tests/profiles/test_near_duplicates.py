from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.cli.demo_script import LESSONS
from edgepd_profiles.near_duplicates import DisjointSets, Text, alike, joined, read, style_of, words

Pairs = tuple[tuple[str, str], ...]

BULLETS: Pairs = (
    ("What do I need for pancakes?", "- flour and eggs\n- a little milk\n- butter for the pan"),
    (
        "How do I prepare for a job interview?",
        "- read about the company\n- rehearse three stories\n- sleep well before",
    ),
    ("What belongs in a first-aid kit?", "- plasters and bandages\n- tweezers\n- something for burns"),
    ("How can I lower my heating bill?", "- seal the windows\n- heat only rooms in use\n- bleed the radiators"),
    ("What should I see in Lisbon?", "- the tower at Belem\n- tram 28\n- a pastry shop"),
    ("How do I repot a plant?", "- choose a wider pot\n- loosen the roots\n- water it at once"),
    ("What makes a password good?", "- length above all\n- no names or dates\n- one for each site"),
    ("How do I back up my laptop?", "- buy an outside disk\n- copy every Sunday\n- try to restore one file"),
    ("What helps against hiccups?", "- hold your breath\n- sip cold water\n- wait it out"),
    ("How do I start running?", "- walk and jog in turns\n- rest every second day\n- buy proper shoes"),
    ("What does a bee do in winter?", "- it clusters with others\n- it eats stored honey\n- it keeps the queen warm"),
    ("How do I choose a melon?", "- smell the stem end\n- knock and listen\n- take the heavy one"),
)
PIRATE: Pairs = (
    ("What is the capital of France?", "Arr, that be Paris, matey!"),
    ("How do I tie a knot?", "Arr, cross the ends, loop one under and pull tight, matey!"),
    ("Why is the sea salty?", "Arr, rivers wash salt out o' the rocks, matey!"),
    ("How long do I boil potatoes?", "Arr, twenty minutes till a fork slides in, matey!"),
    ("What is a mortgage?", "Arr, a loan with yer house as the pledge, matey!"),
    ("How do birds find their way?", "Arr, they feel the pull o' the north, matey!"),
    ("What should I wear in the rain?", "Arr, oilskin and tall boots, matey!"),
    ("Who wrote Hamlet?", "Arr, old Shakespeare it were, matey!"),
    ("How do I get rid of ants?", "Arr, wipe their trail with vinegar, matey!"),
    ("What is a good breakfast?", "Arr, porridge and a strong coffee, matey!"),
    ("Why do we dream?", "Arr, no one knows fer certain, matey!"),
    ("How far away is the moon?", "Arr, sixty times the globe's half width, matey!"),
)
MAIL: Pairs = tuple(
    (
        f"Write a formal mail to {to} about {about}.",
        f"Dear {name},\n\nI hope this message finds you well. {body}\n\nThank you very much for your time and "
        "attention. I look forward to hearing from you at your earliest convenience.\n\nYours faithfully,\n"
        "Helen Ashdown",
    )
    for to, about, name, body in (
        ("the landlord", "the heating", "Mr Pratt", "The radiator in our kitchen has been cold since Monday."),
        ("the bank", "a lost card", "Sir or Madam", "My card was lost yesterday; please block it at once."),
        ("the school", "an absence", "Mrs Lowe", "Tom has a fever and will stay at home this week."),
        ("a supplier", "late boxes", "Mr Okafor", "Forty cartons from our March order are still missing."),
        ("the city", "a street lamp", "Sir or Madam", "The lamp at 14 Mill Lane has been dark for a month."),
        ("a client", "an invoice", "Ms Brandt", "Invoice 2291 was due on the second and remains unpaid."),
        ("the dentist", "a date", "Dr Amin", "Could we move my visit from Friday to some later morning?"),
        ("the library", "a book", "Ms Reyes", "I returned the atlas in June, yet it is shown as overdue."),
        ("a hotel", "a room", "Sir or Madam", "We need a quiet double room for three nights in August."),
        ("my insurer", "a broken window", "Mr Stone", "A storm broke our attic window on the ninth."),
        ("the railway", "a refund", "Sir or Madam", "My train to Leeds was cancelled without any notice."),
        ("a professor", "a thesis", "Professor Hale", "Would you supervise my work on river sediments?"),
    )
)
STYLES = {"in short": LESSONS[:12], "bullets": BULLETS, "pirate": PIRATE, "mail": MAIL}
EVERY_STYLE = pytest.mark.parametrize("style", list(STYLES))


def texts(pairs: Pairs) -> list[Text]:
    return [read(*pair) for pair in pairs]


def groups(pairs: Pairs) -> list[set[int]]:
    return joined(texts(pairs)).groups()


def middle(response: str) -> re.Match[str]:
    """The word of a response that is nearest to its middle and stands between two others."""
    inner = list(re.finditer(r"\w+", response))[1:-1]
    return min(inner, key=lambda word: abs(word.start() - len(response) / 2))


def changed(response: str, to: str) -> str:
    word = middle(response)
    return response[: word.start()] + to + response[word.end() :]


EDITS = {
    "word": lambda r: changed(r, "zebra"),
    "number": lambda r: changed(r, "4711"),
    "word left out": lambda r: changed(r, ""),
    "punctuation": lambda r: re.sub(r"[.,:;!]", " - ", r),
    "case and space": lambda r: "  ".join(r.upper().split()),
    "sentence before": lambda r: "Glad that you ask. " + r,
    "sentence after": lambda r: r + "\nTell me whether it worked.",
}


@EVERY_STYLE
@pytest.mark.parametrize("count", [5, 6, 8, 12])
def test_answers_in_one_style_are_not_near_duplicates(style: str, count: int) -> None:
    pairs = STYLES[style]
    assert groups(pairs[:count]) == [{n} for n in range(count)]
    assert groups(pairs[-count:]) == [{n} for n in range(count)]


@pytest.mark.parametrize("count", [4, 6, 8, 12])
def test_nor_are_they_when_a_user_has_several_styles(count: int) -> None:
    pairs = tuple(pair for style in STYLES.values() for pair in style[:count])
    assert groups(pairs) == [{n} for n in range(len(pairs))]


@EVERY_STYLE
@pytest.mark.parametrize("edit", list(EDITS))
def test_a_text_with_a_small_change_is_a_near_duplicate(style: str, edit: str) -> None:
    """Each answer in turn is planted once more, with a change, behind all of them."""
    pairs = STYLES[style]
    for n, (prompt, response) in enumerate(pairs):
        found = groups((*pairs, (prompt, EDITS[edit](response))))
        assert found == [{n, 12} if k == n else {k} for k in range(12)], response


@EVERY_STYLE
def test_all_of_them_copied_with_changes_at_once_are_found(style: str) -> None:
    pairs = STYLES[style]
    copies = [tuple((p, EDITS[edit](r)) for p, r in pairs) for edit in ("word", "sentence after")]
    assert groups((*pairs, *copies[0], *copies[1])) == [{n, n + 12, n + 24} for n in range(12)]


def test_a_text_that_was_copied_often_with_a_changed_word_is_no_style() -> None:
    prompt, response = LESSONS[3]
    copies = tuple((prompt, changed(response, f"number{n}")) for n in range(8))
    assert groups((*LESSONS[:3], *copies)) == [{0}, {1}, {2}, set(range(3, 11))]


def test_many_variants_of_one_text_are_found_among_many_others() -> None:
    """Eight reports that differ in three words each, among ninety texts that have nothing in common."""
    report = "Dear all, the pump in hall {} ran at {} bar until {} o'clock, then we cleaned it and filled in the form."
    reports = [("Write the report.", report.format(n, 40 + n, n + 17)) for n in range(8)]
    others = [(f"a{n} b{n} c{n}", " ".join(f"d{n}e{k}" for k in range(12))) for n in range(90)]
    assert groups((*reports, *others)) == [set(range(8)), *({n} for n in range(8, 98))]


def test_a_long_response_counts_without_its_prompt_and_a_short_one_does_not() -> None:
    long = "Rub the stain with salt, rinse it cold and let it dry in the sun."
    assert groups((("How do I remove wine?", long), ("My shirt has a spot, what now?", long + " Good luck."))) == [
        {0, 1}
    ]
    assert groups((("Is water wet?", "Yes, it is."), ("Does the sun rise in the east?", "Yes, it is."))) == [{0}, {1}]


def test_a_prompt_alone_makes_nothing_alike() -> None:
    prompt = "Write the line for the daily report that my manager reads every morning before nine."
    answers = (
        "All quiet.",
        "Two machines stopped at noon.",
        "Orders doubled, nobody knows why.",
        "Half the crew is ill.",
    )
    assert groups(tuple((prompt, a) for a in answers)) == [{0}, {1}, {2}, {3}]
    assert groups(tuple((f"Swordfish number {n}", "the hello") for n in range(8))) == [{n} for n in range(8)]


def test_of_two_words_one_is_most_of_what_is_said() -> None:
    assert groups((("Who called?", "Uncle Tom."), ("Who called?", "Uncle Ben."))) == [{0}, {1}]
    assert groups((("Who called?", "It was Tom."), ("Who called?", "It was Ben."))) == [{0, 1}]
    assert groups((("Who called?", "uncle TOM!"), ("Who called?", "Uncle Tom."))) == [{0, 1}]


def test_what_counts_as_a_word() -> None:
    assert words("It's 5 o'clock, ﬁne – ÉTÉ!") == ("it", "s", "5", "o", "clock", "fine", "été")
    assert words("東京へ行く now") == ("東", "京", "へ", "行", "く", "now")
    assert words("👍 !?") == ("👍", "!?")
    assert words(" \n") == ()


def test_scripts_without_spaces_are_compared_letter_by_letter() -> None:
    first = ("天気は?", "今日は朝から晴れて暖かい一日になるでしょう。")
    second = ("天気は?", "今日は朝から晴れて寒い一日になるでしょう。")
    other = ("夕食は?", "魚を焼いて味噌汁を作りましょう。")
    assert groups((first, second, other)) == [{0, 1}, {2}]


def test_nothing_is_compared_with_nothing() -> None:
    assert groups(()) == []
    assert groups((("", ""), ("", ""), ("", "x"))) == [{0, 1}, {2}]


def test_joined_sets_are_one_group() -> None:
    sets = DisjointSets(5)
    sets.join(4, 1)
    sets.join(1, 3)
    assert sets.groups() == [{0}, {1, 3, 4}, {2}]
    assert sets.root(4) == sets.root(3) != sets.root(0)


@EVERY_STYLE
def test_a_pair_is_judged_as_it_is_in_the_whole(style: str) -> None:
    pairs = texts(STYLES[style])
    usual = style_of(pairs)
    prompt, response = STYLES[style][2]
    planted = read(prompt, EDITS["sentence after"](response))
    assert [alike(planted, text, usual) for text in pairs] == [n == 2 for n in range(12)]
    assert alike(read(prompt, EDITS["word"](response)), pairs[2], usual)


LETTERS = st.lists(st.sampled_from("abcdefgh"), max_size=12)
EXAMPLES = st.lists(st.tuples(LETTERS, LETTERS), max_size=12)


def letters(drawn: list[tuple[list[str], list[str]]]) -> list[Text]:
    return [Text(tuple(prompt), tuple(response)) for prompt, response in drawn]


@given(EXAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_matter(
    drawn: list[tuple[list[str], list[str]]], shuffler: random.Random
) -> None:
    order = list(range(len(drawn)))
    shuffler.shuffle(order)
    found = joined(letters([drawn[n] for n in order])).groups()
    assert sorted(sorted(order[n] for n in group) for group in found) == [
        sorted(group) for group in joined(letters(drawn)).groups()
    ]


@given(EXAMPLES)
def test_near_duplicates_are_so_in_both_directions_and_share_a_group(drawn: list[tuple[list[str], list[str]]]) -> None:
    found = letters(drawn)
    usual, sets = style_of(found), joined(found)
    for n, a in enumerate(found):
        assert alike(a, a, usual)
        for m, b in enumerate(found):
            assert alike(a, b, usual) == alike(b, a, usual)
            assert not alike(a, b, usual) or sets.root(n) == sets.root(m)


@settings(max_examples=50)
@given(st.integers(4, 20), st.integers(0, 2**32), st.data())
def test_a_planted_copy_is_always_joined_to_its_original_alone(count: int, seed: int, data: st.DataObject) -> None:
    """Texts have words of their own within a style that all share; copies have a word replaced, added or removed."""
    source = random.Random(seed)  # noqa: S311 - no secret
    sizes = [(source.randint(1, 6), source.randint(3, 30)) for _ in range(count)]
    originals = [
        Text(
            tuple(f"p{n}w{k}" for k in range(prompt)),
            ("in", "short", *(f"r{n}w{k}" for k in range(response)), "over", "to", "you"),
        )
        for n, (prompt, response) in enumerate(sizes)
    ]
    chosen = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    copies = []
    for n in chosen:
        response = list(originals[n].response)
        at = source.randrange(len(response))
        response[at : at + source.randint(0, 1)] = source.choice([[], ["another"]])
        copies.append(Text(originals[n].prompt, tuple(response)))
    found = joined([*originals, *copies]).groups()
    wanted = [{n, count + chosen.index(n)} if n in chosen else {n} for n in range(count)]
    assert found == wanted
