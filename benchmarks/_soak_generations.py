"""Generations for the soak to swap between from its first minute, which answer in ways that can be told apart."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial

from _edgepd import RANK, random_delta
from _report import MODEL
from _soak_daemon import Mortal

from edgepd.models import Catalog
from edgepd_profiles import registry
from edgepd_profiles.store import Store
from edgepd_quant.adapter_file import write_adapter

ALPHAS = (60.0, -60.0)  # times the small random change of other benchmarks, which nobody would notice


def make_generations(daemon: Mortal) -> None:
    """Write live adapters, and register them as candidates. The daemon must not have been started yet."""
    base = Catalog(daemon.paths.models_dir).find(MODEL)
    directory = daemon.paths.generations_dir
    directory.mkdir(parents=True)
    change = random_delta(base.path, "lora", base.sha256)
    with Store.open(daemon.paths.profile) as store:
        parent = store.write(lambda c: registry.ensure_base(c, base.sha256)).result().id
        for number, alpha in enumerate(ALPHAS):
            file = directory / f"live-made-{number}.gguf"
            write_adapter(file, replace(change, alpha=alpha * RANK))
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            add = partial(
                registry.add,
                parent=parent,
                kind="live",
                base_sha256=base.sha256,
                state="candidate",
                file_sha256=sha256,
                adapter_file=file.name,
            )
            store.write(add).result()
