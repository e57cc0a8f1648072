"""`make bench-train`: training speed of both kinds of delta, beside llama.cpp's prefill of the same model.

The floor for a step is about twice a forward pass (design: 4N FLOPs against 2N), so half the prefill speed is what a
trainer without any overhead could reach; plain matrix products in the same run say how fast the machine is just now.
"""

from __future__ import annotations

import resource
import statistics
import time

import torch
from _report import Report, median_seconds, model_path, quick

from edgepd.adapt.batches import batch_nll
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.llama import Context, Entry, Model
from edgepd_quant.reader import GGUFFile

SEQUENCES, LENGTH = 4, 128  # half of each sequence is supervised
THREADS = 2
RANK = 8


def main() -> None:
    """Measure in turns, so that a slow moment of the machine hits all alike."""
    rounds = 2 if quick() else 6
    report = Report("train", {"rounds": rounds, "batch": f"{SEQUENCES}x{LENGTH}", "rank": RANK, "threads": THREADS})
    torch.set_num_threads(THREADS)
    speeds: dict[str, list[float]] = {"lora": [], "scale": [], "prefill": [], "gemm_gflops": []}
    with GGUFFile.open(model_path()) as file:
        decoder = Decoder(file)
        for _ in range(rounds):
            for kind in ("lora", "scale"):
                decoder.adapt("lora" if kind == "lora" else "scale", rank=RANK, alpha=2.0 * RANK, seed=0)
                speeds[kind].append(SEQUENCES * LENGTH / median_seconds(lambda: step(decoder), 1))
            speeds["prefill"].append(prefill_speed())
            speeds["gemm_gflops"].append(gemm_gflops())
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    units = {"gemm_gflops": "GFLOP/s"}
    report.rows = [
        {"what": name, "median": value, "unit": units.get(name, "tokens/s")} for name, value in medians.items()
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report.rows.append({"what": "peak RSS, llama.cpp included", "median": peak, "unit": "MiB"})
    report.at_least("lora", medians["lora"], 150, "tokens/s")
    report.at_least("lora / prefill", medians["lora"] / medians["prefill"], 0.5, "")
    report.at_most("time of scale / lora", medians["lora"] / medians["scale"], 1.6, "")
    report.finish()


def step(decoder: Decoder) -> None:
    """One forward and backward pass."""
    tokens = tuple(100 + (7 * i) % 4000 for i in range(LENGTH))
    examples = [Encoded(str(n), tokens, LENGTH // 2) for n in range(SEQUENCES)]
    batch_nll(decoder, examples, [1.0 / LENGTH] * SEQUENCES).backward()  # type: ignore[no-untyped-call]


def prefill_speed() -> float:
    """Return llama.cpp's prompt processing speed in tokens/s for as many tokens as a training step has."""
    count = SEQUENCES * LENGTH
    with Model(model_path()) as model:
        context = Context(model, context_tokens=count, batch_tokens=count, threads=THREADS)
        entries = [Entry(100 + (7 * i) % 4000, i, 0, i == count - 1) for i in range(count)]

        def run() -> None:
            context.forget(0)
            context.decode(entries)
            context.logits(count - 1)  # waits for the result

        seconds = median_seconds(run, 1)
        context.close()
    return count / seconds


def gemm_gflops() -> float:
    """Return the speed of plain fp32 products in the shape of the model's largest layer."""
    x, w = torch.randn(SEQUENCES * LENGTH, 576), torch.randn(1536, 576)
    repeats = 50
    started = time.perf_counter()
    for _ in range(repeats):
        x @ w.T
    return repeats * 2 * x.numel() * 1536 / (time.perf_counter() - started) / 1e9


if __name__ == "__main__":
    main()
