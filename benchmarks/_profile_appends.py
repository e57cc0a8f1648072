"""The part of `make bench-profiles` that appends: alone, while serving, and beside what does not tune SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from _edgepd import Daemon
from _http import stream
from _profile_bench import Bench
from _profile_data import Texts
from _report import MODEL, model_path, quick

from edgepd.errors import NotFoundError
from edgepd_daemon.recorder import Ending, Recorder
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

CLIENTS, ANSWER_TOKENS = 2, 96
APART_S = 0.005  # between the steps of an append
Peer = Callable[[str, str], float]  # stores a question and an answer, and returns the seconds
NOBODY: Mapping[str, Peer] = MappingProxyType({})


def appends(bench: Bench, store: Store, directory: Path) -> None:
    """Appends and their peers, alone and while serving."""
    count = 300 if quick() else 1500
    with beside(directory) as peers:
        append_row(bench, "append", store, Count(count), peers)
        try:
            model_path()
        except NotFoundError as error:
            print(f"not measured while serving: {error}")
            return
        with serving() as pieces:
            before, started = len(pieces), time.perf_counter()
            worst = append_row(bench, "append while serving", store, Count(count), peers)
            rate = (len(pieces) - before) / (time.perf_counter() - started)
    bench.report.config["pieces/s while serving"] = round(rate, 1)
    bench.report.at_most("append while serving, p99", worst, 5, "ms")


class Count:
    """Says that it goes on a number of times."""

    def __init__(self, most: int) -> None:
        """`most` times."""
        self.left = most

    def __call__(self) -> bool:
        """Count down."""
        self.left -= 1
        return self.left >= 0


def append_row(
    bench: Bench, what: str, store: Store, goes_on: Callable[[], bool], peers: Mapping[str, Peer] = NOBODY
) -> float:
    """Add a row for appends as long as `goes_on` says so, and one for each peer, which takes turns with them.

    Return the 99th percentile of the appends in milliseconds.
    """
    measured, others = asyncio.run(record(store, goes_on, peers))
    parts = np.percentile(np.array(measured), 99, axis=0, method="higher") * 1000
    detail = f"p99 of begin {parts[0]:.2f}, of finish {parts[1]:.2f} ms"
    worst = bench.row(what, [begin + finish for begin, finish in measured], detail)[2]
    for name, seconds in others.items():
        bench.row(f"{what}: {name}", seconds, "in turn with it")
    return worst


async def record(
    store: Store, goes_on: Callable[[], bool], peers: Mapping[str, Peer] = NOBODY
) -> tuple[list[tuple[float, float]], dict[str, list[float]]]:
    """Append exchanges as the daemon does; return the seconds of begin and finish of each, and those of the peers."""
    recorder = Recorder(store, enabled=True)
    texts, measured = Texts(11), []
    others: dict[str, list[float]] = {name: [] for name in peers}
    while goes_on():
        prompt, response = texts.draw(texts.rng.integers(10, 60, 2))
        row = interactions.new_id()
        messages = [{"role": "user", "content": prompt}]
        given = Interaction(row, row, time.time(), "editor", "synthetic", 1, messages)
        await asyncio.sleep(APART_S)
        started = time.perf_counter()
        problem = await recorder.begin(given)
        begun = time.perf_counter() - started
        await asyncio.sleep(APART_S)
        started = time.perf_counter()
        problem = await recorder.finish(row, Ending(response, "done", "stop", 20, 60, 90.0, 2000.0)) or problem
        measured.append((begun, time.perf_counter() - started))
        if problem:
            raise RuntimeError(problem)
        for name, peer in peers.items():
            await asyncio.sleep(APART_S)
            others[name].append(peer(prompt, response))
    return measured, others


@contextlib.contextmanager
def beside(directory: Path) -> Iterator[dict[str, Peer]]:
    """Yield what appends are compared with: a table that nobody tuned, and what the disk can do."""
    descriptor = os.open(directory / "synced", os.O_WRONLY | os.O_CREAT, 0o600)
    conn = sqlite3.connect(directory / "bare.db", isolation_level=None)
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("CREATE TABLE log (id TEXT PRIMARY KEY, prompt TEXT, response TEXT, at REAL)")

    def bare(prompt: str, response: str) -> float:
        started = time.perf_counter()
        conn.execute("INSERT INTO log VALUES (?, ?, ?, ?)", (interactions.new_id(), prompt, response, time.time()))
        return time.perf_counter() - started

    def synced(_prompt: str, _response: str) -> float:
        started = time.perf_counter()
        os.write(descriptor, b"x" * 4096)
        os.fdatasync(descriptor)
        return time.perf_counter() - started

    try:
        yield {"bare table, one commit": bare, "4 KiB and fdatasync": synced}
    finally:
        conn.close()
        os.close(descriptor)


@contextlib.contextmanager
def serving() -> Iterator[list[float]]:
    """Let a daemon answer streaming clients until the block ends; yields a list that grows with what they receive."""
    pieces: list[float] = []
    ended, first = threading.Event(), threading.Barrier(CLIENTS + 1)

    def client(number: int) -> None:
        begun = False
        while not ended.is_set():
            text = f"Tell me story number {len(pieces)} of client {number}."
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": ANSWER_TOKENS, "app": f"app{number}"}
            stream(daemon.connect, body, lambda _: pieces.append(time.monotonic()))
            if not begun:
                begun = True
                first.wait(timeout=120)

    with Daemon(MODEL) as daemon:
        threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            first.wait(timeout=120)
            yield pieces
        finally:
            ended.set()
            for thread in threads:
                thread.join()
