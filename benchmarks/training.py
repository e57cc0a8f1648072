"""`make bench-training`: our trainer beside PEFT + transformers, with the same file, token ids, batches and schedule.

Every run is a process of its own, and ours and the peer's take turns, so that a slow moment of the machine hits both.
What is compared first is the time from the start of the process until the loss on held-out mails is as low as both of
them got it; evaluating does not count. Then speed, the share of it that the machine's plain products allow, memory, and
how time and memory grow. The peer has an environment of its own, which make installs; without it, it is left out.
EDGEPD_AESLC=.../aeslc.jsonl.gz trains on the mails of real people, else on made-up ones. QUICK=1 takes less of all.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from _mail import HELD_OUT, TRAIN, Writer, corpus_path, writers
from _random_gguf import SHAPES, write
from _report import OUTPUT, Report, model_path, quick
from _trainers import PEER_LEARNING_RATE, Refused, has_peer, of_length, ours, peer, specification

from edgepd.settings import Train

SMALL_MB, LARGE_MB = 600, 1600  # what training of the default model and of a 1B shape may take
SAVING = "4x256, gradient checkpointing"  # which PEFT has to be asked for
GROWTH_TOKENS = 256  # of the one sequence of a step, for the growth with the size of the model


class Bench:
    """Collects rows of the table, with ours and the peer's figure of the same thing beside each other."""

    def __init__(self, report: Report, with_peer: bool) -> None:
        """Measure into `report`."""
        self.report, self.with_peer = report, with_peer
        self.figures: dict[str, list[float]] = defaultdict(list)

    def run(self, spec: dict[str, Any], limit_mb: int = 0) -> dict[str, Any]:
        """Train with ours within so much memory; where the planner refuses that, without the limit."""
        try:
            result = ours(spec | {"memory_mb": limit_mb})
        except Refused as error:
            if not limit_mb:
                raise
            print(f"not within {limit_mb} MB: {error}")
            return self.run(spec)
        predicted_mb = result["plan"]["predicted_rss_mb"] * 2**20 / 1e6
        self.figures["planned / measured RSS"].append(predicted_mb / result["peak_rss_mb"])
        return result

    def note(self, who: str, result: dict[str, Any], *names: str) -> None:
        """Keep figures of one run."""
        for name in names:
            self.figures[f"{who} {name}"].append(result[name])

    def median(self, name: str) -> float | None:
        """Return the median of what was noted, if there is anything."""
        values = self.figures.get(name)
        return statistics.median(values) if values else None

    def row(self, what: str, mine: float | None, theirs: float | None = None, unit: str = "") -> None:
        """Add a row."""
        shown = ["-" if value is None else value for value in (mine, theirs)]
        self.report.rows.append({"what": what, "edgepd": shown[0], "PEFT": shown[1], "unit": unit})


def main() -> None:
    """Measure and report."""
    train, held_out = (12, 6) if quick() else (TRAIN, HELD_OUT)
    people = writers(model_path(), 1 if quick() else 2, train, held_out)
    epochs = 2 if quick() else Train().epochs
    data = "made up" if corpus_path() is None else "AESLC"
    config = {"data": data, "writers": [w.name for w in people], "mails": f"{train} + {held_out}", "epochs": epochs}
    bench = Bench(Report("training", config), has_peer())
    if not bench.with_peer:
        print("PEFT and transformers are not installed in build/peft-venv, so they are left out")
    bench.report.config["races"] = [race(bench, writer, epochs) for writer in people]
    speed(bench, 1 if quick() else 3)
    memory(bench)
    summarise(bench)
    growth(bench)
    planning(bench)
    bench.report.finish()


def race(bench: Bench, writer: Writer, epochs: int) -> dict[str, Any]:
    """Train on one writer's mails; return the held-out losses over time."""
    spec = specification(writer.train, writer.held_out, epochs=epochs, eval_every=2 if quick() else 4)
    measured = ("load_s", "first_step_s", "tokens_per_second", "tokens_per_cpu_second", "peak_rss_mb", "base_held_out")
    mine = bench.run(spec)
    bench.note("ours", mine, *measured)
    curves = {"writer": writer.name, "edgepd": curve(mine)}
    if bench.with_peer:
        for name, rate in (("same rate", None), ("own rate", PEER_LEARNING_RATE)):
            theirs = peer(spec, mine, rate)
            bench.note("peer", theirs, *measured)
            curves[f"PEFT, {name}"] = curve(theirs)
            target = max(lowest(mine), lowest(theirs))
            times = {"ours": reached(mine, target), "peer": reached(theirs, target)}
            for who, seconds in times.items():
                bench.figures[f"{who} seconds, {name}"].append(seconds)
            bench.figures[f"faster, {name}"].append(times["peer"] / times["ours"])
            bench.figures[f"peer lowest, {name}"].append(lowest(theirs))
    bench.figures["ours lowest"].append(lowest(mine))
    return curves


def curve(result: dict[str, Any]) -> list[tuple[float, float]]:
    """Return (seconds since the process was started, held-out loss) of each evaluation."""
    return [(step["wall_s"], step["held_out"]) for step in result["steps"] if step["held_out"] is not None]


def lowest(result: dict[str, Any]) -> float:
    """Return the lowest held-out loss."""
    return min(loss for _, loss in curve(result))


def reached(result: dict[str, Any], target: float) -> float:
    """Return when the held-out loss was first as low as this."""
    return next(seconds for seconds, loss in curve(result) if loss <= target)


def speed(bench: Bench, rounds: int) -> None:
    """Steps of 4 x 128 tokens with both kinds, beside plain products and llama.cpp's prefill."""
    steps = 4
    for _ in range(rounds):
        for kind in ("lora", "scale"):
            spec = specification(of_length(4 * steps, 128), kind=kind, measure_peak=True)
            measured = bench.run(spec)
            useful = measured["mflop_per_token"] * measured["tokens_per_second"] / 1e3  # GFLOP/s
            done = useful * (1 + measured["mflop_per_token_again"] / measured["mflop_per_token"])
            bench.figures[f"{kind} share"].append(100 * useful / measured["gemm_best_gflops"])
            bench.figures[f"{kind} share, again"].append(100 * done / measured["gemm_best_gflops"])
            bench.note(kind, measured, "tokens_per_second", "gemm_best_gflops", "gemm_all_gflops", "mflop_per_token")
        prompt = specification(of_length(4, 128))
        bench.note("prefill", ours(prompt, "_prefill.py"), "tokens_per_second")


def memory(bench: Bench) -> None:
    """Peak memory of batches that the goals name; two steps each, because the second has the optimiser's state."""
    small = bench.run(specification(of_length(2, 512), batch=1), SMALL_MB)
    bench.note("1x512", small, "peak_rss_mb", "tokens_per_second")
    spec = specification(of_length(8, 256))
    bench.note("4x256", bench.run(spec, SMALL_MB), "peak_rss_mb", "tokens_per_second")
    if not bench.with_peer:
        return
    schedule = {"batches": [[0, 1, 2, 3], [4, 5, 6, 7]], "rates": [spec["learning_rate"]] * 2}
    bench.note("peer 4x256", peer(spec, schedule), "peak_rss_mb", "tokens_per_second")
    if not quick():
        saving = peer(spec | {"gradient_checkpointing": True}, schedule)
        bench.note(f"peer {SAVING}", saving, "peak_rss_mb", "tokens_per_second")


def growth(bench: Bench) -> None:
    """How time and memory grow with the sequence, the number of examples and the model. Ours alone."""
    for length in (128, 512) if quick() else (128, 256, 512, 1024):
        measured = bench.run(specification(of_length(2 if quick() else 3, length), batch=1))
        grown(bench, f"sequence of {length}", measured)
    for count in (8, 16) if quick() else (8, 32, 128):
        grown(bench, f"{count} examples of 64", bench.run(specification(of_length(count, 64))))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in ("135M", "1B") if quick() else SHAPES:
        with tempfile.TemporaryDirectory(dir=OUTPUT) as directory:
            model = write(Path(directory).absolute() / "random.gguf", SHAPES[name])
            spec = specification(of_length(2 if quick() else 3, GROWTH_TOKENS), batch=1, model=str(model))
            try:
                measured = bench.run(spec, LARGE_MB if name == "1B" else 0)
            except Refused as error:  # a 3B shape on a small machine
                print(f"{name} shape: {error}")
                continue
        grown(bench, f"{name} shape, sequence of {GROWTH_TOKENS}", measured)
        if name == "1B":
            bench.report.at_most("peak RSS, 1B shape", measured["peak_rss_mb"], LARGE_MB, "MB")


def grown(bench: Bench, what: str, measured: dict[str, Any]) -> None:
    """Add the rows of one size."""
    total = measured["steps"][-1]["wall_s"] - measured["load_s"]
    bench.row(f"{what}: one step", measured["step_s"], unit="s")
    bench.row(f"{what}: all {len(measured['steps'])} steps", total, unit="s")
    bench.row(f"{what}: peak RSS", measured["peak_rss_mb"], unit="MB")


def summarise(bench: Bench) -> None:
    """Rows and goals of all but the growth."""
    m = bench.median
    for name in ("own rate", "same rate"):
        bench.row(f"time to equal held-out loss, {name}", m(f"ours seconds, {name}"), m(f"peer seconds, {name}"), "s")
        bench.row(f"lowest held-out loss, {name}", m("ours lowest"), m(f"peer lowest, {name}"), "nats/token")
    rows = [
        ("load_s", "load to first step", "s"),
        ("first_step_s", "end of first step", "s"),
        ("base_held_out", "held-out loss without training", "nats/token"),
        ("tokens_per_second", "speed on mails", "tokens/s"),
        ("tokens_per_cpu_second", "speed on mails per CPU", "tokens/CPU-s"),
        ("peak_rss_mb", "peak RSS on mails", "MB"),
    ]
    for name, what, unit in rows:
        bench.row(what, m(f"ours {name}"), m(f"peer {name}"), unit)
    for batch in ("1x512", "4x256", SAVING):
        for name, what, unit in (("peak_rss_mb", "peak RSS", "MB"), ("tokens_per_second", "speed", "tokens/s")):
            if m(f"{batch} {name}") is not None or m(f"peer {batch} {name}") is not None:
                row = f"{batch}{'' if batch == SAVING else f', ours within {SMALL_MB} MB'}: {what}"
                bench.row(row, m(f"{batch} {name}"), m(f"peer {batch} {name}"), unit)
    for kind in ("lora", "scale"):
        bench.row(f"{kind}, 4x128", m(f"{kind} tokens_per_second"), unit="tokens/s")
        bench.row(f"{kind}: needed work per token", m(f"{kind} mflop_per_token"), unit="MFLOP")
        bench.row(f"{kind}: share of the best product", m(f"{kind} share"), unit="%")
        bench.row(f"{kind}: the same, with recomputing", m(f"{kind} share, again"), unit="%")
    bench.row("best plain product", m("lora gemm_best_gflops"), unit="GFLOP/s")
    bench.row("plain products of all layers", m("lora gemm_all_gflops"), unit="GFLOP/s")
    bench.row("prefill of llama.cpp", m("prefill tokens_per_second"), unit="tokens/s")
    goals(bench.report, {name: statistics.median(values) for name, values in bench.figures.items()})


def planning(bench: Bench) -> None:
    """How well the planner knew the peak of memory."""
    ratios = bench.figures["planned / measured RSS"]
    bench.row(f"planned / measured RSS, lowest of {len(ratios)} runs", min(ratios))
    bench.row(f"planned / measured RSS, highest of {len(ratios)} runs", max(ratios))
    bench.report.at_least("lowest planned / measured RSS", min(ratios), 0.9, "")
    bench.report.at_most("highest planned / measured RSS", max(ratios), 1.15, "")


def goals(report: Report, median: dict[str, float]) -> None:
    """What training should reach."""
    if "faster, own rate" in median:
        report.at_least("time to equal held-out loss, PEFT / ours", median["faster, own rate"], 3, "")
        share = median["4x256 peak_rss_mb"] / median["peer 4x256 peak_rss_mb"]
        report.at_most("peak RSS at 4x256, ours / PEFT", share, 0.25, "")
    report.at_most("load to first step", median["ours load_s"], 3, "s")
    report.at_most("peak RSS at 1x512", median["1x512 peak_rss_mb"], SMALL_MB, "MB")
    report.at_least("share of the best product", median["lora share"], 60, "%")
    report.at_least("lora, 4x128", median["lora tokens_per_second"], 150, "tokens/s")
    prefill = median["lora tokens_per_second"] / median["prefill tokens_per_second"]
    report.at_least("lora / prefill of llama.cpp", prefill, 0.5, "")
    slower = median["lora tokens_per_second"] / median["scale tokens_per_second"]
    report.at_most("time of scale / lora", slower, 1.6, "")


if __name__ == "__main__":
    main()
