"""Any sequence of training, switches, deletions and crashes leaves registry, files and what serves consistent."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepd.errors import EdgepdError
from edgepd_daemon.known import LOADABLE
from edgepd_profiles import registry
from tests.daemon.kept import kept


class AnySequence(RuleBasedStateMachine):
    """Whatever happens in whatever order: registry, files and what serves agree."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="edgepd-", dir="/tmp"))
        self.stack = ExitStack()
        self.made = 0

    @initialize()
    def first_start(self) -> None:
        self.start()

    def start(self) -> None:
        run = kept(self.directory, recorded=True)
        self.parts = self.stack.enter_context(run)
        self.parts.generations.keep_retired = 1

    def attempt(self, method: str, *arguments: object) -> None:
        """Do something that may be refused, but never fails otherwise."""
        try:
            getattr(self.parts.generations, method)(*arguments)
        except EdgepdError:
            return

    def teardown(self) -> None:
        self.stack.close()
        shutil.rmtree(self.directory)

    @rule(live=st.booleans(), activate=st.booleans())
    def train(self, live: bool, activate: bool) -> None:
        self.made += 1
        active = self.parts.generations.active()
        name = f"{self.made}.gguf"
        number = self.parts.live(name, model_file=active.model_file) if live else self.parts.baked(name)
        if activate:
            self.parts.generations.activate(number, active.id)

    @rule(number=st.integers(1, 12), expected=st.none() | st.integers(1, 12))
    def activate(self, number: int, expected: int | None) -> None:
        self.attempt("activate", number, expected)

    @rule()
    def rollback(self) -> None:
        self.attempt("rollback")

    @rule(number=st.integers(1, 12))
    def withdraw(self, number: int) -> None:
        self.attempt("withdraw", number, "worse")

    @rule(number=st.integers(1, 12))
    def delete(self, number: int) -> None:
        self.attempt("delete", number)

    @rule(number=st.integers(1, 12), pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        self.attempt("pin", number, pinned)

    @rule(times=st.integers(1, 3))
    def answer(self, times: int) -> None:
        for _ in range(times):
            self.parts.generations.answered(self.parts.generations.current)

    @rule(crash=st.booleans(), interrupted=st.booleans())
    def restart(self, crash: bool, interrupted: bool) -> None:
        """End the daemon, perhaps with SIGKILL, perhaps in the middle of writing a file or after giving one up."""
        if interrupted:
            self.parts.file("unfinished.gguf")
            self.give_up_without_removing()
        self.parts.generations._run.clean = not crash
        self.stack.close()
        self.start()
        assert "unfinished.gguf" not in self.parts.files()

    def give_up_without_removing(self) -> None:
        base = self.parts.generations.base.sha256
        with self.parts.store.read() as conn:
            free = registry.expendable(conn, base, 0)
        if free:
            self.parts.store.write(lambda conn: registry.delete(conn, free[0].id)).result()

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "parts"):
            return
        generations, files = self.parts.generations, set(self.parts.files())
        rows = generations.listing()
        assert [g.id for g in rows if g.state == "active"] == [generations.current.generation]
        needed = {n for g in rows if g.state in LOADABLE for n in (g.adapter_file, g.model_file) if n}
        assert needed <= files
        claimed = {n for g in rows if g.state != "deleted" for n in (g.adapter_file, g.model_file) if n}
        assert files <= claimed | {n for g in rows if g.pinned for n in (g.adapter_file, g.model_file) if n}
        gone = {g.adapter_file for g in rows if g.state == "deleted"} | {
            g.adapter_file for g in rows if g.state == "rejected" and not g.pinned
        }
        assert not files & {name for name in gone if name}


AnySequence.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnySequence = AnySequence.TestCase
