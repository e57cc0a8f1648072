"""The part of `make bench-profiles` that reads or writes the whole file: backup, doctor, forgetting, opening."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from _profile_appends import append_row
from _profile_bench import Bench, reading, size_of

from edgepd_profiles import backup, expiry, forgetting, integrity, interactions
from edgepd_profiles.byte_search import search_files
from edgepd_profiles.forgetting import Selector
from edgepd_profiles.store import Store

# A process that writes and dies, so that the next one has to check the file.
CRASH = """
import os, sys
from pathlib import Path
from edgepd_profiles import feedback
from edgepd_profiles.store import Store
store = Store.open(Path(sys.argv[1]))
store.write(lambda c: feedback.set_comment(c, sys.argv[2], "fine")).result()
os._exit(1)
"""


def whole_file(bench: Bench, store: Store, directory: Path) -> None:
    """What reads or copies all of it: backup, with appends meanwhile, doctor; and letting the oldest go."""
    target = directory / "data" / "backups"
    bench.once("backup", lambda: backup.make(store, target, 2, time.time()), size_of)
    made: list[Path] = []
    thread = threading.Thread(target=lambda: made.append(backup.make(store, target, 2, time.time() + 2)))
    thread.start()
    append_row(bench, "append during a backup", store, thread.is_alive)
    thread.join()
    if not made:
        raise RuntimeError("the second backup failed")
    bench.once("backups removed", lambda: backup.remove_all(target))
    findings = bench.once("doctor", lambda: integrity.examine(store.path), lambda f: f"{len(f)} findings")
    print(*(f"{f.what}: {f.problem}" for f in findings if f.problem), sep="\n")
    with store.read() as conn:
        keep = conn.execute("SELECT count(*) FROM interactions").fetchone()[0] - 500

    def expire() -> int:
        return store.write(lambda c: expiry.expire(c, keep, 0, time.time())).result()

    bench.once("expire the oldest", expire, lambda gone: f"{gone} exchanges")
    bench.once("expire, nothing to do", expire, lambda gone: f"{gone} exchanges")


def forgetting_one(bench: Bench, store: Store, path: Path) -> None:
    """Forget the first turn of a recent conversation."""
    with store.read() as conn:
        row = conn.execute(
            """
            SELECT i.id, i.prompt FROM interactions AS i WHERE i.conversation != i.id AND length(i.prompt) > 60
                AND 2 = (SELECT count(*) FROM interactions AS j WHERE j.conversation = i.conversation AND j.seq > i.seq)
            ORDER BY i.seq DESC LIMIT 1
            """
        ).fetchone()
    by_id, by_text = Selector(ids=(row[0],)), Selector(search=row[1][10:50])
    bench.once("forget: find by a text", reading(store, lambda c: forgetting.find(c, by_text)), plan_size)
    plan = bench.once("forget: find by id", reading(store, lambda c: forgetting.find(c, by_id)), plan_size)
    pieces = bench.once(
        "forget: pieces", reading(store, lambda c: forgetting.needles(c, plan)), lambda p: f"{len(p)} pieces"
    )
    searched = search_files(path.parent, pieces)
    print(f"before: {sum(n for _, n in searched.found)} pieces are found in {len(searched.found)} files")
    bench.once(
        "forget: delete", lambda: store.write(lambda c: forgetting.delete(c, forgetting.find(c, by_id), 0.0)).result()
    )
    bench.once("forget: scrub", lambda: store.scrub().result(), lambda _: size_of(path))
    done = bench.once(
        "forget: byte search", lambda: search_files(path.parent, pieces), lambda s: f"{s.total_bytes / 1e6:.0f} MB"
    )
    bench.once(
        "forget: are they kept elsewhere",
        reading(store, lambda c: forgetting.kept_elsewhere(c, pieces)),
        lambda k: f"{len(k)} pieces",
    )
    bench.report.at_least("pieces found before forgetting", len(searched.pieces), 1, "")
    bench.report.at_most("pieces found after forgetting", len(done.pieces), 0, "")


def plan_size(plan: forgetting.Plan) -> str:
    """Say how much goes."""
    return f"{plan.counts['interactions']} named, {plan.counts['carried_along']} carried along"


def opening(bench: Bench, path: Path) -> None:
    """Opening the profile after a clean end, and after a crash."""
    bench.once("open", lambda: Store.open(path).close())
    with Store.open(path) as store, store.read() as conn:
        newest = interactions.recent(conn, 1)[0].id
    command = [sys.executable, "-c", CRASH, str(path), newest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=environment, check=False)
    if not path.with_name(path.name + "-wal").stat().st_size:
        raise RuntimeError("the process that was to crash has left no WAL")
    bench.once("open after a crash", lambda: Store.open(path).close(), lambda _: f"{size_of(path)} are checked")
