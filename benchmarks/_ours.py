"""Our trainer as `make bench-training` measures it: `python benchmarks/_ours.py` reads a specification (_trainers.py).

It trains, and if it is asked to, measures afterwards the plain products that the share of the peak refers to. `fit` is
also what `make bench-study` trains with.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from _steps import Steps
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.hyperparameters import TrainConfig, learning_rate
from edgepd.adapt.loop import Report, TrainResult, train
from edgepd.adapt.objectives import SFT
from edgepd.adapt.planner import CAUTIOUS, Plan, Request, as_dict, carry_out, plan, probe_gemm
from edgepd.adapt.shaping import schedule
from edgepd.errors import TrainingError
from edgepd_quant.reader import GGUFFile

HEAD_TILE = 4096  # rows of the output matrix that are multiplied at once
GEMM_SECONDS = 0.05  # that each timing of a product lasts at least
GEMM_TIMINGS = 5


def fit(
    decoder: Decoder,
    examples: Sequence[Encoded],
    held_out: Sequence[Encoded],
    config: TrainConfig,
    report: Report,
    *,
    batch: int,
    epochs: int,
) -> TrainResult:
    """Train as the worker does, on personal examples alone. This is the only place that calls the loop."""
    return train(decoder, order(examples, batch, epochs, config.seed), held_out, SFT(), config, report)


def order(examples: Sequence[Encoded], batch: int, epochs: int, seed: int) -> list[list[Batch]]:
    """Return the batches of each epoch."""
    return schedule(
        examples, (), shaping="none", personal_every=1.0, general_steps=0, batch=batch, epochs=epochs, seed=seed
    )


def arrange(decoder: Decoder, spec: dict[str, Any], config: TrainConfig, epochs: Sequence[Sequence[Batch]]) -> Plan:
    """Plan as the worker does, and arrange memory by the plan. Raises TrainingError if it does not fit."""
    decoder.adapt(config.kind, rank=config.rank, alpha=config.alpha, seed=config.seed)
    request = Request(
        decoder=decoder,
        rank=config.rank,
        epochs=epochs,
        held_out=(),
        judged=(),
        sequences=SFT().sequences,
        threads=spec["threads"],
        rss_bytes=psutil.Process().memory_info().rss,
        budget_bytes=int(spec["memory_mb"] * 1e6) or psutil.virtual_memory().available // 2,
        gemm_flops=probe_gemm(),
        used=CAUTIOUS,
    )
    found = plan(request)
    carry_out(found, decoder)
    return found


class TimedDecoder(Decoder):
    """Says when its first forward pass begins."""

    steps: Steps

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """As the decoder's own."""
        self.steps.forward()
        return super().hidden(sequences)


class StepReport:
    """Hands the steps on to what records them."""

    def __init__(self, steps: Steps, tokens: Sequence[int]) -> None:
        """`tokens` of each step."""
        self._steps, self._tokens = steps, tokens

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Note a step."""
        del total, tokens_per_second
        self._steps.step(loss, self._tokens[step - 1])

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """The loop is given nothing to evaluate."""


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Train as the specification says and return what was measured."""
    torch.set_num_threads(spec["threads"])
    examples = [_encoded(f"train-{n}", e) for n, e in enumerate(spec["train"])]
    held_out = [_encoded(f"held-out-{n}", e) for n, e in enumerate(spec["held_out"])]
    config = TrainConfig(
        kind=spec["kind"],
        rank=spec["rank"],
        alpha=spec["alpha"],
        learning_rate=spec["learning_rate"],
        weight_decay=spec["weight_decay"],
        clip_norm=spec["clip_norm"],
        seed=spec["seed"],
    )
    shape = {"batch": spec["batch"], "epochs": spec["epochs"]}
    batches = [b.examples for epoch in order(examples, **shape, seed=config.seed) for b in epoch]
    with GGUFFile.open(Path(spec["model"])) as file:
        decoder = TimedDecoder(file)
        try:
            planned = arrange(decoder, spec, config, order(examples, **shape, seed=config.seed))
        except TrainingError as error:
            return {"refused": str(error)}
        config = dataclasses.replace(config, micro_tokens=planned.micro_tokens)
        steps = Steps(spec["started"], lambda: SFT().evaluate(decoder, held_out), spec["eval_every"], len(batches))
        decoder.steps = steps
        fit(decoder, examples, (), config, StepReport(steps, [_tokens(b) for b in batches]), **shape)
        result = steps.result() | {"plan": as_dict(planned)}
        place = {example.id: index for index, example in enumerate(examples)}
        result["batches"] = [[place[example.id] for example in batch] for batch in batches]
        result["rates"] = [learning_rate(config, step, len(batches)) for step in range(len(batches))]
        if spec["measure_peak"]:
            result |= flops(decoder, batches, spec["kind"], planned.trained_layers - planned.kept_layers)
            result |= gemm_speed(decoder, _tokens(batches[0]))
        if held_out:
            decoder.strip()
            result["base_held_out"] = SFT().evaluate(decoder, held_out)
    return result


def flops(decoder: Decoder, batches: Sequence[Sequence[Encoded]], kind: str, twice: int) -> dict[str, float]:
    """Return MFLOP per token that cannot be avoided, and those of layers that are computed again in the backward pass.

    Per token: 2N for the linears forward and 2N for the gradient of what goes into them, and as much again for the head
    at supervised positions; causal attention 2LTd forward and twice that backward; 6P for low-rank factors, or 2N for
    the dense gradient of kind scale. The base's own gradient is not needed.
    """
    arch = decoder.architecture
    examples = [example for batch in batches for example in batch]
    tokens = sum(len(example.tokens) for example in examples)
    share = sum(example.supervised for example in examples) / tokens
    length = sum(len(example.tokens) ** 2 for example in examples) / tokens  # as attention sees it
    matrices = [(out, width) for out, width in _linears(decoder)]
    linear = sum(2 * out * width for out, width in matrices)
    attention = 2 * arch.layers * length * arch.heads * arch.head_dim
    head = 2 * share * decoder.head.out_features * decoder.head.in_features
    factors = sum(parameter.numel() for parameter in decoder.parameters)
    delta = 6 * factors if kind == "lora" else linear
    needed = 2 * (linear + head) + 3 * attention + delta
    again = (linear + attention) * twice / arch.layers
    return {"mflop_per_token": needed / 1e6, "mflop_per_token_again": again / 1e6}


def gemm_speed(decoder: Decoder, tokens: int) -> dict[str, float]:
    """Return GFLOP/s of plain fp32 products in the shapes of the model: the best, and that of all of them together."""
    shapes = _linears(decoder)
    speeds: dict[tuple[int, int], float] = {}
    for out, width in {*shapes, (HEAD_TILE, decoder.head.in_features)}:
        x, weight = torch.randn(tokens, width), torch.randn(out, width)
        speeds[out, width] = 2 * tokens * out * width / _seconds(x, weight) / 1e9
    work = [2 * tokens * out * width / 1e9 for out, width in shapes]
    took = [each / speeds[shape] for each, shape in zip(work, shapes, strict=True)]
    return {"gemm_best_gflops": max(speeds.values()), "gemm_all_gflops": sum(work) / sum(took)}


def _linears(decoder: Decoder) -> list[tuple[int, int]]:
    """Shapes (out, in) of the matrices of all layers."""
    linears = [linear for block in decoder.blocks for group in block.groups for linear in group.linears]
    return [(linear.out_features, linear.in_features) for linear in linears]


def _seconds(x: Tensor, weight: Tensor) -> float:
    """Time one product x W^T."""
    began, repeats = time.perf_counter(), 0
    while time.perf_counter() - began < GEMM_SECONDS:
        x @ weight.T
        repeats += 1
    timings = []
    for _ in range(GEMM_TIMINGS):
        began = time.perf_counter()
        for _ in range(repeats):
            x @ weight.T
        timings.append((time.perf_counter() - began) / repeats)
    return statistics.median(timings)


def _tokens(batch: Sequence[Encoded]) -> int:
    return sum(len(example.tokens) for example in batch)


def _encoded(name: str, example: dict[str, Any]) -> Encoded:
    return Encoded(name, tuple(example["tokens"]), example["supervised_from"])


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
