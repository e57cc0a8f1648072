"""What is observed of the user, and what is learned from it."""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.settings.declare import setting


@dataclass(frozen=True)
class Profile:
    """What is observed of the user, how much it counts, and how it is used in answers."""

    half_life_days: float = setting(
        30.0, "age at which an exchange counts half in the profile, in days", minimum=0.01, maximum=36_500
    )
    active_weight: float = setting(1.0, "weight of thumbs, ratings, corrections and comments", minimum=0, maximum=10)
    passive_weight: float = setting(0.3, "weight of what apps observe: copied, read, abandoned", minimum=0, maximum=10)
    survey_weight: float = setting(0.7, "weight of answers to survey questions", minimum=0, maximum=10)
    implicit_weight: float = setting(0.5, "weight of questions asked again or differently", minimum=0, maximum=10)
    suggestion_weight: float = setting(0.4, "weight of suggestions taken or ignored", minimum=0, maximum=10)
    unjudged_weight: float = setting(0.1, "weight of exchanges that nothing was said about", minimum=0, maximum=10)
    prompt: str = setting(
        "auto",
        "whether the profile is told to the model in a system prompt; auto: if that made wanted answers likelier",
        choices=("auto", "on", "off"),
    )
    retrieval: str = setting(
        "auto",
        "whether similar accepted answers are shown to the model; auto: if that made wanted answers likelier",
        choices=("auto", "on", "off"),
    )
    facts: bool = setting(True, "whether facts from `edgepd remember` that fit a question are told to the model")
    context_tokens: int = setting(
        384, "room for all of that in a prompt, in tokens, and never more than a quarter of the context", minimum=0
    )
    surveys: bool = setting(False, "whether at most one short question a day may be asked")
    questions_per_day: int = setting(
        3, "answers that you may be asked about in a day (`edgepd review`); 0 asks about none", minimum=0, maximum=1000
    )


@dataclass(frozen=True)
class Select:
    """Which examples are kept for training when there are too many, and which are made in addition."""

    policy: str = setting(
        "recency",
        "what keeps an example: entropy, domain and dissimilarity (qin), reward, recency, k-centre, fifo, random",
        choices=("qin", "reward", "recency", "kcenter", "fifo", "random"),
    )
    slots: int = setting(1000, "examples that are kept for training at most", minimum=2, maximum=100_000)
    similar_pairs: int = setting(
        0, "pairs like each example that the served model makes for a consolidation", minimum=0, maximum=8
    )
    similar_min: float = setting(0.3, "ROUGE-1 that such a pair has with its example at least", minimum=0, maximum=1)
    similar_max: float = setting(0.85, "ROUGE-1 above which it is a copy", minimum=0, maximum=1)
