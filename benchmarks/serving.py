"""`make bench-serving`: edgepd over its socket beside llama-server's engine and llama-cpp-python's `Llama`.

All are loaded at the same time with the same file, threads, slots and context, and measured in turns, so that a slow
moment of the machine hits all alike. llama-server comes with the wheel xllamacpp (the `bench` extra).
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from _edgepd import BAKED, BASE, LIVE, Daemon
from _http import Connect, call, stream, tcp, together
from _peers import BATCH_TOKENS, CONTEXT_TOKENS, SLOTS, THREADS, Peer
from _report import MODEL, Report, model_path, quick

from edgepd.llama import Model

DECODE_TOKENS = 128
LONG_TOKENS = 1000
SYSTEM_TOKENS = 700


class Texts:
    """Prompts of known lengths that share nothing unless they are meant to."""

    def __init__(self) -> None:
        """Take words that are one token each."""
        with Model(model_path(), vocab_only=True) as model:
            pieces = [model.piece(t) for t in range(2000, 6000)]
            words = [p.decode() for p in pieces if p.startswith(b" ") and p[1:].isalpha() and p.isascii()]
            self._words = [w for w in words if len(model.tokenize(w, special=False)) == 1]
        self._random = random.Random(1)  # noqa: S311 - not a secret

    def words(self, tokens: int) -> str:
        """Return a text of about this many tokens that was never returned before."""
        return "".join(self._random.choices(self._words, k=tokens))


class Bench:
    """The measurements of one contestant over HTTP."""

    def __init__(self, name: str, connect: Connect, texts: Texts, figures: dict[str, list[float]]) -> None:
        """Collect figures as `NAME WHAT`."""
        self._name, self._connect, self._texts, self._figures = name, connect, texts, figures

    def note(self, what: str, value: float) -> None:
        """Record one figure."""
        self._figures[f"{self._name} {what}"].append(value)

    def decode(self) -> None:
        """Tokens per second of one stream."""
        answer = stream(self._connect, {"messages": [user(self._texts.words(20))], "max_tokens": DECODE_TOKENS})
        self.note("decode, 1 stream (tokens/s)", answer.tokens_per_second)

    def decode_four(self) -> None:
        """Tokens per second of four streams together."""
        bodies = [{"messages": [user(self._texts.words(20))], "max_tokens": DECODE_TOKENS} for _ in range(4)]
        _, seconds = together(self._connect, bodies)
        self.note("decode, 4 streams (tokens/s)", 4 * DECODE_TOKENS / seconds)

    def cold_and_next_turn(self) -> None:
        """Time to first token of a long prompt that is new, and of the next turn of that conversation."""
        messages = [user(self._texts.words(LONG_TOKENS))]
        first = stream(self._connect, {"messages": messages, "max_tokens": 32})
        self.note("TTFT, 1k prompt, cold (ms)", first.ttft_ms)
        messages += [{"role": "assistant", "content": first.text}, user(self._texts.words(20))]
        following = stream(self._connect, {"messages": messages, "max_tokens": 8})
        self.note("TTFT, next turn of it (ms)", following.ttft_ms)

    def shared_system(self) -> None:
        """Time to first token of a conversation whose system prompt another one has had."""
        system = {"role": "system", "content": self._texts.words(SYSTEM_TOKENS)}
        stream(self._connect, {"messages": [system, user(self._texts.words(20))], "max_tokens": 16})
        other = stream(self._connect, {"messages": [system, user(self._texts.words(20))], "max_tokens": 8})
        self.note("TTFT, shared system prompt (ms)", other.ttft_ms)

    def all(self) -> None:
        """Everything once."""
        self.decode()
        self.decode_four()
        self.cold_and_next_turn()
        self.shared_system()


def user(text: str) -> dict[str, str]:
    """A message of the user's."""
    return {"role": "user", "content": text}


def main() -> None:
    """Measure in turns."""
    rounds, requests, swaps = (2, 100, 20) if quick() else (7, 1000, 100)
    config = {"rounds": rounds, "slots": SLOTS, "context": CONTEXT_TOKENS, "batch": BATCH_TOKENS, "threads": THREADS}
    report = Report("serving", config | {"requests": requests, "swaps": swaps})
    figures: dict[str, list[float]] = defaultdict(list)
    texts = Texts()
    with ExitStack() as stack, Daemon(MODEL) as daemon:
        figures["edgepd RSS before the first request (MB)"] = [daemon.own_rss_mb()]
        call(daemon.connect, "/v1/chat/completions", {"messages": [user("Hello")], "max_tokens": 8})
        figures["edgepd RSS loaded (MB)"] = [daemon.own_rss_mb()]
        ours = Bench("edgepd", daemon.connect, texts, figures)
        benches: list[Callable[[], None]] = [ours.all]
        benches += add_peers(stack, daemon, texts, figures)
        benches += [with_generation(daemon, texts, figures, g) for g in (LIVE, BAKED)]
        for _ in range(rounds):
            for bench in benches:
                bench()
        overhead(daemon, texts, figures)
        swap_pause(daemon, texts, figures, 3 if quick() else 10)
        endurance(daemon, texts, figures, requests, swaps)
    summarise(report, figures)
    report.finish()


def add_peers(
    stack: ExitStack, daemon: Daemon, texts: Texts, figures: dict[str, list[float]]
) -> list[Callable[[], None]]:
    """Start the peers; return what measures them once each."""
    found: list[Callable[[], None]] = []
    if importlib.util.find_spec("xllamacpp"):
        for name, adapter in (("llama-server", None), ("llama-server + adapter", daemon.adapter)):
            peer = stack.enter_context(Peer("llama-server", model_path(), adapter))
            bench = Bench(name, tcp(peer.greeting["address"]), texts, figures)
            figures[f"{name} RSS loaded (MB)"] = [peer.rss_mb()]
            found.append(bench.all if adapter is None else bench.decode)
    else:
        print("xllamacpp is not installed (pip install -e '.[bench]'), so llama-server is left out")
    for name in ("llama", "bare"):
        peer = stack.enter_context(Peer(name, model_path()))
        found.append(lambda peer=peer, name=name: in_process(peer, name, texts, figures))
    return found


def in_process(peer: Peer, name: str, texts: Texts, figures: dict[str, list[float]]) -> None:
    """Measure a peer that has no server."""
    short = peer.ask(messages=[user(texts.words(20))], max_tokens=DECODE_TOKENS)
    if short["tokens"] > DECODE_TOKENS // 4:  # `Llama` ends where the model wants to
        figures[f"{name} decode, 1 stream (tokens/s)"].append(short["tokens_per_second"])
    if name == "llama":
        cold = peer.ask(messages=[user(texts.words(LONG_TOKENS))], max_tokens=2, cold=True)
        figures[f"{name} TTFT, 1k prompt, cold (ms)"].append(cold["ttft_ms"])


def with_generation(
    daemon: Daemon, texts: Texts, figures: dict[str, list[float]], generation: int
) -> Callable[[], None]:
    """Return what measures edgepd with a live or baked generation active, and goes back to the base."""
    bench = Bench(f"edgepd {'live' if generation == LIVE else 'baked'}", daemon.connect, texts, figures)

    def measure() -> None:
        daemon.activate(generation)
        bench.decode()  # once for nothing: a model that was just opened reads its file
        figures[f"{bench._name} decode, 1 stream (tokens/s)"].pop()
        bench.decode()
        bench.decode_four()
        bench.cold_and_next_turn()
        daemon.activate(BASE)

    return measure


def overhead(daemon: Daemon, texts: Texts, figures: dict[str, list[float]]) -> None:
    """CPU time of the thread that does everything but computing, for each streamed token."""
    before, tokens = daemon.api_cpu_seconds(), 0
    for _ in range(4):
        stream(daemon.connect, {"messages": [user(texts.words(20))], "max_tokens": DECODE_TOKENS})
        tokens += DECODE_TOKENS
    figures["edgepd API thread, CPU per token (us)"] = [(daemon.api_cpu_seconds() - before) / tokens * 1e6]


def swap_pause(daemon: Daemon, texts: Texts, figures: dict[str, list[float]], times: int) -> None:
    """How much longer than usual a running stream waits for a token while another generation becomes active."""
    for number in range(times):
        generation = (LIVE, BASE)[number % 2]
        switched: list[dict[str, Any]] = []
        swap = threading.Thread(target=lambda g=generation, s=switched: s.append(daemon.activate(g)))
        answer = stream(
            daemon.connect,
            {"messages": [user(texts.words(20))], "max_tokens": 96},
            lambda count, swap=swap: swap.start() if count == 32 else None,
        )
        swap.join()
        if len(switched) != 1 or answer.last["usage"]["completion_tokens"] != 96:
            raise RuntimeError("a stream was dropped, or a swap failed")
        gaps = [b - a for a, b in zip(answer.times, answer.times[1:], strict=False)]
        figures["edgepd swap pause (ms)"].append((max(gaps) - statistics.median(gaps)) * 1000)
    daemon.activate(BASE)


def endurance(daemon: Daemon, texts: Texts, figures: dict[str, list[float]], requests: int, swaps: int) -> None:
    """Memory before and after many mixed requests and swaps. It is warmed up first: caches fill once."""
    chooser = random.Random(2)  # noqa: S311 - not a secret
    system = {"role": "system", "content": texts.words(200)}

    def mixed(count: int, swap_every: int) -> None:
        for number in range(count):
            if swap_every and number % swap_every == 0:
                daemon.activate((LIVE, BASE)[number // swap_every % 2])
            kind = chooser.randrange(4)
            if kind == 0:
                call(daemon.connect, "/v1/embeddings", {"input": [texts.words(10), texts.words(30)]})
            elif kind == 1:
                schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
                form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
                body = {"messages": [user(texts.words(10))], "max_tokens": 8, "response_format": form}
                call(daemon.connect, "/v1/chat/completions", body)
            else:
                messages = [system, user(texts.words(chooser.randrange(5, 300)))]
                stream(daemon.connect, {"messages": messages, "max_tokens": chooser.randrange(2, 12)})

    for _ in range(SLOTS):
        stream(daemon.connect, {"messages": [user(texts.words(CONTEXT_TOKENS - 150))], "max_tokens": 4})
    mixed(max(20, requests // 10), 5)
    time.sleep(1)
    before = daemon.own_rss_mb()
    mixed(requests, max(1, requests // swaps))
    time.sleep(1)
    figures["edgepd RSS warm (MB)"] = [before]
    figures["edgepd RSS after the requests and swaps (MB)"] = [daemon.own_rss_mb()]
    figures["edgepd RSS with its helper processes (MB)"] = [daemon.rss_mb()]
    daemon.activate(BASE)


def summarise(report: Report, figures: dict[str, list[float]]) -> None:
    """Turn the figures into medians, ratios and goals."""
    median = {name: statistics.median(values) for name, values in figures.items() if values}
    report.rows = [
        {"what": name, "median": value, "min": min(figures[name]), "max": max(figures[name])}
        for name, value in median.items()
    ]
    one, four = "decode, 1 stream (tokens/s)", "decode, 4 streams (tokens/s)"
    cold, following = "TTFT, 1k prompt, cold (ms)", "TTFT, next turn of it (ms)"
    if f"llama-server {one}" in median:
        report.at_least("decode / llama-server", median[f"edgepd {one}"] / median[f"llama-server {one}"], 1.0, "")
        report.at_least("4 streams / llama-server", median[f"edgepd {four}"] / median[f"llama-server {four}"], 1.0, "")
        ratio = median[f"edgepd {cold}"] / median[f"llama-server {cold}"]
        report.at_most("cold TTFT / llama-server", ratio, 1.0, "")
        shared = "TTFT, shared system prompt (ms)"
        report.at_most(
            "shared TTFT / llama-server", median[f"edgepd {shared}"] / median[f"llama-server {shared}"], 1.0, ""
        )
    report.at_least("decode / Llama", median[f"edgepd {one}"] / median[f"llama {one}"], 1.0, "")
    report.at_least("decode / bare llama_decode", median[f"edgepd {one}"] / median[f"bare {one}"], 0.95, "")
    report.at_least("baked decode / base", median[f"edgepd baked {one}"] / median[f"edgepd {one}"], 0.98, "")
    report.at_most("next-turn TTFT / cold", median[f"edgepd {following}"] / median[f"edgepd {cold}"], 0.3, "")
    report.at_most("swap pause", median["edgepd swap pause (ms)"], 50, "ms")
    report.at_most("RSS before the first request", median["edgepd RSS before the first request (MB)"], 60, "MB")
    model_mb = model_path().stat().st_size / 1e6
    report.at_most("RSS loaded - model", median["edgepd RSS loaded (MB)"] - model_mb, 250, "MB")
    growth = median["edgepd RSS after the requests and swaps (MB)"] / median["edgepd RSS warm (MB)"] - 1
    report.at_most("RSS growth", 100 * growth, 5, "%")


if __name__ == "__main__":
    main()
