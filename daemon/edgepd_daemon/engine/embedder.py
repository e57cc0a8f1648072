"""Embeddings of texts: the mean of the model's last hidden states, at length 1.

The idea: a context of its own on the same model, made at the first use and freed when it is idle, because a context
either generates or embeds. Inputs are packed into batches, several sequences at a time; one that is longer than a
batch goes through in pieces, and its mean is gathered on the way.
What this does not do: wait, or decide when its turn is. Only the engine thread calls it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgepd.errors import ModelError
from edgepd.llama import Context, Entry, Model
from edgepd_daemon.engine.types import EngineSizes

Vector = npt.NDArray[np.float32]

SEQUENCES = 8  # inputs in one batch
BATCH_TOKENS = (
    128  # every token of a batch gets an output of the vocabulary's size, which is the larger part of the cost
)
IDLE_SECONDS = 30.0  # after which the context is freed


@dataclass(eq=False)
class EmbedJob:
    """Inputs to embed together. The future gets one vector of shape (n_embd,) for each.

    `observe` is given the hidden states, shape (tokens, n_embd), of each input that fits into one batch, in order.
    """

    inputs: list[list[int]]
    future: Future[list[Vector]]
    observe: Callable[[Vector], None] | None = None
    vectors: list[Vector] = field(default_factory=list)


@dataclass
class _Partial:
    """An input that has gone through in part: how much of it, and the sum of its hidden states."""

    done: int
    total: npt.NDArray[np.float64]


class Embedder:
    """Embeds the jobs that are pushed to it, one batch at a time."""

    def __init__(self, model: Model, sizes: EngineSizes) -> None:
        """Allocate nothing yet."""
        self._model = model
        self._context_tokens = sizes.context_tokens
        self._threads = sizes.threads
        self._jobs: deque[EmbedJob] = deque()
        self._context: Context | None = None
        self._partial: _Partial | None = None
        self._used_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        return bool(self._jobs)

    def push(self, job: EmbedJob) -> None:
        """Add a job."""
        self._jobs.append(job)

    def step(self) -> None:
        """Run one batch of the job whose turn it is."""
        job = self._jobs[0]
        if job.future.cancelled():
            self._drop()
            return
        try:
            self._run(job)
        except ModelError as error:
            self._drop()
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
            return
        if len(job.vectors) == len(job.inputs):
            self._drop()
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(job.vectors)
        elif self._partial is None:
            self._jobs.rotate(-1)  # so that a job of many inputs does not hold up a small one

    def set_threads(self, threads: int) -> None:
        """Use `threads` from the next batch on."""
        self._threads = threads
        if self._context is not None:
            self._context.set_threads(threads)

    def interrupt(self) -> None:
        """Stop the batch that is running. Any thread."""
        if self._context is not None:
            self._context.interrupt()

    def fail(self, error: Exception) -> None:
        """End all jobs with `error`."""
        for job in self._jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        self._jobs.clear()

    def close_idle(self, now: float) -> None:
        """Free the context if nothing has used it for a while."""
        if self._context is not None and not self._jobs and now - self._used_at > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def _run(self, job: EmbedJob) -> None:
        if self._context is None:
            self._context = Context(
                self._model,
                context_tokens=self._context_tokens,
                sequences=SEQUENCES,
                batch_tokens=BATCH_TOKENS,
                threads=self._threads,
                embeddings=True,
            )
        self._used_at = time.monotonic()
        self._context.resume()
        waiting = job.inputs[len(job.vectors) :]
        if self._partial is not None or len(waiting[0]) > self._context.batch_tokens:
            self._run_piece(self._context, job, waiting[0])
        else:
            self._run_pack(self._context, job, waiting)

    def _run_pack(self, context: Context, job: EmbedJob, waiting: list[list[int]]) -> None:
        """Embed as many whole inputs as fit into one batch."""
        packed: list[list[int]] = []
        for tokens in waiting[:SEQUENCES]:
            if sum(map(len, packed)) + len(tokens) > context.batch_tokens:
                break
            packed.append(tokens)
        entries = [Entry(t, i, s, True) for s, tokens in enumerate(packed) for i, t in enumerate(tokens)]
        decoded = context.decode(entries)
        if decoded:
            states = np.stack([context.embedding(i) for i in range(len(entries))])
            ends = np.cumsum([len(tokens) for tokens in packed])[:-1]
            for part in np.split(states, ends):
                job.vectors.append(_unit(part.sum(axis=0, dtype=np.float64)))
                if job.observe is not None:
                    job.observe(part)
        for sequence in range(len(packed)):
            context.forget(sequence)

    def _run_piece(self, context: Context, job: EmbedJob, tokens: list[int]) -> None:
        """Put the next piece of a long input through."""
        partial = self._partial or _Partial(0, np.zeros(self._model.n_embd))
        end = min(partial.done + context.batch_tokens, len(tokens))
        if not context.decode([Entry(tokens[i], i, 0, True) for i in range(partial.done, end)]):
            context.forget(0)
            self._partial = None  # interrupted: from the beginning, since a piece may be there in part
            return
        partial.total += sum(context.embedding(i).astype(np.float64) for i in range(end - partial.done))
        self._partial = _Partial(end, partial.total)
        if end == len(tokens):
            job.vectors.append(_unit(partial.total))
            context.forget(0)
            self._partial = None

    def _drop(self) -> None:
        self._jobs.popleft()
        if self._context is not None and self._partial is not None:
            self._context.forget(0)
        self._partial = None


def _unit(total: npt.NDArray[np.float64]) -> Vector:
    """Return a vector of length 1 in the direction of the sum, which is that of the mean."""
    return (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
