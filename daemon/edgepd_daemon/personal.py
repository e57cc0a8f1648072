"""What the profile puts before a question: preferences, facts, and accepted answers to similar questions.

The idea: style belongs into the weights, but facts, and what cannot be learned yet, are told. The arms that the gate
measured (see edgepd.adapt.gate.review) say what helps: with `auto` the profile is told, and answers are shown, only if
that made this user's wanted answers likelier. What the user wrote himself, facts and edited features, is always told.
Invariants: what is stored and learned from is the conversation as the client sent it; a request sees only what its app
may see; as a conversation goes on, the beginning of its prompt stays the same, so that the KV cache serves it: answers
are chosen by its first question, and facts are added, never exchanged.
What this does not do: change a bare prompt, a conversation with tools, or what is asked of a model by its number.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgepd.settings import Profile as ProfileSettings
from edgepd.settings import Settings
from edgepd_daemon.ask import Ask, Message
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Version
from edgepd_daemon.generations import Generations
from edgepd_daemon.prompt import about_tools
from edgepd_profiles import apps, profile, profile_text
from edgepd_profiles.examples import Example
from edgepd_profiles.facts import Fact
from edgepd_profiles.recall import Recalled, RecallIndex
from edgepd_profiles.registry import Generation
from edgepd_profiles.rows import text_of
from edgepd_profiles.store import Store

MARGIN = 0.02  # share of the loss, in nats/token, by which an arm must be better to be called better
SHOTS = 2  # answers that are shown at most, as many as the gate measures with
FACTS = 8
TOLD_SECONDS = 60.0  # for which what is told of the profile is kept: reading it takes tens of milliseconds
MOST_KNOWN = 64  # apps for which it is kept
ABOUT_USER = "What you know about the user:"


@dataclass(frozen=True)
class Personal:
    """A conversation with what was put before it. `used` names that and is empty if it is nothing."""

    messages: list[Message]
    used: dict[str, Any] = field(default_factory=dict)
    stored: bool = True  # whether the app's exchanges are kept at all


@dataclass(frozen=True)
class Proven:
    """Which ways of telling the model have been measured to help, and how that is known."""

    profile: bool
    retrieval: bool
    why: str


class Personaliser:
    """Knows what may be put before a question. Methods block shortly; any thread."""

    def __init__(
        self, store: Store, engine: Engine, generations: Generations, settings: Callable[[], Settings]
    ) -> None:
        """`settings` returns those in effect."""
        self._store = store
        self._engine = engine
        self._generations = generations
        self._settings = settings
        self._index = RecallIndex()
        self._lock = threading.Lock()  # the index is one thread's at a time; guards _known too
        self._renewed = 0  # how often what is told had to be read anew
        self._known: dict[tuple[str, ProfileSettings, bool], tuple[float, str | None]] = {}

    def of(self, version: Version, ask: Ask) -> Personal:
        """Return the conversation with what this user's profile says about it. Raises RequestError for a bad app."""
        apps.refuse_bad_name(ask.app)
        with self._store.read() as conn:
            stored = apps.get(conn, ask.app).stored
        plain = Personal(ask.messages, stored=stored)
        learning = ("", "default", self._generations.base.name)
        asked = [text_of(m.get("content")) for m in ask.messages if m["role"] == "user"]
        if not ask.personal or not asked or ask.model not in learning or ask.tools or about_tools(ask.messages):
            return plain
        wanted = self._settings().profile
        proven = self.proven()
        told = self._told(ask.app, wanted, proven)
        room = _Room(self._engine, version, min(wanted.context_tokens, self._engine.context_tokens // 4))
        told = told if told and room.takes(told) else None
        first, later = self._facts(asked, ask.app) if wanted.facts else ([], [])
        facts = [f for f in first if room.takes(f.text)]
        shots = self._shots(asked[0], ask.app) if _on(wanted.retrieval, proven.retrieval) else []
        shots = [s for s in shots if room.takes(f"{s.prompt}\n{s.response}")]
        facts += [f for f in later if room.takes(f.text)]  # last: what was told before keeps its room
        if not (told or facts or shots):
            return plain
        used = {"profile": bool(told), "facts": [f.id for f in facts], "shots": [s.id for s in shots]}
        return Personal(_before(ask.messages, told, facts, shots), used, stored)

    def prompt(self, app: str | None, wanted: ProfileSettings, proven: Proven) -> str | None:
        """Return what the model is told of the profile: all that stands out, or only what the user wrote himself."""
        if wanted.prompt == "off":
            return None
        with self._store.read() as conn:
            found = profile.read(conn, app, channel_weights(wanted), time.time())
        if not _on(wanted.prompt, proven.profile):
            found = found.only_edited()
        return profile_text.describe(found)

    def recall(self, query: str, k: int, app: str | None) -> list[Recalled]:
        """Return the facts and accepted answers that share words with a text, the best first."""
        with self._lock, self._store.read() as conn:
            return self._index.recall(conn, query, k, app)

    def forget(self) -> None:
        """Let go of what is in memory of the profile, because something was forgotten."""
        with self._lock:
            self._index.clear()
        self.renew()

    def renew(self) -> None:
        """Read what is told of the profile anew, because it was changed by hand."""
        with self._lock:
            self._renewed += 1
            self._known.clear()

    def proven(self) -> Proven:
        """Say what helps, by the newest generation on which the arms were measured."""
        active = self._generations.active()
        return proven(active, self._generations.listing() if active.kind == "base" else ())

    def _told(self, app: str, wanted: ProfileSettings, proven: Proven) -> str | None:
        """Return what is told of the profile; it is read anew every TOLD_SECONDS."""
        key, now = (app, wanted, proven.profile), time.monotonic()
        with self._lock:
            known, renewed = self._known.get(key), self._renewed
        if known is None or now - known[0] > TOLD_SECONDS:
            known = (now, self.prompt(app, wanted, proven))
            with self._lock:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                if renewed == self._renewed:  # else it may tell what was forgotten meanwhile
                    self._known[key] = known
        return known[1]

    def _facts(self, asked: Sequence[str], app: str) -> tuple[list[Fact], list[Fact]]:
        """Return the facts that fit the first question, and those that only later ones brought up, in their order."""
        with self._lock, self._store.read() as conn:
            first, *others = [self._index.facts(conn, question, FACTS, app) for question in asked]
        later = {fact.id: fact for found in others for fact in found if fact not in first}
        return first, list(later.values())[: FACTS - len(first)]

    def _shots(self, question: str, app: str) -> list[Example]:
        with self._lock, self._store.read() as conn:
            return self._index.shots(conn, question, SHOTS, app)


class _Room:
    """Room for what is told, in tokens."""

    def __init__(self, engine: Engine, version: Version, tokens: int) -> None:
        self._engine = engine
        self._version = version
        self._left = tokens

    def takes(self, text: str) -> bool:
        """Take the room that a text needs, if there is as much."""
        needed = len(self._engine.tokenize(self._version, text))
        if needed > self._left:
            return False
        self._left -= needed
        return True


def channel_weights(wanted: ProfileSettings) -> dict[str, float]:
    """Return the weight of each channel of feedback, as settings give it (alpha of eq. 3 is this times the decay)."""
    return {
        "active": wanted.active_weight,
        "passive": wanted.passive_weight,
        "survey": wanted.survey_weight,
        "implicit": wanted.implicit_weight,
        "suggestion": wanted.suggestion_weight,
        "unjudged": wanted.unjudged_weight,
    }


def proven(active: Generation, listing: Sequence[Generation]) -> Proven:
    """Say what has been measured to help beside `active`.

    With an adapter its own measurement counts; while the base serves, the newest one of any generation, because every
    one measures the base too. Of profile and retrieval alone the better one counts: together they were not measured.
    """
    if active.kind == "base":
        arms = [(g.id, _arms(g, "base", "profile", "retrieval")) for g in listing if g.state != "stale"]
        measured = [(number, losses) for number, losses in arms if losses]
        if not measured:
            return Proven(False, False, "nothing has been measured yet: the first training run does that")
        number, (base, told, shown) = measured[-1]
        why = f"measured with generation {number}, in nats/token: base {base:.3f}, "
        why += f"profile {told:.3f}, similar answers {shown:.3f}"
        return Proven(told < min(shown, (1 - MARGIN) * base), shown <= min(told, (1 - MARGIN) * base), why)
    found = _arms(active, "adapter", "adapter+retrieval")
    if not found:
        return Proven(False, False, f"it has not been measured with generation {active.id}")
    alone, both = found
    why = f"measured with generation {active.id}, in nats/token: alone {alone:.3f}, with similar answers {both:.3f}"
    return Proven(False, both < (1 - MARGIN) * alone, why)


def _arms(generation: Generation, *names: str) -> list[float]:
    """Return the losses of these arms in nats/token; none if one is missing, or was not a number."""
    arms = generation.scores.get("arms") or {}
    losses = [float(arms[name]) for name in names if arms.get(name) is not None]
    return losses if len(losses) == len(names) else []


def _on(choice: str, helps: bool) -> bool:
    return choice == "on" or (choice == "auto" and helps)


def _before(
    messages: Sequence[Message], told: str | None, facts: Sequence[Fact], shots: Sequence[Example]
) -> list[Message]:
    """Return the conversation after what is told, in the system message, and what is shown, as earlier turns.

    The form is that in which the gate measures the arms.
    """
    known = "\n".join([ABOUT_USER, *(f"- {fact.text}" for fact in facts)]) if facts else None
    rest = list(messages)
    own = text_of(rest.pop(0).get("content")) if rest and rest[0]["role"] == "system" else None
    said = "\n\n".join(part for part in (told, known, own) if part)
    system = [{"role": "system", "content": said}] if said else []
    turns = [
        {"role": role, "content": content}
        for shot in shots
        for role, content in (("user", shot.prompt), ("assistant", shot.response))
    ]
    return [*system, *turns, *rest]
