"""The budget over the API: what is shown where, pauses, and that those who look all the time cost little."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgepd.adapt.job import Progress
from edgepd.settings import Budget, Settings
from edgepd_daemon.api.health import thinned
from edgepd_profiles import feedback, recent, registry, runs
from tests.daemon.profiled import OWN, ask, call, get, ok, put, refused
from tests.daemon.running import Json
from tests.daemon.scripted import BASE_SHA256, Scripted, scripted
from tests.daemon.supervised import BLIND, DECISION, READINGS, TRAINER, FakeSupervisor

SETTINGS = Settings(budget=Budget(cpu_percent=30.0), origins={"budget.cpu_percent": "config.toml"})


@pytest.fixture
def served() -> Iterator[Scripted]:
    """The API with two generations in the profile, as the scripted ones are, and a supervisor that was not asked."""
    trainer = SimpleNamespace(run=None, progress=None, curve=[])
    with scripted(trainer=trainer, settings=SETTINGS) as found:
        found.store.write(lambda conn: registry.ensure_base(conn, BASE_SHA256, at=1000.0)).result()
        learn(found, parent=1, scores={"held_out_before": 3.2, "held_out_after": 2.9})
        supervise(found, FakeSupervisor())
        yield found


def learn(served: Scripted, *, parent: int, scores: Json) -> int:
    """Add a live generation."""
    given: Json = {"parent": parent, "kind": "live", "base_sha256": BASE_SHA256, "state": "candidate"}
    given |= {"adapter_file": "x.gguf", "file_sha256": "cd" * 32, "example_ids": ["i_1"], "scores": scores}
    given |= {"data_hash": "", "config": {}, "reason": "", "at": 2000.0}
    return served.store.write(lambda conn: registry.add(conn, **given)).result().id


def supervise(served: Scripted, supervisor: Any) -> Any:
    services: Any = served.services
    services.supervisor = supervisor
    return supervisor


def test_the_budget_is_what_the_supervisor_says_and_the_limits_with_their_origins(served: Scripted) -> None:
    found = get(served, "/budget")
    assert (found["decision"], len(found["decisions"])) == (DECISION, 20)
    assert (found["readings"], found["today"]["limit_s"]) == (asdict(READINGS), 3600.0)
    assert found["limits"] == asdict(SETTINGS.budget)
    assert (found["limits"]["cpu_percent"], found["origins"]["cpu_percent"]) == (30.0, "config.toml")
    assert found["origins"].keys() == found["limits"].keys()
    assert found["origins"]["ac_only"] == "default"


def test_what_json_cannot_hold_is_null(served: Scripted) -> None:
    supervise(served, FakeSupervisor(replace(READINGS, temperature_c=float("nan"), idle_s=float("inf"))))
    for path in ("/budget", "/status", "/activity"):
        assert ok(call(served, "GET", path))
    assert get(served, "/budget")["readings"]["temperature_c"] is None


def test_a_pause_for_some_minutes_one_without_end_and_its_end(served: Scripted) -> None:
    supervisor = supervise(served, FakeSupervisor())
    found = ok(call(served, "POST", "/budget/pause", minutes=30))
    assert (found["paused"], found["paused_until"], found["limits"]["cpu_percent"]) == (True, 3800.0, 30.0)
    for body in ({"minutes": None}, {}):
        found = ok(served.client.post(f"{OWN}/budget/pause", json=body))
        assert (found["paused"], found["paused_until"]) == (True, None)
    assert ok(call(served, "DELETE", "/budget/pause"))["paused"] is False
    assert ok(call(served, "DELETE", "/budget/pause"))["paused"] is False  # it may be said twice
    assert supervisor.asked == [30.0, None, None, "resume", "resume"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"minutes": 0}, "body.minutes"),
        ({"minutes": -5}, "body.minutes"),
        ({"minutes": 1e9}, "body.minutes"),
        ({"minutes": "long"}, "body.minutes"),
        ({"hours": 2}, "body.hours"),
    ],
)
def test_pauses_that_make_no_sense_are_refused(served: Scripted, body: Json, named: str) -> None:
    supervisor = supervise(served, FakeSupervisor())
    status, message = refused(call(served, "POST", "/budget/pause", **body))
    assert (status, named in message) == (400, True), message
    assert supervisor.asked == []


def test_infinite_minutes_are_refused(served: Scripted) -> None:
    for text in (b'{"minutes": Infinity}', b'{"minutes": NaN}'):
        assert served.client.post(f"{OWN}/budget/pause", content=text).status_code == 400


def test_the_supervisor_is_asked_on_one_thread_whatever_thread_the_route_runs_on(served: Scripted) -> None:
    supervisor = supervise(served, FakeSupervisor())
    for path in (f"{OWN}/budget", f"{OWN}/status", f"{OWN}/activity", "/metrics"):
        assert served.client.get(path).status_code == 200
    call(served, "POST", "/budget/pause")
    call(served, "DELETE", "/budget/pause")
    assert supervisor.threads == {"server"}  # that of the event loop


def test_the_status_says_in_short_how_the_budget_stands(served: Scripted) -> None:
    budget = {
        "preset": "laptop",
        "automatic": True,
        "paused": False,
        "paused_until": None,
        "decision": DECISION,
        "today": {"at_work_s": 726.0, "limit_s": 3600.0, "cpu_s": 600.0},
        "battery": {"percent": 62.0, "on_ac": True},
    }
    assert get(served, "/status")["budget"] == budget
    supervise(served, FakeSupervisor(BLIND))
    assert get(served, "/status")["budget"] == budget | {"battery": {"percent": None, "on_ac": None}}


def test_activity_has_the_budget_generations_and_feedback(served: Scripted) -> None:
    found = get(served, "/activity")
    assert found["generation"] == {"id": 2, "kind": "live"}
    assert found["budget"]["decisions"] == [DECISION | {"at": 1990.0 - age} for age in range(5)]
    assert found["budget"]["limits"]["cpu_percent"] == 30.0
    assert found["generations"] == [
        {
            "id": 2,
            "kind": "live",
            "state": "candidate",
            "active": False,
            "created_at": 2000.0,
            "held_out_before": 3.2,
            "held_out_after": 2.9,
        },
        {
            "id": 1,
            "kind": "base",
            "state": "active",
            "active": True,
            "created_at": 1000.0,
            "held_out_before": None,
            "held_out_after": None,
        },
    ]
    assert (found["curve"], found["feedback"]) == ([], [])
    assert found["memory"]["rss_bytes"] > 10_000_000


def test_activity_has_the_newest_few_generations_of_this_model_only(served: Scripted) -> None:
    for _ in range(7):
        learn(served, parent=1, scores={})
    served.store.write(lambda conn: registry.ensure_base(conn, "ef" * 32)).result()
    assert [each["id"] for each in get(served, "/activity")["generations"]] == [9, 8, 7, 6, 5]


def test_activity_has_the_newest_feedback_without_its_text(served: Scripted) -> None:
    for number in range(9):
        row = put(served, f"i_{number}", "Who is Quintus?", app="mail")
        at = 1000.0 + number
        served.store.write(lambda conn, row=row, at=at: feedback.set_comment(conn, row, "Quintus!", at=at)).result()
    served.store.write(lambda conn: feedback.set_thumb(conn, "i_4", -1, at=900.0)).result()
    served.store.write(lambda conn: feedback.set_rating(conn, "i_0", 5, at=2000.0)).result()
    found = get(served, "/activity")["feedback"]
    assert found[0] == {"at": 2000.0, "kind": "rating", "value": 5, "app": "mail"}
    assert [each["at"] for each in found[1:]] == [1008.0, 1007.0, 1006.0, 1005.0, 1004.0, 1003.0, 1002.0]
    assert "Quintus" not in served.client.get(f"{OWN}/activity").text


def test_the_curve_is_that_of_the_run_that_goes_on(served: Scripted) -> None:
    trainer: Any = served.services.trainer
    trainer.curve = [(step, 3.0 - step / 1000) for step in range(1, 1001)]
    assert get(served, "/activity")["curve"] == []  # of a run that has ended
    served.store.write(lambda conn: runs.start_run(conn, "live", 1)).result()
    curve = get(served, "/activity")["curve"]
    assert (len(curve), curve[0], curve[-1]) == (200, [1, 2.999], [1000, 2.0])


@pytest.mark.parametrize("count", [0, 1, 2, 199, 200, 201, 202, 399, 400, 1777])
def test_a_thinned_curve_has_its_ends_and_no_point_twice(count: int) -> None:
    found = thinned([(step, float(step)) for step in range(count)])
    steps = [step for step, _ in found]
    assert len(steps) == min(count, 200)
    assert steps[:1] + steps[-1:] == ([0, count - 1] if count else [])
    assert steps == sorted(set(steps))


def test_a_loss_that_is_not_a_number_is_null() -> None:
    assert thinned([(1, 2.5), (2, float("nan")), (3, float("inf"))]) == [[1, 2.5], [2, None], [3, None]]


def plan(conn: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> str:
    return "\n".join(row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))


def test_what_is_asked_twice_a_second_reads_from_the_end_of_an_index(served: Scripted) -> None:
    with served.store.read() as conn:
        generations = plan(conn, recent.NEWEST_GENERATIONS, (BASE_SHA256, 5))
        given = plan(conn, recent.NEWEST_FEEDBACK, (8,))
    assert generations == "SEARCH generations USING INDEX generations_of_base (base_sha256=?)"
    assert "SCAN feedback USING INDEX feedback_by_time" in given  # to the eighth row: LIMIT ends it
    assert "SEARCH interactions USING INDEX" in given
    assert "TEMP B-TREE" not in generations + given  # nothing is sorted


def test_activity_is_one_transaction(served: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(served, "Who is there?")
    read, opened = served.store.read, []

    def counted() -> Any:
        opened.append(1)
        return read()

    monkeypatch.setattr(served.store, "read", counted)
    get(served, "/activity")
    assert len(opened) == 1


def samples(served: Scripted) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(served.client.get("/metrics").text)
    return {(s.name, ",".join(s.labels.values())): s.value for family in families for s in family.samples}


def test_metrics_of_the_budget(served: Scripted) -> None:
    trainer: Any = served.services.trainer
    trainer.progress = Progress("train")
    supervise(served, FakeSupervisor(trainer=TRAINER | {"paused": "an answer is being generated"}))
    found = samples(served)
    expected = {
        ("edgepd_training_paused", ""): 1.0,
        ("edgepd_trainer_pauses_total", ""): 3.0,
        ("edgepd_trainer_cpu_ratio", ""): pytest.approx(0.41),
        ("edgepd_trainer_resident_bytes", ""): 512.0 * 2**20,
        ("edgepd_budget_at_work_seconds_today", ""): 726.0,
        ("edgepd_budget_limit_seconds_today", ""): 3600.0,
        ("edgepd_battery_ratio", ""): 0.62,
        ("edgepd_on_ac", ""): 1.0,
        ("edgepd_temperature_celsius", ""): 56.5,
        ("edgepd_scheduler_decision", "wait"): 1.0,
        ("edgepd_scheduler_decision", "start"): 0.0,
        ("edgepd_scheduler_decision", "go on"): 0.0,
        ("edgepd_scheduler_decision", "pause"): 0.0,
        ("edgepd_scheduler_decision", "park"): 0.0,
        ("edgepd_scheduler_decision", "shrink"): 0.0,
        ("edgepd_scheduler_held", "mains"): 1.0,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_sensors_that_are_not_there_have_no_metric(served: Scripted) -> None:
    supervise(served, FakeSupervisor(BLIND, decision=DECISION | {"constraint": ""}))
    names = {name for name, _ in samples(served)}
    gone = ("battery_ratio", "on_ac", "temperature_celsius", "trainer_cpu_ratio", "trainer_resident_bytes")
    assert names.isdisjoint(f"edgepd_{name}" for name in (*gone, "training_paused", "scheduler_held"))
    assert "edgepd_budget_at_work_seconds_today" in names


def test_a_run_that_waits_by_itself_is_paused_too(served: Scripted) -> None:
    trainer: Any = served.services.trainer
    trainer.progress = Progress("train", paused="an answer is being generated")
    assert samples(served)["edgepd_training_paused", ""] == 1
    trainer.progress = Progress("train")
    assert samples(served)["edgepd_training_paused", ""] == 0
