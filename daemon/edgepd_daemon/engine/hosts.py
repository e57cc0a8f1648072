"""The models in memory: opened on demand, used by several threads, closed when they are idle.

The idea: any thread may open a model or use its tokenizer, but only the engine thread generates with it and closes
it. The invariants: no file is opened twice; a host is closed only while nobody uses it.
What this does not do: decide when a host is idle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepd.errors import BusyError
from edgepd_daemon.engine.types import Counters, EngineSizes

if TYPE_CHECKING:
    from edgepd.chat import MakeTemplate
    from edgepd_daemon.engine.host import ModelHost


class Hosts:
    """Loaded models by the path of their file."""

    def __init__(
        self,
        sizes: EngineSizes,
        counters: Counters,
        make_template: MakeTemplate,
        check_model: Callable[[Path], None] | None = None,
    ) -> None:
        """Load nothing yet. `check_model` raises ModelError for a file that must not be opened."""
        self.sizes = sizes
        self._check_model = check_model
        self.loading_percent: float | None = None
        self._counters = counters
        self._make_template = make_template
        self._hosts: dict[Path, ModelHost] = {}
        self._users: dict[Path, int] = {}
        self._changed = threading.Condition()

    def open(self, path: Path) -> ModelHost:
        """Load a model, on the calling thread, without adding it. Raises ModelError or TemplateError."""
        if self._check_model is not None:
            self._check_model(path)
        # Loads llama.cpp: 0.3 s and 30 MB that a daemon whom nobody has asked anything does without.
        from edgepd_daemon.engine.host import ModelHost  # noqa: PLC0415

        def progress(share: float) -> None:
            self.loading_percent = round(100 * share, 1)

        self.loading_percent = 0.0
        try:
            return ModelHost(path, self.sizes, self._counters, self._make_template, progress)
        finally:
            self.loading_percent = None

    def add(self, host: ModelHost) -> None:
        """Add a model that was opened."""
        with self._changed:
            self._hosts[host.path] = host
        self._counters.loads += 1

    def get(self, path: Path) -> ModelHost | None:
        """Return a loaded model."""
        return self._hosts.get(path)

    def all(self) -> list[ModelHost]:
        """Return all loaded models."""
        return list(self._hosts.values())

    @contextmanager
    def using(self, path: Path) -> Iterator[ModelHost]:
        """Use a loaded model's tokenizer and template on any thread. Raises BusyError if it is not loaded."""
        with self._changed:
            host = self._hosts.get(path)
            if host is None:
                raise BusyError("the model was unloaded just now; try again")
            self._users[path] = self._users.get(path, 0) + 1
        try:
            yield host
        finally:
            with self._changed:
                self._users[path] -= 1
                self._changed.notify_all()

    def in_use(self, path: Path) -> bool:
        """Whether a thread uses the model's tokenizer just now."""
        return self._users.get(path, 0) > 0

    def close(self, host: ModelHost) -> None:
        """Close a model once its users are done with it; new ones do not find it any more."""
        with self._changed:
            self._hosts.pop(host.path, None)
            self._changed.wait_for(lambda: not self.in_use(host.path))
        host.close()
        self._counters.unloads += 1
