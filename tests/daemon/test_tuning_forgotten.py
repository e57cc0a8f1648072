"""Forgetting events: no student that saw them predicts, no file of one is left, and another one is tuned.

Over the real profile and files of training_parts.py; which rows and students a request covers is in tests/profiles.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.job import Outcome, Progress
from edgepd.settings import Budget, Intent, Settings, Train
from edgepd_daemon.scheduler.types import Action
from edgepd_profiles import events, forgetting, students
from edgepd_profiles.events import New
from edgepd_profiles.forgetting import Selector
from edgepd_profiles.store import Store
from tests.daemon.test_forgetter import CANARY, add_live, files_with, receipts, teach_canary, wanted
from tests.daemon.training_parts import Parts, with_parts
from tests.daemon.watched import Clock, Watched, clock

__all__ = ["clock"]  # the fixture

SECRET = "heronry visit"
PASSED = Outcome(True, "it foresees better", {"nll_after": 1.25}, "cd" * 32)
SETTINGS = Settings(train=Train(rank=4), intent=Intent(new_events=5, min_events=10))

UNTAUGHT = replace(SETTINGS, train=Train(min_examples=99))  # no adapter can be trained


def send(store: Store, count: int, event: str = "mail", app: str = "") -> None:
    """Store events of an app, an hour apart."""
    new = [New(3600.0 * n, event, event, "", 0, app) for n in range(count)]
    store.write(lambda conn: events.add(conn, new)).result()


def states(daemon: Parts) -> list[str]:
    """Return the states of the students, the oldest first."""
    with daemon.store.read() as conn:
        return [each.state for each in students.listing(conn)[::-1]]


def files(daemon: Parts) -> list[str]:
    return sorted(file.name for file in daemon.paths.students_dir.iterdir())


async def tuned(daemon: Parts, *, secret: bool = True) -> None:
    """Let a student predict that saw what is to be forgotten."""
    daemon.trainer.settings = SETTINGS
    daemon.trainer.students.open()
    send(daemon.store, 20)
    if secret:
        send(daemon.store, 2, SECRET, "diary")
    daemon.child_says("write", PASSED)
    await daemon.ended("intent")
    # A real file holds names of events.
    (daemon.paths.students_dir / "intent-1.npz").write_text(f"names: mail, {SECRET}")


def test_what_saw_it_predicts_no_more_and_is_gone(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        await tuned(daemon)
        seen: list[tuple[list[str], bool]] = []
        daemon.forgetter.students.changed = lambda: seen.append(
            (states(daemon), (daemon.paths.students_dir / "intent-1.npz").exists())
        )
        (daemon.paths.students_dir / ".intent-9.npz.x.tmp").write_text(SECRET)
        done = await daemon.forgetter.forget(Selector(search=SECRET))
        assert (states(daemon), files(daemon)) == (["stale"], [])
        assert seen == [(["stale"], True)]  # told before the file goes: nobody loads it any more
        assert files_with(daemon.paths.data_dir, SECRET) == []
        assert (wanted(daemon), done.receipt.retraining) == (["intent"], True)
        assert done.receipt.verified is not None
        assert done.receipt.verified["found"] == 0
        daemon.child_says("write", PASSED)
        await daemon.ended("intent")
        assert (states(daemon), wanted(daemon)) == (["stale", "active"], [])
        assert [e[1] for e in daemon.read("job.json")["events"]] == ["mail"] * 20

    with_parts(tmp_path, work)


def test_what_did_not_see_it_predicts_on(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        await tuned(daemon, secret=False)
        send(daemon.store, 1, SECRET, "diary")
        await daemon.forgetter.forget(Selector(app="diary"))
        assert (states(daemon), files(daemon), wanted(daemon)) == (["active"], ["intent-1.npz"], [])

    with_parts(tmp_path, work)


def test_adapter_and_student_are_both_made_anew(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        teach_canary(daemon.store)
        add_live(daemon, ["secret"], 1)
        await tuned(daemon, secret=False)
        send(daemon.store, 1, CANARY)
        await tuned_again(daemon)
        await daemon.forgetter.forget(Selector(search=CANARY))
        assert sorted(wanted(daemon)) == ["intent", "live"]
        assert (states(daemon)[-1], files(daemon)) == ("stale", ["intent-1.npz"])
        daemon.child_says("write", Outcome(True, "better", {"held_out_after": 2.0}, "cd" * 32))
        await daemon.ended("live")
        assert wanted(daemon) == ["intent"]
        daemon.child_says("write", PASSED)
        await daemon.ended("intent")
        assert wanted(daemon) == []

    with_parts(tmp_path, work)


async def tuned_again(daemon: Parts) -> None:
    daemon.child_says("write", PASSED)
    await daemon.ended("intent")


def test_a_tuning_that_goes_on_is_stopped_and_made_later(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        await tuned(daemon, secret=False)
        send(daemon.store, 2, SECRET, "diary")
        daemon.child_says(Progress("train"), "write", "wait go")
        run = await daemon.trainer.start("intent", asked=False)
        await daemon.until((daemon.paths.students_dir / "intent-2.npz").exists)
        await daemon.forgetter.forget(Selector(app="diary"))
        assert (daemon.stored(run.id).state, daemon.stored(run.id).stopped_by) == ("interrupted", "edgepd")
        assert (files(daemon), wanted(daemon)) == (["intent-1.npz"], ["intent"])

    with_parts(tmp_path, work)


def test_with_everything_nothing_is_tuned_anew(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        await tuned(daemon)
        await daemon.forgetter.forget(Selector(everything=True))
        assert (set(states(daemon)), files(daemon), wanted(daemon)) == ({"stale"}, [], [])
        assert files_with(daemon.paths.data_dir, SECRET) == []

    with_parts(tmp_path, work)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["students.changed", "students.remove_unclaimed", "_store.scrub", "_end"])
def test_a_kill_at_any_point_loses_no_wish(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dying(daemon: Parts) -> None:
        await tuned(daemon)

        def die(*_: object) -> None:
            shutil.copytree(tmp_path / "first" / "data", tmp_path / "second" / "data")
            raise Killed

        part, _, method = step.rpartition(".")
        forgetter: Any = daemon.forgetter
        monkeypatch.setattr(getattr(forgetter, part) if part else forgetter, method, die)
        with pytest.raises(Killed):
            await forgetter.forget(Selector(search=SECRET))

    async def next_start(daemon: Parts) -> None:
        assert (states(daemon), wanted(daemon)) == (["stale"], ["intent"])
        assert daemon.trainer.students.serving() is None
        daemon.trainer.students.open()  # before anything else
        assert files(daemon) == []
        await daemon.forgetter.finish()
        assert receipts(daemon)[0].state == "done"
        assert files_with(daemon.paths.data_dir, SECRET) == []
        assert wanted(daemon) == ["intent"]

    (tmp_path / "first").mkdir()
    with_parts(tmp_path / "first", dying)
    monkeypatch.undo()
    with_parts(tmp_path / "second", next_start, taught=False)


def watched_after_forgetting(
    directory: Path, clock: Clock, keeps: int, settings: Settings, check: Callable[[Watched], Any]
) -> None:
    """Forget all events of an app but `keeps` others, and let the supervisor look."""

    async def work(daemon: Parts) -> None:
        daemon.trainer.settings = SETTINGS
        daemon.trainer.students.open()
        send(daemon.store, keeps)
        send(daemon.store, 20, SECRET, "diary")
        daemon.child_says("write", PASSED)
        await daemon.ended("intent")
        await daemon.forgetter.forget(Selector(app="diary"))
        assert wanted(daemon) == ["intent"]
        watched = Watched(daemon, clock)
        watched.set(settings)
        await check(watched)

    with_parts(directory, work)


def test_the_scheduler_makes_the_student_anew_without_being_asked(tmp_path: Path, clock: Clock) -> None:
    async def check(watched: Watched) -> None:
        watched.daemon.child_says("write", PASSED)
        await watched.started()
        await watched.ended()
        assert (states(watched.daemon), wanted(watched.daemon)) == (["stale", "active"], [])

    automatic_off = Settings(train=Train(rank=4), intent=SETTINGS.intent, budget=Budget(automatic=False))
    watched_after_forgetting(tmp_path, clock, 12, automatic_off, check)


def test_a_tuning_that_is_killed_leaves_the_wish(tmp_path: Path, clock: Clock) -> None:
    async def check(watched: Watched) -> None:
        watched.daemon.child_says("write", "exit 3")
        await watched.started()
        await watched.ended()
        assert wanted(watched.daemon) == ["intent"]
        decision = await watched.look()
        assert (decision.action, decision.constraint, decision.kind) == (Action.WAIT, "failures", "intent")

    watched_after_forgetting(tmp_path, clock, 12, SETTINGS, check)


def test_where_too_little_is_left_the_wish_is_settled(tmp_path: Path, clock: Clock) -> None:
    async def check(watched: Watched) -> None:
        decision = await watched.look()
        assert decision.action is Action.WAIT
        assert decision.reason.startswith("nothing was trained: there are 9 events, but tuning needs at least 10")
        assert wanted(watched.daemon) == []
        decision = await watched.look()
        assert (decision.action, decision.due) == (Action.WAIT, False)

    watched_after_forgetting(tmp_path, clock, 9, UNTAUGHT, check)


def test_a_wish_waits_while_prediction_is_switched_off(tmp_path: Path, clock: Clock) -> None:
    async def check(watched: Watched) -> None:
        decision = await watched.look()
        assert (decision.action, decision.due) == (Action.WAIT, False)
        assert wanted(watched.daemon) == ["intent"]

    watched_after_forgetting(tmp_path, clock, 12, replace(UNTAUGHT, intent=Intent(enabled=False)), check)


def test_a_parked_tuning_waits_while_prediction_is_switched_off(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        daemon.trainer.settings = SETTINGS
        daemon.trainer.students.open()
        send(daemon.store, 20)
        daemon.child_says(Progress("train"), "wait go")
        await daemon.trainer.start("intent", asked=False)
        await daemon.until(lambda: daemon.trainer.progress)
        await daemon.trainer.park("somebody needs the machine")
        watched = Watched(daemon, clock)
        watched.set(replace(UNTAUGHT, intent=Intent(enabled=False)))
        decision = await watched.look()
        assert (decision.action, decision.due, decision.kind) == (Action.WAIT, False, None)

    with_parts(tmp_path, work)


def test_wishes_survive_without_a_text(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        await tuned(daemon)
        await daemon.forgetter.forget(Selector(search=SECRET))
        with daemon.store.read() as conn:
            (wish,) = forgetting.wanted(conn)
        assert SECRET not in wish.reason
        assert wish.reason == "the tuned model of what comes next was taught what has been forgotten since"

    with_parts(tmp_path, work)
