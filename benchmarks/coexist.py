"""`make bench-coexist`: what somebody who uses the machine notices of edgepd, in five parts that run for 17 minutes.

At rest: wake-ups, CPU and memory of a daemon that has loaded nothing, and of one with the model loaded beside
llama-server with the same model, at the same time. Serving: time to first token and between tokens, with and without a
run at work, in alternating blocks. Budget: CPU of the trainer in each minute, and its memory, against what it may take.
Pause: from a question to the trainer standing still. Energy: CPU seconds of one adaptation. QUICK=1 takes less of all.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

from _coexist_idle import AtRest, at_rest
from _coexist_latency import AFTER_PAUSE, AT_ONCE, GAP_S, IDLE, TRAINING, Waits, measure
from _coexist_training import (
    BUDGET_PERCENT,
    LASTING,
    MAILS,
    MEMORY_MB,
    SERVING,
    STILL_SECONDS,
    Sample,
    adapt_once,
    cores,
    pauses,
    teach,
    today,
    watch,
    window_percents,
)
from _http import stream, tcp
from _peers import Peer
from _report import Report, model_path, quick
from _soak_daemon import Mortal
from _soak_ledger import nearest_rank
from serving import Texts, user

TTFT_RATIO, BETWEEN_RATIO = 1.25, 1.2
OVER_BUDGET_POINTS = 3.0
PAUSE_MS = 2000.0
WAKE_UPS, REST_PERCENT = 1.0, 0.1
SETTLE_S = 130.0  # two passes of housekeeping, after which a daemon that nobody asks anything has nothing left to do
UNLOADED, LOADED = "edgepd, nothing loaded", "edgepd, model loaded"


def main() -> None:
    """Measure and report."""
    rest_s, rounds, questions, watch_s, stops = (20, 2, 4, 90, 20) if quick() else (60, 5, 5, 300, 30)
    sizes = {
        "settle_s": SETTLE_S,
        "rest_s": rest_s,
        "rounds": rounds,
        "questions": questions,
        "gap_s": GAP_S,
        "watch_s": watch_s,
    }
    report = Report("coexist", sizes | {"pauses": stops, "cores": cores(), "cpu_percent": BUDGET_PERCENT})
    texts = Texts()
    rest(report, texts, rest_s)
    limited = SERVING | LASTING | {"budget.asked_cpu_percent": BUDGET_PERCENT}
    with started(limited) as daemon:
        teach(daemon)
        latency(report, measure(daemon, texts, rounds, questions))
        budget(report, *watch(daemon, watch_s))
        report.config["the daemon's own figures"] = today(daemon)
    with started(SERVING | LASTING) as daemon:
        teach(daemon)
        paused(report, *pauses(daemon, texts, stops))
    with started(SERVING) as daemon:
        teach(daemon)
        energy(report, daemon)
    report.finish()


def started(settings: dict[str, object]) -> Mortal:
    """Return a daemon that answers."""
    daemon = Mortal(settings)
    try:
        daemon.start()
        daemon.wait_healthy()
    except BaseException:
        daemon.close()
        raise
    return daemon


def row(report: Report, what: str, value: float | str, unit: str = "") -> None:
    """Add a row."""
    report.rows.append({"what": what, "value": value, "unit": unit})


def rest(report: Report, texts: Texts, seconds: float) -> None:
    """Leave a daemon alone before it has loaded anything, then with the model and beside the peer."""
    question = {"messages": [user(texts.words(20))], "max_tokens": 8}
    with ExitStack() as stack:
        daemon = stack.enter_context(started(SERVING))
        time.sleep(SETTLE_S)
        found = at_rest({UNLOADED: daemon.pid()}, seconds)
        stream(daemon.connect, question)
        pids = {LOADED: daemon.pid()}
        if importlib.util.find_spec("xllamacpp"):
            peer = stack.enter_context(Peer("llama-server", model_path()))
            stream(tcp(peer.greeting["address"]), question)
            pids["llama-server, model loaded"] = peer.pid
        else:
            print("xllamacpp is not installed (pip install -e '.[bench]'), so llama-server is left out")
        time.sleep(SETTLE_S)
        found |= at_rest(pids, seconds)
    for name, figures in found.items():
        row(report, f"{name}: wake-ups", figures.wake_ups, "/s")
        row(report, f"{name}: CPU", figures.cpu_percent, "% of a core")
        row(report, f"{name}: RSS", figures.rss_mb, "MB")
    for name in (UNLOADED, LOADED):
        resting(report, name, found[name])


def resting(report: Report, name: str, figures: AtRest) -> None:
    """Add the goals of a daemon at rest."""
    report.at_most(f"wake-ups, {name}", figures.wake_ups, WAKE_UPS, "/s")
    report.at_most(f"CPU at rest, {name}", figures.cpu_percent, REST_PERCENT, "%")


def latency(report: Report, waits: Waits) -> None:
    """Compare the modes."""
    for what, kind in (("first token", waits.ttft), ("between tokens", waits.between)):
        for pace in (AFTER_PAUSE, AT_ONCE):
            for mode in (IDLE, TRAINING):
                for label, share in (("p50", 0.5), ("p95", 0.95)):
                    row(report, f"{what}, {pace}, {mode}, {label}", nearest_rank(kind[mode, pace], share), "ms")
    row(report, "trainer beside the questions with pauses: CPU", waits.trained_cpu_s, "s")
    row(report, "trainer beside the questions with pauses: wall time", waits.trained_s, "s")
    row(report, "trainer beside the questions with pauses: steps", waits.trained_steps)
    report.at_most("first token p95, training / idle", ratio(waits, waits.ttft), TTFT_RATIO, "")
    report.at_most("between tokens p95, training / idle", ratio(waits, waits.between), BETWEEN_RATIO, "")
    report.at_least("steps trained between the questions", waits.trained_steps, 1, "")


def ratio(waits: Waits, kind: dict[tuple[str, str], list[float]]) -> float:
    """Return the p95 while training over that of idle, of both paces."""
    return nearest_rank(waits.of(kind, TRAINING), 0.95) / nearest_rank(waits.of(kind, IDLE), 0.95)


def budget(report: Report, samples: Sequence[Sample], runs: int) -> None:
    """Compare what the trainer took with what it may."""
    shares = window_percents(samples, cores())
    resident = max(sample.rss_mb for sample in samples)
    row(report, "trainer CPU, busiest minute", max(shares), "% of all cores")
    row(report, "trainer CPU, mean of the minutes", statistics.fmean(shares), "% of all cores")
    row(report, "trainer RSS, largest", resident, f"MiB of {MEMORY_MB}")
    row(report, "runs that it took", runs)
    report.at_most("trainer CPU, busiest minute", max(shares), BUDGET_PERCENT + OVER_BUDGET_POINTS, "%")
    report.at_most("trainer RSS", resident, MEMORY_MB, "MiB")


def paused(report: Report, stopped_ms: Sequence[float], resumed_s: Sequence[float], missed: int) -> None:
    """Tell how soon the trainer stood still; one that did not counts with the time that was waited."""
    values = [*stopped_ms, *([STILL_SECONDS * 1000] * missed)]
    for label, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
        row(report, f"question to trainer standing still, {label}", nearest_rank(values, share), "ms")
    row(report, "questions at which it did not stand still", missed)
    if resumed_s:
        row(report, "last token to trainer going on, p50", nearest_rank(resumed_s, 0.5), "s")
        row(report, "last token to trainer going on, max", nearest_rank(resumed_s, 1.0), "s")
    report.at_most("question to trainer standing still, p95", nearest_rank(values, 0.95), PAUSE_MS, "ms")


def energy(report: Report, daemon: Mortal) -> None:
    """Count the CPU seconds of one adaptation at the default settings."""
    done = adapt_once(daemon)
    what = f"live adaptation to {MAILS} corrections ({done.state})"
    row(report, f"{what}: CPU until the verdict", done.verdict_cpu_s, "s")
    row(report, f"{what}: wall time until the verdict", done.verdict_s, "s")
    row(report, f"{what}: CPU with the review", done.whole_cpu_s, "s")


if __name__ == "__main__":
    main()
