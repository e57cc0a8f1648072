"""The routes of events and of what is likely next, over a scripted engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edgepd.errors import RequestError
from edgepd.settings import Intent, Settings
from edgepd_daemon.api.events import Happened, when
from edgepd_daemon.api.prediction import described
from edgepd_daemon.foresight import Predicted
from edgepd_daemon.warming import Warmings
from tests.daemon.profiled import call, get, ok, post, profiled, refused
from tests.daemon.running import Json
from tests.daemon.scripted import Scripted

WINTER = 1_769_878_800.0  # 2026-01-31T17:00:00Z
SUMMER = 1_785_517_200.0  # 2026-07-31T17:00:00Z


class FakeForesight:
    """Foresees what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.likely: list[Any] = []
        self.asked: list[tuple[str | None, int, float | None]] = []

    def ranked(self, viewer: str | None, limit: int, at: float | None = None) -> list[Any]:
        """Return the likeliest of what the test has set."""
        self.asked.append((viewer, limit, at))
        return self.likely[:limit]

    def predicted(self) -> Predicted:
        """Return three predictions that were compared."""
        return Predicted(made=3, top1=1, top3=2)


class FakeWarmer:
    """Counts how often it was told of events."""

    def __init__(self) -> None:
        self.woken = 0
        self.warmings = Warmings(made=12, hits=9)

    def wake(self) -> None:
        """Count."""
        self.woken += 1


@pytest.fixture
def foresight() -> FakeForesight:
    return FakeForesight()


@pytest.fixture
def warmer() -> FakeWarmer:
    return FakeWarmer()


@pytest.fixture
def served(foresight: FakeForesight, warmer: FakeWarmer) -> Iterator[Scripted]:
    with profiled(foresight=foresight, warmer=warmer) as found:
        yield found


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def stored(served: Scripted, **params: Any) -> list[Json]:
    return list(get(served, "/events", **params)["events"])


def test_events_are_stored_once_and_listed_newest_first(served: Scripted) -> None:
    sent = [
        {"event": "cafe", "intent": "food", "context": "harbour", "at": WINTER, "utc_offset_s": 3600},
        {"event": "train", "at": "2026-01-31T08:00:00+01:00"},
    ]
    first = post(served, "/events", events=sent, app="phone")
    assert (len(set(first["seqs"])), first["new"]) == (2, 2)
    assert post(served, "/events", events=[*sent, {"event": "gym", "at": WINTER + 60}], app="phone") == {
        "seqs": [*first["seqs"], stored(served, limit=1)[0]["seq"]],
        "new": 1,
    }
    [_, cafe, train] = stored(served)
    assert cafe == {
        "seq": first["seqs"][0],
        "at": WINTER,
        "event": "cafe",
        "intent": "food",
        "context": "harbour",
        "utc_offset_s": 3600,
        "app": "phone",
        "interaction": None,
    }
    assert (train["intent"], train["context"], train["at"], train["utc_offset_s"]) == (
        "train", "", WINTER - 9 * 3600 - 3600, 3600,
    )  # fmt: skip


def test_new_events_are_told_to_who_computes_ahead(served: Scripted, warmer: FakeWarmer) -> None:
    for woken in (1, 1):
        post(served, "/events", events=[{"event": "cafe", "at": WINTER}])
        assert warmer.woken == woken


def test_without_a_time_it_has_just_happened_here(served: Scripted) -> None:
    before = time.time()
    post(served, "/events", events=[{"event": "cafe"}])
    [event] = stored(served)
    assert before <= event["at"] <= time.time()
    assert event["utc_offset_s"] == time.localtime(event["at"]).tm_gmtoff
    assert event["app"] == ""


@pytest.mark.parametrize(
    ("given", "at", "offset"),
    [
        ({}, WINTER, 3600),  # now
        ({"at": SUMMER}, SUMMER, 7200),
        ({"at": SUMMER, "utc_offset_s": -10800}, SUMMER, -10800),
        ({"utc_offset_s": 0}, WINTER, 0),
        ({"at": "2026-01-31T18:00"}, WINTER, 3600),
        ({"at": "2026-07-31 19:00:00"}, SUMMER, 7200),
        ({"at": " 2026-01-31T17:00:00Z "}, WINTER, 0),
        ({"at": "2026-01-31T12:00:00-05:00"}, WINTER, -18000),
        ({"at": "2026-01-31T12:00:00-05:00", "utc_offset_s": -18000}, WINTER, -18000),
        ({"at": "2026-01-31T12:00:00", "utc_offset_s": -18000}, WINTER, -18000),
        ({"at": "2026-10-25T02:30:00"}, 1_792_888_200.0, 7200),  # comes twice: the first one
        ({"at": 0}, 0.0, 3600),
    ],
)
def test_times(berlin: None, given: Json, at: float, offset: int) -> None:
    assert when(Happened(event="x", **given), 0, now=WINTER) == (at, offset)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"at": "soon"}, "events[7].at: 'soon' is no time; write 2026-01-31T18:00"),
        ({"at": "2026-01-31"}, "events[7].at: '2026-01-31' is a day; give the time of day too"),
        ({"at": "1969-12-31T00:00:00Z"}, "before 1970 or too far ahead"),
        ({"at": "9999-12-31T00:00:00Z"}, "before 1970 or too far ahead"),
        ({"at": "0001-01-01T00:00:00"}, "events[7].at: '0001-01-01T00:00:00' is"),
        ({"at": "2026-01-31T18:00+01:00", "utc_offset_s": 0}, "is 3600 s ahead of UTC, but utc_offset_s is 0"),
        ({"at": "1769878800"}, "unix seconds as a number"),
    ],
)
def test_times_that_are_none(given: Json, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        when(Happened(event="x", **given), 7, now=WINTER)
    assert message in str(caught.value)


BAD: tuple[tuple[Json, str], ...] = (
    ({}, "body.events.1.event"),
    ({"event": ""}, "body.events.1.event"),
    ({"event": "x" * 201}, "body.events.1.event"),
    ({"event": "x", "intent": ""}, "body.events.1.intent"),
    ({"event": "x", "context": "x" * 201}, "body.events.1.context"),
    ({"event": "x", "at": True}, "body.events.1.at"),
    ({"event": "x", "at": -1}, "body.events.1.at"),
    ({"event": "x", "at": "x" * 65}, "body.events.1.at"),
    ({"event": "x", "at": "soon"}, "events[1].at"),
    ({"event": "x", "at": WINTER * 2}, "events[1]: the event happened"),  # the clock of the sender is wrong
    ({"event": "x", "utc_offset_s": 18 * 3600 + 1}, "body.events.1.utc_offset_s"),
    ({"event": "x", "utc_offset_s": 0.5}, "body.events.1.utc_offset_s"),
    ({"event": "a\nb"}, "events[1]: "),
    ({"event": "password=Tr4il-Horse-77"}, "events[1]: "),
    ({"event": "x", "where": "home"}, "body.events.1.where"),
)


def test_one_bad_event_and_none_is_stored(served: Scripted) -> None:
    for event, message in BAD:
        found = refused(call(served, "POST", "/events", events=[{"event": "fine", "at": WINTER}, event]))
        assert (found[0], message in found[1]) == (400, True), (event, found)
    assert stored(served) == []


def test_how_many_events_a_request_has(served: Scripted) -> None:
    assert refused(call(served, "POST", "/events", events=[]))[0] == 400
    many = [{"event": f"e{n % 7}", "at": WINTER + n} for n in range(1001)]
    assert refused(call(served, "POST", "/events", events=many))[0] == 400
    assert stored(served) == []
    assert post(served, "/events", events=many[:1000])["new"] == 1000
    assert len(stored(served, limit=1000)) == 1000


def test_nothing_is_stored_while_prediction_is_switched_off(foresight: FakeForesight, warmer: FakeWarmer) -> None:
    off = Settings(intent=Intent(enabled=False))
    with profiled(settings=off, foresight=foresight, warmer=warmer) as served:
        found = refused(call(served, "POST", "/events", events=[{"event": "cafe"}]))
        assert found == (
            409,
            "prediction is switched off (intent.enabled), so no event was stored; set intent.enabled = true in "
            "config.toml, then: edgepd daemon reload",
        )
        assert stored(served) == []
        assert get(served, "/suggestions") == {"suggestions": [], "next": [], "predicting": False}
        assert shown(served)["enabled"] is False


def test_nothing_is_stored_of_an_app_that_is_not(served: Scripted) -> None:
    ok(call(served, "PUT", "/apps/mail", stored=False))
    status, message = refused(call(served, "POST", "/events", events=[{"event": "cafe"}], app="mail"))
    assert (status, message) == (
        409,
        "nothing of app 'mail' is stored, so its events were not either; to change that: edgepd profile apps "
        "'mail' --store",
    )
    assert post(served, "/events", events=[{"event": "cafe"}], app="phone")["new"] == 1
    assert [event["app"] for event in stored(served)] == ["phone"]


def test_an_app_sees_its_own_events(served: Scripted) -> None:
    for app in ("mail", "phone", ""):
        post(served, "/events", events=[{"event": f"of {app}", "at": WINTER}], app=app)
    assert {event["app"] for event in stored(served, app="mail")} == {"mail", ""}
    assert {event["app"] for event in stored(served)} == {"mail", "phone", ""}
    ok(call(served, "PUT", "/apps/phone", shared=True))
    assert {event["app"] for event in stored(served, app="mail")} == {"mail", "phone", ""}
    for limit in (0, 1001):
        assert refused(call(served, "GET", "/events", params={"limit": limit}))[0] == 400


def test_the_map_gives_events_their_intents(served: Scripted) -> None:
    assert get(served, "/events/map") == {"map": {}}
    post(served, "/events", events=[{"event": "cafe", "at": WINTER}])
    assert ok(call(served, "PUT", "/events/map", event="cafe", intent="food")) == {"event": "cafe", "intent": "food"}
    later = [{"event": "cafe", "at": WINTER + 1}, {"event": "cafe", "at": WINTER + 2, "intent": "work"}]
    post(served, "/events", events=[*later, {"event": "gym", "at": WINTER + 3}])
    assert [event["intent"] for event in stored(served)] == ["gym", "food", "food", "food"]
    assert get(served, "/events/map") == {"map": {"cafe": "food"}}
    assert ok(call(served, "DELETE", "/events/map", params={"event": "cafe"})) == {"event": "cafe"}
    assert get(served, "/events/map") == {"map": {}}
    assert [event["intent"] for event in stored(served)] == ["gym", "work", "cafe", "cafe"]
    assert refused(call(served, "DELETE", "/events/map", params={"event": "cafe"}))[0] == 404


def test_the_map_is_the_users(served: Scripted) -> None:
    message = "the map of events is the user's, not that of app 'mail'; send `intent` with each event instead"
    for method, fields in (
        ("GET", {"params": {"app": "mail"}}),
        ("PUT", {"event": "cafe", "intent": "food", "app": "mail"}),
        ("DELETE", {"params": {"event": "cafe", "app": "mail"}}),
    ):
        assert refused(call(served, method, "/events/map", **fields)) == (400, message)
    for body in ({"event": "cafe"}, {"event": "", "intent": "food"}, {"event": "cafe", "intent": "x" * 201}):
        assert refused(call(served, "PUT", "/events/map", **body))[0] == 400
    assert get(served, "/events/map") == {"map": {}}


def test_what_is_likely_next_stands_beside_the_questions(served: Scripted, foresight: FakeForesight) -> None:
    foresight.likely = [
        SimpleNamespace(intent="mail", probability=0.625, reason="usually at this time", app="mail"),
        SimpleNamespace(intent="food", probability=0.25, reason="often after mail", app=None),
    ]
    assert get(served, "/suggestions", limit=1, app="mail", at=WINTER) == {
        "suggestions": [],
        "next": [{"intent": "mail", "probability": 0.625, "reason": "usually at this time", "app": "mail"}],
        "predicting": True,
    }
    assert [each["intent"] for each in get(served, "/suggestions")["next"]] == ["mail", "food"]
    assert foresight.asked == [("mail", 1, WINTER), (None, 3, None)]
    for params in ({"at": -1}, {"at": "nan"}, {"limit": 21}):
        assert refused(call(served, "GET", "/suggestions", params=params))[0] == 400


def shown(served: Scripted) -> dict[str, Any]:
    predicted = served.services.foresight.predicted()
    with served.store.read() as conn:
        return described(served.services, conn, predicted)


def test_what_the_status_says(served: Scripted) -> None:
    post(served, "/events", events=[{"event": "cafe"}, {"event": "train"}])
    found = {
        "enabled": True,
        "tuned_at": None,
        "events": 2,
        "predicted": 3,
        "first": 1,
        "among_three": 2,
        "warmed": 12,
        "warmed_used": 9,
    }
    assert shown(served) == found
