"""Whatever happens in whatever order, crashes included: registry, files, and what serves agree.

Everything is real but llama.cpp: the profile, the checks of headers and hashes, baking, merging and importing.
What is expected of trust (strikes, confirmation, fallback) is counted here a second time.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgepd.errors import EdgepdError
from edgepd_daemon.engine.types import Version
from edgepd_daemon.generation_files.importing import import_file
from edgepd_daemon.generation_files.merging import merge
from edgepd_daemon.known import LOADABLE
from edgepd_profiles import health, registry
from edgepd_profiles.registry import Generation
from tests.daemon.killing import CRASHED, POINTS, UNFINISHED, Killed, World, sha256

BASE = 1
RECENT = st.integers(0, 11)  # how far back among all generations; beyond the base it is one that nobody knows
DEATHS = st.none() | st.sampled_from(POINTS)
How = Literal["done", "refused", "killed"]


@dataclass
class Trust:
    """What a generation has shown since it was activated last."""

    confirmed: bool = False
    healthy: int = 0
    strikes: int = 0


@dataclass(frozen=True)
class View:
    """What must stay as it is when something is refused."""

    active: int
    current: Version
    states: dict[int, str]


class AnySequence(RuleBasedStateMachine):
    """The events of a daemon's life."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="edgepd-", dir="/tmp"))
        self.world = World(self.root)
        self.active = BASE
        self.loaded_here = self.answered_here = False  # what the active one has come to in this run
        self.trust: dict[int, Trust] = {}
        self.broken: set[str] = set()  # names of files that were damaged from outside
        self.ever_pinned: set[int] = set()

    def teardown(self) -> None:
        self.world.stop()
        shutil.rmtree(self.root)

    # Means

    @property
    def generations(self) -> Any:
        return self.world.generations

    def chosen(self, recent: int) -> tuple[int, Generation | None]:
        """Return the number of a generation, and the generation if there is one."""
        rows: list[Generation] = [*self.generations.listing()[::-1]]
        index = recent % (len(rows) + 1)
        return (rows[index].id, rows[index]) if index < len(rows) else (99, None)

    def is_broken(self, generation: Generation) -> bool:
        return bool({generation.model_file, generation.adapter_file} & self.broken)

    def view(self) -> View:
        states = {g.id: g.state for g in self.generations.listing()}
        return View(self.generations.active().id, self.generations.current, states)

    def attempt(
        self, work: Callable[[], object], dies_at: str | None = None, *, crashes: bool = False, full: bool = False
    ) -> How:
        """Do something. If it is refused, nothing may have changed, but a candidate that crashes is rejected."""
        before = self.view()
        self.world.dies_at, self.world.prober.crashes, self.world.engine.no_memory = dies_at, crashes, full
        try:
            work()
        except EdgepdError:
            after = self.view()
            assert (after.active, after.current) == (before.active, before.current)
            changed = {n for n, state in after.states.items() if before.states.get(n) != state}
            assert all(before.states.get(n, "candidate") == "candidate" for n in changed)
            assert all(self.generations.get(n).reason == CRASHED for n in changed)
            return "refused"
        except Killed:
            self.restart_after_kill(unfinished=False)
            return "killed"
        finally:
            self.world.dies_at, self.world.prober.crashes, self.world.engine.no_memory = None, False, False
        assert set(before.states) <= set(self.view().states)  # rows never go
        return "done"

    def unmoved(self, work: Callable[[], object], dies_at: str | None = None, *, crashes: bool = False) -> How:
        """Do something that never changes what serves."""
        before = self.view()
        how = self.attempt(work, dies_at, crashes=crashes)
        if how != "killed":
            assert (self.view().active, self.view().current) == (before.active, before.current)
        return how

    def switched(self, number: int) -> None:
        """Check that another one serves now, and forget what it has to show anew."""
        assert (self.generations.active().id, self.generations.current.generation) == (number, number)
        assert self.generations.problem is None
        self.count_switch(number)

    def count_switch(self, number: int) -> None:
        if number == self.active:
            return
        self.active, self.loaded_here, self.answered_here = number, True, False
        trust = self.trust.setdefault(number, Trust())
        trust.strikes = 0
        if not trust.confirmed:
            trust.healthy = 0

    def restart_after_kill(self, *, unfinished: bool) -> None:
        """Start after a SIGKILL, and check that the generation it is put down to is withdrawn when it is due."""
        active = self.generations.active()
        self.count_switch(active.id)  # it may have been the last thing that was done
        self.loaded_here |= self.generations.version(active) in self.world.engine.tried
        self.world.kill(unfinished=unfinished)
        struck, due = self.active, False
        if struck != BASE:
            trust = self.trust.setdefault(struck, Trust())
            trust.strikes += self.loaded_here and not self.answered_here
            trust.healthy = trust.healthy if trust.confirmed else 0
            due = trust.strikes >= health.STRIKES
        self.loaded_here = self.answered_here = False
        self.world.start()
        back = self.world.boot.fallback
        assert (back is not None) == due
        if back is not None:
            assert back.from_id == struck
            assert self.generations.get(struck).state == "retired"
            assert back.to_id == BASE or self.trust[back.to_id].confirmed
            assert f"generation {struck} was withdrawn" in self.generations.problem
            self.count_switch(back.to_id)
            self.loaded_here = False
        self.booted()

    def booted(self) -> None:
        assert self.generations.active().id == self.generations.current.generation == self.active
        with self.world.store.read() as conn:
            assert self.world.files() <= registry.file_names(conn)  # what nobody has is gone
        assert not self.world.files() & set(UNFINISHED)

    def add(self, path: Path, *, live: bool) -> int:
        """Register a file as the trainer does."""
        active = self.generations.active()
        made: Generation = self.generations.add(
            parent=active.id,
            kind="live" if live else "baked",
            adapter_file=path.name if live else None,
            model_file=active.model_file if live else path.name,
            file_sha256=sha256(path),
        )
        return made.id

    # Training

    @initialize(live=st.lists(st.booleans(), max_size=3), trusted=st.booleans())
    def some_history(self, live: list[bool], trusted: bool) -> None:
        for each in live:
            self.train(each, promoted=True, first=None, second=None)
            if trusted:
                self.answer(health.HEALTHY_ANSWERS)

    @rule(live=st.booleans(), promoted=st.booleans(), first=DEATHS, second=DEATHS)
    def train(self, live: bool, promoted: bool, first: str | None, second: str | None) -> None:
        path, made = self.world.write(live=live), list[int]()
        parent = self.generations.active()
        if self.unmoved(lambda: made.append(self.add(path, live=live)), first) != "done":
            return
        if not promoted:
            assert self.unmoved(lambda: self.generations.shelf.reject(made[0], "not better"), second) != "refused"
            return
        self.generations.note_probed(self.generations.get(made[0]))
        how = self.attempt(lambda: self.generations.activate(made[0], parent.id), second)
        assert how != "refused" or (live and parent.model_file in self.broken)
        if how == "done":
            self.switched(made[0])

    # Switching

    @rule(recent=RECENT, expected=st.booleans(), crashes=st.booleans(), full=st.booleans(), dies_at=DEATHS)
    def activate(self, recent: int, expected: bool, crashes: bool, full: bool, dies_at: str | None) -> None:
        number, target = self.chosen(recent)
        wanted = self.active if expected else None
        how = self.attempt(lambda: self.generations.activate(number, wanted), dies_at, crashes=crashes, full=full)
        if how == "done":
            assert target is not None
            assert target.state in LOADABLE
            self.switched(number)
        elif how == "refused" and target is not None and target.state in LOADABLE:
            assert crashes or full or self.is_broken(target)

    @rule(recent=RECENT, expected=st.integers(0, 12), dies_at=st.none() | st.just("keep"))
    def activate_unless_another_is_active(self, recent: int, expected: int, dies_at: str | None) -> None:
        if expected == self.active:
            return
        number, _ = self.chosen(recent)
        before, files = self.view(), self.world.files()
        assert self.attempt(lambda: self.generations.activate(number, expected), dies_at) == "refused"
        assert (self.view(), self.world.files()) == (before, files)

    @rule(full=st.booleans(), dies_at=DEATHS)
    def rollback(self, full: bool, dies_at: str | None) -> None:
        target = None if self.active == BASE else self.generations.previous()
        assert target is None or target.id != self.active
        how = self.attempt(lambda: self.generations.rollback(), dies_at, full=full)
        if how == "done":
            assert target is not None
            assert target.state == "retired"
            self.switched(target.id)
        elif how == "refused":
            assert target is None or full or self.is_broken(target)

    @rule(recent=RECENT, dies_at=DEATHS)
    def withdraw(self, recent: int, dies_at: str | None) -> None:
        number, found = self.chosen(recent)
        before = self.generations.previous() if found and found.state == "active" and number != BASE else None
        how = self.attempt(lambda: self.generations.withdraw(number, "it has forgotten too much"), dies_at)
        assert (how == "refused") == (found is None or number == BASE) or how == "killed"
        if how != "done":
            return
        assert found is not None
        after = self.generations.get(number)
        assert after.state == (found.state if found.state in ("stale", "deleted") else "rejected")
        if found.state == "active":
            self.switched(self.generations.active().id)
            assert before is None or self.active == (BASE if self.is_broken(before) else before.id)

    # Keeping and giving up

    @rule(recent=RECENT, dies_at=DEATHS)
    def delete(self, recent: int, dies_at: str | None) -> None:
        number, found = self.chosen(recent)
        needed: list[int] = []
        if found is not None:
            with self.world.store.read() as conn:
                needed = registry.needed_by(conn, found)
        how = self.unmoved(lambda: self.generations.delete(number), dies_at)
        free = found is not None and found.kind != "base" and not found.pinned and not needed
        assert (how == "refused") != (free and found.state not in ("active", "deleted")) or how == "killed"
        if how != "refused":
            assert self.generations.get(number).state == "deleted" or how == "killed"

    @rule(recent=RECENT, pinned=st.booleans())
    def pin(self, recent: int, pinned: bool) -> None:
        number, _ = self.chosen(recent)
        if self.unmoved(lambda: self.generations.pin(number, pinned)) == "done":
            assert self.generations.get(number).pinned == pinned
            self.ever_pinned |= {number} if pinned else set()

    @rule(keep=st.integers(0, 2), dies_at=DEATHS)
    def tidy(self, keep: int, dies_at: str | None) -> None:
        spared = {BASE, self.active} | {g.id for g in self.generations.listing() if g.pinned or g.state == "candidate"}
        if self.active != BASE:
            spared.add(self.generations.previous().id)
        before = self.view().states
        self.unmoved(lambda: self.generations.shelf.tidy(self.world.base.sha256, keep), dies_at)
        assert {n for n, state in self.view().states.items() if state != before[n]}.isdisjoint(spared - {self.active})

    @rule(recent=RECENT, dies_at=DEATHS)
    def forget(self, recent: int, dies_at: str | None) -> None:
        """What a generation was taught is forgotten: it and what goes on from it are out of service, files and all."""
        number, found = self.chosen(recent)
        if found is None or found.kind == "base":
            return
        touched = set[int]()

        def take_out(conn: sqlite3.Connection) -> None:
            conn.execute("UPDATE generations SET example_ids = ? WHERE id = ?", (f'["i_{number}"]', number))
            touched.update(registry.taught_any(conn, [f"i_{number}"]))
            registry.retire_stale(conn, touched, registry.switches(conn, touched), "forgotten")

        def work() -> None:
            self.generations.take_out(take_out)
            for each in touched:
                self.generations.discard_files(each)

        if self.attempt(work, dies_at) != "done":
            return
        gone = [self.generations.get(each) for each in touched]
        assert number in touched
        assert all(g.state in ("stale", "rejected", "deleted") and not g.pinned for g in gone)
        assert [self.generations.shelf.own_file(g) for g in gone] == [None] * len(gone)
        assert (self.generations.active().id == self.active) == (self.active not in touched)
        if self.active in touched:
            self.switched(self.generations.active().id)

    # What comes from outside, and from others

    @rule(what=st.sampled_from(("lora", "delta", "model", "nonsense")), crashes=st.booleans(), dies_at=DEATHS)
    def bring_in(self, what: str, crashes: bool, dies_at: str | None) -> None:
        path = self.world.foreign(what)
        count = len(self.view().states)
        how = self.unmoved(lambda: import_file(self.generations, path), dies_at, crashes=crashes)
        if how == "done":
            assert what != "nonsense"
            assert not crashes
            made = self.generations.listing()[-1]
            assert (made.id, made.state) == (count + 1, "candidate")
            assert made.kind == ("live" if what == "lora" else "baked")
        assert path.exists()

    @rule(a=st.integers(0, 4), b=st.integers(0, 4), rank=st.none() | st.just(2), dies_at=DEATHS)
    def merge(self, a: int, b: int, rank: int | None, dies_at: str | None) -> None:
        rows: list[Generation] = self.generations.listing()[::-1]
        first = rows[a % len(rows)]
        others = [g for g in rows if g.id != first.id and g.model_file == first.model_file and g.kind == "live"] or rows
        parts = [first, others[b % len(others)]]
        numbers = [part.id for part in parts]
        how = self.unmoved(lambda: merge(self.generations, numbers, None, rank), dies_at)
        if how == "done":
            assert all(part.kind == "live" and part.state in LOADABLE for part in parts)
            assert parts[0].model_file == parts[1].model_file
            assert self.generations.listing()[-1].state == "candidate"

    @precondition(lambda self: len(self.broken) < 2)
    @rule(recent=RECENT, gone=st.booleans())
    def damage(self, recent: int, gone: bool) -> None:
        """Somebody cuts off a file or removes it."""
        _, found = self.chosen(recent)
        own = self.generations.shelf.own_file(found) if found else None
        if own is None or own.name in self.broken:
            return
        content = own.read_bytes()
        own.unlink()
        if not gone:
            own.write_bytes(content[: len(content) // 2])
        self.broken.add(own.name)

    # Serving

    @rule(recent=st.none() | RECENT)
    def ask(self, recent: int | None) -> None:
        """A request names a model; what serves without a name changes only if it cannot be loaded."""
        if recent is None:
            self.served()
            return
        number, found = self.chosen(recent)
        versions: list[Version] = []
        how = self.unmoved(lambda: versions.append(self.generations.resolve(f"tiny@{number}")))
        if how == "done":
            assert found is not None
            assert found.state in LOADABLE
            assert versions == [self.generations.version(found)]
        else:
            assert found is None or found.state not in LOADABLE or self.is_broken(found)

    def served(self) -> Version:
        """Return what a request without a name gets, which is what the registry says, or the base with a word why."""
        version: Version = self.generations.resolve("default")
        assert version == self.generations.current
        assert self.world.engine.is_prepared(version)
        return version

    @rule(times=st.integers(1, 3))
    def answer(self, times: int) -> None:
        version = self.served()
        for _ in range(times):
            self.generations.answered(version)
        self.world.flush()
        if version.generation != self.active or self.active == BASE:
            return
        self.answered_here = True
        trust = self.trust.setdefault(self.active, Trust())
        trust.strikes = 0
        if not trust.confirmed:
            trust.healthy += times
            trust.confirmed = trust.healthy >= health.HEALTHY_ANSWERS

    @rule()
    def unload(self) -> None:
        """Nobody has asked for some minutes."""
        self.world.engine.loaded.clear()

    # Ends

    @rule()
    def stop(self) -> None:
        self.world.stop()
        self.loaded_here = self.answered_here = False
        self.world.start()
        assert self.world.boot.fallback is None
        self.booted()

    @rule(unfinished=st.booleans())
    def crash(self, unfinished: bool) -> None:
        self.restart_after_kill(unfinished=unfinished)

    # What always holds

    @invariant()
    def one_is_active_and_serves(self) -> None:
        generations = self.generations
        rows: list[Generation] = generations.listing()
        [active] = [g for g in rows if g.state == "active"]
        assert active.id == self.active
        if generations.current.generation != active.id:
            assert generations.current == generations.version(generations.original())
            assert f"generation {active.id} cannot be served" in generations.problem
            assert self.is_broken(active)
        kept = self.world.engine.kept
        assert kept is None or kept == generations.current
        for name, wanted in (("default", active.id), ("tiny", active.id), ("base", BASE)):
            assert generations.named(name).id == wanted
        assert all(generations.named(f"tiny@{g.id}") == g for g in rows)
        assert {g.id for _, g in generations.names()} == {g.id for g in rows if g.state in ("active", "retired")} | {
            BASE
        }

    @invariant()
    def files_are_there_and_unchanged_and_no_others(self) -> None:
        rows: list[Generation] = self.generations.listing()
        files = self.world.files()
        for g in rows:
            if g.state in LOADABLE and not self.is_broken(g):
                for path in (self.generations.model_path(g), self.generations.adapter_path(g)):
                    assert path is None or path.exists(), g
                own = self.generations.own_file(g)
                assert sha256(own) == (g.file_sha256 or self.world.base.sha256)
        with self.world.store.read() as conn:
            extra = files - registry.file_names(conn)
        unpinned = {n for g in rows if g.id in self.ever_pinned for n in (g.adapter_file, g.model_file)}
        assert extra <= unpinned  # which goes with the next start

    @invariant()
    def trust_is_what_was_shown(self) -> None:
        for g in self.generations.listing():
            if g.kind == "base":
                assert (g.strikes, g.confirmed_at is not None, g.pending) == (0, True, False)
                continue
            trust = self.trust.get(g.id, Trust())
            assert (g.strikes, g.confirmed_at is not None) == (trust.strikes, trust.confirmed), g
            assert trust.confirmed or g.healthy == trust.healthy
            assert g.pending == (g.state == "active" and not trust.confirmed)

    @invariant()
    def the_way_back_leads_to_what_can_serve(self) -> None:
        if self.active == BASE:
            return
        previous = self.generations.previous()
        assert previous.state == "retired"
        assert previous.id != self.active
        with self.world.store.read() as conn:
            confirmed = registry.last_confirmed(conn, self.generations.active())
            runs = conn.execute("SELECT generation FROM boots WHERE state = 'running'").fetchall()
        assert confirmed.kind == "base" or (confirmed.state == "retired" and self.trust[confirmed.id].confirmed)
        assert runs == [(self.active,)]


AnySequence.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnySequence = AnySequence.TestCase
