"""The job of the child that tunes: it arrives as it was sent, and what no daemon sends is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.errors import TrainingError
from edgepd.intent.job import TuneJob
from edgepd.intent.schema import Event
from edgepd.settings import Intent

JOB = TuneJob(
    "/usr/student.npz",
    "/data/students/intent-3.npz",
    "/data/students/intent-7.npz",
    [Event(10.5, "mail:open", "work", "office", 3600), Event(10.5, "chat:", "chat")],
    asdict(Intent(seed=4)),
    threads=2,
    memory_mb=400,
    patient=True,
)
NAMES = st.text(max_size=30)
EVENTS = st.builds(Event, st.floats(-1e11, 1e11), NAMES, NAMES, NAMES, st.integers(-18 * 3600, 18 * 3600))


def test_a_job_arrives_as_it_was_sent() -> None:
    arrived = TuneJob.from_json(JOB.to_json())
    assert arrived == JOB
    assert (arrived.kind, arrived.wanted) == ("intent", Intent(seed=4))


@given(st.lists(EVENTS, max_size=5))
def test_events_arrive_whatever_their_names_and_times(events: list[Event]) -> None:
    job = replace(JOB, events=sorted(events, key=lambda e: e.at))
    assert TuneJob.from_json(job.to_json()) == job


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kind": "live"}, "its kind is 'live', not 'intent'"),
        ({"events": [[2.0, "a", "a", "", 0], [1.0, "a", "a", "", 0]]}, "its events are not in order of time"),
        ({"events": [["now", "a", "a", "", 0]]}, "an event happened at 'now'"),
        ({"events": [[float("nan"), "a", "a", "", 0]]}, "an event happened at nan"),
        ({"events": [[True, "a", "a", "", 0]]}, "an event happened at True"),
        ({"events": [[1.0, 5, "a", "", 0]]}, "a name of an event is not a text"),
        ({"events": [[1.0, "a" * 1001, "a", "", 0]]}, "a name of an event is not a text of at most 1000 characters"),
        ({"events": [[1.0, "a", "a", "", 90_000]]}, "local time is 90000 s ahead of UTC"),
        ({"events": [[1.0, "a", "a", "", 0.5]]}, "local time is 0.5 s ahead of UTC"),
        ({"events": [[1.0, "a"]]}, "not enough values to unpack"),
        ({"events": [None] * 100_001}, "100001 events are more than 100000"),
        ({"settings": {"enabled": True, "colour": "red"}}, "unexpected keyword argument 'colour'"),
        ({"threads": 0}, "it cannot compute with 0 threads"),
        ({"threads": "2"}, "it cannot compute with '2' threads"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_no_daemon_sends_is_refused(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(TrainingError, match="the tuning job on standard input is malformed: ") as refused:
        TuneJob.from_json(json.dumps(json.loads(JOB.to_json()) | changed))
    assert why in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"events": 5}', "\x00"])
def test_what_is_no_job_at_all_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="malformed"):
        TuneJob.from_json(text)
