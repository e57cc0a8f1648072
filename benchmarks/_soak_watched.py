"""How the daemon of a soak is found after each blow: what it costs to start, what its files hold, what it answers.

The idea: after each crash the files are looked at as they lie there, before anything mends them. Probes are questions
with a greedy answer, asked when nobody else asks: a generation must answer each of them as it did the first time, in
whichever process it serves. What this does not do: decide what happens (see _soak_scenes.py).
"""

from __future__ import annotations

import random
import signal
import time
from itertools import combinations

import psutil
from _report import MODEL
from _soak_daemon import Mortal
from _soak_ledger import (
    Ledger,
    activations,
    canary,
    copied,
    corruption,
    found_in_files,
    lost_answers,
    lost_feedback,
    returned,
    wrong_generations,
)
from _soak_user import User, World, converse, tracked

PROBES = ("Name a colour.", "What do you put on bread?", "Count to five.")
PROBE_TOKENS = 12
STARTS = 3  # attempts, before the soak gives up


class Watched:
    """One daemon, its users, and what became of what it had promised."""

    def __init__(self, daemon: Mortal, seed: int) -> None:
        """The seed decides what users want."""
        self.world = World(daemon, Ledger())
        self.daemon, self.ledger, self.seed = daemon, self.world.ledger, seed
        self.chooser = random.Random(seed)  # noqa: S311 - not a secret
        self.user = User(self.world, f"{seed} alone")
        self.healthy_s: list[float] = []
        self.serving_s: list[float] = []
        self.lost: dict[str, list[str]] = {"answers": [], "feedback": [], "forgotten": [], "corrupt": [], "wrong": []}
        self._probed: dict[tuple[int, str], str] = {}

    def kill(self, *, look: bool = True) -> None:
        """Kill the daemon with SIGKILL, and look at the files as they lie there."""
        trainer = self.daemon.trainer()
        self.daemon.end(signal.SIGKILL)
        self.ledger.count("daemons killed")
        if trainer is not None:
            try:
                trainer.wait(5)
            except psutil.TimeoutExpired:
                self.ledger.fail("the trainer has outlived the daemon")
                trainer.kill()
        if look:
            self.look_at_files()

    def look_at_files(self) -> None:
        """Compare the profile with the ledger while no daemon runs."""
        damaged = [path.name for path in self.daemon.home.rglob("*damaged*")]
        self.note("corrupt", [name for name in damaged if name not in self.lost["corrupt"]])
        with copied(self.daemon.paths.profile) as conn:
            found = corruption(conn)
            self.note("corrupt", found)
            if not found:
                self.note("answers", lost_answers(conn, self.ledger))
                self.note("feedback", lost_feedback(conn, self.ledger))
                self.note("forgotten", returned(conn, self.ledger))
                self.lost["wrong"] = [w for w in self.lost["wrong"] if w.startswith("probe")]
                self.note("wrong", wrong_generations(activations(conn), self.ledger))
        self.ledger.count("times the files were looked at after a crash or stop")

    def note(self, what: str, found: list[str]) -> None:
        """Keep what is lost, once, and say it."""
        new = [sentence for sentence in dict.fromkeys(found) if sentence not in self.lost[what]]
        self.lost[what] += new
        for sentence in new:
            print(f"{what.upper()}: {sentence}", flush=True)

    def start(self) -> None:
        """Start the daemon, and measure how long it takes until it is healthy and until it answers."""
        for attempt in range(STARTS):
            self.daemon.start()
            try:
                healthy = self.daemon.wait_healthy()
                break
            except RuntimeError as error:
                self.ledger.fail(f"attempt {attempt + 1} to start: {error}")
        else:
            raise RuntimeError(f"the daemon does not start, tried {STARTS} times")
        first: list[float] = []
        word = canary(self.chooser)
        question = {"role": "user", "content": f"Hello, {word}!"}
        body = {"messages": [question], "max_tokens": 2, "ignore_eos": True, "app": "soak"}
        answer = converse(self.world, body, word, on_first=lambda: first.append(time.monotonic()))
        if not first or answer is None:
            self.ledger.fail("a daemon that says it is healthy does not answer")
        elif self.daemon.incarnation > 1:
            self.healthy_s.append(healthy)
            self.serving_s.append(first[0] - self.daemon.started_at)

    def probe(self) -> None:
        """Ask the probes, and compare with what the same generation said before. Nobody else asks meanwhile."""
        if self.daemon.ended():
            self.ledger.fail("the daemon has ended although nobody killed it")
            self.start()
        for question in PROBES:
            body = {
                "messages": [{"role": "user", "content": question}],
                "max_tokens": PROBE_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "store": False,
                "app": "probe",
                "model": MODEL,
            }
            status, told = tracked(self.world, "POST", "/v1/chat/completions", body)
            if status != 200:
                self.ledger.fail(f"a probe was refused: {status} {told}")
                continue
            generation, said = int(told["generation"]), str(told["choices"][0]["message"]["content"])
            before = self._probed.setdefault((generation, question), said)
            self.ledger.count("probes")
            if before != said:
                self.note("wrong", [f"probe: generation {generation} said {before!r} to {question!r}, now {said!r}"])

    def told_apart(self) -> float:
        """Return which share of the probes that several generations answered were answered differently."""
        said: dict[str, list[str]] = {}
        for (_, question), answer in self._probed.items():
            said.setdefault(question, []).append(answer)
        pairs = [a != b for answers in said.values() for a, b in combinations(answers, 2)]
        return sum(pairs) / len(pairs) if pairs else 0.0

    def end(self) -> None:
        """Stop the daemon and look at everything once more."""
        self.probe()
        for answer in self.ledger.alive()[-50:]:
            status, told = tracked(self.world, "GET", f"/edgepd/v1/interactions/{answer.row}")
            if status != 200 or not str(told["response"]).startswith(answer.text):
                self.note("answers", [f"answer {answer.row} is not shown as it was given: {status}"])
        self.daemon.end(signal.SIGTERM)
        self.look_at_files()
        with self.ledger.lock:
            words = set(self.ledger.forgotten)
        self.note("forgotten", found_in_files(self.daemon.home, words))
