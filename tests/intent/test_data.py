"""A log is read as it is meant or refused with its line, and no split lets the future into the past."""

from __future__ import annotations

import csv
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.errors import RequestError
from edgepd.intent.data import (
    Columns,
    chronological,
    local_time,
    read_events,
    read_intents,
    split_users,
    time_zone,
)
from edgepd.intent.logfile import Limits
from edgepd.intent.schema import Event

NOON = 1_714_564_800  # 2024-05-01 12:00 UTC
BERLIN = ZoneInfo("Europe/Berlin")


def written(tmp_path: Path, text: str, name: str = "log.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_is_read_by_user_in_order_of_time(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "user,time,context,event,intent\n"
        "ann,2024-05-01T14:30:00+02:00,home,mail,write\n"
        "\n"
        "bob,1714564800,,taxi,\n"
        'ann,2024-05-01T12:00:00Z, office ,"chat, long",talk\n',
    )
    assert read_events(path) == {
        "ann": [Event(NOON, "chat, long", "talk", "office", 0), Event(NOON + 1800, "mail", "write", "home", 7200)],
        "bob": [Event(NOON, "taxi", "taxi", "", 0)],
    }


def test_json_lines_are_read_with_numbers_null_and_other_keys(tmp_path: Path) -> None:
    lines = [
        {"who": 7, "t": NOON + 0.5, "app": "mail", "context": None, "utc_offset_s": -3600, "else": [1]},
        {"who": 7, "t": str(NOON), "app": 12},
    ]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)) + "\n", "log.jsonl")
    columns = Columns(user="who", time="t", event="app")
    assert read_events(path, columns) == {"7": [Event(NOON, "12", "12"), Event(NOON + 0.5, "mail", "mail", "", -3600)]}


def test_a_tsv_of_one_user_needs_no_user_column(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufefftime\tevent\n1714564800\tmail\n", "log.tsv")
    assert read_events(path, Columns(user=None)) == {"": [Event(NOON, "mail", "mail")]}


def test_the_same_time_and_event_is_kept_once_and_ties_stay_in_file_order(tmp_path: Path) -> None:
    path = written(tmp_path, "user,time,event,context\na,5,z,first\na,5,b,\na,5,z,second\na,4,z,\n")
    assert [(e.at, e.event, e.context) for e in read_events(path)["a"]] == [
        (4, "z", ""),
        (5, "z", "first"),
        (5, "b", ""),
    ]


def test_the_intent_is_that_of_the_row_then_of_the_map(tmp_path: Path) -> None:
    path = written(tmp_path, "user,time,event,intent\na,1,taxi,\na,2,taxi,fun\n")
    assert [e.intent for e in read_events(path, intents={"taxi": "travel"})["a"]] == ["travel", "fun"]
    with pytest.raises(RequestError, match=r"line 2: the event 'taxi' has no intent.*add it to the map"):
        read_events(path, intents={"bus": "travel"})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,yesterday,mail,", "line 3: the time 'yesterday' is not a time; use ISO 8601"),
        ("a,2024-05-01,mail,", "line 3: the time '2024-05-01' is a day without a time of day"),
        ("a,1714564800000,mail,", "line 3: the time '1714564800000' is not between .* not milliseconds"),
        ("a,nan,mail,", "line 3: the time 'nan' is not a time"),
        ("a,,mail,", "line 3: the time '' is not a time"),
        (",2,mail,", "line 3: has no user"),
        ("a,2,,", "line 3: the event has no name"),
        ("a,2,mail", "line 3: has 3 fields, the header has 4"),
        ("a,2,ma\x07il,", "line 3: the event .* has a control character"),
        ("a,2," + "m" * 201 + ",", "line 3: the event .* has 201 characters, more than 200"),
        ('a,2,"mail,', "line 3: is not right as CSV: unexpected end of data"),
        ("a,2,mail,90000", "line 3: the time '2' has the utc_offset_s '90000'"),
        ("a,2," + "m" * 70_000 + ",", "line 3: is longer than 65536 bytes"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, row: str, problem: str) -> None:
    path = written(tmp_path, f"user,time,event,utc_offset_s\na,1,mail,\n{row}\n")
    with pytest.raises(RequestError, match=problem) as refused:
        read_events(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "line 1: is not a JSON object but"),
        ('{"user": "a"', "line 1: is not JSON"),
        ("[" * 60_000, "line 1: is not JSON"),
        ('{"user": "a", "event": "b"}', "line 1: has no 'time'; it has 'user', 'event'"),
        ("{}", "line 1: has no 'user'; it has nothing"),
        ('{"user": "a", "time": NaN, "event": "b"}', "line 1: the time 'nan' is not between"),
        ('{"user": "a", "time": 1' + "0" * 400 + ', "event": "b"}', "is not between"),
        ('{"user": "a", "time": true, "event": "b"}', "line 1: the time 'True' is neither text nor a number"),
        ('{"user": "a", "time": 1, "event": ["b"]}', r"line 1: the event \"\['b'\]\" is not a name"),
        ('{"user": "a", "time": 1, "event": "\\ud800"}', "line 1: the event .* half a character"),
        ('{"user": true, "time": 1, "event": "b"}', "line 1: the user 'True' is not a name"),
    ],
)
def test_a_bad_object_is_refused(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        read_events(written(tmp_path, line + "\n", "log.jsonl"))


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("", "log.csv", "is empty"),
        ("user,time\n", "log.csv", "line 1: the header has no column 'event'; it has 'user', 'time'"),
        ("user,time,event,time\n", "log.csv", "line 1: the header has the column 'time' twice"),
        ("", "log.txt", "its kind is not known"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, text: str, name: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        read_events(written(tmp_path, text, name))


def test_a_missing_file_bytes_that_are_no_text_and_an_asked_for_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_events(tmp_path / "none.csv")
    path = written(tmp_path, "user,time,event\na,1,mail\n")
    with pytest.raises(RequestError, match="no column 'place'"):
        read_events(path, Columns(context="place"))
    path.write_bytes(b"user,time,event\na,1,\xff\n")
    with pytest.raises(RequestError, match="line 2: byte 4 is not UTF-8"):
        read_events(path)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(rows=2), "line 4: there are more than 2 rows"),
        (Limits(users=1), "line 3: there are more than 1 users"),
        (Limits(names=2), "more than 2 different names"),
        (Limits(line_bytes=10), "line 1: is longer than 10 bytes"),
    ],
)
def test_limits_are_kept(tmp_path: Path, limits: Limits, problem: str) -> None:
    path = written(tmp_path, "user,time,event\na,1,x\nb,2,y\na,3,z\n")
    assert len(read_events(path)) == 2
    with pytest.raises(RequestError, match=problem):
        read_events(path, limits=limits)


def test_a_local_time_gets_the_offset_of_its_day() -> None:
    assert local_time("2024-01-15T12:00", BERLIN) == (datetime(2024, 1, 15, 11, tzinfo=UTC).timestamp(), 3600)
    assert local_time("2024-07-15 12:00:00", BERLIN) == (datetime(2024, 7, 15, 10, tzinfo=UTC).timestamp(), 7200)
    assert local_time(NOON, BERLIN) == (NOON, 7200)
    assert local_time("2024-05-01T12:00", BERLIN, utc_offset_s=-18_000) == (NOON + 18_000, -18_000)
    assert local_time("2024-05-01T12:00-05:30", BERLIN, utc_offset_s=60) == (NOON + 19_800, -19_800)


def test_an_hour_that_comes_twice_is_the_second_one_only_if_the_user_was_past_the_first(tmp_path: Path) -> None:
    # On 2024-10-27 clocks in Berlin went from 03:00 (+02:00) back to 02:00 (+01:00), at 01:00 UTC.
    change = datetime(2024, 10, 27, 1, tzinfo=UTC).timestamp()
    times = ["02:10", "02:50", "02:20", "03:10"]
    rows = "".join(f"a,2024-10-27T{time}:00,e{number}\n" for number, time in enumerate(times))
    events = read_events(written(tmp_path, "user,time,event\n" + rows), zone="Europe/Berlin")["a"]
    assert [(e.event, e.at - change, e.utc_offset_s) for e in events] == [
        ("e0", -3000, 7200),
        ("e1", -600, 7200),
        ("e2", 1200, 3600),
        ("e3", 4200, 3600),
    ]


def test_a_time_that_clocks_skip_is_read_by_the_offset_before() -> None:
    # On 2024-03-31 clocks in Berlin went from 02:00 (+01:00) to 03:00 (+02:00), at 01:00 UTC.
    change = datetime(2024, 3, 31, 1, tzinfo=UTC).timestamp()
    assert local_time("2024-03-31T02:30", BERLIN) == (change + 1800, 7200)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_a_time_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="is not known here"):
        time_zone(name)


@given(
    at=st.floats(-2e9, 7e9).map(round), zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "US/Pacific"])
)
def test_iso_times_and_unix_seconds_say_the_same(at: int, zone: str) -> None:
    written_out = datetime.fromtimestamp(at, time_zone(zone))
    # Offsets of a century ago have seconds in them; isoformat writes them.
    assert (
        local_time(written_out.isoformat(), UTC)
        == local_time(at, time_zone(zone))
        == local_time(str(at), time_zone(zone))
    )


def test_a_map_is_read_from_json_or_csv(tmp_path: Path) -> None:
    assert read_intents(written(tmp_path, '{"taxi": "travel", "7": "x"}', "map.json")) == {"taxi": "travel", "7": "x"}
    assert read_intents(written(tmp_path, "intent,event\ntravel,taxi\ntravel,taxi\n", "map.csv")) == {"taxi": "travel"}


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ('{"taxi": "travel", "taxi": "fun"}', "map.json", "the event 'taxi' has two intents, 'travel' and 'fun'"),
        ('["taxi"]', "map.json", "is not a JSON object of event and intent"),
        ('{"taxi": {"a": "b"}}', "map.json", "is not a name"),
        ('{"taxi": ""}', "map.json", "needs an event and an intent"),
        ("event,intent\ntaxi,travel\ntaxi,fun\n", "map.csv", "line 3: the event 'taxi' has two intents"),
        ("", "map.jsonl", "its kind is not known"),
    ],
)
def test_a_bad_map_is_refused(tmp_path: Path, text: str, name: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        read_intents(written(tmp_path, text, name))


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8).map(str.strip).filter(bool)
ROWS = st.lists(st.tuples(NAMES, st.integers(0, 50), NAMES, NAMES, NAMES), max_size=12)


@given(rows=ROWS)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]) -> None:
    folder = tmp_path_factory.mktemp("logs")
    head = ["user", "time", "event", "intent", "context"]
    with (folder / "log.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    objects = (json.dumps(dict(zip(head, row, strict=True))) for row in rows)
    (folder / "log.jsonl").write_text("\n".join(objects), encoding="utf-8")
    expected: dict[str, dict[tuple[int, str], Event]] = {}
    for user, at, event, intent, context in rows:
        expected.setdefault(user, {}).setdefault((at, event), Event(at, event, intent, context))
    in_time = {user: sorted(events.values(), key=lambda e: e.at) for user, events in expected.items()}
    assert read_events(folder / "log.csv") == read_events(folder / "log.jsonl") == in_time


def test_users_are_drawn_by_name_and_seed() -> None:
    users = [f"u{number}" for number in range(100)]
    split = split_users(users, 30, seed=1)
    assert len(split.individual) == 30
    assert sorted([*split.population, *split.individual]) == sorted(users)
    assert split == split_users(reversed(users), 0.3, seed=1)
    assert split.individual != split_users(users, 30, seed=2).individual
    assert set(split.individual) < set(split_users(users, 31, seed=1).individual)
    only = split_users(users, 2, seed=1, eligible={"u3", "u4"})
    assert only.individual == ("u3", "u4")
    assert len(only.population) == 98


@pytest.mark.parametrize(("users", "number"), [(["a", "b"], 3), (["a", "a"], 1), (["a"], -1)])
def test_users_that_cannot_be_drawn_are_an_error(users: list[str], number: int) -> None:
    with pytest.raises(ValueError, match="cannot be drawn"):
        split_users(users, number, seed=0)


@given(
    times=st.lists(st.integers(0, 12), max_size=40).map(sorted),
    shares=st.sampled_from([(0.6, 0.1, 0.3), (0.0, 0.5, 0.5), (1.0, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)]),
)
def test_no_event_is_judged_before_one_that_was_learned(times: list[int], shares: tuple[float, float, float]) -> None:
    events = [Event(at, f"e{number}", "i") for number, at in enumerate(times)]
    split = chronological(events, shares)
    assert [*split.train, *split.validation, *split.test] == events
    for earlier, later in (
        (split.train, split.validation),
        (split.train, split.test),
        (split.validation, split.test),
    ):
        assert max((e.at for e in earlier), default=-math.inf) < min((e.at for e in later), default=math.inf)
    assert len(split.train) <= round(len(events) * shares[0])


def test_the_shares_are_kept_where_no_times_are_equal() -> None:
    events = [Event(at, "e", "i") for at in range(30)]
    split = chronological(events)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [18, 3, 9]
    tied = chronological([Event(at // 4, "e", "i") for at in range(10)])
    assert [len(part) for part in (tied.train, tied.validation, tied.test)] == [4, 0, 6]


def test_a_split_of_disorder_or_of_wrong_shares_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in order"):
        chronological([Event(2, "e", "i"), Event(1, "e", "i")])
    with pytest.raises(ValueError, match="add up"):
        chronological([], (0.6, 0.1, 0.4))
