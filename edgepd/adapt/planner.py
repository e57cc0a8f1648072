"""What a run will cost, and how to run it within the budget, before it starts.

The idea: of all ways to run that give the same adapter (how weights stay resident, how many layers remember their
activations, how large a micro-batch is), take the fastest whose predicted peak of resident memory fits. The invariant:
a plan never changes what is learned; where nothing fits, the run is refused with what would have to change.
What this does not do: watch the memory while the run goes on.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, cast

import torch

from edgepd.adapt.allocator import Allocator, use
from edgepd.adapt.batches import Supervised, micro_batches
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.footprint import Load, Shapes, peak_bytes, step_flops
from edgepd.adapt.linear import Residency
from edgepd.config import declarations
from edgepd.errors import TrainingError

MIB = 1 << 20
CAUTIOUS = 0.92  # share of a budget that is planned for, because predictions have been up to 10 % too low
MICRO_CHOICES = (512, 384, 256, 192, 128)  # tokens; more than 512 at once is slower on CPUs, not faster
# Share of the speed of a plain product that training reaches; the rest are skinny products, norms and attention.
GEMM_SHARE = 0.62
DEQUANTISED_PER_SECOND = {"stream": 6e8, "fp16": 1.5e9, "fp32": 3e9}  # weights, both passes use them once
SETTLED_PER_SECOND = 2.5e8  # weights that are dequantised for good before the first step
PROBE_SHAPE = (512, 576, 1536)  # tokens, in, out of the product that is timed
THRIFTY_COST = 1.16  # how much longer a step takes when each tensor is mapped anew (allocator.py)
EXACT: tuple[Residency, ...] = ("stream", "fp32")
ALLOCATORS: tuple[Allocator, ...] = ("fast", "thrifty")
DENSE_KINDS = ("scale", "gain")


@dataclass(frozen=True)
class Plan:
    """How a run is carried out, and what it is expected to cost."""

    kind: str
    rank: int
    residency: Residency
    layers: int
    trained_layers: int
    allocator: Allocator
    kept_layers: int  # uppermost layers that remember their activations; the others compute them again
    micro_tokens: int
    threads: int
    examples: int
    tokens_per_epoch: int
    epochs: int
    steps: int
    predicted_rss_mb: int
    budget_mb: int
    predicted_tokens_per_second: float
    predicted_seconds: float
    reasons: tuple[str, ...]


class _Way(NamedTuple):
    """A choice of what does not change the result, but for the number of layers that keep their activations."""

    residency: Residency
    allocator: Allocator
    micro_tokens: int


Sequences = Callable[[Encoded], Sequence[Supervised]]


@dataclass(frozen=True)
class Request:
    """What is to be planned: a decoder with its deltas in place, the batches, and the bounds."""

    decoder: Decoder
    rank: int
    epochs: Sequence[Sequence[Batch]]
    held_out: Sequence[Encoded]  # evaluated after each epoch
    judged: Sequence[Encoded]  # evaluated once, at the end
    sequences: Sequences
    threads: int
    rss_bytes: int  # resident memory of the process as it is now
    budget_bytes: int
    gemm_flops: float  # of a plain product on this machine, per second
    used: float = 1.0  # share of the budget that a plan may fill
    seconds: float | None = None  # the steps are cut to what fits into this time
    # What decides the result to the last bit; narrowed for a run that goes on.
    micro_choices: tuple[int, ...] | None = None  # None: MICRO_CHOICES
    residencies: tuple[Residency, ...] = EXACT  # fp16 rounds the weights, so it is never chosen unasked


def plan(request: Request) -> Plan:
    """Return the fastest way to run within the budget.

    Raises TrainingError with the reason and the nearest plan that would fit, if none does.
    """
    feasible = [candidate for candidate in _candidates(request) if _fits(request, candidate)]
    if not feasible:
        raise TrainingError(_refusal(request))
    best = min(feasible, key=lambda found: (found.predicted_seconds, found.predicted_rss_mb))
    return _shortened(best, request.seconds)


def residencies(setting: str) -> tuple[Residency, ...]:
    """Return what the setting train.residency leaves to choose from."""
    return EXACT if setting == "auto" else (cast(Residency, setting),)


def carry_out(found: Plan, decoder: Decoder) -> None:
    """Arrange the decoder and the process as planned; micro-batches and steps are the loop's."""
    use(found.allocator)
    decoder.arrange(residency=found.residency, kept_layers=found.kept_layers)


def probe_gemm() -> float:
    """Time a plain product and return its floating-point operations per second, with torch's number of threads."""
    tokens, inner, outer = PROBE_SHAPE
    x, w = torch.randn(tokens, inner), torch.randn(outer, inner)
    best = math.inf
    for _ in range(8):  # the first ones wake up the threads; the best is what an undisturbed machine does
        started = time.perf_counter()
        x @ w.T
        best = min(best, time.perf_counter() - started)
    return 2 * tokens * inner * outer / best


def _candidates(request: Request) -> Iterator[Plan]:
    decoder = request.decoder
    shapes = Shapes.of(decoder.model, decoder.architecture)
    for micro_tokens in request.micro_choices or MICRO_CHOICES:
        load = _load(request, micro_tokens)
        for residency, allocator in itertools.product(request.residencies, ALLOCATORS):
            way = _Way(residency, allocator, micro_tokens)
            yield from _with_kept_layers(request, shapes, load, way)
        if load.tokens > micro_tokens:
            return  # the longest sequence alone is larger, so smaller choices change nothing


def _with_kept_layers(request: Request, shapes: Shapes, load: Load, way: _Way) -> Iterator[Plan]:
    """Give the plan that keeps as many layers as fit, and the one that keeps none."""
    trained = request.decoder.trained_layers

    def peak(kept: int) -> int:
        return request.rss_bytes + peak_bytes(
            shapes,
            load,
            residency=way.residency,
            kept_layers=kept,
            trained_layers=trained,
            allocator=way.allocator,
        )

    fitting = [kept for kept in range(trained + 1) if peak(kept) <= request.budget_bytes * request.used]
    for kept in {0, max(fitting, default=0)}:
        yield _plan(request, shapes, way, kept, peak(kept))


def _plan(request: Request, shapes: Shapes, way: _Way, kept: int, peak: int) -> Plan:
    decoder, examples = request.decoder, _personal(request.epochs)
    trained, layers = decoder.trained_layers, decoder.architecture.layers
    batches = [batch for epoch in request.epochs for batch in epoch]
    sequences = [s for batch in batches for e in batch.examples for s in request.sequences(e)]
    tokens = sum(len(tokens) for tokens, _ in sequences)
    supervised = sum(len(tokens) - first for tokens, first in sequences)
    dense = decoder.kind in DENSE_KINDS
    length = tokens / max(1, len(sequences))
    flops = step_flops(
        shapes, tokens, supervised, length, kept_layers=kept, trained_layers=trained, dense_gradient=dense
    )
    passes = sum(len(list(micro_batches(b.examples, way.micro_tokens, request.sequences))) for b in batches)
    weights = shapes.layer_weights * (layers + trained) + 2 * shapes.head_weights
    checks = sum(len(e.tokens) for e in request.held_out) * (len(request.epochs) + 1)  # forward passes
    checks += sum(len(e.tokens) for e in request.judged)
    seconds = flops / (request.gemm_flops * GEMM_SHARE) + passes * weights / DEQUANTISED_PER_SECOND[way.residency]
    seconds *= THRIFTY_COST if way.allocator == "thrifty" else 1.0
    seconds *= 1 + checks / max(1, 3 * tokens)
    seconds += 0.0 if way.residency == "stream" else shapes.layer_weights * layers / SETTLED_PER_SECOND
    return Plan(
        kind=str(decoder.kind),
        rank=request.rank,
        residency=way.residency,
        allocator=way.allocator,
        layers=layers,
        trained_layers=trained,
        kept_layers=kept,
        micro_tokens=way.micro_tokens,
        threads=request.threads,
        examples=len(examples),
        tokens_per_epoch=sum(len(e.tokens) for e in examples),
        epochs=len(request.epochs),
        steps=len(batches),
        predicted_rss_mb=math.ceil(peak / MIB),
        budget_mb=request.budget_bytes // MIB,
        predicted_tokens_per_second=tokens / seconds if seconds else 0.0,
        predicted_seconds=seconds,
        reasons=_reasons(way, kept, trained),
    )


def _fits(request: Request, found: Plan) -> bool:
    return found.predicted_rss_mb <= found.budget_mb * request.used


def _needed_mb(request: Request, found: Plan) -> int:
    """Return the budget within which this plan fits."""
    return math.ceil(found.predicted_rss_mb / request.used)


def _reasons(way: _Way, kept: int, trained: int) -> tuple[str, ...]:
    """Say in sentences what the budget allowed."""
    weights = {
        "stream": "weights are dequantised whenever they are used",
        "fp16": "dequantised weights stay in memory as fp16",
        "fp32": "dequantised weights stay in memory",
    }
    activations = f"the activations of {kept} of {trained} trained layers are kept, the others are computed again"
    if kept == trained:
        activations = "all activations are kept"
    memory = {"fast": "freed memory is kept for reuse", "thrifty": "freed memory is given back at once"}
    size = f"up to {way.micro_tokens} tokens are computed at a time"
    return weights[way.residency], activations, memory[way.allocator], size


def _shortened(found: Plan, seconds: float | None) -> Plan:
    """Cut the steps to what fits into the time, but make two at least."""
    if seconds is None or found.predicted_seconds <= seconds:
        return found
    steps = max(min(2, found.steps), int(found.steps * seconds / found.predicted_seconds))
    reason = f"{steps} of {found.steps} steps fit into {seconds:g} s"
    predicted = found.predicted_seconds * steps / found.steps
    return replace(found, steps=steps, predicted_seconds=predicted, reasons=(*found.reasons, reason))


def _load(request: Request, micro_tokens: int) -> Load:
    """Return the largest micro-batch that this choice leads to."""
    tokens = supervised = 0
    sets = [batch.examples for epoch in request.epochs for batch in epoch] + [(*request.held_out, *request.judged)]
    for examples in sets:
        for micro in micro_batches(examples, micro_tokens, request.sequences):
            rows = [sequence for example in micro for sequence in request.sequences(example)]
            tokens = max(tokens, len(rows) * (max(len(row) for row, _ in rows) - 1))
            supervised = max(supervised, sum(len(row) - first for row, first in rows))
    cached = 0
    if request.decoder.trained_layers < request.decoder.architecture.layers:
        unique = {e.id: e for examples in sets for e in examples}
        cached = sum(len(e.tokens) for e in unique.values())
    parameters = sum(parameter.numel() for parameter in request.decoder.parameters)
    return Load(tokens, supervised, parameters, cached)


def _personal(epochs: Sequence[Sequence[Batch]]) -> list[Encoded]:
    return list({e.id: e for epoch in epochs for batch in epoch if not batch.general for e in batch.examples}.values())


def _refusal(request: Request) -> str:
    """Say why nothing fits, and what the nearest thing is that would."""
    least = min(_candidates(request), key=lambda found: found.predicted_rss_mb)
    needed = _needed_mb(request, least)
    reason = f"training needs {needed} MiB of memory at least, but the budget is {least.budget_mb} MiB"
    longest = max(len(e.tokens) for e in _personal(request.epochs))
    shortest = declarations()["serve.context_tokens"].minimum or 0
    for bound in (longest * 3 // 4, longest // 2, longest // 4):
        if bound < shortest:
            break
        shorter = replace(request, epochs=_only(request.epochs, bound), held_out=[], judged=[])
        if _personal(shorter.epochs):
            nearest = min(_candidates(shorter), key=lambda found: found.predicted_rss_mb)
            if _fits(request, nearest):
                left = f"{nearest.examples} of {least.examples} examples"
                return (
                    f"{reason}; it would fit with examples of at most {bound} tokens ({left}, "
                    f"{_needed_mb(request, nearest)} MiB): set serve.context_tokens={bound}, or allow more with "
                    f"train.memory_mb={needed}"
                )
    return f"{reason}; set train.memory_mb={needed}, a lower train.rank, or serve a smaller model"


def _only(epochs: Sequence[Sequence[Batch]], bound: int) -> list[list[Batch]]:
    cut = [
        [replace(batch, examples=tuple(e for e in batch.examples if len(e.tokens) <= bound)) for batch in epoch]
        for epoch in epochs
    ]
    return [[batch for batch in epoch if batch.examples] for epoch in cut]


def as_dict(found: Plan) -> dict[str, Any]:
    """Return the plan as it is shown and stored."""
    return asdict(found) | {"reasons": list(found.reasons)}
