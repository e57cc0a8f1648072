"""`make bench-clients`: fifty clients at once for five minutes, many of which hang up in the middle.

Every client has a secret word in its conversation. What must hold: the daemon lives; no answer contains another
client's secret; every answer that a client was given an id for is in the profile, with at least the text that the
client has seen; the queue's refusals are the only errors. Other generations become active all the while.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from _edgepd import BAKED, BASE, LIVE, Daemon
from _http import Connect, call
from _report import MODEL, Report, quick

CLIENTS = 50


@dataclass
class Ledger:
    """What the clients have seen."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: dict[str, str] = field(default_factory=dict)  # interaction -> text
    refused: int = 0
    hung_up: int = 0
    finished: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, **counts: int) -> None:
        """Count something."""
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


def main() -> None:
    """Run, compare, report."""
    seconds = 30 if quick() else 300
    report = Report("clients", {"clients": CLIENTS, "seconds": seconds})
    with Daemon(MODEL) as daemon:
        ledger = Ledger()
        deadline = time.monotonic() + seconds
        secrets = [f"canary{random.Random(n).randrange(10**9)}" for n in range(CLIENTS)]  # noqa: S311 - not a secret
        clients = [
            threading.Thread(target=client, args=(daemon.connect, n, secrets, ledger, deadline)) for n in range(CLIENTS)
        ]
        for thread in clients:
            thread.start()
        swaps = 0
        while time.monotonic() < deadline:
            daemon.activate((LIVE, BASE, BAKED, BASE)[swaps % 4])
            swaps += 1
            time.sleep(2)
        for thread in clients:
            thread.join()
        idle = wait_until_idle(daemon)
        missing = compare(daemon, ledger)
        alive = daemon.process.poll() is None
    counts = {"finished": ledger.finished, "hung up": ledger.hung_up, "refused with 503": ledger.refused}
    counts |= {"acknowledged": len(ledger.seen), "swaps": swaps}
    report.rows = [{"what": name, "count": count} for name, count in counts.items()]
    for failure in ledger.failures[:10] + missing[:10]:
        print(failure)
    report.at_least("daemon alive and idle afterwards", float(alive and idle), 1, "")
    report.at_most("secrets in the wrong answer, or other failures", len(ledger.failures), 0, "")
    report.at_most("acknowledged answers not in the profile as seen", len(missing), 0, "")
    report.at_least("answers finished", ledger.finished, 1, "")
    report.finish()


def client(connect: Connect, number: int, secrets: list[str], ledger: Ledger, deadline: float) -> None:
    """Ask again and again; hang up at random moments."""
    chooser = random.Random(number)  # noqa: S311 - not a secret
    messages: list[dict[str, str]] = []
    while time.monotonic() < deadline:
        if len(messages) > 6:
            messages = []
        messages.append({"role": "user", "content": f"My word is {secrets[number]}. Say it, then tell me a story."})
        body = {"messages": messages, "max_tokens": chooser.randrange(1, 40), "stream": True, "app": f"app{number % 7}"}
        patience = chooser.choice([0.0, 0.05, 0.3, 2.0, 1e9, 1e9])
        try:
            text, complete = one(connect, body, patience, ledger)
        except (OSError, ValueError) as error:
            with ledger.lock:
                ledger.failures.append(f"client {number}: {error!r}")
            return
        wrong = [s for s in secrets if s != secrets[number] and s in text]
        if wrong:
            with ledger.lock:
                ledger.failures.append(f"client {number} was told the secret of another: {text!r}")
        if complete and text.strip():
            messages.append({"role": "assistant", "content": text})
        else:
            messages.pop()
            time.sleep(chooser.random() * 0.2)


def one(connect: Connect, body: dict[str, Any], patience: float, ledger: Ledger) -> tuple[str, bool]:
    """Ask once; return the text and whether it came to its end."""
    text, row = "", None
    with connect() as connection:
        data = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        deadline = time.monotonic() + patience
        with connection.makefile("rb") as file:
            try:
                while True:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError
                    connection.settimeout(min(left, 600))
                    line = file.readline()
                    if line.startswith(b"HTTP/1.1 503"):
                        ledger.add(refused=1)
                        time.sleep(0.5)
                        return "", False
                    if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                        raise ValueError(f"{line!r} {file.read(500)!r}")
                    if not line or line.startswith(b"data: [DONE]"):
                        break
                    if line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise ValueError(str(event["error"]))
                        row = event.get("interaction_id") or row
                        text += event["choices"][0]["delta"].get("content") or ""
                        if row:
                            ledger.seen[row] = text
            except TimeoutError:
                ledger.add(hung_up=1)
                connection.shutdown(socket.SHUT_RDWR)
                return text, False
    ledger.add(finished=1)
    return text, True


def wait_until_idle(daemon: Daemon) -> bool:
    """Wait for the answers of those who have gone to be cancelled."""
    for _ in range(50):
        engine = call(daemon.connect, "/edgepd/v1/status", method="GET")["engine"]
        if engine["active"] == 0 and engine["queued"] == 0:
            return True
        time.sleep(0.2)
    return False


def compare(daemon: Daemon, ledger: Ledger) -> list[str]:
    """Return what the profile does not have as a client has seen it."""
    missing = []
    for row, text in ledger.seen.items():
        try:
            stored = call(daemon.connect, f"/edgepd/v1/interactions/{row}", method="GET")
        except RuntimeError as error:
            missing.append(f"{row}: {error}")
            continue
        if not stored["response"].startswith(text) or stored["state"] == "streaming":
            missing.append(f"{row}: {stored['state']}, stored {stored['response']!r}, seen {text!r}")
    return missing


if __name__ == "__main__":
    main()
