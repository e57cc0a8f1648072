"""`make soak MINUTES=10 SEED=1`: a daemon lives through everything at once, and a ledger says what it has lost.

Users chat, correct, praise and hang up; runs train, generations are swapped, exchanges are forgotten; the daemon and
its trainer are killed at random moments, the disk is full or slow. What must hold: nothing that was acknowledged is
lost, no store is corrupt, every answer comes from a generation that served when it was asked for, and equals what
that generation has always answered; what was forgotten is in no file; and the daemon serves again within seconds.
The seed decides what is done and when; what comes of it depends on the machine too. QUICK=1: two minutes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence

from _report import Report, quick
from _soak_daemon import Lost, Mortal, Resident
from _soak_faults import DISK_MB, FSYNC_US, Disk, can_slow_down, go_inside
from _soak_ledger import nearest_rank
from _soak_scenes import Soak

SERVE_AGAIN_S = 3.0
GROWTH_PERCENT = 10.0
YOUNG_S = (8.0, 25.0)  # ages of a daemon that are compared, from one incarnation to another
SETTLED_S = 30.0  # after which a daemon has had what it needs
SETTINGS: dict[str, object] = {
    "serve.slots": 4,
    "serve.context_tokens": 1024,
    "serve.threads": 1,  # the same answers every time: no other number of threads may round differently
    "serve.adapt_threads": False,
    "serve.keep_alive": "-1",
    "serve.saved_state_mb": 32,
    "profile.prompt": "off",
    "profile.retrieval": "off",
    "profile.facts": False,
    "keep.retired": 3,
    "train.fast_seconds": 4,
    "train.epochs": 2,
    "train.memory_mb": 700,
    "train.replay_examples": 4,
    "gate.max_kl": 1.0,  # that generations come into being is wanted here, not that they are good
    "gate.max_perplexity_rise": 1.0,
    "gate.max_verifiable_drop": 1.0,
    "budget.ac_only": False,
    "budget.min_battery_percent": 0,
    "budget.idle_minutes": 0,
    "budget.max_other_cpu_percent": 100,
    "budget.min_free_disk_mb": 0,
    "budget.min_available_mb": 0,
}


def main() -> None:
    """Live for so many minutes, then count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2.0 if quick() else 10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", default="", help="only these, by their names, with commas between them")
    given = parser.parse_args()
    go_inside()
    disk = Disk()
    slow = can_slow_down()
    config = {"minutes": given.minutes, "seed": given.seed, "settings": SETTINGS}
    config["disk_mb"] = DISK_MB if disk.limited else f"the disk was never full: {disk.why_not}"
    config["fsync_us"] = FSYNC_US if slow else "the disk was never slow: strace is not there, or may not trace"
    for sentence in (config["disk_mb"], config["fsync_us"]):
        if isinstance(sentence, str):
            print(sentence)
    report = Report("soak", config)
    try:
        with Mortal(SETTINGS, disk.folder) as daemon:
            soak = Soak(daemon, disk, given.seed, slow=slow)
            live(soak, given.minutes, given.scenes.split(",") if given.scenes else [])
            summarise(report, soak, daemon.memory)
    finally:
        disk.close()
    report.finish()


def live(soak: Soak, minutes: float, only: Sequence[str]) -> None:
    """Play scenes until the time is over; the last one is played to its end."""
    began = time.monotonic()
    soak.daemon.watch_memory()
    soak.begin()
    while True:
        round_of_scenes = [scene for scene in soak.scenes() if not only or scene.__name__ in only]
        if not round_of_scenes:
            raise SystemExit(f"there are no such scenes here: {', '.join(only)}")
        soak.chooser.shuffle(round_of_scenes)
        for scene in round_of_scenes:
            if time.monotonic() - began > minutes * 60:
                soak.end()
                return
            print(f"{time.monotonic() - began:6.1f} s  {scene.__name__}", flush=True)
            try:
                scene()
            except (Lost, RuntimeError) as error:
                soak.ledger.fail(f"{scene.__name__}: {error}")
                if soak.daemon.ended():
                    soak.start()


def summarise(report: Report, soak: Soak, memory: Sequence[Resident]) -> None:
    """Turn what was counted into a table and goals."""
    counts = dict(soak.ledger.counts)
    acknowledged = sum(1 for answer in soak.ledger.answers.values() if answer.acknowledged)
    counts |= {"answers acknowledged": acknowledged, "feedback acknowledged": len(soak.ledger.feedback)}
    report.rows = [{"what": what, "value": counts[what]} for what in sorted(counts)]
    for name, values in (("healthy", soak.healthy_s), ("first token", soak.serving_s)) if soak.serving_s else ():
        for label, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            figure = nearest_rank(values, share)
            report.rows.append({"what": f"from start to {name}, {label} (s)", "value": round(figure, 3)})
    apart = 100 * soak.told_apart()
    report.rows.append({"what": "probes that two generations answer differently (%)", "value": round(apart, 1)})
    young = growth_when_young(memory)
    old = growth_with_age(memory)
    old_what = f"RSS growth of the oldest daemon after {SETTLED_S:.0f} s (%)"
    for what, value in (("RSS growth from early to late daemons of the same age (%)", young), (old_what, old)):
        report.rows.append({"what": what, "value": round(value, 2) if math.isfinite(value) else "-"})
    lost = soak.lost
    report.at_most("acknowledged interactions lost", len(lost["answers"]), 0, "")
    report.at_most("acknowledged feedback lost", len(lost["feedback"]), 0, "")
    report.at_most("corrupt stores", len(lost["corrupt"]), 0, "")
    report.at_most("wrong-generation answers", len(lost["wrong"]), 0, "")
    report.at_most("forgotten texts found", len(lost["forgotten"]), 0, "")
    report.at_most("other failures", len(soak.ledger.failures), 0, "")
    if soak.serving_s:
        report.at_most("start to first token, p95", nearest_rank(soak.serving_s, 0.95), SERVE_AGAIN_S, "s")
    if math.isfinite(young):
        report.at_most("RSS growth at the same age", young, GROWTH_PERCENT, "%")
    report.config["what went wrong"] = soak.ledger.failures + [s for found in lost.values() for s in found]


def growth_when_young(memory: Sequence[Resident]) -> float:
    """Return by how many percent the daemons of the last third need more than those of the first, when young."""
    by_daemon: dict[int, list[float]] = {}
    for sample in memory:
        if YOUNG_S[0] <= sample.age_s <= YOUNG_S[1]:
            by_daemon.setdefault(sample.incarnation, []).append(sample.rss_mb)
    typical = [statistics.median(values) for _, values in sorted(by_daemon.items())]
    third = max(1, len(typical) // 3)
    if len(typical) < 2:
        return float("nan")
    return 100 * (statistics.median(typical[-third:]) / statistics.median(typical[:third]) - 1)


def growth_with_age(memory: Sequence[Resident]) -> float:
    """Return by how many percent the daemon that lived longest grew after its first SETTLED_S seconds."""
    oldest = max(memory, key=lambda sample: sample.age_s, default=None)
    if oldest is None:
        return float("nan")
    its = [s.rss_mb for s in memory if s.incarnation == oldest.incarnation and s.age_s >= SETTLED_S]
    return 100 * (its[-1] / its[0] - 1) if len(its) > 1 else float("nan")


if __name__ == "__main__":
    main()
