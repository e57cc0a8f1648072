"""Any order of feedback, undoing, forgetting, importing and judging keeps the order of feedback and what is new by it.

The clock is no part of it: the time of each write is drawn anew.
"""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgepd_profiles import apps, demand, feedback, forgetting, interactions, migrations, portable
from edgepd_profiles.examples import Example, training_examples
from edgepd_profiles.interactions import Interaction

ACCEPTED = 0.5
Content = dict[tuple[str, str], tuple[object, ...]]

clock = st.floats(0, 2e9)
place = st.integers(0, 30)


class Machine(RuleBasedStateMachine):
    """One profile and its user. `highest` is the largest number that any feedback ever had."""

    def __init__(self) -> None:
        super().__init__()
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        self.conn.execute("PRAGMA foreign_keys = ON")
        migrations.migrate(self.conn)
        self.count = 0
        self.highest = 0
        self.before: tuple[Content, dict[tuple[str, str], int]] = ({}, {})
        self.marks = {"live": 0, "baked": 0}
        self.measured: dict[object, object] = {}
        for _ in range(3):
            self.asked("done", "", 0)

    def teardown(self) -> None:
        self.conn.close()

    def pick(self, n: int) -> str | None:
        ids = [name for (name,) in self.conn.execute("SELECT id FROM interactions ORDER BY seq")]
        return ids[n % len(ids)] if ids else None

    @rule(state=st.sampled_from(["done", "done", "done", "cancelled"]), app=st.sampled_from(["", "mail"]), model=place)
    def asked(self, state: str, app: str, model: int) -> None:
        self.count += 1
        said = [{"role": "user", "content": f"Name number {model % 3}."}]
        name = f"i_{self.count}"
        interactions.begin(
            self.conn,
            Interaction(name, name, 1.0, app, "m", 1, said, response=f"It is {model}.", state=state),
        )

    @rule(n=place, value=st.sampled_from([1, -1]), at=clock)
    def thumb(self, n: int, value: int, at: float) -> None:
        if name := self.pick(n):
            feedback.set_thumb(self.conn, name, value, at=at)

    @rule(n=place, value=st.integers(1, 5), at=clock)
    def rating(self, n: int, value: int, at: float) -> None:
        if name := self.pick(n):
            feedback.set_rating(self.conn, name, value, at=at)

    @rule(n=place, text=st.sampled_from(["Green.", "Grey."]), at=clock)
    def edit(self, n: int, text: str, at: float) -> None:
        if name := self.pick(n):
            feedback.set_edit(self.conn, name, text, at=at)

    @rule(n=place, kind=st.sampled_from(["copied", "abandoned", "regenerated"]), at=clock)
    def noted(self, n: int, kind: str, at: float) -> None:
        if name := self.pick(n):
            feedback.note(self.conn, name, kind, at=at)

    @rule(n=place, m=place, at=clock)
    def prefer(self, n: int, m: int, at: float) -> None:
        one, other = self.pick(n), self.pick(m)
        if one and other and one != other:
            first, second = interactions.get(self.conn, one), interactions.get(self.conn, other)
            if first.messages == second.messages:
                feedback.prefer(self.conn, one, other, at=at)

    @rule(n=place, kind=st.sampled_from([None, "thumb", "rating", "edit", "preferred", "copied"]))
    def undo(self, n: int, kind: str | None) -> None:
        if name := self.pick(n):
            feedback.remove(self.conn, name, kind)

    @rule(n=place)
    def forget(self, n: int) -> None:
        if name := self.pick(n):
            plan = forgetting.find(self.conn, forgetting.Selector(ids=(name,)))
            forgetting.delete(self.conn, plan, 5.0)

    @rule(sure=st.integers(0, 4))
    def forget_everything(self, sure: int) -> None:
        if not sure:
            forgetting.delete(self.conn, forgetting.find(self.conn, forgetting.Selector(everything=True)), 5.0)

    @rule(n=place)
    def import_one(self, n: int) -> None:
        said = [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": "There."}]
        portable.import_lines(self.conn, [json.dumps({"messages": said})], now=9.0)

    @rule(teaches=st.booleans())
    def mail_teaches(self, teaches: bool) -> None:
        apps.change(self.conn, "mail", teaches=teaches)

    @rule(kind=st.sampled_from(["live", "baked"]), share=st.floats(0, 1))
    def judge(self, kind: str, share: float) -> None:
        seq = int(demand.newest(self.conn) * share)
        demand.judged(self.conn, kind, seq)
        self.marks[kind] = max(self.marks[kind], seq)

    @invariant()
    def what_was_written_has_a_larger_number_than_anything_before(self) -> None:
        content: Content = {}
        seqs: dict[tuple[str, str], int] = {}
        for name, kind, *rest, seq in self.conn.execute("SELECT * FROM feedback"):
            content[name, kind], seqs[name, kind] = tuple(rest), seq
        known, numbers = self.before
        for key, row in content.items():
            if known.get(key) == row:
                assert seqs[key] == numbers[key]
            else:
                assert seqs[key] > self.highest
        assert len(set(seqs.values())) == len(seqs)
        self.highest = max(self.highest, *seqs.values(), 0)
        assert demand.newest(self.conn) >= self.highest
        self.before = (content, seqs)

    @invariant()
    def demand_is_what_a_naive_count_says(self) -> None:
        for undesirable in (False, True):
            found = training_examples(self.conn, ACCEPTED, undesirable=undesirable)
            new = [(self.decided_by(example), example.weight) for example in found]
            live = sum(weight for seq, weight in new if seq > max(self.marks.values()))
            baked = sum(weight for seq, weight in new if seq > self.marks["baked"])
            assert demand.measure(self.conn, ACCEPTED, undesirable=undesirable) == pytest.approx((live, baked))
            assert demand.count(self.conn, ACCEPTED, undesirable=undesirable) == len(found)

    @invariant()
    def the_same_version_means_the_same_demand(self) -> None:
        now = (demand.measure(self.conn, ACCEPTED, undesirable=True), demand.count(self.conn, ACCEPTED))
        assert self.measured.setdefault(demand.version(self.conn), now) == now

    def decided_by(self, example: Example) -> int:
        """Return the number of the row that decides, which is the one whose time the example has."""
        rows = {
            kind: (value, at, seq)
            for kind, value, at, seq in self.conn.execute(
                "SELECT kind, value, at, seq FROM feedback WHERE interaction = ?", (example.id,)
            )
        }
        if "edit" in rows:
            kind = "edit"
        elif not example.desirable:
            kind = "thumb" if "thumb" in rows else "rating"
        else:
            kind = next(kind for kind in ("preferred", "thumb", "rating") if kind in rows)
        _, at, seq = rows[kind]
        assert at == example.created_at
        return int(seq)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
