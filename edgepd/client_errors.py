"""What goes over the wire between client and daemon: requests as JSON, answers as values, refusals as errors.

The invariant: an error that the daemon explains keeps its class, and with it its exit code, found by the `code` in the
answer; whatever else comes is an EdgepdError that shows the beginning of it.
What this does not do: send or receive anything; that is client.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from edgepd.errors import (
    AdapterError,
    BusyError,
    ConfigError,
    ConflictError,
    ContextOverflowError,
    DaemonNotRunningError,
    EdgepdError,
    ModelError,
    NotFoundError,
    RequestError,
    StoreError,
    TemplateError,
    TrainingError,
)

ERROR_CLASSES: dict[str, type[EdgepdError]] = {
    kind.code: kind
    for kind in (
        *(ConfigError, RequestError, ContextOverflowError, NotFoundError, ConflictError, BusyError, ModelError),
        *(TemplateError, AdapterError, TrainingError, StoreError, DaemonNotRunningError),
    )
}


def encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON. Raises RequestError for what JSON cannot hold: NaN, and arguments that are not UTF-8."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError as error:
        raise RequestError(f"the request cannot be sent: {error}") from error


def segment(value: str | int) -> str:
    """Return an id as one part of a path. Raises NotFoundError: ids are words, and nothing else can be known."""
    text = str(value)
    if not text.replace("-", "").replace("_", "").isalnum() or not text.isascii():
        raise NotFoundError(f"{text[:80]!r} is not an id; ids consist of letters, digits, '-' and '_'")
    return text


def parsed(text: str, what: str) -> dict[str, Any]:
    """Return the JSON object in an answer. Raises EdgepdError if it is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EdgepdError(f"the daemon sent an {what} that is not JSON: {text[:200]!r}") from error
    if not isinstance(value, dict):
        raise EdgepdError(f"the daemon sent an {what} that is not a JSON object: {text[:200]!r}")
    return value


def error_in(response: httpx.Response) -> EdgepdError:
    """Return the error that a refused request was answered with."""
    try:
        found = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        # Without JSON it was refused before it was looked at; 503 then means too many connections.
        kind = BusyError if response.status_code == BusyError.http_status else EdgepdError
        return kind(f"the daemon answered with status {response.status_code}: {response.text[:200]!r}")
    return explained(found, response.status_code)


def explained(found: Any, status: int) -> EdgepdError:
    """Return the error that {"message", "code", ...} describes, as the class that it was in the daemon."""
    if not isinstance(found, dict) or "message" not in found:
        return EdgepdError(f"the daemon answered with status {status}: {str(found)[:200]!r}")
    return ERROR_CLASSES.get(str(found.get("code")), EdgepdError)(str(found["message"]))
