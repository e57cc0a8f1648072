"""The supervision of training with a child that follows a script: plans, progress, ends, and what is recorded.

No model and no torch: the child says what the test tells it to. Real training is in test_training.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgepd.adapt.job import Outcome, Planned, Progress, Refused, Reviewed
from edgepd.errors import ConflictError, TrainingError
from edgepd.settings import Gate, Settings, Train
from edgepd_daemon.training_progress import continued
from edgepd_profiles.rows import canonical_json
from tests.daemon.training_parts import Parts, correct, with_parts

PASSED = Outcome(True, "better", {"held_out_after": 2.0}, "cd" * 32)
REVIEWING = ("write", PASSED, Progress("review", 1, 3), "wait go")
ARMS = {"arms": {"base": 3.0, "adapter": 2.0}}
PLAN = {"residency": "stream", "predicted_rss_mb": 420.5, "reasons": ["half of the free memory is 600 MiB"]}
TRAINING = Progress("train", 1, 4, 2.5, 2.75, 180.0, 9.5, 512.0)


def test_a_plan_is_what_the_planner_says_and_changes_nothing(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(Progress("load"), Planned(PLAN))
        response = await daemon.client.post("/edgepd/v1/training/plan", json={"kind": "baked"})
        assert (response.status_code, response.json()) == (200, {"plan": PLAN})
        job = daemon.read("job.json")
        assert (job["kind"], job["plan_only"], len(job["train"]), len(job["held_out"])) == ("baked", True, 7, 5)
        assert job["settings"]["rank"] == 4
        assert job["replay_dir"] == str(tmp_path / "data" / "replay")
        assert await daemon.get("/edgepd/v1/training") == {"runs": []}
        assert len(daemon.generations.listing()) == 1

    with_parts(tmp_path, work)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((Refused("no plan fits into 100 MiB"), "exit 7"), "no plan fits into 100 MiB"),
        (("exit 3",), "the trainer ended with exit code 3 before it had a plan"),
        (("nonsense",), "the trainer wrote a line that is not an event: "),
        (("x" * 20_000_000,), "the trainer wrote a line that cannot be read: "),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path, steps: Any, reason: str) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*steps)
        with pytest.raises(TrainingError) as refused:
            await daemon.trainer.plan("live")
        assert str(refused.value).startswith(reason)
        daemon.child_says(Planned(PLAN))
        assert await daemon.trainer.plan("live") == PLAN  # nothing is in the way of the next one

    with_parts(tmp_path, work)


def test_a_plan_for_too_few_examples_is_refused_without_a_child(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.trainer.settings = Settings(train=Train(min_examples=13))
        response = await daemon.client.post("/edgepd/v1/training/plan", json={})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (409, "training_refused")
        assert error["message"].startswith("there are 12 different examples, but training needs at least 13; correct")
        assert not (tmp_path / "job.json").exists()

    with_parts(tmp_path, work)


def test_no_plan_while_a_run_is_going_on(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        run = await daemon.trainer.start("live")
        with pytest.raises(ConflictError, match=f"training run {run.id} is going on; wait for its end"):
            await daemon.trainer.plan("live")
        response = await daemon.client.post("/edgepd/v1/training/plan", json={"kind": "live"})
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")

    with_parts(tmp_path, work)


def test_planning_ends_with_the_daemon(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        planning = asyncio.create_task(daemon.trainer.plan("live"))
        await daemon.until((tmp_path / "environment.json").exists)
        await daemon.trainer.stop()
        with pytest.raises(TrainingError, match="the trainer was killed by signal 9 before it had a plan"):
            await planning

    with_parts(tmp_path, work)


def test_a_planner_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd_daemon.planning.PLAN_SECONDS", 0.05)

    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        with pytest.raises(TrainingError, match="the trainer had no plan within 0 s; try again later"):
            await daemon.trainer.plan("live")
        assert daemon.trainer._planning is None

    with_parts(tmp_path, work)


def test_progress_is_shown_wherever_one_looks(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(Progress("load"), Planned(PLAN), TRAINING, "wait go", Progress("gate", 0, 2), "wait on")
        run = await daemon.trainer.start("live")
        await daemon.until(lambda: daemon.trainer.progress == TRAINING)
        assert (await daemon.get(f"/edgepd/v1/training/{run.id}"))["progress"] == asdict(TRAINING)
        assert (await daemon.get("/edgepd/v1/status"))["training"]["progress"] == asdict(TRAINING)
        seen = await daemon.get("/edgepd/v1/activity")
        assert (seen["training"]["run"]["id"], seen["training"]["last"]) == (run.id, None)
        assert seen["training"]["progress"] == asdict(TRAINING)
        text = (await daemon.client.get("/metrics")).text
        found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        assert (found["edgepd_training"], found["edgepd_training_loss_nats"]) == (1, 2.5)
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.progress and daemon.trainer.progress.stage == "gate")
        daemon.trainer.throttle.hold("waits for mains power: on battery at 62 %")
        shown = (await daemon.get(f"/edgepd/v1/training/{run.id}"))["progress"]
        assert (shown["stage"], shown["done"], shown["paused"]) == (
            "gate",
            0,
            "waits for mains power: on battery at 62 %",
        )
        assert (shown["loss"], shown["held_out_loss"], shown["rss_mb"]) == (2.5, 2.75, 512.0)
        assert shown["seconds_left"] is None  # that was of the stage before

    with_parts(tmp_path, work)


def test_a_loss_that_is_not_a_number_can_be_shown(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(replace(TRAINING, loss=float("nan"), seconds_left=float("inf")), "wait go")
        await daemon.trainer.start("live")
        await daemon.until(lambda: daemon.trainer.progress)
        for path in ("/edgepd/v1/activity", "/edgepd/v1/status"):
            shown = (await daemon.get(path))["training"]["progress"]
            assert (shown["loss"], shown["seconds_left"], shown["held_out_loss"]) == (None, None, 2.75)

    with_parts(tmp_path, work)


def test_activity_when_nothing_happens_and_after_a_run(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        seen = await daemon.get("/edgepd/v1/activity")
        assert {name: seen[name] for name in ("model", "generation", "engine", "training", "curve", "problems")} == {
            "model": "tiny",
            "generation": {"id": 1, "kind": "base"},
            "engine": {
                "state": "ready",
                "loading_percent": None,
                "active": 1,
                "queued": 3,
                "slots": 4,
                "tokens_generated": 70,
            },
            "training": {"run": None, "progress": None, "last": None},
            "curve": [],
            "problems": [],
        }
        assert [each["id"] for each in seen["generations"]] == [1]
        assert len(seen["feedback"]) == 8  # of twelve corrections
        daemon.child_says(Refused("no example fits"))
        await daemon.ended()
        training = (await daemon.get("/edgepd/v1/activity"))["training"]
        assert (training["run"], training["progress"]) == (None, None)
        assert (training["last"]["state"], training["last"]["reason"]) == ("failed", "no example fits")

    with_parts(tmp_path, work)


def test_a_promoted_run_records_what_it_was_trained_with(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        scores = {"held_out_before": 3.0, "held_out_after": 2.0, "plan": PLAN}
        daemon.child_says(Outcome(True, "held-out loss fell", scores, "cd" * 32, {"i0": "too long"}))
        run = await daemon.ended()
        assert (run.state, run.reason, run.generation) == ("promoted", "held-out loss fell", 2)
        assert run.numbers.items() >= scores.items()
        made = daemon.generations.get(2)
        assert made.state == "active"
        told = {"settings": asdict(Train(rank=4)), "gate": asdict(Gate())}
        sha256 = hashlib.sha256(canonical_json(told).encode()).hexdigest()
        assert made.config == told | {"sha256": sha256, "plan": PLAN}
        assert made.example_ids == ["i1", "i2", "i3", "i4", "i5", "i6"]
        assert made.data_hash == daemon.read("job.json")["data_hash"]

    with_parts(tmp_path, work)


def test_the_next_fast_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(Outcome(True, "better", {}, "cd" * 32))
        await daemon.ended()
        assert daemon.read("job.json")["start_adapter"] is None
        correct(daemon.store, range(12, 16), since=time.time() + 1)
        daemon.trainer.settings = Settings(train=Train(live_examples=12))
        daemon.child_says(Outcome(False, "not better"))
        run = await daemon.ended()
        job = daemon.read("job.json")
        assert job["start_adapter"] == str(tmp_path / "data" / "generations" / "live-1.gguf")
        learned, judging = ([e["id"] for e in job[side]] for side in ("train", "held_out"))
        assert judging == ["i7", "i8", "i9", "i10", "i11"]  # as before
        assert learned[3:] == ["i12", "i13", "i14", "i15"]  # what is new
        assert set(learned[:3]) < {"i0", "i1", "i2", "i3", "i4", "i5", "i6"}  # replayed
        assert (run.state, daemon.generations.active().id) == ("rejected", 2)
        assert daemon.generations.get(3).config["plan"] is None
        await daemon.ended("baked")
        job = daemon.read("job.json")
        assert (job["start_adapter"], len(job["train"]), job["base"]) == (None, 11, str(tmp_path / "tiny.gguf"))

    with_parts(tmp_path, work)


def test_the_child_does_not_spin_for_long(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(Refused("enough"))
        await daemon.ended()
        found = daemon.read("environment.json")
        assert found["GOMP_SPINCOUNT"] == "10000"
        assert "PATH" in found  # the rest is the daemon's own

    with_parts(tmp_path, work)


@pytest.mark.parametrize(
    ("steps", "state", "reason"),
    [
        (("exit 1",), "failed", "the trainer ended with exit code 1 before it had a result"),
        ((Planned(PLAN),), "failed", "the trainer ended with exit code 0 before it had a result"),
        (("{}",), "failed", "the trainer wrote a line that is not an event: "),
        (("x" * 20_000_000,), "failed", "the trainer wrote a line that cannot be read: "),
    ],
)
def test_how_a_run_can_fail(tmp_path: Path, steps: Any, state: str, reason: str) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(TRAINING, *steps)
        run = await daemon.ended()
        assert (run.state, run.reason[: len(reason)]) == (state, reason)
        assert (daemon.trainer.progress, daemon.generations.active().id) == (None, 1)

    with_parts(tmp_path, work)


def test_a_run_that_is_stopped_is_interrupted(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        run = await daemon.trainer.start("live")
        await daemon.until((tmp_path / "environment.json").exists)
        with pytest.raises(ConflictError, match="training run 99 is not going on"):
            await daemon.trainer.stop(99)
        response = await daemon.client.delete(f"/edgepd/v1/training/{run.id}")
        ended = response.json()["run"]
        assert (ended["state"], ended["reason"]) == (
            "interrupted",
            "it was stopped",
        )

    with_parts(tmp_path, work)


def test_a_trainer_that_is_not_there(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        missing = tmp_path / "missing"
        daemon.trainer._command = lambda _kind: (str(missing),)
        with pytest.raises(TrainingError, match=f"the trainer could not be started: .*{missing}"):
            await daemon.trainer.start("live")
        [run] = (await daemon.get("/edgepd/v1/training"))["runs"]
        assert run["state"] == "failed"
        assert run["reason"].startswith("the trainer could not be started: ")
        with pytest.raises(TrainingError, match="the trainer could not be started: "):
            await daemon.trainer.plan("live")

    with_parts(tmp_path, work)


# The review of what serves already


def test_what_passed_serves_at_once_while_it_is_still_reviewed(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*REVIEWING, Reviewed(True, "the adapter does best", ARMS))
        run = await daemon.reviewing()
        assert (run.state, run.reason, run.generation) == ("promoted", "better", 2)
        assert (daemon.generations.current.generation, daemon.generations.get(2).state) == (2, "active")
        shown = await daemon.get(f"/edgepd/v1/training/{run.id}")
        assert (shown["run"]["state"], shown["progress"]["stage"], shown["progress"]["done"]) == (
            "promoted",
            "review",
            1,
        )
        assert (await daemon.get("/edgepd/v1/activity"))["training"]["last"]["state"] == "promoted"
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.run is None)
        made = daemon.generations.get(2)
        assert (made.state, made.reason, made.scores) == ("active", "better", {"held_out_after": 2.0} | ARMS)
        assert daemon.stored(run.id) == run
        assert daemon.files() == ["live-1.gguf"]

    with_parts(tmp_path, work)


def test_what_has_lost_abilities_is_withdrawn_for_the_one_before(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("write", PASSED, Reviewed(True, "the adapter does best"))
        await daemon.ended()
        daemon.child_says(*REVIEWING, Reviewed(False, "it cannot count any more", ARMS))
        run = await daemon.reviewing()
        assert daemon.generations.active().id == run.generation == 3
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.run is None)
        assert (daemon.generations.active().id, daemon.generations.current.generation) == (2, 2)
        withdrawn = daemon.generations.get(3)
        assert (withdrawn.state, withdrawn.reason) == ("rejected", "it cannot count any more")
        assert withdrawn.scores == {"held_out_after": 2.0} | ARMS
        assert daemon.stored(run.id) == run  # it was promoted; that it did not stay is said by the generation
        assert daemon.files() == ["live-1.gguf"]

    with_parts(tmp_path, work)


def test_what_the_user_has_left_meanwhile_is_rejected_without_another_switch(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*REVIEWING, Reviewed(False, "it cannot count any more"))
        await daemon.reviewing()
        daemon.generations.rollback()
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.run is None)
        assert (daemon.generations.active().id, daemon.generations.get(2).state) == (1, "rejected")
        assert daemon.files() == []

    with_parts(tmp_path, work)


def test_a_new_run_ends_the_review_of_the_one_before(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*REVIEWING, Reviewed(False, "never said"))
        first = await daemon.reviewing()
        daemon.child_says("wait on", Outcome(False, "not better"))
        second = await daemon.trainer.start("live")
        assert (second.id, second.parent_generation) == (first.id + 1, 2)
        assert daemon.trainer.progress is None
        daemon.let_go()
        daemon.let_go("on")
        await daemon.until(lambda: daemon.trainer.run is None)
        assert (daemon.stored(first.id), daemon.stored(second.id).state) == (first, "rejected")
        assert (daemon.generations.active().id, daemon.generations.active().reason) == (2, "better")

    with_parts(tmp_path, work)


def test_a_review_can_be_stopped_and_the_run_stays_promoted(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*REVIEWING)
        run = await daemon.reviewing()
        response = await daemon.client.delete(f"/edgepd/v1/training/{run.id}")
        assert (response.json()["run"]["state"], response.json()["progress"]) == ("promoted", None)
        assert (daemon.trainer.run, daemon.generations.active().id) == (None, 2)

    with_parts(tmp_path, work)


@pytest.mark.parametrize("end", ["killed", "exit 1", "nonsense", '{"reviewed": {}}'])
def test_a_child_that_fails_in_the_review_leaves_the_run_and_what_it_made(tmp_path: Path, end: str) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*REVIEWING, end)
        run = await daemon.reviewing()
        running = daemon.trainer._running
        assert running is not None
        if end == "killed":
            running.process.kill()
        else:
            daemon.let_go()
        await running.follower  # which has nothing to complain about
        made = daemon.generations.active()
        assert (made.id, made.state, made.scores) == (2, "active", {"held_out_after": 2.0})
        assert (daemon.stored(run.id), daemon.files()) == (run, ["live-1.gguf"])
        daemon.child_says(Refused("no example fits"))
        assert (await daemon.ended()).parent_generation == 2  # nothing is in the way of the next one

    with_parts(tmp_path, work)


@pytest.mark.parametrize(
    ("steps", "state", "reason"),
    [
        ((), "failed", "the trainer reviewed a candidate that was not promoted"),
        ((Outcome(False, "not better"),), "rejected", "not better"),
        ((Refused("no example fits"),), "failed", "no example fits"),
    ],
)
def test_a_review_of_nothing_changes_nothing(tmp_path: Path, steps: Any, state: str, reason: str) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(*steps, "wait go", Reviewed(False, "worse", ARMS))
        run = await daemon.trainer.start("live")
        running = daemon.trainer._running
        assert running is not None
        daemon.let_go()
        await running.follower
        ended = daemon.stored(run.id)
        assert (ended.state, ended.reason) == (state, reason)
        assert (daemon.generations.active().id, daemon.trainer.run) == (1, None)
        assert all("arms" not in g.scores for g in daemon.generations.listing())

    with_parts(tmp_path, work)


def test_of_two_results_the_first_counts(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says(PASSED, Refused("no example fits"), Outcome(False, "not better"))
        run = await daemon.ended()
        assert (run.state, run.reason, daemon.generations.active().id) == ("promoted", "better", 2)
        assert len(daemon.generations.listing()) == 2

    with_parts(tmp_path, work)


def test_numbers_stay_until_there_are_newer_ones() -> None:
    assert continued(None, Progress("load")) == Progress("load")
    later = continued(TRAINING, Progress("train", 2, 4, loss=2.25, tokens_per_second=175.0))
    assert later == Progress("train", 2, 4, 2.25, 2.75, 175.0, None, 512.0)
    waiting = Progress("train", 2, 4, paused="on battery")
    assert continued(waiting, Progress("train", 3, 4)).paused is None
