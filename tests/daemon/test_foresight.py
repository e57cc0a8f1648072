"""What is next: from which events, by which student, how long it is kept, and how it is judged."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest

from edgepd.errors import ModelError
from edgepd.intent.schema import Event
from edgepd.settings import Intent, Settings
from edgepd_daemon import foresight as module
from edgepd_daemon.foresight import HALF_HOUR_S, Foresight, Next, Predicted, Ranker
from edgepd_profiles import apps, events, interactions
from edgepd_profiles.events import New
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

T = TypeVar("T")
NOW = 1_700_000_000.0  # 22:13 UTC on a Tuesday
SHARES = (0.6, 0.3, 0.1)


class ByRecency:
    """Ranks the three intents that came last: 60, 30 and 10 percent of what is left of them, renormalised."""

    def __init__(self, extra: Sequence[str] = ()) -> None:
        """`extra` are intents that the student knows and the history does not have; they come first."""
        self.asked: list[tuple[list[Event], float, int]] = []
        self._extra = extra

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        self.asked.append((list(events), at, utc_offset_s))
        newest = list(dict.fromkeys([*self._extra, *(e.intent for e in reversed(events))]))[:3]
        shares = SHARES[: len(newest)]
        return [(intent, share / sum(shares)) for intent, share in zip(newest, shares, strict=True)]


class Seen:
    """A profile, a clock, and the Foresight over them; `loads` are the paths that were asked for."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.directory = directory
        self.settings = Settings()
        self.now = NOW
        self.ticks = 0.0
        self.student: ByRecency | Exception = ByRecency()
        self.loads: list[Path | None] = []
        self.foresight = Foresight(
            *(store, lambda: self.settings, directory),
            load=self._load,
            wall=lambda: self.now,
            monotonic=lambda: self.ticks,
            offset_s=lambda _at: 3600,
        )

    def _load(self, path: Path | None) -> Ranker:
        self.loads.append(path)
        if isinstance(self.student, Exception):
            raise self.student
        return self.student

    def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        return self.store.write(job).result()

    def add(self, *intents: str, app: str = "", ago_s: float = 60.0) -> None:
        """Add an event of each intent, the last one `ago_s` seconds ago."""
        first = self.now - ago_s - len(intents) + 1
        new = [
            New(at=first + i, event=f"do {intent}", intent=intent, context="", utc_offset_s=0, app=app)
            for i, intent in enumerate(intents)
        ]
        self.write(lambda conn: events.add(conn, new))

    def chat(self, name: str, app: str, intent: str) -> None:
        """Add an exchange of an app and its event."""
        row = Interaction(name, name, self.now - 30, app, "tiny", 1, [{"role": "user", "content": "Hello"}])
        new = New(
            at=self.now - 30, event="chat:hello", intent=intent, context="", utc_offset_s=0, app=app, interaction=name
        )
        self.write(lambda conn: (interactions.begin(conn, row), events.add(conn, [new])))

    def intents(self, viewer: str | None = None, at: float | None = None) -> list[str]:
        return [n.intent for n in self.foresight.ranked(viewer, 10, at)]

    @property
    def times(self) -> int:
        """How often the student was asked."""
        assert isinstance(self.student, ByRecency)
        return len(self.student.asked)


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    with Store.open(tmp_path / "profile.db") as store:
        yield Seen(store, tmp_path / "students")


def test_without_a_history_nothing_is_next_and_nothing_is_loaded(seen: Seen) -> None:
    assert (seen.intents(), seen.foresight.likely_apps(), seen.loads) == ([], [], [])
    assert (seen.foresight.loaded, seen.foresight.problem) == (None, None)


def test_the_shipped_student_ranks_the_events_in_order(seen: Seen) -> None:
    seen.add("mail", "news", "mail")
    assert seen.foresight.ranked(None, 10) == [
        Next("mail", pytest.approx(2 / 3), "seen 2 times"),  # type: ignore[arg-type]
        Next("news", pytest.approx(1 / 3), "seen once"),  # type: ignore[arg-type]
    ]
    assert isinstance(seen.student, ByRecency)
    ((given, at, offset_s),) = seen.student.asked
    assert [(e.event, e.intent) for e in given] == [("do mail", "mail"), ("do news", "news"), ("do mail", "mail")]
    assert (at, offset_s, seen.loads, seen.foresight.loaded) == (NOW, 3600, [None], "shipped")


def test_the_limit_holds(seen: Seen) -> None:
    seen.add("mail", "news", "film")
    assert [n.intent for n in seen.foresight.ranked(None, 2)] == ["film", "news"]


def test_switched_off_there_is_nothing_and_nothing_stays(seen: Seen) -> None:
    seen.add("mail")
    assert seen.intents() == ["mail"]
    seen.settings = replace(seen.settings, intent=Intent(enabled=False))
    assert (seen.intents(), seen.foresight.loaded) == ([], None)


def test_a_ranking_is_kept_for_half_an_hour_or_until_an_event_comes(seen: Seen) -> None:
    seen.add("mail")
    assert seen.intents() == seen.intents() == ["mail"]
    assert seen.times == 1
    seen.add("news", ago_s=1)
    assert seen.intents() == ["news", "mail"]
    seen.now += HALF_HOUR_S
    assert seen.intents() == ["news", "mail"]
    assert seen.times == 3


def test_an_app_gets_what_it_may_see(seen: Seen) -> None:
    seen.add("mail", app="post", ago_s=90)
    seen.add("secret", app="diary", ago_s=30)
    assert (seen.intents(None), seen.intents("post"), seen.intents("other")) == (["secret", "mail"], ["mail"], [])
    seen.write(lambda conn: apps.change(conn, "diary", shared=True))
    assert seen.intents("post") == ["secret", "mail"]


def test_names_that_only_the_student_knows_are_not_told(seen: Seen) -> None:
    """A tuned student has the names of all apps."""
    seen.student = ByRecency(extra=["secret"])
    seen.add("news", "mail", app="post")
    assert [(n.intent, n.probability) for n in seen.foresight.ranked("post", 10)] == [
        ("mail", pytest.approx(0.75)),
        ("news", pytest.approx(0.25)),
    ]


def test_another_moment_knows_only_what_had_happened_by_then(seen: Seen) -> None:
    seen.add("mail", ago_s=7200)
    seen.add("news", ago_s=60)
    assert seen.intents(at=seen.now - 3600) == ["mail"]
    assert seen.intents(at=seen.now - 9999) == []
    assert isinstance(seen.student, ByRecency)
    assert seen.student.asked[-1][1] == NOW - 3600
    assert seen.intents() == ["news", "mail"]


def test_a_sender_whose_clock_is_ahead_does_not_confuse_it(seen: Seen) -> None:
    seen.add("mail", ago_s=-120)
    assert seen.intents() == ["mail"]
    assert isinstance(seen.student, ByRecency)
    assert seen.student.asked[-1][1] == NOW + 120


def test_the_app_of_an_intent_and_how_likely_it_is(seen: Seen) -> None:
    seen.add("mail", ago_s=90)
    seen.chat("i_1", "post", "mail")
    assert seen.foresight.ranked(None, 1)[0].app == "post"
    assert seen.foresight.likely_apps() == [("post", pytest.approx(0.5))]


def tuned(seen: Seen, monkeypatch: pytest.MonkeyPatch, contents: bytes, sha256: str) -> Path:
    """Put a tuned student there, and let it be the active one under this hash."""
    seen.directory.mkdir(exist_ok=True)
    path = seen.directory / "7.npz"
    path.write_bytes(contents)
    active = SimpleNamespace(id=7, file=path.name, sha256=sha256)
    monkeypatch.setattr(module.students, "active", lambda _conn: active)
    return path


def test_the_tuned_student_serves(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.add("mail")
    path = tuned(seen, monkeypatch, b"tuned", hashlib.sha256(b"tuned").hexdigest())
    assert seen.intents() == ["mail"]
    assert (seen.loads, seen.foresight.loaded, seen.foresight.problem) == ([path], "tuned 7", None)


def test_a_changed_file_is_not_opened(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.add("mail")
    tuned(seen, monkeypatch, b"changed", hashlib.sha256(b"tuned").hexdigest())
    assert seen.intents() == ["mail"]
    assert (seen.loads, seen.foresight.loaded) == ([None], "shipped")
    assert seen.foresight.problem is not None and "its contents have changed" in seen.foresight.problem


def test_a_missing_file_is_replaced_by_the_shipped_student(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.add("mail")
    tuned(seen, monkeypatch, b"", "").unlink()
    assert (seen.intents(), seen.foresight.loaded) == (["mail"], "shipped")
    assert seen.foresight.problem is not None and "7.npz" in seen.foresight.problem


def test_without_any_student_nothing_is_next(seen: Seen) -> None:
    seen.add("mail")
    seen.student = ModelError("student.npz: not a predictor that fits")
    assert seen.intents() == []
    assert seen.foresight.problem is not None and "not a predictor that fits" in seen.foresight.problem


def test_another_student_is_looked_for_when_it_is_told_to(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.add("mail")
    assert (seen.intents(), seen.loads) == (["mail"], [None])
    path = tuned(seen, monkeypatch, b"tuned", hashlib.sha256(b"tuned").hexdigest())
    seen.foresight.look_again()
    assert (seen.intents(), seen.loads) == (["mail"], [None, path])


def test_a_student_is_let_go_of_and_loaded_again(seen: Seen) -> None:
    loaded: list[str | None] = []
    seen.foresight.on_load = lambda: loaded.append("x")
    seen.add("mail")
    seen.intents()
    seen.ticks = 599.0
    seen.foresight.release(600.0)
    assert seen.foresight.loaded == "shipped"
    seen.ticks = 600.0
    seen.foresight.release(600.0)
    assert seen.foresight.loaded is None
    assert (seen.intents(), seen.times) == (["mail"], 1)  # what was found stays
    seen.add("news", ago_s=1)
    assert (seen.intents(), len(seen.loads), loaded) == (["news", "mail"], 2, ["x", "x"])


def test_predictions_are_compared_with_what_came(seen: Seen) -> None:
    """Made before the event: first among a, b, c: the newest is the likeliest."""
    seen.add("a", "b", "c", "d", ago_s=300)
    assert seen.intents() == ["d", "c", "b"]
    assert seen.foresight.predicted() == Predicted(0, 0, 0)
    for came, expected in (
        ("d", Predicted(1, 1, 1)),  # of d, c, b
        ("b", Predicted(2, 1, 2)),  # of d, c, b
        ("a", Predicted(3, 1, 2)),  # of b, d, c
    ):
        seen.now += 60
        seen.add(came, ago_s=0)
        assert seen.foresight.predicted() == expected
        seen.intents()
        assert seen.foresight.predicted() == expected


def test_of_several_events_the_first_one_is_compared(seen: Seen) -> None:
    seen.add("a", "b")
    assert seen.intents() == ["b", "a"]
    seen.now += 60
    seen.add("b", ago_s=50)
    seen.add("z", ago_s=0)
    seen.intents()
    assert seen.foresight.predicted() == Predicted(1, 1, 1)


def test_what_was_only_sent_later_is_not_compared(seen: Seen) -> None:
    seen.add("a", "b")
    assert seen.intents() == ["b", "a"]
    seen.add("z", ago_s=86_400)
    assert seen.foresight.predicted() == Predicted(0, 0, 0)
    seen.now += 60
    seen.add("a", ago_s=0)
    assert seen.foresight.predicted() == Predicted(1, 0, 1)


def test_predictions_for_apps_and_for_other_moments_are_not_judged(seen: Seen) -> None:
    seen.add("a", "b", app="post")
    seen.intents("post")
    seen.intents(at=seen.now + 60)
    seen.now += 120
    seen.add("b", app="post", ago_s=0)
    assert seen.foresight.predicted() == Predicted(0, 0, 0)


def test_many_threads(seen: Seen) -> None:
    seen.add("mail", "news", app="post")
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda i: seen.intents([None, "post", "x"][i % 3]), range(60))
        assert set(map(tuple, asked)) == {("news", "mail"), ()}
    assert len(seen.loads) == 1


def test_local_time_has_the_offset_of_its_season(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert module.local_offset_s(1_700_000_000.0) == 3600  # in November
    assert module.local_offset_s(1_690_000_000.0) == 7200  # in July
