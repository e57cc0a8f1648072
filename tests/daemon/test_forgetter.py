"""Forgetting over a real profile, registry and files: what is gone afterwards, and what an interruption leaves.

The engine has no model and the trainer's child follows a script (training_parts.py). Real models and a real daemon are
in test_forgetting_real.py; which rows and generations a request covers is in tests/profiles.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.job import Outcome
from edgepd.errors import EdgepdError, NotFoundError, StoreError
from edgepd_daemon.forgetter import Forgetter
from edgepd_profiles import backup, facts, feedback, forgetting, interactions, registry
from edgepd_profiles.forgetting import Receipt, Selector
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store
from tests.daemon.training_parts import Parts, with_parts

CANARY = "the heron nests behind the paper mill"
CORRECTED = "She feeds otters at dusk"


def teach_canary(store: Store) -> None:
    """Store an exchange with a correction that is to be forgotten, and a fact with the same words."""
    asked = [{"role": "user", "content": f"Remember that {CANARY}"}]
    row = Interaction("secret", "c", 2.0, "cli", "tiny", 1, asked, response=f"Noted: {CANARY}", state="done")

    def write(conn: sqlite3.Connection) -> None:
        interactions.begin(conn, row)
        feedback.set_edit(conn, "secret", CORRECTED)
        facts.remember(conn, f"I know that {CANARY}")

    store.write(write).result()


def add_live(daemon: Parts, examples: list[str], parent: int, **fields: Any) -> int:
    """Make a live generation with a file of its own the active one."""
    name = f"live-{len(daemon.files())}.gguf"
    (daemon.generations.directory / name).write_text(f"weights of {examples}")
    values: dict[str, Any] = {"kind": "live", "parent": parent, "adapter_file": name, "file_sha256": "cd" * 32}
    made = daemon.generations.add(**values | {"example_ids": examples} | fields).id
    daemon.generations.activate(made)

    def confirm(conn: sqlite3.Connection) -> None:
        conn.execute("UPDATE generations SET confirmed_at = 1.0 WHERE id = ?", (made,))

    daemon.store.write(confirm).result()
    return made


def taught(daemon: Parts) -> tuple[int, int]:
    """Store what is to be forgotten, and let it be learned: a clean generation, and the active one upon it."""
    teach_canary(daemon.store)
    clean = add_live(daemon, ["i1"], 1)
    touched = add_live(daemon, ["i2", "secret"], clean)
    checkpoint = daemon.paths.runs_dir / "live" / "checkpoint.npz"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text(CORRECTED)
    (daemon.paths.runs_dir / "stray").write_text("a file and no directory")
    daemon.engine.saved = 3
    backup.make(daemon.store, daemon.paths.backups_dir, 2, 1_000_000.0)
    return clean, touched


def states(daemon: Parts) -> dict[int, str]:
    return {g.id: g.state for g in daemon.generations.listing()}


def files_with(directory: Path, *texts: str) -> list[str]:
    """Return the names of all files that hold one of these texts, by a search of the test's own."""
    wanted = [text.encode() for text in texts]
    found = (f for f in sorted(directory.rglob("*")) if f.is_file())
    return [f.name for f in found if any(text in f.read_bytes() for text in wanted)]


def receipts(daemon: Parts) -> list[Receipt]:
    with daemon.store.read() as conn:
        return forgetting.receipts(conn)


def wanted(daemon: Parts) -> list[str]:
    with daemon.store.read() as conn:
        return [run.kind for run in forgetting.wanted(conn)]


def test_all_of_it_is_gone_and_a_generation_that_never_saw_it_serves(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        clean, touched = taught(daemon)
        assert files_with(daemon.paths.data_dir, CANARY) == ["profile-19700112-134640.db", "profile.db-wal"]
        old = backup.listing(daemon.paths.backups_dir)

        done = await daemon.forgetter.forget(Selector(search="PAPER mill"))

        assert files_with(daemon.paths.data_dir, CANARY, CORRECTED, "heron") == []
        assert (done.active, daemon.generations.current.generation) == (clean, clean)
        assert states(daemon) == {1: "retired", clean: "active", touched: "stale"}
        assert daemon.files() == ["live-0.gguf"]
        assert list(daemon.paths.runs_dir.iterdir()) == []
        assert daemon.engine.saved == 0
        (replaced,) = backup.listing(daemon.paths.backups_dir)
        assert replaced.path not in [b.path for b in old]
        assert wanted(daemon) == ["live"]

        (receipt,) = receipts(daemon)
        assert receipt == done.receipt
        assert (receipt.state, receipt.generations, receipt.retraining) == ("done", [touched], True)
        counted = {name: receipt.counts[name] for name in ("interactions", "facts", "backups", "saved_conversations")}
        assert counted == {"interactions": 1, "facts": 1, "backups": 1, "saved_conversations": 3}
        assert receipt.verified is not None
        assert (receipt.verified["found"], receipt.verified["pieces"] >= 3) == (0, True)
        assert receipt.verified["files"] >= 3  # the profile, its backup, and a generation
        assert "mill" not in json.dumps(receipt.counts) + receipt.what

    with_parts(tmp_path, work)


def test_the_other_exchanges_stay_and_their_generation_too(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        clean, _ = taught(daemon)
        await daemon.forgetter.forget(Selector(ids=("secret",)))
        with daemon.store.read() as conn:
            assert [row.id for row in interactions.recent(conn, 50)] == [f"i{n}" for n in reversed(range(12))]
            assert [fact.text for fact in facts.listing(conn)] == [f"I know that {CANARY}"]
            assert registry.get(conn, clean).state == "active"
        (receipt,) = receipts(daemon)
        # The fact says the same, and was not named: the search of the files must not call that a failure.
        assert receipt.verified is not None
        assert (receipt.verified["found"], files_with(daemon.paths.data_dir, CORRECTED)) == (0, [])
        assert "profile.db" in files_with(daemon.paths.data_dir, CANARY)

    with_parts(tmp_path, work)


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        clean, touched = taught(daemon)
        selector = Selector(search=CANARY)
        would = await daemon.forgetter.would(selector)
        assert (would.active, would.receipt.generations, would.receipt.retraining) == (clean, [touched], True)
        assert (would.receipt.state, would.receipt.verified) == ("dry run", None)
        assert states(daemon)[touched] == "active"
        assert (receipts(daemon), wanted(daemon), daemon.engine.saved) == ([], [], 3)
        assert len(daemon.files()) == 2
        assert files_with(daemon.paths.data_dir, CANARY) != []
        done = await daemon.forgetter.forget(selector)
        assert would.receipt.counts == {name: done.receipt.counts[name] for name in would.receipt.counts}
        assert (would.active, would.receipt.generations) == (done.active, done.receipt.generations)

    with_parts(tmp_path, work)


def test_generations_of_another_base_model_go_as_well(tmp_path: Path) -> None:
    """A dry run must know them too, although they cannot serve here."""

    async def work(daemon: Parts) -> None:
        teach_canary(daemon.store)
        file = daemon.generations.directory / "other.gguf"
        file.write_text("weights")

        def write(conn: sqlite3.Connection) -> int:
            base = registry.ensure_base(conn, "ef" * 32)
            values: dict[str, Any] = {"parent": base.id, "adapter_file": file.name, "file_sha256": "cd" * 32}
            return registry.add(
                conn, kind="live", base_sha256="ef" * 32, state="candidate", example_ids=["secret"], **values
            ).id

        other = daemon.store.write(write).result()
        assert (await daemon.forgetter.would(Selector(ids=("secret",)))).receipt.generations == [other]
        done = await daemon.forgetter.forget(Selector(ids=("secret",)))
        assert (done.active, done.receipt.generations, file.exists()) == (1, [other], False)
        with daemon.store.read() as conn:
            assert registry.get(conn, other).state == "stale"

    with_parts(tmp_path, work)


def test_a_pin_does_not_keep_what_was_learned(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        _, touched = taught(daemon)
        daemon.generations.pin(touched, pinned=True)
        await daemon.forgetter.forget(Selector(ids=("secret",)))
        generation = daemon.generations.get(touched)
        assert (generation.state, generation.pinned, len(daemon.files())) == ("stale", False, 1)

    with_parts(tmp_path, work)


class Killed(Exception):
    """Stands for the end of the process: the daemon is not used any more afterwards."""


STEPS = ("_personaliser.forget", "_generations.discard_files", "_engine.forget_conversations", "_store.scrub", "_end")


@pytest.mark.parametrize("step", STEPS)
def test_what_was_interrupted_is_finished_by_the_next_start(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are copied as they are at that moment, which is what a SIGKILL leaves, and another daemon gets them."""

    async def dying(daemon: Parts) -> None:
        taught(daemon)

        def die(*_: object) -> None:
            shutil.copytree(tmp_path / "first" / "data", tmp_path / "second" / "data")
            raise Killed

        part, _, method = step.rpartition(".")
        forgetter: Any = daemon.forgetter
        monkeypatch.setattr(getattr(forgetter, part) if part else forgetter, method, die)
        with pytest.raises(Killed):
            await forgetter.forget(Selector(search=CANARY))

    (tmp_path / "first").mkdir()
    with_parts(tmp_path / "first", dying)
    monkeypatch.undo()

    async def next_start(daemon: Parts) -> None:
        assert states(daemon) == {1: "retired", 2: "active", 3: "stale"}
        assert daemon.generations.current.generation == 2  # before anything else was done
        assert daemon.files() == ["live-0.gguf"]
        assert receipts(daemon)[0].state == "begun"
        daemon.engine.saved = 2
        await daemon.forgetter.finish()
        (receipt,) = receipts(daemon)
        assert (receipt.state, receipt.verified, receipt.counts["saved_conversations"]) == ("done", None, 2)
        assert files_with(daemon.paths.data_dir, CANARY, CORRECTED, "heron") == []
        assert list(daemon.paths.runs_dir.iterdir()) == []
        assert wanted(daemon) == ["live"]
        await daemon.forgetter.finish()  # nothing is left to do
        assert receipts(daemon) == [receipt]

    with_parts(tmp_path / "second", next_start, taught=False)


def test_what_cannot_be_forgotten_is_not_begun(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        _, touched = taught(daemon)
        with pytest.raises(NotFoundError, match="interaction 'nobody' is not known"):
            await daemon.forgetter.forget(Selector(ids=("nobody",)))
        assert (states(daemon)[touched], receipts(daemon), daemon.engine.saved) == ("active", [], 3)
        assert daemon.generations.resolve("default").generation == touched  # and it goes on serving

    with_parts(tmp_path, work)


def test_a_request_that_comes_meanwhile_is_not_given_what_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(daemon: Parts) -> None:
        clean, touched = taught(daemon)
        assert daemon.generations.resolve("default").generation == touched
        inside, go_on = threading.Event(), threading.Event()
        delete = forgetting.delete

        def slow(*args: Any) -> Receipt:
            inside.set()
            assert go_on.wait(20)
            return delete(*args)

        monkeypatch.setattr(forgetting, "delete", slow)
        forgotten = asyncio.create_task(daemon.forgetter.forget(Selector(ids=("secret",))))
        await asyncio.to_thread(inside.wait, 20)
        asking = [asyncio.create_task(asyncio.to_thread(daemon.generations.resolve, "default")) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asking)  # they wait for its end
        go_on.set()
        assert {version.generation for version in await asyncio.gather(*asking)} == {clean}
        await forgotten
        with pytest.raises(EdgepdError, match=f"generation {touched} is stale"):
            daemon.generations.resolve(f"tiny@{touched}")

    with_parts(tmp_path, work)


def test_who_hangs_up_does_not_stop_it_and_nothing_is_trained_until_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(daemon: Parts) -> None:
        taught(daemon)
        inside, go_on = threading.Event(), threading.Event()
        clean_up = Forgetter._clean_up

        def slow(self: Forgetter) -> dict[str, int]:
            inside.set()
            assert go_on.wait(20)
            return clean_up(self)

        monkeypatch.setattr(Forgetter, "_clean_up", slow)
        request = asyncio.create_task(daemon.forgetter.forget(Selector(ids=("secret",))))
        await asyncio.to_thread(inside.wait, 20)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        daemon.child_says("wait forever")
        training = asyncio.create_task(daemon.trainer.start("live"))
        another = asyncio.create_task(daemon.forgetter.forget(Selector(ids=("i3",))))
        await asyncio.sleep(0.1)
        assert (training.done(), another.done(), daemon.trainer.run) == (False, False, None)
        assert [receipt.state for receipt in receipts(daemon)] == ["begun"]
        go_on.set()
        await another
        await training
        assert [receipt.state for receipt in receipts(daemon)] == ["done", "done"]

    with_parts(tmp_path, work)


def test_a_run_that_is_going_on_is_stopped_and_wanted_again(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("write", "wait forever")
        run = await daemon.trainer.start("baked")
        await daemon.until(lambda: daemon.files() != [])
        await daemon.forgetter.forget(Selector(ids=("i5",)))
        assert (daemon.trainer.run, daemon.stored(run.id).state, daemon.files()) == (None, "interrupted", [])
        assert wanted(daemon) == ["baked"]
        daemon.child_says(Outcome(False, "not better", {}))
        again = await daemon.ended("baked")
        assert again.state == "rejected"
        assert "i5" not in {example["id"] for example in daemon.read("job.json")["train"]}

    with_parts(tmp_path, work)


def test_a_wrong_id_does_not_stop_the_run_that_is_going_on(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait forever")
        run = await daemon.trainer.start("live")
        with pytest.raises(NotFoundError):
            await daemon.forgetter.forget(Selector(ids=("nobody",)))
        assert (daemon.trainer.run, wanted(daemon)) == (run, [])

    with_parts(tmp_path, work)


def test_a_run_that_was_stopped_for_nothing_is_wanted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait forever")
        await daemon.trainer.start("live")

        def full(*_: object) -> Receipt:
            raise StoreError("the disk is full")

        monkeypatch.setattr(forgetting, "delete", full)
        with pytest.raises(StoreError, match="the disk is full"):
            await daemon.forgetter.forget(Selector(ids=("i5",)))
        assert (daemon.trainer.run, wanted(daemon), receipts(daemon)) == (None, ["live"], [])

    with_parts(tmp_path, work)


def test_with_everything_the_run_that_is_going_on_is_not_wanted_again(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        clean, touched = taught(daemon)
        daemon.child_says("wait forever")
        await daemon.trainer.start("live")
        done = await daemon.forgetter.forget(Selector(everything=True))
        assert (wanted(daemon), daemon.files(), done.active, done.receipt.retraining) == ([], [], 1, False)
        assert states(daemon) == {1: "active", clean: "stale", touched: "stale"}
        assert files_with(daemon.paths.data_dir, CANARY, CORRECTED, "Question 3", "Answer 3") == []
        assert done.receipt.counts["interactions"] == 13

    with_parts(tmp_path, work)


def test_what_cannot_be_removed_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(daemon: Parts) -> None:
        taught(daemon)

        def full() -> int:
            raise PermissionError(13, "Permission denied", "/states/a.kv")

        with monkeypatch.context() as patch:
            patch.setattr(daemon.engine, "forget_conversations", full)
            with pytest.raises(StoreError, match=r"/states/a\.kv: cannot be removed: Permission denied"):
                await daemon.forgetter.forget(Selector(ids=("secret",)))
        assert receipts(daemon)[0].state == "begun"
        assert daemon.generations.current.generation == 2  # the switch stands
        await daemon.forgetter.finish()
        assert receipts(daemon)[0].state == "done"
        assert files_with(daemon.paths.data_dir, CORRECTED) == []

    with_parts(tmp_path, work)


def test_without_room_for_a_backup_it_is_forgotten_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(daemon: Parts) -> None:
        taught(daemon)

        def full(*_: object) -> Path:
            raise StoreError("the disk is full")

        monkeypatch.setattr(backup, "make", full)
        done = await daemon.forgetter.forget(Selector(ids=("secret",)))
        assert (done.receipt.state, backup.listing(daemon.paths.backups_dir)) == ("done", [])

    with_parts(tmp_path, work)


def test_there_are_no_backups_afterwards_if_there_were_none(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        done = await daemon.forgetter.forget(Selector(ids=("i3",)))
        assert (done.receipt.counts["backups"], daemon.paths.backups_dir.exists()) == (0, False)
        assert (done.active, done.receipt.generations, wanted(daemon)) == (1, [], [])

    with_parts(tmp_path, work)


def test_models_are_not_searched(tmp_path: Path) -> None:
    """They are large, they are not of the user, and they may lie below his data."""

    async def work(daemon: Parts) -> None:
        teach_canary(daemon.store)
        daemon.paths.models_dir.mkdir()
        (daemon.paths.models_dir / "model.gguf").write_text(f"Noted: {CANARY}")
        done = await daemon.forgetter.forget(Selector(search=CANARY))
        assert done.receipt.verified is not None
        assert done.receipt.verified["found"] == 0
        (daemon.paths.data_dir / "notes.txt").write_text(f"I know that {CANARY}")
        teach_canary(daemon.store)
        done = await daemon.forgetter.forget(Selector(search=CANARY))
        assert done.receipt.verified is not None
        assert done.receipt.verified["found"] >= 1  # and it says so when something is left

    with_parts(tmp_path, work)
