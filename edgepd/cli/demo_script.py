"""What the user of the demo says: sixteen corrections in one consistent style, and questions kept back.

The style is one that the base model never uses, so that whether an answer has it can be decided by looking at its
first and last words: one plain sentence, opened with "In short:" and closed with "Over to you!".
"""

from __future__ import annotations

OPENING = "In short:"
CLOSING = "Over to you!"

# Question and the answer as this user wants it. The model never sees the newest five of these while it trains.
LESSONS = (
    ("How do I boil an egg?", "In short: lower it into boiling water and wait eight minutes. Over to you!"),
    ("Why is the sky blue?", "In short: air scatters blue light more than red light. Over to you!"),
    ("How can I sleep better?", "In short: go to bed at the same time every night. Over to you!"),
    ("What is a budget?", "In short: a plan for what you earn and what you spend. Over to you!"),
    ("How do I clean a window?", "In short: use warm water, a little vinegar and a dry cloth. Over to you!"),
    ("Why do leaves turn red?", "In short: the green fades and other colours show. Over to you!"),
    ("How do I learn to type fast?", "In short: practise ten minutes a day without looking. Over to you!"),
    ("What does a lawyer do?", "In short: gives advice on the law and speaks for you in court. Over to you!"),
    ("How do I water a cactus?", "In short: soak it once the soil is fully dry. Over to you!"),
    ("Why do cats purr?", "In short: it calms them and shows that they feel safe. Over to you!"),
    ("How do I write a good email?", "In short: say what you need in the first line. Over to you!"),
    ("What is gravity?", "In short: the pull between things that have mass. Over to you!"),
    ("How do I peel garlic?", "In short: crush the clove and the skin comes off by itself. Over to you!"),
    ("Why does ice float?", "In short: water grows when it freezes, so ice is lighter. Over to you!"),
    ("What does a plumber do?", "In short: lays and mends pipes for water and gas. Over to you!"),
    ("How do I keep bread fresh?", "In short: wrap it in cloth and store it in a box. Over to you!"),
)

# Never corrected and never trained on: what the model does here is what it has learned.
UNSEEN = (
    "How do I make a cup of tea?",
    "Why is the sea salty?",
    "What is a passport for?",
    "How can I save electricity at home?",
)

# Long enough to be under way while generations are switched.
LONG_REQUEST = "Tell me a story about a lighthouse keeper."


def opens_in_style(answer: str) -> bool:
    """Say whether an answer opens as the lessons do."""
    return answer.strip().startswith(OPENING)


def has_style(answer: str) -> bool:
    """Say whether an answer is in the style of the lessons from its first word to its last."""
    return opens_in_style(answer) and answer.strip().endswith(CLOSING)
