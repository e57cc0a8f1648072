"""`make bench-adapters`: what personalisation costs when it serves, and how long generations take to make and to swap.

Speeds with the base, a live adapter of rank 8 on all linears, a baked file, and both, on the default model and on a
2048-wide one with random weights in Q4_K; the time to bake and the bytes that it changes; the pauses, restores and
memory of a daemon; and the stages of a training run with its gate. QUICK=1 takes less of all, and does not train.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from _adapters_daemon import PAIRS, RESTORED, Bench, Served
from _adapters_files import WIDE, delta, write_wide
from _adapters_speed import BASE, DECODE_TOKENS, PREFILL_TOKENS, Figures, Way, compare
from _edgepd import BAKED, RANK
from _peers import BATCH_TOKENS, CONTEXT_TOKENS, SLOTS, THREADS, Peer
from _report import MODEL, OUTPUT, Report, model_path, quick
from serving import Texts, user

from edgepd_quant.adapter_file import write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile

PROBE = "edgepd.llama.probe"
EXPORTED_TOKENS = 128  # of the answers that compare an exported file's speed
MAILS = 24  # that are corrected before a training
KEPT_SPEED, PAUSE_MS, BAKE_S, RESTORE_S = 0.98, 50, 2, 1  # the goals


def main() -> None:
    """Measure and report."""
    rounds, bakes, swaps, restores = (1, 1, 2, 1) if quick() else (7, 5, 10, 5)
    shape = replace(WIDE, layers=2) if quick() else WIDE
    sizes = {"slots": SLOTS, "context": CONTEXT_TOKENS, "batch": BATCH_TOKENS, "threads": THREADS, "rank": RANK}
    counts = {"rounds": rounds, "bakes": bakes, "swaps": swaps, "restores": restores, "wide_layers": shape.layers}
    tokens = {"decode_tokens": DECODE_TOKENS, "prefill_tokens": PREFILL_TOKENS}
    report = Report("adapters", sizes | counts | tokens)
    figures: Figures = defaultdict(list)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUT) as folder:
        wide = write_wide(Path(folder) / "wide.gguf", shape)
        for name, base in (("SmolLM2", model_path()), ("2048 wide", wide)):
            ways = make(name, base, Path(folder), bakes, figures)
            compare(name, ways, rounds, figures)
            report.config[f"{name} bytes"] = base.stat().st_size
    with Served(MODEL) as daemon:
        texts = Texts()
        bench = Bench(daemon, texts, figures)
        bench.first_activation()
        bench.pauses(swaps)
        bench.restore(restores)
        bench.memory()
        exported(bench, daemon.export(BAKED), texts, rounds, figures)
        if quick():
            print("QUICK=1 does not train, so the stages of a training run are left out")
        else:
            report.config["training"] = [bench.training(kind, MAILS) for kind in ("live", "baked")]
    summarise(report, figures)
    report.finish()


def make(name: str, base: Path, folder: Path, bakes: int, figures: Figures) -> dict[str, Way]:
    """Bake a delta into the base and make live adapters for both, noting what that takes; return the ways to serve."""
    with GGUFFile.open(base) as model:
        sha256 = model.sha256()
    baked = folder / f"{base.stem}-baked.gguf"
    change = delta(base, "scale", sha256)
    made = bake(base, change, baked)  # once for nothing: the base is read from the disk
    for _ in range(bakes):
        seconds = timed(lambda: bake(base, change, baked))
        figures[f"{name} bake (s)"].append(seconds)
        figures[f"{name} bake, for 100 MB (s)"].append(seconds * 1e8 / base.stat().st_size)
    figures[f"{name} bake: file (bytes)"] = [baked.stat().st_size]
    figures[f"{name} bake: changed (bytes)"] = [made.changed_bytes]
    figures[f"{name} bake: largest relative rounding"] = [made.max_relative_rounding]
    figures[f"{name} bake: mean relative rounding"] = [made.mean_relative_rounding]
    with GGUFFile.open(baked) as model:
        baked_sha256 = model.sha256()
    ways = {BASE: Way(base)}
    for way, file, made_for in (("live", base, sha256), ("baked + live", baked, baked_sha256)):
        adapter = folder / f"{file.stem}-lora.gguf"
        write_adapter(adapter, delta(file, "lora", made_for, seed=1))
        ways[way] = Way(file, adapter)
    if base == model_path():  # the other one has no tokenizer
        tried(name, baked, ways["live"], figures)
    return {BASE: ways[BASE], "live": ways["live"], "baked": Way(baked), "baked + live": ways["baked + live"]}


def tried(name: str, baked: Path, live: Way, figures: Figures) -> None:
    """Time the child process that opens a new file before the daemon does."""
    if importlib.util.find_spec(PROBE) is None:
        print(f"{PROBE} is not there, so it is left out")
        return
    for what, files in (("baked", [baked]), ("live", [file for file in live if file is not None])):
        command = [sys.executable, "-P", "-m", PROBE, *map(str, files)]
        seconds = timed(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL))
        figures[f"{name} {what}, tried in a child process (s)"] = [seconds]


def exported(bench: Bench, copy: Path, texts: Texts, rounds: int, figures: Figures) -> None:
    """Check that an exported baked file answers in llama-cpp-python's `Llama`, and note both speeds in turns.

    Raises RuntimeError if it does not.
    """
    with Peer("llama", copy) as peer:
        bench.decode(BAKED, EXPORTED_TOKENS)  # once for nothing: the file is opened
        for _ in range(rounds):
            speed = bench.decode(BAKED, EXPORTED_TOKENS)
            figures["SmolLM2 baked, over the socket (tokens/s)"].append(speed)
            messages = [user(f"Tell me a long story about{texts.words(3)}.")]
            answer = peer.ask(messages=messages, max_tokens=EXPORTED_TOKENS)
            if answer["tokens"] < 2:
                raise RuntimeError("an exported file does not answer in llama-cpp-python's Llama")
            figures["SmolLM2 baked and exported, in `Llama` (tokens/s)"].append(answer["tokens_per_second"])
            figures["SmolLM2 baked and exported, length of `Llama`'s answer (tokens)"].append(answer["tokens"])


def summarise(report: Report, figures: Figures) -> None:
    """Turn the figures into medians and goals."""
    median = {name: statistics.median(values) for name, values in figures.items()}
    report.rows = [
        {"what": name, "median": value, "min": min(figures[name]), "max": max(figures[name])}
        for name, value in median.items()
    ]
    for name in ("SmolLM2", "2048 wide"):
        for job in ("decode", "prefill"):
            report.at_least(f"{name} baked {job} / base", median[f"{name} {job}, baked / {BASE}"], KEPT_SPEED, "")
    for pair in PAIRS:
        report.at_most(f"swap pause, {pair}", median[f"{pair}: swap pause of a stream (ms)"], PAUSE_MS, "ms")
        report.at_most(f"switch pause, {pair}", median[f"{pair}: switch pause, the difference (ms)"], PAUSE_MS, "ms")
    report.at_most("bake of 100 MB", median["SmolLM2 bake, for 100 MB (s)"], BAKE_S, "s")
    for name in RESTORED:
        for where in ("running daemon", "daemon just started"):
            report.at_most(f"restore {name}, {where}", median[f"restore {name}, {where} (s)"], RESTORE_S, "s")


def timed(job: Callable[[], object]) -> float:
    """Return the wall time of a call in seconds."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
