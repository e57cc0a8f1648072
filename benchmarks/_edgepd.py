"""A daemon to measure: in a home of its own, with a live adapter and a baked model among its generations."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
from _http import Connect, call, unix
from _peers import BATCH_TOKENS, CONTEXT_TOKENS, SLOTS, THREADS

from edgepd.config import Paths, paths
from edgepd.models import Catalog
from edgepd_profiles import registry
from edgepd_profiles.store import Store
from edgepd_quant.adapter_file import Adapter, LowRank, write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
RANK = 8
BASE, LIVE, BAKED = 1, 2, 3  # generations


class Daemon:
    """A running daemon."""

    def __init__(self, model_name: str) -> None:
        """Make its generations, start it and wait until it answers."""
        self._home = Path(tempfile.mkdtemp(prefix="edgepd-", dir="/tmp"))  # noqa: S108 - a socket's path must be short
        models = paths().models_dir
        environment = os.environ | {"EDGEPD_HOME": str(self._home), "EDGEPD_MODELS_DIR": str(models)}
        self.paths: Paths = paths(environment)
        self.adapter = self._make_generations(model_name)
        settings = {
            "model": model_name,
            "slots": SLOTS,
            "context_tokens": CONTEXT_TOKENS,
            "batch_tokens": BATCH_TOKENS,
            "threads": THREADS,
            "max_queue": 64,
        }
        given = [part for key, value in settings.items() for part in ("--set", f"serve.{key}={value}")]
        with (self._home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgepd_daemon", *given], env=environment, stdout=log, stderr=log
            )
        self.connect: Connect = unix(str(self.paths.socket))
        self._wait()

    def _make_generations(self, model_name: str) -> Path:
        base = Catalog(self.paths.models_dir).find(model_name)
        directory = self.paths.generations_dir
        directory.mkdir(parents=True)
        adapter, baked = directory / "live-1.gguf", directory / "baked-1.gguf"
        write_adapter(adapter, random_delta(base.path, "lora", base.sha256))
        bake(base.path, random_delta(base.path, "scale", base.sha256), baked)
        with Store.open(self.paths.profile) as store:
            store.write(lambda c: registry.ensure_base(c, base.sha256)).result()
            for kind, file in (("live", adapter), ("baked", baked)):
                store.write(
                    lambda c, kind=kind, file=file: registry.add(
                        c,
                        parent=BASE,
                        kind=kind,
                        base_sha256=base.sha256,
                        state="candidate",
                        file_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                        adapter_file=file.name if kind == "live" else None,
                        model_file=file.name if kind == "baked" else None,
                    )
                ).result()
        return adapter

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon has ended:\n{(self._home / 'log').read_text()}")
            try:
                call(self.connect, "/healthz", method="GET")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def activate(self, generation: int) -> dict[str, Any]:
        """Make a generation serve new requests."""
        return call(self.connect, "/edgepd/v1/generations/activate", {"generation": generation})

    def rss_mb(self) -> float:
        """Resident memory in MB, of the daemon and its helper processes."""
        process = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 1e6

    def own_rss_mb(self) -> float:
        """The same, of the daemon alone."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def api_cpu_seconds(self) -> float:
        """CPU time that the thread of the event loop has used. It is the first one of the process."""
        first = next(t for t in psutil.Process(self.process.pid).threads() if t.id == self.process.pid)
        return float(first.user_time + first.system_time)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self._home)


def random_delta(base: Path, kind: str, base_sha256: str) -> Adapter:
    """Return factors on all linears: as large as a trained adapter, too small to change what is said much."""
    rng = np.random.default_rng(0)
    tensors = {}
    with GGUFFile.open(base) as model:
        architecture = str(model.metadata["general.architecture"])
        for name, info in model.tensors.items():
            if name.split(".")[-2] not in LINEARS:
                continue
            rows, columns = info.shape
            width = columns if kind == "lora" else columns // 32
            a = rng.normal(0, width**-0.5, (RANK, width)).astype(np.float32)
            tensors[name] = LowRank(a, rng.normal(0, 1e-4, (rows, RANK)).astype(np.float32))
    return Adapter(kind, architecture, float(RANK), tensors, {"base_sha256": base_sha256})  # type: ignore[arg-type]
