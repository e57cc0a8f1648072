"""How fast llama.cpp decodes and prefills with an adapter and without: nothing but its own calls, no server.

Each way of serving has a context of its own. Another one's figure is divided by the mean of the base's just before and
just after it, so that a machine that slows down for a while slows both down.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _peers import BATCH_TOKENS, THREADS

from edgepd.llama import Context, Entry, LoraAdapter, Model

BASE = "base"
PROMPT_TOKENS = 64  # before the tokens whose decoding is timed
DECODE_TOKENS = 48
PREFILL_TOKENS = 2 * BATCH_TOKENS


class Way(NamedTuple):
    """One way of serving."""

    model: Path
    adapter: Path | None = None


Figures = dict[str, list[float]]


def compare(name: str, ways: Mapping[str, Way], rounds: int, figures: Figures) -> None:
    """Collect tokens per second of each way, and of each but the base its ratio to the base, as `NAME JOB, WAY`."""
    with ExitStack() as stack:
        contexts = open_all(stack, ways)
        for job, measure in (("decode", decode), ("prefill", prefill)):
            for context in contexts.values():
                measure(context)  # once for nothing: pages are read, threads started
            for _ in range(rounds):
                _round(f"{name} {job}", contexts, measure, figures)


def _round(what: str, contexts: Mapping[str, Context], measure: Callable[[Context], float], figures: Figures) -> None:
    """Measure all once, the base before, between and after the others."""
    before = measure(contexts[BASE])
    figures[f"{what}, {BASE} (tokens/s)"].append(before)
    for way, context in contexts.items():
        if way == BASE:
            continue
        speed, after = measure(context), measure(contexts[BASE])
        figures[f"{what}, {BASE} (tokens/s)"].append(after)
        figures[f"{what}, {way} (tokens/s)"].append(speed)
        figures[f"{what}, {way} / {BASE}"].append(speed / statistics.mean((before, after)))
        before = after


def open_all(stack: ExitStack, ways: Mapping[str, Way]) -> dict[str, Context]:
    """Open each model file once and a context for each way, all closed with the stack."""
    models: dict[Path, Model] = {}
    contexts = {}
    for name, way in ways.items():
        if way.model not in models:
            models[way.model] = stack.enter_context(Model(way.model))
            # It says for every matrix that is repacked that the adapter's is not; opening a model allows that again.
            logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        model, adapter = models[way.model], None
        if way.adapter is not None:
            adapter = LoraAdapter(model, way.adapter)
            stack.callback(adapter.close)
        context = Context(
            model,
            context_tokens=max(PROMPT_TOKENS + DECODE_TOKENS, PREFILL_TOKENS),
            batch_tokens=BATCH_TOKENS,
            threads=THREADS,
        )
        contexts[name] = stack.enter_context(context)
        context.set_adapter(adapter)
    return contexts


def decode(context: Context) -> float:
    """Return tokens per second, one after the other."""
    tokens = _tokens(context, PROMPT_TOKENS + DECODE_TOKENS)
    _run(context, tokens[:PROMPT_TOKENS])
    started = time.perf_counter()
    for entry in tokens[PROMPT_TOKENS:]:
        context.decode([entry])
        context.logits(0)  # waits for the result
    return DECODE_TOKENS / (time.perf_counter() - started)


def prefill(context: Context) -> float:
    """Return tokens per second of a prompt."""
    tokens = _tokens(context, PREFILL_TOKENS)
    started = time.perf_counter()
    _run(context, tokens)
    return PREFILL_TOKENS / (time.perf_counter() - started)


def _tokens(context: Context, count: int) -> list[Entry]:
    """Return the same random tokens each time, and empty the cache for them. What they are does not matter."""
    context.forget(0)
    ids = np.random.default_rng(0).integers(100, context.model.n_vocab, count)
    return [Entry(int(token), position, 0, True) for position, token in enumerate(ids)]


def _run(context: Context, tokens: list[Entry]) -> None:
    """Prefill in batches as the daemon does: only the last token has an output."""
    for start in range(0, len(tokens), context.batch_tokens):
        batch = [entry._replace(wants_output=False) for entry in tokens[start : start + context.batch_tokens]]
        batch[-1] = batch[-1]._replace(wants_output=True)
        context.decode(batch)
        context.logits(len(batch) - 1)
