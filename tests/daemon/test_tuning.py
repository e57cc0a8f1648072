"""Tuning of the model of what comes next, as a run like any other: with a child that follows a script.

Parts, child and profile are those of training_parts.py. What the child does is in tests/intent; forgetting is in
test_tuning_forgotten.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.job import Outcome, Parked, Planned, Progress, Refused
from edgepd.errors import ConflictError
from edgepd.intent.job import TuneJob
from edgepd.intent.schema import Event
from edgepd.settings import Intent, Settings, Train
from edgepd_daemon.training_child import worker
from edgepd_profiles import apps, demand, events, runs, students
from edgepd_profiles.events import New
from edgepd_profiles.store import Store
from edgepd_profiles.students import Student
from tests.daemon.training_parts import Parts, with_parts

PASSED = Outcome(
    True,
    "it foresees better",
    {
        "nll_before": 1.5,
        "nll_after": 1.25,
        "forget_set": ["mail"],
        "unlearned": {"recall_after": 0.25},
        "lost": float("nan"),
    },
    "cd" * 32,
)
WORSE = Outcome(False, "it surprises more", {"nll_before": 1.5, "nll_after": 1.75})
SMALL = Settings(train=Train(rank=4), intent=Intent(new_events=5, min_events=10))


def send(store: Store, numbers: Sequence[int], app: str = "mail") -> None:
    """Store an event for each number, an hour apart."""
    new = [New(3600.0 * n, f"event {n % 3}", f"intent {n % 3}", "home", 3600, app) for n in numbers]
    store.write(lambda conn: events.add(conn, new)).result()


def listing(daemon: Parts) -> list[Student]:
    """Return the students, the oldest first."""
    with daemon.store.read() as conn:
        return students.listing(conn)[::-1]


def files(daemon: Parts) -> list[str]:
    """Return the names of the files of students."""
    return sorted(file.name for file in daemon.paths.students_dir.iterdir())


def new_events(daemon: Parts) -> int:
    with daemon.store.read() as conn:
        return demand.intent_events(conn)


def with_events(directory: Path, work: Any, count: int = 20) -> None:
    """Run `work` on the parts with so many events."""

    async def prepared(daemon: Parts) -> None:
        daemon.trainer.settings = SMALL
        daemon.trainer.students.open()
        if count:
            send(daemon.store, range(count))
        await work(daemon)

    with_parts(directory, prepared)


def test_a_student_that_passed_predicts_from_then_on(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        told: list[str] = []
        daemon.trainer.students.changed = lambda: told.append(listing(daemon)[-1].state)
        daemon.child_says(Progress("train", 1, 2, 0.5), "write", PASSED)
        run = await daemon.ended("intent")
        assert (run.kind, run.state, run.reason, run.generation, run.parent_generation) == (
            *("intent", "promoted", "it foresees better"),
            *(None, None),
        )
        # Numbers alone: names of events would outlast forgetting.
        assert run.numbers == {"nll_before": 1.5, "nll_after": 1.25, "unlearned_recall_after": 0.25}
        (made,) = listing(daemon)
        assert (made.state, made.file, made.sha256, made.run, made.seq) == (
            *("active", f"intent-{run.id}.npz", "cd" * 32),
            *(run.id, 20),
        )
        assert made.scores == run.numbers
        assert files(daemon) == [made.file]
        assert told == ["active"]  # when it is true
        assert new_events(daemon) == 0
        assert len(daemon.generations.listing()) == 1  # nothing of the language model has changed

    with_events(tmp_path, work)


def test_the_child_gets_the_newest_events_in_order_and_what_serves(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.trainer.settings = replace(SMALL, intent=Intent(min_events=10, max_events=50, seed=9))
        send(daemon.store, [40, 30])
        send(daemon.store, [35], app="silent")
        daemon.store.write(lambda conn: apps.change(conn, "silent", teaches=False)).result()
        daemon.child_says("write", PASSED)
        first = await daemon.ended("intent")
        job = TuneJob.from_json((tmp_path / "job.json").read_text())
        assert job.events[0] == Event(0.0, "event 0", "intent 0", "home", 3600)
        assert [event.at / 3600 for event in job.events] == [*range(20), 30, 40]
        assert (job.shipped.endswith("student.npz"), job.current) == (True, None)
        assert job.output == str(daemon.paths.students_dir / f"intent-{first.id}.npz")
        assert (job.wanted.seed, job.patient, job.plan_only) == (9, False, False)
        assert job.memory_mb > 0
        await daemon.ended("intent")
        assert daemon.read("job.json")["current"] == job.output  # and it still begins at the shipped one
        assert daemon.read("job.json")["shipped"] == job.shipped

    with_events(tmp_path, work)


def test_a_student_that_is_no_better_leaves_everything_as_it_was(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        told: list[int] = []
        daemon.child_says("write", PASSED)
        await daemon.ended("intent")
        daemon.trainer.students.changed = lambda: told.append(1)
        send(daemon.store, range(20, 30))
        daemon.child_says("write", WORSE)
        run = await daemon.ended("intent")
        assert (run.state, run.reason) == ("rejected", "it surprises more")
        assert [(s.state, s.seq) for s in listing(daemon)] == [("active", 20), ("rejected", 30)]
        assert files(daemon) == ["intent-1.npz"]
        assert told == []
        assert new_events(daemon) == 0  # it was judged: the same again would come to the same

    with_events(tmp_path, work)


def test_files_of_old_students_go(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.generations.keep_retired = 2
        daemon.child_says("write", PASSED)
        for _ in range(5):
            await daemon.ended("intent")
        assert [s.state for s in listing(daemon)] == ["retired"] * 4 + ["active"]
        assert files(daemon) == ["intent-3.npz", "intent-4.npz", "intent-5.npz"]

    with_events(tmp_path, work)


@pytest.mark.parametrize(
    ("count", "intent", "reason"),
    [
        (
            9,
            Intent(min_events=10),
            "there are 9 events, but tuning needs at least 10; chats are events, apps send more",
        ),
        (20, Intent(enabled=False), "prediction is switched off (intent.enabled)"),
    ],
)
def test_what_cannot_be_tuned_is_refused_without_a_run(tmp_path: Path, count: int, intent: Intent, reason: str) -> None:
    async def work(daemon: Parts) -> None:
        daemon.trainer.settings = replace(SMALL, intent=intent)
        for path in ("/edgepd/v1/training", "/edgepd/v1/training/plan"):
            response = await daemon.client.post(path, json={"kind": "intent"})
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (409, "training_refused")
            assert error["message"].startswith(reason)
        assert await daemon.get("/edgepd/v1/training") == {"runs": []}

    with_events(tmp_path, work, count)


def test_it_is_asked_for_and_planned_like_any_run(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        plan = {"learned_events": 16, "held_out_events": 4}
        daemon.child_says(Progress("load"), Planned(plan))
        response = await daemon.client.post("/edgepd/v1/training/plan", json={"kind": "intent"})
        assert response.json() == {"plan": plan}
        assert daemon.read("job.json")["plan_only"] is True
        daemon.child_says("wait go", "write", PASSED)
        response = await daemon.client.post("/edgepd/v1/training", json={"kind": "intent"})
        assert (response.status_code, response.json()["run"]["kind"]) == (202, "intent")
        running = daemon.trainer.running()
        assert running is not None
        assert (running.kind, running.asked, running.reviewing) == ("intent", True, False)
        with pytest.raises(ConflictError, match="training run 1 is going on"):
            await daemon.trainer.start("live")
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.run is None)
        (shown,) = (await daemon.get("/edgepd/v1/training"))["runs"]
        assert (shown["kind"], shown["state"]) == ("intent", "promoted")

    with_events(tmp_path, work)


def test_a_run_that_is_parked_begins_again(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(Progress("train"), "write", Parked(0), "wait go")
        run = await daemon.trainer.start("intent", asked=False)
        await daemon.until(lambda: daemon.trainer.progress)
        await daemon.trainer.park("a question came")
        assert daemon.stored(run.id).state == "parked"
        assert files(daemon) == []
        with daemon.store.read() as conn:
            assert runs.parked(conn) == "intent"
        assert new_events(daemon) == 20
        daemon.child_says("write", PASSED)
        assert (await daemon.ended("intent")).state == "promoted"

    with_events(tmp_path, work)


@pytest.mark.parametrize("steps", [("write", "exit 3"), ("write", Refused("no student"), "exit 7"), ("write", "what?")])
def test_a_run_that_fails_leaves_no_student_and_all_events_new(tmp_path: Path, steps: Any) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*steps)
        assert (await daemon.ended("intent")).state == "failed"
        daemon.trainer.students.open()  # as at the next start
        assert (files(daemon), listing(daemon), new_events(daemon)) == ([], [], 20)

    with_events(tmp_path, work)


def test_another_kind_takes_its_turn_after_it(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("write", PASSED)
        tuned = await daemon.ended("intent")
        daemon.child_says("write", replace(PASSED, scores={"held_out_after": 2.0}))
        trained = await daemon.ended("live")
        assert (tuned.state, trained.state, trained.generation) == ("promoted", "promoted", 2)
        assert [s.state for s in listing(daemon)] == ["active"]
        assert daemon.files() == ["live-2.gguf"]
        assert files(daemon) == ["intent-1.npz"]
        assert daemon.read("job.json")["kind"] == "live"

    with_events(tmp_path, work)


def test_nobody_waits_for_a_run_that_makes_way_for_another_kind(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(Progress("train"), "wait go")
        run = await daemon.trainer.start("intent", asked=False)
        await daemon.until(lambda: daemon.trainer.progress)
        daemon.child_says("write", replace(PASSED, scores={"held_out_after": 2.0}))
        await daemon.ended("live")
        assert daemon.stored(run.id).state == "parked"

    with_events(tmp_path, work)


def test_each_kind_has_its_own_child() -> None:
    assert worker("live")[1:] == worker("baked")[1:] == ("-P", "-m", "edgepd.adapt.worker")
    assert worker("intent")[1:] == ("-P", "-m", "edgepd.intent.worker")


def test_a_start_removes_what_a_kill_has_left(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("write", PASSED)
        await daemon.ended("intent")
        for name in ("intent-99.npz", ".intent-99.npz.k3j1.tmp"):
            (daemon.paths.students_dir / name).write_text("half of it")
        daemon.trainer.students.open()
        assert files(daemon) == ["intent-1.npz"]
        (daemon.paths.students_dir / "intent-1.npz").unlink()
        assert daemon.trainer.students.serving() is None

    with_events(tmp_path, work)
