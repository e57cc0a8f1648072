"""The scenes of the soak: what users do while something breaks.

The idea: each scene is a method that takes seconds, leaves a daemon that serves, and has it probed at its end;
`scenes` is what a round shuffles.
What this does not do: decide how long all of it takes (see soak.py), or look at what is left (see _soak_watched.py).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from _soak_daemon import Mortal
from _soak_faults import Disk, slow_disk
from _soak_generations import make_generations
from _soak_ledger import found_in_files
from _soak_user import Crowd, expected, tracked
from _soak_watched import Watched

LESSONS = 22  # corrections before the first scene, enough to train on
TRAIN_SECONDS = 90.0  # within which a run that nobody disturbs should have its verdict
HEAL_SECONDS = 5.0  # after which a disk with room must be used again


class Soak(Watched):
    """One daemon, and all that happens to it."""

    def __init__(self, daemon: Mortal, disk: Disk, seed: int, *, slow: bool) -> None:
        """`slow` tells whether the disk can be slowed down."""
        super().__init__(daemon, seed)
        self.disk, self.slow = disk, slow
        self._scene = 0

    def scenes(self) -> list[Callable[[], None]]:
        """Return what a round consists of."""
        all_of_them = [self.chat, self.crash, self.crash, self.train, self.train, self.swap, self.forget, self.leave]
        return [*all_of_them, *([self.full] if self.disk.limited else []), *([self.slowly] if self.slow else [])]

    def begin(self) -> None:
        """Make generations, start the daemon, and teach it something."""
        make_generations(self.daemon)
        self.start()
        while sum(1 for _, kind in self.ledger.feedback if kind == "edit") < LESSONS:
            answer = self.user.question(patient=True)
            if answer is not None and answer.acknowledged:
                self.user.judge(answer, always_correct=True)
        for generation in reversed(self.usable()):
            self.activate({"generation": generation})
            self.probe()

    def chat(self) -> None:
        """Several users at once."""
        with self.crowd():
            self.wait(3, 6)
        self.probe()

    def crash(self) -> None:
        """Kill the daemon while it answers, and see how it is after that; sometimes again at once."""
        for _ in range(self.chooser.choice((1, 1, 2, 3))):
            with self.crowd():
                self.wait(0.2, 4)
                self.kill()
            self.start()
        self.probe()

    def leave(self) -> None:
        """Stop the daemon in order and start it again, with users who do not care."""
        with self.crowd():
            self.wait(0.5, 2)
            self.daemon.end(signal.SIGTERM)
        self.ledger.count("orderly restarts")
        self.look_at_files()
        self.start()
        self.probe()

    def train(self) -> None:
        """Train, with a chat in between; sometimes kill the trainer or the daemon. Leave nothing going on."""
        run = self.start_training()
        if run is None:
            return
        fate = self.chooser.choice(("nothing", "chat", "kill the trainer", "kill the daemon"))
        if fate == "chat":
            self.wait(1, 5)
            with self.crowd():
                self.wait(2, 4)
        elif fate != "nothing":
            self.wait(0.5, 12)
            if fate == "kill the daemon":
                self.kill()
                self.start()
            elif (trainer := self.daemon.trainer()) is not None:
                trainer.kill()
                self.ledger.count("trainers killed")
        self.ledger.count(f"training: {self.verdict(run)}")
        self.probe()

    def start_training(self) -> int | None:
        """Start a run; return its number, None if it is refused."""
        status, told = tracked(self.world, "POST", "/edgepd/v1/training", {"kind": "live"})
        if status != 202:
            expected(self.world, f"training: {status}", told)
            return None
        self.ledger.count("training runs started")
        return int(told["run"]["id"])

    def verdict(self, run: int) -> str:
        """Wait for a run to end, looking at all there is to look at meanwhile; stop it if that takes too long."""
        deadline = time.monotonic() + TRAIN_SECONDS
        state = "running"
        while state == "running":
            self.read()
            time.sleep(0.5)
            state = str(self.daemon.get(f"/edgepd/v1/training/{run}")["run"]["state"])
            if state == "running" and time.monotonic() > deadline:
                tracked(self.world, "DELETE", f"/edgepd/v1/training/{run}")
                return "stopped by us"
        deadline = time.monotonic() + TRAIN_SECONDS  # of the review of what serves already
        while self.daemon.trainer() is not None and time.monotonic() < deadline:
            time.sleep(0.5)
        return state

    def read(self) -> None:
        """Look at something, as people do."""
        routes = (
            "status",
            "profile",
            "interactions?limit=5",
            "training",
            "generations",
            "feedback/channels",
            "receipts",
        )
        status, told = tracked(self.world, "GET", f"/edgepd/v1/{self.chooser.choice(routes)}")
        if status != 200:
            self.ledger.fail(f"a page could not be read: {status} {str(told)[:200]}")
        self.ledger.count("pages read")

    def swap(self) -> None:
        """Use other generations while users ask."""
        with self.crowd():
            for _ in range(self.chooser.randrange(2, 5)):
                self.wait(0.2, 1)
                back = self.chooser.random() < 0.3
                self.activate(None if back else {"generation": self.chooser.choice(self.usable())})
        self.probe()

    def usable(self) -> list[int]:
        """Return the generations that may serve."""
        listing = self.daemon.get("/edgepd/v1/generations")["generations"]
        return [int(g["id"]) for g in listing if g["state"] in ("active", "retired", "candidate")]

    def activate(self, chosen: dict[str, int] | None) -> None:
        """Make a generation serve, without one the generation before."""
        route, body = ("rollback", {}) if chosen is None else ("activate", chosen)
        status, told = tracked(self.world, "POST", f"/edgepd/v1/generations/{route}", body)
        self.ledger.count("swaps" if status == 200 else f"swaps refused: {status}")
        if status not in (200, 409):
            self.ledger.fail(f"a swap failed: {status} {told}")

    def forget(self) -> None:
        """Take back two answers, one by its id and one by a word of it; kill the daemon during some of these."""
        for by_id in (True, False):
            candidates = self.ledger.alive()
            if not candidates:
                return
            answer = self.chooser.choice(candidates)
            body: dict[str, Any] = {"ids": [answer.row]} if by_id else {"search": answer.canary}
            killed = self.chooser.random() < 0.2
            if not killed:
                self._forget(answer.canary, body)
            else:
                with self.crowd(size=1, forgetting=(answer.canary, body)):
                    self.wait(0, 0.5)
                    self.kill()
                self.start()
                self._settle_unsure()
        self.probe()

    def _forget(self, word: str, body: dict[str, Any]) -> None:
        """Forget, and look for it in all files as soon as the receipt is there. Raises Lost."""
        with self.ledger.lock:
            rows = [a for a in self.ledger.answers.values() if a.canary == word]
            for answer in rows:
                answer.unsure = True
        status, told = tracked(self.world, "POST", "/edgepd/v1/forget", body)
        if status != 200:
            self.ledger.fail(f"forgetting was refused: {status} {told}")
            return
        receipt = told["receipt"]
        with self.ledger.lock:
            self.ledger.forgotten[word] = receipt["id"]
            self.ledger.stale |= dict.fromkeys(receipt["generations"], time.time())
            for answer in rows:
                answer.forgotten, answer.unsure = True, False
        self.ledger.count("requests to forget")
        self.ledger.count("generations taken out by forgetting", len(receipt["generations"]))
        self.note("forgotten", found_in_files(self.daemon.home, {word}))

    def _settle_unsure(self) -> None:
        """Find out what became of a request to forget that was cut short: all of it, or nothing."""
        with self.ledger.lock:
            unsure = [a for a in self.ledger.answers.values() if a.unsure]
        for answer in unsure:
            status, _ = tracked(self.world, "GET", f"/edgepd/v1/interactions/{answer.row}")
            answer.forgotten, answer.unsure = status == 404, False
            if answer.forgotten:  # files are cleaned beside the first requests, so they are searched at the end
                self.ledger.forgotten[answer.canary] = "interrupted"
                self.ledger.count("requests to forget that a restart finished")

    def full(self) -> None:
        """Fill the disk; users get answers and are told the truth. With room again, all is stored again."""
        self.world.full_disk = True
        killed = self.chooser.random() < 0.3
        with self.disk.full(), self.crowd():
            self.wait(1, 2)
            self.start_training()
            self.wait(1, 3)
            if killed:
                self.kill(look=False)
        self.world.full_disk = False
        self.ledger.count("times the disk was full")
        if killed:
            self.look_at_files()
            self.start()
        self.heal()
        self.probe()

    def heal(self) -> None:
        """Wait until an answer is stored again."""
        deadline = time.monotonic() + HEAL_SECONDS
        while time.monotonic() < deadline:
            answer = self.user.question(patient=True)
            if answer is not None and answer.acknowledged:
                return
        self.ledger.fail(f"{HEAL_SECONDS:.0f} s after the disk had room again, nothing is stored")

    def slowly(self) -> None:
        """Users ask and correct while each fsync takes a fifth of a second; sometimes it is too much for the daemon."""
        self.world.slow_disk = True
        killed = self.chooser.random() < 0.3
        with slow_disk(self.daemon.pid()), self.crowd():
            self.wait(3, 5)
            if killed:
                self.kill()
        self.world.slow_disk = False
        self.ledger.count("times the disk was slow")
        if killed:
            self.start()
        self.probe()

    @contextmanager
    def crowd(self, size: int = 3, forgetting: tuple[str, dict[str, Any]] | None = None) -> Iterator[None]:
        """Let users live in the background; with `forgetting`, one more of them takes something back."""
        self._scene += 1
        with Crowd(self.world, f"{self.seed} {self._scene}", size) as crowd:
            if forgetting is not None:
                crowd.add(partial(self._forget, *forgetting))
            yield

    def wait(self, least: float, most: float) -> None:
        """Wait for a random time."""
        time.sleep(self.chooser.uniform(least, most))
