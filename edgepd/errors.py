"""Every error that a user of edgepd can meet, with its exit code and HTTP status.

The idea: code deep inside raises one of these with a sentence that says what is wrong, which value it is
and what to do. The command line and the HTTP API each turn it into their own form in one place.
What this does not do: wrap programming errors. Those stay Python exceptions and are logged with a traceback.

Exit codes: 1 unexpected failure, 2 usage or bad input, 3 daemon not running, 4 not found,
5 model or adapter file refused, 6 busy or in conflict, 7 training refused or rejected, 8 storage.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class EdgepdError(Exception):
    """Any failure that edgepd explains to the user. Unexpected ones use this class itself."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"


class ConfigError(EdgepdError):
    """A setting is unknown or has a bad value. Shown at start by the daemon and the command line."""

    exit_code = 2
    http_status = 400
    code = "invalid_config"


class RequestError(EdgepdError):
    """A request is malformed. Shown to the client that sent it."""

    exit_code = 2
    http_status = 400
    code = "invalid_request"


class ContextOverflowError(RequestError):
    """A prompt does not fit into the context window. Shown to the client that sent it."""

    code = "context_length_exceeded"


class NotFoundError(EdgepdError):
    """An id or name that is not known: interaction, generation, model, run."""

    exit_code = 4
    http_status = 404
    code = "not_found"


class ConflictError(EdgepdError):
    """The thing asked for contradicts what is going on now (a second daemon, a second training run)."""

    exit_code = 6
    http_status = 409
    code = "conflict"


class BusyError(EdgepdError):
    """The queue is full or the engine is not ready yet; the client should try again.

    Whoever raises it may set `queued`, the number of requests that are waiting, which clients are told.
    """

    exit_code = 6
    http_status = 503
    code = "busy"
    queued: int | None = None


class ModelError(EdgepdError):
    """A model file is missing, broken or unsupported."""

    exit_code = 5
    http_status = 503
    code = "model_unavailable"


class FormatError(ModelError):
    """A GGUF file is malformed. Names the file and the byte offset where reading failed."""

    def __init__(self, path: Path | str, offset: int, problem: str) -> None:
        super().__init__(f"{path}: byte {offset}: {problem}")
        self.path = Path(path)
        self.offset = offset
        self.problem = problem


class TemplateError(ModelError):
    """The chat template in the model file cannot be rendered."""

    http_status = 400
    code = "template_error"


class AdapterError(EdgepdError):
    """An adapter file is refused: missing, truncated, made for another base, or of an unsupported kind."""

    exit_code = 5
    http_status = 409
    code = "adapter_refused"


class TrainingError(EdgepdError):
    """Training cannot start or did not produce a generation that is good enough."""

    exit_code = 7
    http_status = 409
    code = "training_refused"


class StoreError(EdgepdError):
    """The profile database cannot be read or written (disk full, corrupt, no permission)."""

    exit_code = 8
    http_status = 507
    code = "storage_failed"


class DaemonNotRunningError(EdgepdError):
    """No daemon answers on the socket. Shown by the command line with how to start one."""

    exit_code = 3
    http_status = 503
    code = "daemon_not_running"
