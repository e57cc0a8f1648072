"""The peers of `make bench-serving`, each in a process of its own: `python benchmarks/_peers.py NAME MODEL [ADAPTER]`.

`llama-server` is its engine and HTTP server as the wheel xllamacpp carries them; it prints its address. `llama` is
llama-cpp-python's own `Llama`, streaming in its process without any HTTP; `bare` is nothing but llama_decode and the
sampler in a loop, which no server can beat. Those two read requests and print measurements, one JSON line each.
Both end when their input does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

SLOTS, CONTEXT_TOKENS, BATCH_TOKENS, THREADS = 4, 2048, 256, 2


class Peer:
    """A peer's process."""

    def __init__(self, name: str, model: Path, adapter: Path | None = None) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, __file__, name, str(model), *([str(adapter)] if adapter else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.greeting = self._line()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the measurement."""
        if self._process.stdin is None:
            raise RuntimeError("the peer has no input")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._line()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def rss_mb(self) -> float:
        """Resident memory in MB."""
        return float(psutil.Process(self.pid).memory_info().rss / 1e6)

    def _line(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError("the peer has no output")
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError("the peer has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def serve_llama_server(model: str, adapter: str | None) -> None:
    """llama-server with the sizes that edgepd is measured with."""
    import xllamacpp  # only the bench extra has it

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = SLOTS * CONTEXT_TOKENS, SLOTS
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.warmup = False
    params.port = 0
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    say({"address": server.listening_address})
    sys.stdin.read()


def serve_llama(model: str) -> None:
    """llama-cpp-python's Llama."""
    from llama_cpp import Llama

    llama = Llama(model, n_ctx=CONTEXT_TOKENS, n_batch=BATCH_TOKENS, n_threads=THREADS, verbose=False)
    llama.n_threads_batch = THREADS

    def answer(messages: list[dict[str, str]], max_tokens: int, cold: bool = False) -> list[float]:
        if cold:
            llama.reset()
        started = time.perf_counter()
        times = []
        for chunk in llama.create_chat_completion(messages=messages, max_tokens=max_tokens, temperature=0, stream=True):
            choice = chunk["choices"][0]
            # It cannot be told to go on after an end, so an answer that ends at once has no text at all.
            if choice["delta"].get("content") or (choice["finish_reason"] and not times):
                times.append(time.perf_counter() - started)
        return times

    loop(answer)


def serve_bare(model: str) -> None:
    """llama_decode and the sampler."""
    from edgepd.llama import Context, Entry, Model
    from edgepd_daemon.engine.sampler import Sampler
    from edgepd_daemon.engine.types import Sampling

    with Model(Path(model)) as opened:
        context = Context(
            opened, context_tokens=CONTEXT_TOKENS, sequences=SLOTS, batch_tokens=BATCH_TOKENS, threads=THREADS
        )

        def answer(messages: list[dict[str, str]], max_tokens: int) -> list[float]:
            sampler = Sampler(Sampling(temperature=0), opened)
            tokens = opened.tokenize(messages[-1]["content"], special=True)[:BATCH_TOKENS]
            context.forget(0)
            started = time.perf_counter()
            context.decode([Entry(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
            index, times = len(tokens) - 1, []
            for position in range(len(tokens), len(tokens) + max_tokens):
                token = sampler.sample(context, index)
                times.append(time.perf_counter() - started)
                context.decode([Entry(token, position, 0, True)])
                index = 0
            sampler.close()
            return times

        loop(answer)


def loop(answer: Callable[..., list[float]]) -> None:
    """Answer requests from the input."""
    say({"ready": True})
    for line in sys.stdin:
        times = answer(**json.loads(line))
        speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        say({"ttft_ms": times[0] * 1000, "tokens_per_second": speed, "tokens": len(times)})


def say(event: dict[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    kind, file, *rest = sys.argv[1:]
    if kind == "llama-server":
        serve_llama_server(file, rest[0] if rest else None)
    elif kind == "llama":
        serve_llama(file)
    else:
        serve_bare(file)
