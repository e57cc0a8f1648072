"""What users of a daemon notice of its generations: pauses when another one takes over, restoring, memory, training.

All goes over the daemon's socket. A pause is how much longer than usual an answer that is streaming stands still, and
each one is followed by a control of the same length in which nothing changes: what is left is the machine's noise.
"""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from _adapters_files import delta
from _adapters_speed import Figures
from _edgepd import BAKED, BASE, LIVE, Daemon
from _http import call, stream
from _mail import made_up
from _report import MODEL
from serving import Texts, user

from edgepd.models import Catalog
from edgepd_profiles import registry
from edgepd_profiles.store import Store
from edgepd_quant.adapter_file import write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile

OTHER, BOTH = 4, 5  # generations, beside those of _edgepd: another baked file; BAKED with a live adapter
BAKED_FILE, OTHER_FILE, BOTH_FILE = "baked-1.gguf", "baked-2.gguf", "live-2.gguf"

STREAM_TOKENS = 256  # of the answer that is watched
QUIET_TOKENS = 32  # of it, before anything happens
SHORT_TOKENS = 8  # of an answer beside it
AFTERWARDS_S = 0.1  # after a swap that still count as its pause
CLOSE_SECONDS = 60.0  # within which a model file must be closed
REVIEW_SECONDS = 600.0  # within which a generation that went live must have been reviewed

PAIRS = {"live and base": (LIVE, BASE), "two baked files": (BAKED, OTHER)}
RESTORED = {"live": LIVE, "baked": BAKED, "baked + live": BOTH}


class Served(Daemon):
    """A daemon with two baked files and two live adapters, which can be restarted."""

    def _make_generations(self, model_name: str) -> Path:
        adapter = super()._make_generations(model_name)
        base, directory = Catalog(self.paths.models_dir).find(model_name), self.paths.generations_dir
        bake(base.path, delta(base.path, "scale", base.sha256, seed=1), directory / OTHER_FILE)
        with GGUFFile.open(directory / BAKED_FILE) as model:
            baked_sha256 = model.sha256()
        write_adapter(directory / BOTH_FILE, delta(directory / BAKED_FILE, "lora", baked_sha256, seed=2))
        new: list[dict[str, Any]] = [
            {"parent": BASE, "kind": "baked", "file": OTHER_FILE, "model_file": OTHER_FILE},
            {"parent": BAKED, "kind": "live", "file": BOTH_FILE, "model_file": BAKED_FILE, "adapter_file": BOTH_FILE},
        ]
        with Store.open(self.paths.profile) as store:
            for fields in new:
                sha256 = hashlib.sha256((directory / fields.pop("file")).read_bytes()).hexdigest()
                given = fields | {"base_sha256": base.sha256, "state": "candidate", "file_sha256": sha256}
                store.write(partial(registry.add, **given)).result()
        return adapter

    def restart(self) -> None:
        """Stop the daemon and start it again."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        with (self._home / "log").open("ab") as log:
            self.process = subprocess.Popen(self.process.args, env=self._environment(), stdout=log, stderr=log)
        self._wait()

    def export(self, generation: int) -> Path:
        """Copy a generation to a file outside of the daemon's care, as its user does, and return that."""
        target = self._home / f"exported-{generation}.gguf"
        command = [sys.executable, "-m", "edgepd", "adapters", "export", str(generation), str(target)]
        subprocess.run(command, env=self._environment(), check=True, stdout=subprocess.DEVNULL)
        return target

    def _environment(self) -> dict[str, str]:
        return os.environ | {"EDGEPD_HOME": str(self._home), "EDGEPD_MODELS_DIR": str(self.paths.models_dir)}

    def status(self) -> dict[str, Any]:
        """Return the daemon's status."""
        return call(self.connect, "/edgepd/v1/status", method="GET")

    def settle(self) -> None:
        """Close all model files but the active one, as the daemon does by itself when nobody has used them."""
        files = {BASE: None, BAKED: BAKED_FILE, OTHER: OTHER_FILE}
        active_file = self.generation(self.status()["generation"]["id"])["model_file"]
        for generation, file in files.items():
            if file != active_file:
                unload = {"model": f"{MODEL}@{generation}", "keep_alive": 0}
                call(self.connect, "/api/generate", unload)
        deadline = time.monotonic() + CLOSE_SECONDS
        while len(self.status()["engine"]["models"]) > 1:
            if time.monotonic() > deadline:
                raise RuntimeError("the daemon does not close a model file that nobody uses")
            time.sleep(0.05)

    def generation(self, number: int) -> dict[str, Any]:
        """Return what the registry has on a generation."""
        found = call(self.connect, "/edgepd/v1/generations", method="GET")["generations"]
        return next(dict(g) for g in found if g["id"] == number)

    def memory_mb(self) -> tuple[float, float]:
        """Return resident and proportional memory of the daemon alone in MB; the second counts shared pages in part."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(encoding="utf-8")
        kilobytes = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return psutil.Process(self.process.pid).memory_info().rss / 1e6, kilobytes * 1024 / 1e6


class Bench:
    """Collects figures of one daemon."""

    def __init__(self, daemon: Served, texts: Texts, figures: Figures) -> None:
        """Measure into `figures`."""
        self._daemon, self._texts, self._figures = daemon, texts, figures

    def first_activation(self) -> None:
        """Activate each generation once: the file is checked and opened by a child first. Ends with the base."""
        self.short()
        for generation in (LIVE, BAKED, OTHER, BOTH):
            self._figures["first activation, file checked and tried (s)"].append(self._activation_s(generation))
            self.short()
        self._daemon.activate(BASE)
        self._daemon.settle()

    def pauses(self, times: int) -> None:
        """Activate while an answer is streaming, and let the new generation answer beside it."""
        for name, pair in PAIRS.items():
            self._daemon.activate(pair[1])
            self._daemon.settle()
            for number in range(times):
                self._one_pause(name, pair[number % 2])
        self._daemon.activate(BASE)
        self._daemon.settle()

    def _one_pause(self, name: str, target: int) -> None:
        took: list[float] = []

        def swap() -> None:
            took.append(self._activation_s(target))
            time.sleep(AFTERWARDS_S)

        swapped, switched = self._beside([swap, self.short])
        status = self._daemon.status()
        if status["generation"]["id"] != target:
            raise RuntimeError(f"generation {target} is not active after it was activated")
        idle, beside = self._beside([lambda: time.sleep(took[0] + AFTERWARDS_S), self.short])
        self._figures[f"{name}: swap pause of a stream (ms)"].append(swapped)
        self._figures[f"{name}: the same without a swap (ms)"].append(idle)
        self._figures[f"{name}: pause by the new one's first answer beside (ms)"].append(switched)
        self._figures[f"{name}: the same by an answer of its own generation (ms)"].append(beside)
        self._figures[f"{name}: switch pause, the difference (ms)"].append(switched - beside)
        self._figures[f"{name}: the activation itself (ms)"].append(took[0] * 1000)
        if LIVE in PAIRS[name]:
            self._figures["engine's own last_switch_ms (ms)"].append(status["engine"]["last_switch_ms"])
        self._daemon.settle()

    def restore(self, times: int) -> None:
        """Activate retired generations: in a daemon that has served them, and in one that was just started."""
        for name, generation in RESTORED.items():
            for fresh in (False, True):
                where = "daemon just started" if fresh else "running daemon"
                for _ in range(times):
                    if fresh:
                        self._daemon.restart()
                        self.short()
                    began = time.perf_counter()
                    self._figures[f"restore {name}, {where} (s)"].append(self._activation_s(generation))
                    self.short(max_tokens=1)
                    whole = time.perf_counter() - began
                    self._figures[f"restore {name}, {where}, until it has answered (s)"].append(whole)
                    if (active := self._daemon.status()["generation"]["id"]) != generation:
                        raise RuntimeError(f"generation {active} is active instead of {generation}")
                    self._daemon.activate(BASE)
                    self._daemon.settle()

    def memory(self) -> None:
        """Memory with one model file open, with two while both answer, and after one is closed."""
        self._daemon.restart()
        self._note_memory("before the first request")
        self.short()
        self._note_memory("one file open")

        def second() -> None:
            self._daemon.activate(BAKED)
            self.short()
            if len(self._daemon.status()["engine"]["models"]) != 2:
                raise RuntimeError("there are not two model files open")
            self._note_memory("two files open")

        self._beside([second])
        self._daemon.settle()
        self._note_memory("one file open again")
        self._daemon.activate(BASE)
        self._daemon.settle()

    def decode(self, generation: int, tokens: int) -> float:
        """Return tokens per second of one stream of this generation, over the socket."""
        body = self._story(tokens) | {"model": f"{MODEL}@{generation}"}
        return stream(self._daemon.connect, body).tokens_per_second

    def training(self, kind: str, mails: int) -> dict[str, Any]:
        """Correct some answers, train, and note the seconds of each stage; return how the run ended."""
        ((_, pairs),) = made_up(1, mails).items()
        for subject, body in pairs:
            request = {"messages": [user(f"Write an email with the subject: {subject}")], "max_tokens": SHORT_TOKENS}
            answer = call(self._daemon.connect, "/v1/chat/completions", request)
            given = {"interaction_id": answer["interaction_id"], "edit": body}
            call(self._daemon.connect, "/edgepd/v1/feedback", given)
        run = call(self._daemon.connect, "/edgepd/v1/training", {"kind": kind})["run"]
        while run["state"] == "running":
            time.sleep(0.5)
            run = call(self._daemon.connect, f"/edgepd/v1/training/{run['id']}", method="GET")["run"]
        scores = self._reviewed_scores(run["generation"]) if run["generation"] else run["numbers"]
        for name, value in scores.items():
            if name.endswith("_s") or name.startswith("baked_"):
                self._figures[f"{kind} training: {name}"].append(float(value))
        return {name: run[name] for name in ("kind", "state", "reason")}

    def _reviewed_scores(self, generation: int) -> dict[str, Any]:
        """Return a generation's scores; those of the review of a live one come after it went live."""
        deadline = time.monotonic() + REVIEW_SECONDS
        while "review_s" not in (scores := self._daemon.generation(generation)["scores"]):
            if time.monotonic() > deadline:
                print(f"generation {generation} was not reviewed, so the time of that is left out")
                break
            time.sleep(0.5)
        return dict(scores)

    def short(self, max_tokens: int = SHORT_TOKENS) -> None:
        """Have the active generation say a few words."""
        stream(self._daemon.connect, self._story(max_tokens))

    def _story(self, max_tokens: int) -> dict[str, Any]:
        """Return a request that was never made before, for an answer of exactly this length."""
        return {"messages": [user(f"Tell me a long story about{self._texts.words(3)}.")], "max_tokens": max_tokens}

    def _activation_s(self, generation: int) -> float:
        began = time.perf_counter()
        self._daemon.activate(generation)
        return time.perf_counter() - began

    def _note_memory(self, when: str) -> None:
        for what, value in zip(("RSS", "PSS"), self._daemon.memory_mb(), strict=True):
            self._figures[f"daemon {what}, {when} (MB)"].append(value)

    def _beside(self, actions: Sequence[Callable[[], object]]) -> list[float]:
        """Carry out the actions one after the other while the active generation streams an answer.

        Return for each how much longer than usual, in ms, the longest wait for a token was. Raises RuntimeError if
        the stream was cut short, ended too soon, or an action failed.
        """
        arrivals: list[float] = []
        spans: list[tuple[float, float]] = []

        def act() -> None:
            for action in actions:
                began = time.perf_counter()
                action()
                spans.append((began, time.perf_counter()))

        thread = threading.Thread(target=act)

        def on_piece(count: int) -> None:
            arrivals.append(time.perf_counter())
            if count == QUIET_TOKENS:
                thread.start()

        answer = stream(self._daemon.connect, self._story(STREAM_TOKENS), on_piece)
        thread.join()
        if len(spans) != len(actions) or answer.last["usage"]["completion_tokens"] != STREAM_TOKENS:
            raise RuntimeError("a stream was dropped, or what was to happen beside it failed")
        if spans[-1][1] > arrivals[-1]:
            raise RuntimeError("the stream ended before what was to happen beside it; raise STREAM_TOKENS")
        return pauses_ms(arrivals, spans)


def pauses_ms(arrivals: Sequence[float], spans: Sequence[tuple[float, float]]) -> list[float]:
    """Return how much longer than usual the longest wait that overlaps each span was; usual is outside of all."""
    waits = list(zip(arrivals, arrivals[1:], strict=False))
    usual = statistics.median(b - a for a, b in waits if b < spans[0][0] or a > spans[-1][1])
    return [(max(b - a for a, b in waits if b > start and a < end) - usual) * 1000 for start, end in spans]
