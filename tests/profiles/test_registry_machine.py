"""Any sequence of training, activation, rollback, deletion, crash and boot keeps the registry consistent."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepd.errors import ConflictError
from edgepd_profiles import health, migrations, registry, runs
from edgepd_profiles.registry import Generation

BASES = ("a" * 64, "b" * 64)
MAY_SERVE = ("training", "candidate", "active", "retired")

base = st.sampled_from([BASES[0]] * 4 + [BASES[1]])  # most happens to one, so that much happens to it
number = st.integers(0, 5)  # counted from the newest generation


class Machine(RuleBasedStateMachine):
    """One profile, two base models, and one daemon, which may die at any moment.

    `unanswered` counts on its own, per generation, the unclean exits since its last finished answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        self.conn.execute("PRAGMA foreign_keys = ON")
        migrations.migrate(self.conn)
        self.boot = ("", 0)  # the base model and the id of the boot that is going on
        self.answered = False  # whether what serves has finished an answer in it
        self.unanswered: dict[int, int] = {}
        self.files = 0

    def teardown(self) -> None:
        self.conn.close()

    @initialize()
    def know_the_bases(self) -> None:
        for sha256 in BASES:
            registry.ensure_base(self.conn, sha256)
        self.booted(BASES[0], registry.active(self.conn, BASES[0]).id)

    def all(self) -> list[Generation]:
        return [g for sha256 in BASES for g in registry.listing(self.conn, sha256)]

    def pick(self, n: int) -> Generation:
        known = self.all()
        return known[-1 - n % len(known)]

    def refused(self, change: Callable[[], object]) -> bool:
        """Return whether a change was refused; then nothing may have changed."""
        before = self.conn.total_changes
        try:
            change()
        except ConflictError:
            assert self.conn.total_changes == before
            return True
        return False

    def switched(self, sha256: str, generation_id: int) -> None:
        self.unanswered[generation_id] = 0
        if self.boot[0] == sha256:
            self.answered = False

    def make(self, sha256: str, kind: str, state: str) -> int:
        """Add one as training does: a live adapter stands on the model file of the active generation."""
        self.files += 1
        active = registry.active(self.conn, sha256)
        return registry.add(
            self.conn,
            parent=active.id,
            kind=kind,
            base_sha256=sha256,
            state=state,
            adapter_file=f"adapter-{self.files}" if kind == "live" else None,
            model_file=f"model-{self.files}" if kind == "baked" else active.model_file,
        ).id

    @rule(sha256=base, kind=st.sampled_from(["live", "baked"]), state=st.sampled_from(["candidate", "training"]))
    def add(self, sha256: str, kind: str, state: str) -> None:
        self.make(sha256, kind, state)

    @rule(sha256=base, kind=st.sampled_from(["live", "baked"]), answers=st.integers(0, 4))
    def go_live(self, sha256: str, kind: str, answers: int) -> None:
        made = self.make(sha256, kind, "candidate")
        registry.activate(self.conn, sha256, made, registry.active(self.conn, sha256).id)
        self.switched(sha256, made)
        for _ in range(answers):
            self.finish_answer(registry.get(self.conn, made))
        assert registry.get(self.conn, made).pending == (answers < health.HEALTHY_ANSWERS)

    @rule(n=number, expected=st.sampled_from([None, None, None, 0, 1, 2]))
    def activate(self, n: int, expected: int | None) -> None:
        wanted = self.pick(n)
        active = registry.active(self.conn, wanted.base_sha256).id
        given = active if expected is None else self.pick(expected).id
        refused = self.refused(lambda: registry.activate(self.conn, wanted.base_sha256, wanted.id, given))
        assert refused == (given != active or wanted.state not in ("candidate", "active", "retired"))
        if not refused:
            assert registry.active(self.conn, wanted.base_sha256).id == wanted.id
            if wanted.state != "active":
                self.switched(wanted.base_sha256, wanted.id)
                assert registry.get(self.conn, wanted.id).pending == (wanted.confirmed_at is None)

    @rule(sha256=base)
    def roll_back(self, sha256: str) -> None:
        active = registry.active(self.conn, sha256)
        if active.kind == "base":
            assert self.refused(lambda: registry.previous(self.conn, sha256))
            return
        to = registry.previous(self.conn, sha256)
        registry.activate(self.conn, sha256, to.id, active.id)
        self.switched(sha256, to.id)

    @rule(n=number, state=st.sampled_from(["candidate", "rejected", "stale"]))
    def judge(self, n: int, state: str) -> None:
        generation = self.pick(n)
        refused = self.refused(lambda: registry.set_state(self.conn, generation.id, state))
        assert refused or (generation.state != "active" and generation.kind != "base") or state == generation.state

    @rule(n=number)
    def forget(self, n: int) -> None:
        """What a generation was taught is forgotten: it and all that go on from it are out of service at once."""
        generation = self.pick(n)
        if generation.kind == "base":
            return
        self.conn.execute("UPDATE generations SET example_ids = ? WHERE id = ?", (f'["i_{n}"]', generation.id))
        touched = registry.taught_any(self.conn, [f"i_{n}"])
        assert generation.id in touched
        switches = registry.switches(self.conn, touched)
        registry.retire_stale(self.conn, touched, switches, "forgotten")
        for switch in switches:
            assert registry.active(self.conn, switch.base_sha256).id == switch.to_id
            assert switch.to_id not in touched
            self.switched(switch.base_sha256, switch.to_id)
        gone = [g for g in self.all() if g.id in touched]
        assert {g.state for g in gone} <= {"stale", "rejected", "deleted"}
        assert not any(g.pinned for g in gone)
        others = {name for g in self.all() if g.id not in touched for name in (g.adapter_file, g.model_file)}
        own = {g.adapter_file or g.model_file for g in gone}
        assert not (own - others) & registry.file_names(self.conn)

    @rule(n=number, pinned=st.booleans())
    def pin(self, n: int, pinned: bool) -> None:
        generation = self.pick(n)
        if not self.refused(lambda: registry.pin(self.conn, generation.id, pinned)):
            assert registry.get(self.conn, generation.id).pinned is pinned

    @rule(n=number)
    def delete(self, n: int) -> None:
        generation = self.pick(n)
        kept = generation.kind == "base" or generation.state in ("active", "deleted") or generation.pinned
        training = [run.parent_generation for run in runs.runs(self.conn, 1) if run.state == "running"]
        refused = self.refused(lambda: registry.delete(self.conn, generation.id))
        assert refused == (kept or generation.id in training or needed(generation, self.all()))

    @rule(n=number)
    def train(self, n: int) -> None:
        if runs.mark_interrupted_runs(self.conn) == 0:
            runs.start_run(self.conn, "live", self.pick(n).id)

    @rule(sha256=base, keep=st.integers(0, 3))
    def clean_up(self, sha256: str, keep: int) -> None:
        for generation in registry.expendable(self.conn, sha256, keep):
            registry.delete(self.conn, generation.id)

    @rule(n=number)
    def answer(self, n: int) -> None:
        self.finish_answer(self.pick(n))

    def finish_answer(self, generation: Generation) -> None:
        serves = generation.state == "active" and generation.kind != "base"
        matters = health.answered(self.conn, generation.id)
        after = registry.get(self.conn, generation.id)
        assert matters == (generation.kind != "base" and after.confirmed_at is None)
        if serves:
            self.unanswered[generation.id] = 0
            if self.boot[0] == generation.base_sha256:
                self.answered = True

    @rule(sha256=base)
    def restart(self, sha256: str) -> None:
        """Stop cleanly and start, maybe with the other base model. Unclean exits are settled in `die_once`."""
        health.ended(self.conn, self.boot[1])
        assert health.at_boot(self.conn, sha256) is None
        self.booted(sha256, registry.active(self.conn, sha256).id)

    @rule(times=st.integers(1, 3))
    def die(self, times: int) -> None:
        for _ in range(times):
            self.die_once()

    def die_once(self) -> None:
        """The daemon dies and systemd starts it again."""
        sha256 = self.boot[0]
        active = registry.active(self.conn, sha256)
        if active.kind != "base" and not self.answered:
            self.unanswered[active.id] = self.unanswered.get(active.id, 0) + 1
        fallback = health.at_boot(self.conn, sha256)
        assert (fallback is not None) == (self.unanswered.get(active.id, 0) >= health.STRIKES)
        if fallback:
            to = registry.active(self.conn, sha256)
            assert (fallback.from_id, fallback.to_id) == (active.id, to.id)
            assert to.id != active.id
            assert to.kind == "base" or to.confirmed_at is not None
            assert registry.get(self.conn, active.id).state == "retired"
            self.unanswered[to.id] = 0
        self.booted(sha256, registry.active(self.conn, sha256).id)

    def booted(self, sha256: str, generation_id: int) -> None:
        self.boot = (sha256, health.booted(self.conn, sha256, generation_id))
        health.loading(self.conn, self.boot[1])
        self.answered = False

    @invariant()
    def all_is_consistent(self) -> None:
        known = self.all()
        for sha256 in {g.base_sha256 for g in known}:
            mine = [g for g in known if g.base_sha256 == sha256]
            assert [g.state for g in mine].count("active") == 1
            assert [g.state in ("active", "retired") for g in mine if g.kind == "base"] == [True]
            self.nothing_that_is_wanted_is_expendable(sha256, known)
        may_serve = [g for g in known if g.state in MAY_SERVE]
        deleted = {g.model_file for g in known if g.kind == "baked" and g.state == "deleted"}
        assert not deleted & {g.model_file for g in may_serve}
        assert not [g for g in known if g.pinned and g.state == "stale"]
        kept = may_serve + [g for g in known if g.pinned and g.state != "deleted"]
        assert {name for g in kept for name in (g.adapter_file, g.model_file) if name} <= registry.file_names(self.conn)
        assert [g.strikes for g in known] == [self.unanswered.get(g.id, 0) for g in known]

    def nothing_that_is_wanted_is_expendable(self, sha256: str, known: list[Generation]) -> None:
        found = registry.expendable(self.conn, sha256, 0)
        assert not [g for g in found if g.pinned or g.kind == "base" or g.state != "retired" or needed(g, known)]
        active = registry.active(self.conn, sha256)
        if active.kind != "base":
            ways_back = (registry.previous(self.conn, sha256), registry.last_confirmed(self.conn, active))
            assert [g.state for g in ways_back] == ["retired", "retired"]
            assert not {g.id for g in ways_back} & {g.id for g in found}


def needed(generation: Generation, known: list[Generation]) -> bool:
    """Return whether another one that may still serve stands on this one's baked file."""
    others = [g for g in known if g.id != generation.id and g.state in MAY_SERVE]
    return generation.kind == "baked" and any(g.model_file == generation.model_file for g in others)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
