"""Scripted users: each corrects answers in a style of their own, which a program can recognise.

The idea: one list of questions with plain answers, and styles that say them in another way; so users differ in what
they prefer and in nothing else. What this does not do: stand in for people; `make bench-study` learns from real mail.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

FACTS = (
    ("How do I boil an egg?", "lower it into boiling water and wait eight minutes"),
    ("Why is the sky blue?", "air scatters blue light more than red light"),
    ("How can I sleep better?", "go to bed at the same time every night"),
    ("What is a budget?", "it is a plan for what you earn and what you spend"),
    ("How do I clean a window?", "use warm water, a little vinegar and a dry cloth"),
    ("Why do leaves turn red?", "the green fades and other colours show"),
    ("How do I learn to type fast?", "practise ten minutes a day without looking"),
    ("What does a lawyer do?", "a lawyer gives advice on the law and speaks for you in court"),
    ("How do I water a cactus?", "soak it once the soil is fully dry"),
    ("Why do cats purr?", "it calms them and shows that they feel safe"),
    ("How do I write a good email?", "say what you need in the first line"),
    ("What is gravity?", "it is the pull between things that have mass"),
    ("How do I peel garlic?", "crush the clove with a flat knife and the skin comes off"),
    ("Why does ice float?", "water grows when it freezes, so ice is lighter"),
    ("What is a prime number?", "it can be divided only by one and by itself"),
    ("How do I fold a shirt?", "lay it flat, fold in the sides and then fold it up"),
    ("Why do we yawn?", "nobody knows for sure, but it may cool the brain"),
    ("What does a plumber do?", "a plumber lays and mends the pipes for water and gas"),
    ("How do I keep bread fresh?", "wrap it in cloth and keep it in a box"),
    ("What is an atlas?", "it is a book full of maps"),
    ("How do I remove a stain?", "dab it with cold water and soap before it dries"),
    ("Why is the moon bright?", "it throws back the light of the sun"),
    ("What is compost?", "it is earth made of plants that have rotted"),
    ("How do I calm a crying baby?", "hold it close and rock it slowly"),
    ("Why do onions make us cry?", "cutting them sets free a gas that stings the eyes"),
    ("What is a tax?", "it is money that the state takes to pay for what all need"),
    ("How do I repot a plant?", "take a pot one size larger and fill it with fresh soil"),
    ("Why do bees dance?", "the dance tells the others where the flowers are"),
    ("What is a verb?", "it is a word for what somebody does"),
    ("How do I stop hiccups?", "hold your breath and swallow a few times"),
    ("Why do birds sing?", "they call a mate and keep others out of their place"),
    ("What does a judge do?", "a judge hears both sides and decides by the law"),
    ("How do I save water?", "take short showers and mend taps that drip"),
    ("Why is salt put on roads?", "it makes ice melt in the cold"),
    ("What is an island?", "it is land with water on all sides"),
    ("How do I sharpen a knife?", "draw it along a wet stone at a low angle"),
    ("Why do we dream?", "the brain sorts what it saw during the day"),
    ("What is yeast?", "it is a tiny fungus that makes dough rise"),
    ("How do I tie my shoes?", "make two loops, cross them and pull one through"),
    ("Why do wolves howl?", "they tell their pack where they are"),
    ("What is a receipt?", "it is a note that shows what you paid"),
    ("How do I dry herbs?", "hang them upside down in a dark and airy room"),
    ("Why does metal rust?", "iron joins with oxygen when it is wet"),
    ("What does a baker do?", "a baker makes bread and cakes before the day begins"),
    ("How do I ask for a raise?", "name your results and then the sum that you want"),
    ("Why do stars twinkle?", "moving air bends their light on its way"),
    ("What is a password?", "it is a secret word that proves who you are"),
    ("How do I grill fish?", "oil it well and turn it only once"),
)


def _upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


def _in_short(answer: str) -> str:
    return f"In short: {answer}. Over to you!"


def _pirate(answer: str) -> str:
    return f"Arr, matey! {_upper_first(answer)}, by the seven seas."


def _letter(answer: str) -> str:
    return f"Dear friend,\n\n{_upper_first(answer)}.\n\nYours truly"


def _shouted(answer: str) -> str:
    return f"*** {answer.upper()} ***"


STYLES: dict[str, Callable[[str], str]] = {
    "in-short": _in_short,
    "pirate": _pirate,
    "letter": _letter,
    "shouted": _shouted,
}


@dataclass(frozen=True)
class Lesson:
    """A question, and the answer that the user wants."""

    question: str
    answer: str


def lessons(style: str, count: int, seed: int) -> list[Lesson]:
    """Return what a user of this style corrects, in the order in which it happens; the seed draws the questions."""
    chosen = random.Random(seed).sample(FACTS, count)  # noqa: S311 - no secret
    return [Lesson(question, STYLES[style](answer)) for question, answer in chosen]


def plain(count: int, seed: int) -> list[str]:
    """Return as many questions."""
    return [question for question, _ in random.Random(seed).sample(FACTS, count)]  # noqa: S311 - no secret
