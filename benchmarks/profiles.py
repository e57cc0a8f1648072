"""`make bench-profiles`: a profile with 1,000,000 exchanges (QUICK=1: 100,000; ARGS='--exchanges N': as many as that).

The file is made of synthetic text (_profile_data.py) below build/ and removed at the end. It is read soon after it was
written, so it lies in the page cache; writes are synced. What is measured:

append: one exchange through the daemon's own Recorder on an asyncio loop: two acknowledged transactions (begin, finish)
with synchronous=FULL, 5 ms apart as an answer would part them; the time is that of both. Alone; while a backup is made;
and while serving: a real daemon with a profile of its own answers two streaming clients on the same machine. In turn
with it, so that both meet the same load: the same row in a bare SQLite table (journal DELETE, synchronous=FULL, one
insert and commit), as programs log that tune nothing, and 4 KiB with fdatasync, below which nobody can be.
search: history.search with words that are frequent (rank 1 to 20 of the vocabulary), rare (beyond 50,000), and mixed,
as the owner and as apps with a fifth, 1/200 and 1/10,000 of the exchanges; beside it a scan with LIKE of the same rows.
selection: 200 newcomers offered to a full buffer of 1,000 slots under `qin`, in a profile of this size and in one with
10,000 exchanges. forget: each step for the first turn of a conversation, at the level of the store.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _profile_appends import CLIENTS, appends
from _profile_bench import Bench, reading, timed
from _profile_data import COMMON_APP, RARE_APP, SPACING_S, UNCOMMON_APP, Texts, embed, embed_newest, fill, vocabulary
from _profile_whole import forgetting_one, opening, whole_file
from _report import Report, quick

from edgepd.settings import Profile as ProfileSettings
from edgepd_daemon.personal import channel_weights
from edgepd_profiles import apps, channels, feedback, history, interactions, suggestions
from edgepd_profiles import profile as user_profile
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.recall import RecallIndex
from edgepd_profiles.selection import bins
from edgepd_profiles.store import Store

SLOTS, NEWCOMERS = 1000, 200
SMALL = 10_000  # exchanges of the profile that the selection is compared with
DAY_S = 86_400.0
FIRST_FOLDED = "cli"  # apps are folded in the order of their names, and the time may not do for all
VIEWERS = (None, COMMON_APP, UNCOMMON_APP, RARE_APP)


def main() -> None:
    """Make the profiles, measure, report, and remove them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--exchanges", type=int, default=100_000 if quick() else 1_000_000)
    exchanges = parser.parse_args().exchanges
    report = Report("profile", {"exchanges": exchanges, "slots": SLOTS, "newcomers": NEWCOMERS, "clients": CLIENTS})
    build = Path("build")
    build.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-profiles-", dir=build))
    try:
        measure(Bench(report, exchanges), directory)
    finally:
        shutil.rmtree(directory)
    report.finish()


def measure(bench: Bench, directory: Path) -> None:
    """Measure everything, what deletes last."""
    path = directory / "data" / "profile.db"
    seconds = fill(path, bench.exchanges, 1)
    megabytes = path.stat().st_size / 1e6
    bench.row("fill", [seconds], f"{bench.exchanges / seconds:.0f} exchanges/s, not synced; {megabytes:.0f} MB")
    with Store.open(path) as store:
        appends(bench, store, directory)
        searches(bench, store)
        listings(bench, store)
        sums(bench, store)
        selection(bench, store, directory)
        suggested_and_recalled(bench, store)
        whole_file(bench, store, directory)
        forgetting_one(bench, store, path)
    opening(bench, path)


def searches(bench: Bench, store: Store) -> None:
    """Words of three kinds, by three viewers, and a scan of all rows."""
    count = 20 if quick() else 60
    words, rng = vocabulary(), bench.rng
    frequent, middle, rare = range(20), range(500, 5000), range(50_000, len(words))
    kinds: dict[str, list[tuple[range, ...]]] = {
        "rare": [(rare,)],
        "frequent": [(frequent,), (frequent, frequent), (frequent, frequent, frequent)],
        "mixed": [(frequent, rare), (middle, middle), (frequent, middle, rare)],
    }
    worst = 0.0
    for kind, shapes in kinds.items():
        queries = [" ".join(words[rng.choice(part)] for part in shapes[n % len(shapes)]) for n in range(count)]
        for viewer in VIEWERS:
            seconds, found = [], 0
            for query in queries:
                took, results = timed(partial(search, store, query, viewer))
                seconds.append(took)
                found += len(results)
            p95 = bench.row(f"search, {kind}, {shown(viewer)}", seconds, f"{found / count:.1f} found")[1]
            worst = max(worst, p95)
        if kind != "mixed":
            bench.times(f"LIKE, {kind}", partial(scan, store, queries[0]), 3, "peer: newest 20, no rank")
    bench.report.at_most("search, p95 of the slowest kind", worst, 50, "ms")


def search(store: Store, query: str, viewer: str | None) -> list[history.Found]:
    """Search as the API does."""
    with store.read() as conn:
        return history.search(conn, query, 20, viewer)


def scan(store: Store, query: str) -> list[Any]:
    """Search without an index."""
    sql = "SELECT id FROM interactions WHERE prompt LIKE :q OR response LIKE :q ORDER BY seq DESC LIMIT 20"
    with store.read() as conn:
        return conn.execute(sql, {"q": f"%{query}%"}).fetchall()


def listings(bench: Bench, store: Store) -> None:
    """What is listed, as pages do."""
    runs = 20 if quick() else 50
    for viewer in VIEWERS:
        job = reading(store, partial(interactions.recent, limit=50, viewer=viewer))
        bench.times(f"recent 50, {shown(viewer)}", job, runs)
    bench.times("apps with counts", reading(store, lambda c: (apps.listing(c), apps.counts(c))), 3)
    since = time.time() - 30 * DAY_S
    exchanges = round(min(bench.exchanges, 30 * DAY_S / SPACING_S))
    detail = f"30 days, about {exchanges} exchanges"
    bench.times("channels", reading(store, lambda c: channels.report(c, since)), 3, detail)


def sums(bench: Bench, store: Store) -> None:
    """Folding exchanges into the profile for a while, reading it, and feedback that changes it."""
    runs = 20 if quick() else 50
    most, half_life = 10.0 if quick() else 60.0, ProfileSettings().half_life_days
    started, folded, slices = time.perf_counter(), 0, []
    while time.perf_counter() - started < most:
        took, count = timed(lambda: written(store, lambda c: user_profile.catch_up(c, half_life, 500)))
        if not count:
            break
        folded += count
        slices.append(took)
    bench.row("catch_up, 500 exchanges", slices, f"{folded / sum(slices):.0f}/s, {folded} folded")
    with store.read() as conn:
        rows = conn.execute("SELECT count(*) FROM features").fetchone()[0]
    weights = channel_weights(ProfileSettings())
    for viewer in (None, FIRST_FOLDED):
        job = reading(store, partial(user_profile.read, viewer=viewer, weights=weights, now=time.time()))
        bench.times(f"profile.read, {shown(viewer)}", job, 5 if quick() else 10, f"{rows} sums stored")
    unjudged = "SELECT id FROM interactions WHERE id NOT IN (SELECT interaction FROM feedback) ORDER BY seq LIMIT ?"
    with store.read() as conn:
        ids = iter(conn.execute(unjudged, (runs,)).fetchall())
    thumb = partial(written, store, lambda c: feedback.set_thumb(c, next(ids)[0], 1))
    bench.times("thumb up", thumb, runs, "on an exchange that is folded")


def selection(bench: Bench, store: Store, directory: Path) -> None:
    """Newcomers against a full buffer, here and in a small profile."""
    large = offers(bench, store, f"{bench.exchanges} exchanges")
    path = directory / "small" / "profile.db"
    fill(path, SMALL, 2)
    with Store.open(path) as small:
        few = offers(bench, small, f"{SMALL} exchanges")
    shutil.rmtree(path.parent)
    bench.report.at_most(f"selection, {NEWCOMERS} newcomers, {SLOTS} slots", large / 1000, 10, "s")
    bench.report.at_most("selection, time here / with a short history", large / few, 1.5, "")
    bench.times("user_embedding", reading(store, lambda c: user_profile.user_embedding(c, None)), 3)


def offers(bench: Bench, store: Store, where: str) -> float:
    """Fill the buffer, then offer newcomers a few times; return the median in milliseconds."""
    offer = partial(bins.offer_new, pool="examples", policy="qin", slots=SLOTS, limit=NEWCOMERS)
    embedded = embed_newest(store, 3 * SLOTS, 3)
    started, calls = time.perf_counter(), 1
    while written(store, offer):
        calls += 1
    filled = time.perf_counter() - started
    with store.read() as conn:
        kept = len(bins.ids(conn, "examples"))
    seconds = []
    for turn in range(3 if quick() else 7):
        add_newcomers(store, turn)
        took, passed = timed(partial(written, store, offer))
        if passed != NEWCOMERS:
            raise RuntimeError(f"{passed} newcomers were passed instead of {NEWCOMERS}")
        seconds.append(took)
    detail = f"{kept} of {SLOTS} slots full; {embedded} before in {calls} calls, {filled:.1f} s"
    return bench.row(f"select {NEWCOMERS} newcomers, {where}", seconds, detail)[0]


def add_newcomers(store: Store, seed: int) -> None:
    """Append exchanges with a thumb up and a random vector each."""
    texts, rng = Texts(100 + seed), np.random.default_rng(seed)

    def write(conn: sqlite3.Connection) -> None:
        for prompt, response in zip(*[texts.draw(texts.rng.integers(10, 60, 2 * NEWCOMERS))] * 2, strict=True):
            row = interactions.new_id()
            messages = [{"role": "user", "content": prompt}]
            given = Interaction(row, row, time.time(), "editor", "synthetic", 1, messages, response=response)
            interactions.begin(conn, given)
            conn.execute("UPDATE interactions SET state = 'done', finish_reason = 'stop' WHERE id = ?", (row,))
            feedback.set_thumb(conn, row, 1)
            embed(conn, row, rng)

    store.write(write).result()


def suggested_and_recalled(bench: Bench, store: Store) -> None:
    """What is offered and shown with a question."""
    runs, words = 5 if quick() else 15, vocabulary()
    for app in ("cli", RARE_APP):
        job = partial(suggestions.suggest, app=app, k=5, now=time.time(), viewer=app)
        bench.times(f"suggest, '{app}'", partial(written, store, job), runs)
    index = RecallIndex()
    queries = iter([" ".join(words[n] for n in bench.rng.integers(0, 3000, 8)) for _ in range(runs + 1)])
    shots = reading(store, lambda c: index.shots(c, next(queries), 2))
    bench.once("recall.shots, the first time", shots)
    bench.times("recall.shots", shots, runs)
    index.clear()


def written(store: Store, job: Callable[[sqlite3.Connection], Any]) -> Any:
    """Do a job in a transaction of its own."""
    return store.write(job).result()


def shown(viewer: str | None) -> str:
    """Return how a viewer is named in the table."""
    return "the owner" if viewer is None else f"'{viewer}'"


if __name__ == "__main__":
    main()
