"""Forgetting, from the profile to the last file: what a user takes back is gone, and so is what was learned from it.

The idea: rows and registry change in one transaction, with the switch to a generation that never saw what is forgotten.
After it goes, step by step, what else may hold the text: files of generations and of tuned students, checkpoints, saved
conversations, free pages and the WAL, backups. At the end all files are searched for it, and the receipt says what was
found.
Invariants: no question that comes from the transaction on is answered by what was trained on it; a receipt is `done`
only when every step is; what a crash leaves undone is done at the next start, where only the search is missing.
What this does not do: choose what is forgotten (see edgepd_profiles.forgetting), or reach copies that others made.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepd.adapt.job import JobKind
from edgepd.config import Paths
from edgepd.errors import EdgepdError, StoreError
from edgepd.settings import Keep
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.generations import Generations
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.trainer import Trainer
from edgepd_daemon.tuned_students import TunedStudents
from edgepd_profiles import backup, byte_search, forgetting, registry
from edgepd_profiles.forgetting import Plan, Receipt, Selector
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

IN_USE = ("training", "candidate", "active", "retired")  # states of generations that forgetting takes out of service
STOPPED = "it was going on when something was forgotten"


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten, or would be, and the generation that serves after it."""

    receipt: Receipt
    active: int


class Forgetter:
    """Carries out one request to forget at a time. Lives on the event loop."""

    def __init__(
        self,
        store: Store,
        generations: Generations,
        trainer: Trainer,
        engine: Engine,
        personaliser: Personaliser,
        paths: Paths,
    ) -> None:
        """Touch nothing yet."""
        self._store = store
        self._generations = generations
        self._trainer = trainer
        self._engine = engine
        self._personaliser = personaliser
        self._paths = paths
        self.students = TunedStudents(store, paths.students_dir)  # told of what predicts no more
        self.backups: int = Keep.backups  # how many are kept; a reload replaces it
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[Forgotten]] = set()  # so that none is collected before its end

    async def would(self, selector: Selector, app: str | None = None) -> Forgotten:
        """Say what forgetting this would come to; nothing changes. Raises as `forget`."""
        return await asyncio.to_thread(self._would, selector, app)

    async def forget(self, selector: Selector, app: str | None = None) -> Forgotten:
        """Forget what the selector names of what `app` may see, and return when nothing of it is left.

        A training run that is going on is stopped first, because it may know the text, and starts anew later. Raises
        NotFoundError, RequestError, ConflictError for an exchange that is being answered, and StoreError if the text
        could not be removed from all files; then it is gone from the tables, and the next start tries the rest again.
        """
        # Once begun it is carried to its end, even if whoever asked goes away, and nothing is trained until then.
        self._tasks.add(task := asyncio.create_task(self._forget_alone(selector, app)))
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Do what an earlier daemon left undone. Raises as `forget`."""
        async with self._one:  # what is being forgotten just now ends by itself
            with self._store.read() as conn:
                unfinished = forgetting.unfinished(conn)
            if unfinished:
                async with self._trainer.paused() as training:
                    await asyncio.to_thread(self._finish, unfinished, training)

    def back_up(self) -> Path:
        """Make a backup now. Blocks."""
        return backup.make(self._store, self._paths.backups_dir, self.backups, time.time())

    async def _forget_alone(self, selector: Selector, app: str | None) -> Forgotten:
        async with self._one:
            if self._trainer.run is not None:  # what cannot be forgotten must not stop it either
                await asyncio.to_thread(self._would, selector, app)
            async with self._trainer.paused() as training:
                return await asyncio.to_thread(self._forget, selector, app, training)

    def _would(self, selector: Selector, app: str | None) -> Forgotten:
        with self._store.read() as conn:
            plan = forgetting.find(conn, selector, app)
            touched = [registry.get(conn, number) for number in plan.generations]  # of any base model
        stale = [g.id for g in touched if g.state in IN_USE]
        receipt = Receipt("", time.time(), selector.what, plan.counts, stale, bool(plan.switches), None, "dry run")
        active = self._generations.active().id
        return Forgotten(receipt, next((s.to_id for s in plan.switches if s.from_id == active), active))

    def _forget(self, selector: Selector, app: str | None, training: JobKind | None) -> Forgotten:
        def write(conn: sqlite3.Connection) -> tuple[Plan, list[bytes], Receipt]:
            plan = forgetting.find(conn, selector, app)
            pieces = forgetting.needles(conn, plan)
            receipt = forgetting.delete(conn, plan, time.time())
            if training is not None and not plan.everything:
                forgetting.want(conn, training, STOPPED)
            return plan, pieces, receipt

        try:
            plan, pieces, receipt = self._generations.take_out(write)
        except EdgepdError:
            self._want(training)
            raise
        log.info("forgotten: %s", plan.counts)
        self._personaliser.forget()
        self.students.changed()
        for number in plan.generations:
            self._generations.discard_files(number)
        counts = self._clean_up()
        done = self._end(receipt, counts, self._search(pieces))
        return Forgotten(done, self._generations.active().id)

    def _finish(self, unfinished: Sequence[Receipt], training: JobKind | None) -> None:
        self._want(training)
        counts = self._clean_up()
        for receipt in unfinished:
            self._end(receipt, counts, None)
        log.info("%d interrupted requests to forget were carried to their end", len(unfinished))

    def _clean_up(self) -> dict[str, int]:
        """Remove what may hold the text besides the tables; return the numbers for the receipt."""
        try:
            saved = self._engine.forget_conversations()
            for run in self._paths.runs_dir.glob("*"):  # checkpoints have learned it
                shutil.rmtree(run) if run.is_dir() else run.unlink()
            self.students.remove_unclaimed()
            return self._scrubbed() | {"saved_conversations": saved}
        except OSError as error:
            raise StoreError(
                f"{error.filename}: cannot be removed: {error.strerror}; make it and its directory writable for you, "
                "then restart edgepd, which tries the rest again"
            ) from error

    def _scrubbed(self) -> dict[str, int]:
        """Remove text from the free parts of the profile, and replace the backups."""
        # Before the file is scrubbed: a backup that is being made reads an old snapshot, and ends by this.
        backups = backup.remove_all(self._paths.backups_dir)
        self._store.scrub().result()
        # One that was made meanwhile may have words of the index that had not been merged yet.
        backups += backup.remove_all(self._paths.backups_dir)
        if backups:
            try:
                self.back_up()
            except EdgepdError as error:  # what was to be forgotten is gone all the same; another one is made when due
                log.warning("the backups were removed, and no new one could be made: %s", error)
        return {"backups": len(backups)}

    def _search(self, pieces: Collection[bytes]) -> dict[str, int]:
        """Look for pieces of what was forgotten in all files."""
        try:
            searched = byte_search.search_files(self._paths.data_dir, pieces, skip=(self._paths.models_dir,))
            if searched.unreadable:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(searched.unreadable[0]))
        except OSError as error:
            raise StoreError(
                f"{error.filename} cannot be read ({error.strerror}), so it is not known whether it has the text"
            ) from error
        with self._store.read() as conn:
            kept = forgetting.kept_elsewhere(conn, searched.pieces)
        left = searched.pieces - kept
        if left:
            log.error("%d pieces of what was forgotten are still in files", len(left))
        numbers = {"files": searched.files, "bytes": searched.total_bytes}
        return numbers | {"pieces": len(pieces), "found": len(left), "kept_elsewhere": len(kept)}

    def _want(self, training: JobKind | None) -> None:
        """Have a run that was stopped made later."""
        if training is not None:
            self._store.write(lambda c: forgetting.want(c, training, STOPPED)).result()

    def _end(self, receipt: Receipt, counts: dict[str, int], verified: dict[str, int] | None) -> Receipt:
        return self._store.write(lambda c: forgetting.finished(c, receipt.id, counts, verified)).result()
