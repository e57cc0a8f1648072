"""Training through a real daemon: from corrections to a generation that serves, and every way in which it can end.

The tiny random model learns to give one short answer, which is enough to be promoted if the gate allows it to read
general text quite differently.
"""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import psutil

from tests.daemon.running import TINY_SETTINGS, Daemon, Json, running, wait_for

LEARNS = (
    *TINY_SETTINGS,
    "train.threads=1",
    "train.epochs=3",
    "train.live_learning_rate=0.01",
    "train.scale_learning_rate=0.05",
    "gate.max_perplexity_rise=1",
    "gate.max_kl=10",
)
ENDLESS = (*LEARNS, "train.epochs=1000")
LESSON = "the hello"


def teach(daemon: Daemon) -> None:
    """Twelve corrected answers in as many conversations; too short to be near-duplicates."""
    for n in range(12):
        daemon.edit(f"Swordfish number {n}", LESSON)


def reviewed(daemon: Daemon) -> None:
    """Wait for the end of the review of what serves already."""
    wait_for(lambda: daemon.get("/edgepd/v1/status")["training"]["progress"] is None)


def generations(daemon: Daemon) -> dict[int, tuple[str, str]]:
    return {g["id"]: (g["kind"], g["state"]) for g in daemon.get("/edgepd/v1/generations")["generations"]}


def active(daemon: Daemon) -> int:
    found: int = daemon.get("/edgepd/v1/generations")["active"]
    return found


def learned(daemon: Daemon, **fields: str) -> str:
    """The answer to a question that was never trained on."""
    return daemon.answer("Swordfish number 77", max_tokens=12, cache_prompt=False, **fields)


def files(daemon: Daemon) -> list[str]:
    return sorted(f.name for f in daemon.paths.generations_dir.iterdir())


def started(daemon: Daemon) -> tuple[Json, psutil.Process]:
    """A run that has come to its optimiser steps, and its process."""
    run = daemon.post("/edgepd/v1/training", {})["run"]
    return run, at_work(daemon, run["id"])


def at_work(daemon: Daemon, run_id: int) -> psutil.Process:
    """The process of a run that has come, or comes, to its optimiser steps."""

    def steps() -> object:
        runs = [run["id"] for run in daemon.get("/edgepd/v1/training")["runs"]]
        progress = daemon.get(f"/edgepd/v1/training/{run_id}")["progress"] if run_id in runs else None
        return progress and progress["stage"] == "train" and progress["done"]

    wait_for(steps)
    children = psutil.Process(daemon.process.pid).children()
    [child] = [c for c in children if "edgepd.adapt.worker" in c.cmdline()]
    return child


def test_a_live_adapter_from_corrections_to_rollback(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *LEARNS) as daemon:
        teach(daemon)
        before = learned(daemon)
        assert before != LESSON
        run = daemon.train("live")
        assert (run["state"], run["kind"], run["parent_generation"], run["generation"]) == ("promoted", "live", 1, 2)
        numbers = run["numbers"]
        assert (numbers["held_out_examples"], numbers["improved_examples"], numbers["epochs"]) == (5, 5, 3)
        assert numbers["held_out_after"] < numbers["held_out_before"] - 1
        assert run["reason"].startswith(f"held-out loss fell from {numbers['held_out_before']:.3f} to ")
        assert learned(daemon) == LESSON
        assert learned(daemon, model="base") == learned(daemon, model="tiny@1") == before
        assert generations(daemon) == {1: ("base", "retired"), 2: ("live", "active")}
        assert [m["id"] for m in daemon.get("/v1/models")["data"]] == ["default", "base", "tiny@1", "tiny@2"]
        assert daemon.get("/edgepd/v1/interactions/last")["generation"] == 1
        assert files(daemon) == ["live-1.gguf"]
        assert not (daemon.paths.runs_dir / "live").exists()  # no checkpoint is left

        reviewed(daemon)
        [_, made] = daemon.get("/edgepd/v1/generations")["generations"]
        assert (made["state"], made["reason"]) == ("active", run["reason"])
        arms = made["scores"]["arms"]
        assert set(arms) == {"base", "profile", "retrieval", "adapter", "adapter+retrieval"}
        assert (arms["base"], arms["adapter"]) == (numbers["held_out_base"], numbers["held_out_after"])
        assert (made["config"]["settings"]["rank"], made["config"]["settings"]["epochs"]) == (8, 3)

        back = daemon.post("/edgepd/v1/generations/rollback", {})
        assert (back["active"], back["previous"]) == (1, 2)
        assert learned(daemon) == before
        refused = daemon.refused("/edgepd/v1/generations/activate", {"generation": 2, "expected": 2})
        assert refused[:2] == (409, "conflict")
        assert active(daemon) == 1
        forth = daemon.post("/edgepd/v1/generations/activate", {"generation": 2, "expected": 1})
        assert (forth["active"], forth["previous"]) == (2, 1)
        assert learned(daemon) == LESSON

        assert "torch" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
        assert daemon.stop() == 0
        assert "Swordfish" not in daemon.log  # what users write does not belong into a log
        assert LESSON not in daemon.log
        assert "training run 1: promoted" in daemon.log


def test_a_second_live_run_goes_on_where_the_first_one_ended(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *LEARNS, "train.epochs=1", "train.live_learning_rate=0.003") as daemon:
        teach(daemon)
        first, second = daemon.train("live"), daemon.train("live")
        assert (first["state"], second["state"]) == ("promoted", "promoted"), second["reason"]
        assert (second["parent_generation"], second["generation"]) == (2, 3)
        # From the base, the same examples would give the same adapter, which would be rejected for being no better.
        assert abs(second["numbers"]["held_out_before"] - first["numbers"]["held_out_after"]) < 1e-4
        assert second["numbers"]["held_out_after"] < second["numbers"]["held_out_before"]
        assert (active(daemon), files(daemon)) == (3, ["live-1.gguf", "live-2.gguf"])


def test_a_plan_costs_nothing(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *LEARNS) as daemon:
        refused = daemon.refused("/edgepd/v1/training/plan", {"kind": "live"})
        assert refused[:2] == (409, "training_refused")
        assert refused[2].startswith("there are 0 different examples, but training needs at least 10; ")
        teach(daemon)
        for kind in ("live", "baked"):
            plan = daemon.post("/edgepd/v1/training/plan", {"kind": kind})["plan"]
            assert plan["examples"] <= 7
            assert 0 < plan["predicted_rss_mb"] < plan["budget_mb"]
            assert plan["predicted_seconds"] > 0
            assert all(isinstance(reason, str) for reason in plan["reasons"])
        assert daemon.get("/edgepd/v1/training") == {"runs": []}
        assert files(daemon) == []
        assert not daemon.paths.runs_dir.exists()


def test_a_baked_generation_survives_a_restart(edgepd_home: Path, tiny_models: Path, tiny_model: Path) -> None:
    with running(edgepd_home, tiny_models, *LEARNS) as daemon:
        teach(daemon)
        before = learned(daemon)
        run = daemon.train("baked")
        assert (run["state"], run["kind"], run["generation"]) == ("promoted", "baked", 2)
        assert run["numbers"]["baked_tensors"] == 14
        assert run["numbers"]["baked_llama_difference"] < 0.01  # nats, between torch and llama.cpp
        assert learned(daemon) == LESSON
        assert daemon.get("/edgepd/v1/status")["generation"]["model_file"] == "baked-1.gguf"
        assert (daemon.paths.generations_dir / "baked-1.gguf").stat().st_size == tiny_model.stat().st_size
        assert daemon.stop() == 0
    with running(edgepd_home, tiny_models, *LEARNS) as daemon:
        assert active(daemon) == 2
        assert daemon.get("/edgepd/v1/status")["problems"] == []
        assert learned(daemon) == LESSON
        assert learned(daemon, model="base") == before
        assert daemon.post("/edgepd/v1/generations/rollback", {})["active"] == 1
        assert learned(daemon) == before
        # A live adapter can be trained on top of the baked file. What judged that must not judge the opposite.
        daemon.post("/edgepd/v1/generations/activate", {"generation": 2})
        for row in daemon.get("/edgepd/v1/interactions?limit=1000")["interactions"]:
            assert daemon.client.delete(f"/edgepd/v1/feedback/{row['id']}").is_success
        for n in range(12):
            daemon.edit(f"A pike numbered {n}", "and hello")
        run = daemon.train("live")
        assert run["state"] == "promoted", run["reason"]
        found = daemon.get("/edgepd/v1/status")["generation"]
        assert (found["model_file"], found["adapter_file"]) == ("baked-1.gguf", "live-2.gguf")
        assert daemon.answer("A pike numbered 77", max_tokens=12) == "and hello"


def test_a_candidate_that_spoils_general_text_is_rejected(edgepd_home: Path, tiny_models: Path) -> None:
    with running(
        edgepd_home, tiny_models, *LEARNS, "gate.max_perplexity_rise=0", "train.live_learning_rate=0.05"
    ) as daemon:
        teach(daemon)
        before = learned(daemon)
        run = daemon.train("live")
        assert run["state"] == "rejected"
        assert run["reason"].startswith("perplexity on general text rose by ")
        assert run["reason"].endswith("; at most 0.0% is allowed")
        assert run["numbers"]["general_perplexity_rise"] > 0
        [generation] = [g for g in daemon.get("/edgepd/v1/generations")["generations"] if g["id"] == run["generation"]]
        assert (generation["state"], generation["reason"]) == ("rejected", run["reason"])
        assert generation["scores"] == run["numbers"]
        assert (active(daemon), files(daemon), learned(daemon)) == (1, [], before)
        status, code, message = daemon.refused("/edgepd/v1/generations/activate", {"generation": generation["id"]})
        assert (status, code) == (409, "conflict")
        assert f"generation {generation['id']} is rejected and cannot serve" in message


def test_a_run_that_is_broken_off(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *ENDLESS) as daemon:
        teach(daemon)
        before = learned(daemon)
        run, child = started(daemon)
        assert child.nice() == 19
        progress = daemon.get(f"/edgepd/v1/training/{run['id']}")["progress"]
        assert min(progress[n] for n in ("loss", "tokens_per_second", "seconds_left", "rss_mb", "total")) > 0
        assert progress["paused"] is None
        refused = daemon.refused("/edgepd/v1/training", {"kind": "baked"})
        assert (refused[:2], refused[2]) == ((409, "conflict"), "training run 1 is going on; wait for its end")
        assert daemon.get("/edgepd/v1/status")["training"]["run"]["state"] == "running"
        assert learned(daemon) == before  # it serves meanwhile

        child.send_signal(signal.SIGKILL)
        killed = daemon.finished(run["id"])
        assert killed["state"] == "interrupted"
        assert killed["reason"].startswith("the trainer was killed by signal 9 before it had a result; the system may")
        assert (active(daemon), files(daemon), learned(daemon)) == (1, [], before)
        with sqlite3.connect(daemon.paths.profile) as profile:
            assert profile.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        profile.close()

        run, child = started(daemon)
        assert daemon.client.delete(f"/edgepd/v1/training/{run['id'] + 1}").status_code == 409
        stopped = daemon.client.delete(f"/edgepd/v1/training/{run['id']}").json()["run"]
        assert stopped["state"] == "interrupted"
        assert not child.is_running()

        run, child = started(daemon)
        assert daemon.stop() == 0
        assert not child.is_running()
    with running(edgepd_home, tiny_models, *ENDLESS) as daemon:
        child = at_work(daemon, 4)  # the third goes on by itself, because it was asked for
        runs = daemon.get("/edgepd/v1/training")["runs"]
        assert [r["state"] for r in runs] == ["running", "parked", "interrupted", "interrupted"]
        daemon.kill()
        child.wait(30)  # nobody is left to hear its events
        # What a trainer leaves that had written its file before it was noticed that nobody listens.
        orphan = daemon.paths.generations_dir / "live-4.gguf"
        orphan.write_bytes(b"GGUF")
    with running(edgepd_home, tiny_models, *LEARNS) as daemon:
        assert not orphan.exists()
        assert daemon.get("/edgepd/v1/training/4")["run"]["state"] == "interrupted"
        run = daemon.train("live")
        assert (run["state"], learned(daemon)) == ("promoted", LESSON)


def test_examples_that_do_not_fit_fail_the_run_with_the_reason(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *LEARNS, "serve.context_tokens=128") as daemon:
        for n in range(12):
            daemon.edit(f"Number {n}", f"a rather long answer, {n}{n} in all " * 20)
        run = daemon.train("live")
        assert run["state"] == "failed"
        assert run["reason"].startswith("no example to train on fits into 128 tokens")
        assert daemon.get("/edgepd/v1/status")["training"]["run"]["reason"] == run["reason"]


def test_a_trainer_that_cannot_start_its_work(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *LEARNS) as daemon:
        teach(daemon)
        daemon.paths.runs_dir.write_text("in the way")
        run = daemon.train("live")
        assert run["state"] == "failed"
        assert run["reason"] == "the trainer ended with exit code 1 before it had a result"
        daemon.paths.runs_dir.unlink()
        assert daemon.train("live")["state"] == "promoted"
