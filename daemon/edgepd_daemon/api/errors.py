"""How errors look to clients: OpenAI's error object, for every route."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from edgepd.errors import BusyError, EdgepdError, RequestError

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2  # what a refused client is told to wait


def error_body(message: str, code: str, status: int) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def install(app: FastAPI) -> None:
    """Map every kind of error to a response."""

    @app.exception_handler(EdgepdError)
    async def explained(_: Request, error: EdgepdError) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if isinstance(error, BusyError) else None
        body = error_body(str(error), error.code, error.http_status)
        return JSONResponse(body, error.http_status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # The offending input itself is left out: it may be the user's text.
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        return JSONResponse(error_body(problems, RequestError.code, 400), 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = "not_found" if error.status_code == 404 else RequestError.code
        return JSONResponse(error_body(message, code, error.status_code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        body = error_body("unexpected failure; the daemon's log has the details", EdgepdError.code, 500)
        return JSONResponse(body, 500)
