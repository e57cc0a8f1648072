"""New events start a tuning by themselves: the real supervisor, on a machine that the test makes up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgepd.adapt.job import Outcome
from edgepd.settings import Budget, Intent, Settings, Train
from edgepd_daemon.scheduler.types import Action
from tests.daemon.test_tuning_forgotten import files, send, states
from tests.daemon.training_parts import Parts, with_parts
from tests.daemon.watched import Clock, Watched, clock

__all__ = ["clock"]  # the fixture

SETTINGS = Settings(train=Train(min_examples=99), intent=Intent(new_events=5, min_events=10))
PASSED = Outcome(True, "it foresees better", {"nll_after": 1.25}, "cd" * 32)


def test_new_events_start_a_tuning_and_no_other_until_there_are_more(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        daemon.trainer.students.open()
        watched = Watched(daemon, clock)
        watched.set(SETTINGS)
        send(daemon.store, 9)
        decision = await watched.look()
        assert (decision.action, decision.due) == (Action.WAIT, False)
        send(daemon.store, 11)
        daemon.child_says("write", PASSED)
        await watched.started()
        assert daemon.trainer.running() is not None
        await watched.ended()
        assert (states(daemon), files(daemon)) == (["active"], ["intent-1.npz"])
        assert daemon.read("job.json")["patient"] is True
        decision = await watched.look()
        assert decision.reason == (
            "there are 12 of the 99 examples that training needs; there are 0 of the 5 new events that start a tuning "
            "of what comes next"
        )
        assert watched.supervisor.view()["demand"]["intent_enough"] == 5

    with_parts(tmp_path, work)


def test_it_waits_like_any_other_and_is_switched_off_at_once(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        daemon.trainer.students.open()
        watched = Watched(daemon, clock)
        watched.set(SETTINGS)
        send(daemon.store, 20)
        watched.machine.becomes(on_ac=False)
        decision = await watched.look()
        assert (decision.action, decision.kind, decision.constraint) == (Action.WAIT, "intent", "mains power")
        watched.set(replace(SETTINGS, intent=Intent(enabled=False)))
        assert (await watched.look()).due is False
        watched.set(replace(SETTINGS, budget=Budget(automatic=False)))
        assert (await watched.look()).due is False

    with_parts(tmp_path, work)
