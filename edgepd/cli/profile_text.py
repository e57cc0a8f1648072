"""How the profile is described for people: its features in five groups, what is selected for learning, and apps.

The invariant: whatever the daemon does not say is left out or shown as "-"; nothing is rounded in the JSON.
What this does not do: ask the daemon, or decide what a feature means for an answer.
"""

from __future__ import annotations

from typing import Any

from edgepd.cli.output import columns, moment
from edgepd.client import Json

GROUPS = {
    "interest": "Interests",
    "context": "Contextual usage",
    "quality": "Feedback quality",
    "preference": "Response preference",
    "history": "Interaction history",
}
SHOWN_FEATURES = 8  # of a group, those that weigh most; --json has all
SHOWN_ITEMS = 20  # of a pool of the selection, likewise
PROMPT_CHARACTERS = 48
UNITS = {  # of the features that are averages; the others are shares
    "words": "about {:.0f} words",
    "turns": "about {:.1f}",
    "satisfaction": "{:+.2f}, from -1 to 1",
}


def described(found: Json) -> str:
    """Describe the profile, the heaviest features of each group first, and what of it reaches the model."""
    whose = f"of app {found['app']}" if found.get("app") else "of all apps"
    lines = [f"The profile {whose}, from {_count(found['exchanges'], 'exchange')}.", ""]
    rows: list[tuple[str, ...]] = []
    for kind, title in GROUPS.items():
        rows += _group(title, found["groups"].get(kind) or [])
    lines += [columns(rows), ""]
    prompt = found.get("prompt")
    if prompt:
        lines.append(f"{'The model is told' if found.get('prompt_used') else 'The model could be told'}: {prompt}")
    if found.get("why"):
        lines.append(_sentence(str(found["why"])))
    embedding = found.get("embedding")
    if embedding:
        lines.append(f"There is an embedding of you too: {embedding['dimensions']} numbers.")
    return "\n".join(lines).rstrip()


def _group(title: str, features: list[Json]) -> list[tuple[str, ...]]:
    """Return the rows of one group; its title stands in the first."""
    if not features:
        return [(title, "-", "nothing yet", "", "")]
    # What the user said is shown however little was observed for it.
    ordered = sorted(features, key=lambda each: (_is_set(each), each["alpha"]), reverse=True)
    shown = max(SHOWN_FEATURES, sum(map(_is_set, features)))
    rows: list[tuple[str, ...]] = [("", *feature_row(each)) for each in ordered[:shown]]
    rows[0] = (title, *rows[0][1:])
    if len(ordered) > shown:
        rows.append(("", f"and {len(ordered) - shown} more", "", "", ""))
    return rows


def feature_row(feature: Json) -> tuple[str, str, str, str]:
    """Return a feature as its name, its value, how much it weighs and what is to be known of it besides."""
    weight = f"alpha {feature['alpha']:.1f}, {_count(feature['count'], 'answer')}"
    marks = ", ".join(mark for mark, said in (("set by you", "edited"), ("pinned", "pinned")) if feature.get(said))
    return feature["name"], readable_value(feature["name"], feature["value"]), weight, marks


def readable_value(name: str, value: Any) -> str:
    """Return a feature's value with its unit; a share as a percentage, and what the user wrote as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name in UNITS:
        return UNITS[name].format(value)
    return f"{value:.0%}" if -1 <= value <= 1 else f"{value:.3g}"


def selection_text(found: Json, pools: list[str]) -> str:
    """Describe what was selected, pool by pool, the newest first."""
    lines = [f"Policy {found['policy']}, at most {found['slots']} examples."]
    what = {"examples": "Kept to learn from", "questions": "Worth asking you about"}
    for pool in pools:
        items = sorted(found["pools"].get(pool) or [], key=lambda each: each["at"], reverse=True)
        lines += ["", f"{what.get(pool, pool)}: {len(items)}"]
        if items:
            lines.append(columns([SELECTION_HEAD, *map(_selected, items[:SHOWN_ITEMS])]))
        if len(items) > SHOWN_ITEMS:
            lines.append(f"and {len(items) - SHOWN_ITEMS} more; --json has all")
    return "\n".join(lines)


SELECTION_HEAD = ("id", "since", "entropy", "domain score", "dissimilarity", "domain", "question", "why")


def _selected(item: Json) -> tuple[str, ...]:
    numbers = (f"{item[name]:.2f}" for name in ("entropy", "domain_score", "dissimilarity"))
    question = _short(item.get("prompt") or "-")
    return (item["interaction"], moment(item["at"]), *numbers, str(item["domain"]), question, item["reason"])


def channels_text(found: Json) -> str:
    """Describe how each channel of feedback was used, and how content that shows the user."""
    rows = [("channel", "possible", "given", "engagement", "satisfaction")]
    for each in found["channels"]:
        satisfaction = each.get("satisfaction")
        rows.append(
            (
                each["channel"],
                str(each["opportunities"]),
                str(each["given"]),
                f"{each['engagement']:.0%}" if each["opportunities"] else "-",
                "-" if satisfaction is None else f"{satisfaction:.1f} of 5",
            )
        )
    days = found["days"]
    return f"Feedback of the last {days:g} days.\n{columns(rows)}"


def rules_text(rules: list[Json], patterns: bool) -> str:
    """Describe the rules that take a follow-up for a correction, on request with their patterns."""
    rows = columns([(rule["name"], f'"{rule["example"]}"') for rule in rules]).splitlines()
    if not patterns:
        return "\n".join(rows)
    return "\n".join(f"{row}\n    {rule['pattern']}" for row, rule in zip(rows, rules, strict=True))


def apps_text(apps: list[Json]) -> str:
    """Describe what each app may do."""
    rows: list[tuple[str, ...]] = [("app", "shared", "stored", "teaches", "exchanges")]
    for app in apps:
        may = ("yes" if app[name] else "no" for name in ("shared", "stored", "teaches"))
        rows.append((app["name"] or "(unnamed)", *may, str(app.get("interactions", "-"))))
    return columns(rows)


def _is_set(feature: Json) -> bool:
    return bool(feature.get("edited") or feature.get("pinned"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= PROMPT_CHARACTERS else line[: PROMPT_CHARACTERS - 3] + "..."
