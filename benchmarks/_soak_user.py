"""What users of the soak do: ask, hang up, correct, praise, take back; each writes down what it was told.

The idea: a user is a thread with a chooser of its own, so that a seed gives the same wishes; what becomes of them
depends on the machine. An answer that ends without a reason, and without the daemon having been killed, is a failure.
What this does not do: kill anything (see _soak_scenes.py).
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from _soak_daemon import ANSWER_SECONDS, Lost, Mortal, ask
from _soak_ledger import Answer, Ledger, canary
from _users import FACTS, STYLES

PATIENCE_S = (0.05, 0.3, 1.0, 1e9, 1e9, 1e9, 1e9)  # after which users hang up
SLACK_S = 2.0  # within which a daemon that was killed may still have been noticed as alive


@dataclass
class World:
    """What all users share."""

    daemon: Mortal
    ledger: Ledger
    slow_disk: bool = False
    full_disk: bool = False


class User:
    """One client."""

    def __init__(self, world: World, seed: str) -> None:
        """`seed` decides what it wants."""
        self.world = world
        self.chooser = random.Random(seed)  # noqa: S311 - not a secret

    def live(self, until: Callable[[], bool]) -> None:
        """Ask and judge until told to stop, or the daemon is gone."""
        while not until():
            try:
                answer = self.question()
                if answer is not None and answer.acknowledged:
                    self.judge(answer)
            except Lost:
                return
            time.sleep(self.chooser.random() * 0.3)

    def question(self, *, patient: bool = False) -> Answer | None:
        """Ask one question; return what was seen of the answer, None if it is not stored or refused. Raises Lost."""
        asked, _ = self.chooser.choice(FACTS)
        word = canary(self.chooser)
        body = {
            "messages": [{"role": "user", "content": f"{asked} My reference is {word}."}],
            "max_tokens": self.chooser.randrange(2, 32),
            "app": "soak",
        }
        return converse(self.world, body, word, 1e9 if patient else self.chooser.choice(PATIENCE_S))

    def judge(self, answer: Answer, *, always_correct: bool = False) -> None:
        """Give feedback on an answer, or none. Raises Lost."""
        what = "edit" if always_correct else self.chooser.choice(("edit", "edit", "thumb", "rating", None))
        if what is None:
            return
        value: int | str
        if what == "edit":
            plain = self.chooser.choice(FACTS)[1]
            value = f"{STYLES['pirate'](plain)} Noted for {answer.canary}."
        else:
            value = self.chooser.choice((1, -1)) if what == "thumb" else self.chooser.randrange(1, 6)
        ledger = self.world.ledger
        ledger.tried.add((answer.row, what))
        given = {"interaction_id": answer.row, what: value, "app": "soak"}
        status, told = tracked(self.world, "POST", "/edgepd/v1/feedback", given)
        if status == 200:
            with ledger.lock:
                ledger.feedback[answer.row, what] = value
            ledger.count(f"feedback given: {what}")
        else:
            expected(self.world, f"feedback: {status}", told)


def tracked(world: World, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Ask; note as a failure if the daemon breaks off although it was not killed. Raises Lost."""
    mark = world.daemon.mark()
    try:
        return ask(world.daemon.connect, method, path, body)
    except Lost as error:
        notice_loss(world, mark, str(error))
        raise


def notice_loss(world: World, mark: tuple[int, bool], what: str) -> None:
    """Note that something was cut short; it is a failure unless the daemon was killed or stopped."""
    deadline = time.monotonic() + SLACK_S
    while not world.daemon.away_since(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not world.daemon.away_since(mark):
        world.ledger.fail(f"cut short without a reason: {what}")
    else:
        world.ledger.count("requests cut short by a kill")


def expected(world: World, what: str, told: dict[str, Any]) -> None:
    """Count a refusal; it is a failure unless the disk is full, or the queue is."""
    if world.full_disk or what.endswith(("409", "503")):
        world.ledger.count(f"refused, {what}")
    else:
        world.ledger.fail(f"refused, {what}: {json.dumps(told)[:300]}")


def converse(
    world: World, body: dict[str, Any], word: str, patience: float = 1e9, on_first: Callable[[], object] = bool
) -> Answer | None:
    """Stream an answer into the ledger; hang up after `patience` seconds; tell of the first token. Raises Lost.

    Returns what was seen of it; None if it has no id, so that nobody was promised anything.
    """
    daemon, ledger, mark = world.daemon, world.ledger, world.daemon.mark()
    data = json.dumps(body | {"stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = time.time()
    answer: Answer | None = None
    try:
        with daemon.connect() as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
            reading = _Reading(world, connection, sent, word, patience, on_first)
            try:
                reading.to_the_end()
            except TimeoutError:
                if patience > ANSWER_SECONDS:
                    raise
                ledger.count("answers hung up on")
                connection.shutdown(socket.SHUT_RDWR)
            answer = reading.answer
            lost = not (reading.done or reading.refused or patience <= ANSWER_SECONDS)
    except (OSError, ValueError) as error:
        notice_loss(world, mark, f"an answer: {error!r}")
        raise Lost(str(error)) from error
    if lost:
        notice_loss(world, mark, f"an answer after {reading.lines} lines")
        raise Lost("the stream ended")
    return answer


class _Reading:
    """One stream, read line by line."""

    def __init__(
        self,
        world: World,
        connection: socket.socket,
        sent: float,
        word: str,
        patience: float,
        on_first: Callable[[], object],
    ) -> None:
        self.answer: Answer | None = None
        self.done = self.refused = False
        self.lines = 0
        self._world, self._connection, self._sent, self._word = world, connection, sent, word
        self._deadline = time.monotonic() + patience
        self._on_first, self._begun = on_first, False

    def to_the_end(self) -> None:
        """Read until the stream ends. Raises TimeoutError when patience does."""
        with self._connection.makefile("rb") as file:
            while True:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._connection.settimeout(min(left, ANSWER_SECONDS))
                line = file.readline()
                self.lines += 1
                if self.lines == 1 and line and b" 200 " not in line:
                    self._refused(line, file.read(4000))
                    return
                if not line or line.startswith(b"data: [DONE]"):
                    self.done = bool(line)
                    self._ended()
                    return
                if line.startswith(b"data: "):
                    self._event(json.loads(line[6:]))

    def _refused(self, line: bytes, rest: bytes) -> None:
        self.refused = True
        expected(self._world, f"question: {int(line.split()[1])}", {"body": rest.decode(errors="replace")})

    def _event(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.refused = True
            expected(self._world, "answer: error", event)
            return
        row = event.get("interaction_id")
        if row and self.answer is None:
            made = Answer(row, self._word, self._sent, time.time(), int(event["generation"]))
            made.slow_disk = self._world.slow_disk
            with self._world.ledger.lock:
                self.answer = self._world.ledger.answers[row] = made
        choice = (event.get("choices") or [{}])[0]
        content = (choice.get("delta") or {}).get("content") or ""
        if content and not self._begun:
            self._begun = True
            self._on_first()
        if self.answer is not None:
            self.answer.text += content
            self.answer.ended = self.answer.ended or choice.get("finish_reason") is not None
            if event.get("warnings"):
                self._world.ledger.count("answers with a warning that they are not stored")
            elif "logged" in event:
                self.answer.acknowledged = bool(event["logged"]) and self.answer.ended
        elif event.get("warnings"):
            self._world.ledger.count("answers with a warning that they are not stored")

    def _ended(self) -> None:
        if self.answer is not None:
            self._world.ledger.count("answers that ended" if self.done else "answers cut short by a kill")


class Crowd:
    """Several users at once, in the background of a `with` block."""

    def __init__(self, world: World, seed: str, size: int) -> None:
        """They begin when the block does."""
        self._over = threading.Event()
        users = [User(world, f"{seed} {n}") for n in range(size)]
        self._threads = [threading.Thread(target=user.live, args=(self._over.is_set,)) for user in users]

    def add(self, job: Callable[[], None]) -> None:
        """Have one more thread do something once."""

        def work() -> None:
            with contextlib.suppress(Lost):
                job()

        self._threads.append(thread := threading.Thread(target=work))
        thread.start()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
