"""How errors look to clients: each in the dialect of the path that was asked.

The idea: code deep inside raises an EdgepdError; the path decides how it is told. Ollama's routes give
`{"error": sentence}`, all others OpenAI's error object. The invariant: whatever fails, the client gets JSON in its
dialect, and never the text that it sent.
What this does not do: errors in the middle of a stream. The dialects write those with the functions here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from edgepd.errors import BusyError, EdgepdError, RequestError
from edgepd_daemon.services import Services

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2  # what a refused client is told to wait
UNEXPECTED = "unexpected failure; the daemon's log has the details"

Dialect = Literal["ollama", "openai"]

_TEXT = {"type": "string"}
_ERROR_OBJECT = {
    "type": "object",
    "required": ["message", "type", "param", "code"],
    "properties": {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT},
}
_QUEUED = {"type": "integer", "description": "How many requests are waiting, if that is why."}
# The two bodies as the OpenAPI document describes them.
SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "description": "An error as OpenAI's API has it.",
        "required": ["error"],
        "properties": {"error": _ERROR_OBJECT, "queued": _QUEUED},
    },
    "OllamaError": {
        "type": "object",
        "description": "An error as Ollama's API has it.",
        "required": ["error"],
        "properties": {"error": _TEXT, "queued": _QUEUED},
    },
}


def dialect_of(path: str) -> Dialect:
    """Return whose errors the clients of a path expect."""
    return "ollama" if path == "/api" or path.startswith("/api/") else "openai"


def error_body(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": _printable(message), "type": kind, "param": param, "code": code}}


def refusal(
    path: str,
    message: str,
    *,
    code: str,
    status: int,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Return an error in the dialect of the path; `extra` stands beside it in the body."""
    if dialect_of(path) == "ollama":
        body: dict[str, Any] = {"error": _printable(message)}
    else:
        body = error_body(message, code, status, param)
    return JSONResponse({**body, **(extra or {})}, status, headers)


def error_response(path: str, error: EdgepdError) -> JSONResponse:
    """Return an error that explains itself. A busy daemon also says when to come back and how many are waiting."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.http_status == BusyError.http_status else None
    extra = {"queued": error.queued} if isinstance(error, BusyError) and error.queued is not None else None
    return refusal(path, str(error), code=error.code, status=error.http_status, headers=headers, extra=extra)


def described(path: str) -> dict[str, Any]:
    """Return what the OpenAPI document says about the errors of a path."""
    name = "OllamaError" if dialect_of(path) == "ollama" else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"description": "What went wrong, in a sentence", "content": content}


def install(app: FastAPI) -> None:
    """Map every kind of error to a response."""

    @app.exception_handler(EdgepdError)
    async def explained(request: Request, error: EdgepdError) -> JSONResponse:
        _count(request, error.code)
        return error_response(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        # The offending input itself is left out: it may be the user's text.
        found = error.errors()
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in found)
        param = parameter(found[0]["loc"], error.body) if found else None
        return _bad_request(request, problems, param)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = "not_found" if error.status_code == 404 else RequestError.code
        _count(request, code)
        return refusal(request.url.path, message, code=code, status=error.status_code, headers=error.headers)

    @app.exception_handler(RecursionError)
    async def too_deep(request: Request, _: RecursionError) -> JSONResponse:
        return _bad_request(request, "the body is nested too deeply; send flatter JSON")

    @app.exception_handler(UnicodeEncodeError)
    async def half_a_character(request: Request, error: UnicodeEncodeError) -> JSONResponse:
        return _bad_request(
            request, f"a text has half a character (a lone surrogate) at position {error.start}; send whole ones"
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _: Exception) -> JSONResponse:
        _count(request, EdgepdError.code)
        # Starlette raises it again after this, so that uvicorn logs the traceback and closes the connection.
        log.error("%s %s failed", request.method, request.url.path)
        headers = {"Connection": "close"}
        return refusal(request.url.path, UNEXPECTED, code=EdgepdError.code, status=500, headers=headers)


def parameter(location: Sequence[str | int], body: object) -> str | None:
    """Return the name of the offending field as OpenAI writes it, such as `messages[0].role`.

    pydantic also names the alternatives that it tried (`messages.0.content.str`); those are not in the body.
    """
    name, value = "", body
    for part in location[1:]:
        inside = isinstance(value, Mapping) or (isinstance(value, list) and isinstance(part, int))
        if not inside:
            break
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
        if isinstance(value, list):
            value = value[part] if isinstance(part, int) and part < len(value) else None
        elif isinstance(value, Mapping):
            value = value.get(part)
    if not name and location and location[0] in ("query", "path", "header"):
        return str(location[-1])
    return name or None


def _bad_request(request: Request, message: str, param: str | None = None) -> JSONResponse:
    _count(request, RequestError.code)
    return refusal(request.url.path, message, code=RequestError.code, status=400, param=param)


def _count(request: Request, code: str) -> None:
    services: Services | None = request.app.state.services
    if services is not None:
        services.metrics.refused(code)


def _printable(message: str) -> str:
    """Replace half characters, which a message may repeat from a request and no response can carry."""
    return message.encode("utf-8", "replace").decode("utf-8")
