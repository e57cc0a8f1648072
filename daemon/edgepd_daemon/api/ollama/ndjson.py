"""Answers in Ollama's form: a stream of JSON objects, one on each line, or one object.

The idea: chat and generate differ only in where the text stands (`Form`); what surrounds it, the durations and the
ends are the same. The invariant: every stream ends with an object that is `done`, or with one that has an `error`.
What this does not do: know what was asked.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from edgepd.errors import EdgepdError, NotFoundError
from edgepd_daemon.api import streams
from edgepd_daemon.api.disconnect import cancel_on_disconnect
from edgepd_daemon.ask import Ask
from edgepd_daemon.choices import Choice, End, Piece
from edgepd_daemon.engine.types import ScoredToken, Timings, TokenScore
from edgepd_daemon.exchange import Exchange
from edgepd_daemon.services import Services
from edgepd_daemon.tools.types import ToolCall

NANOSECONDS_PER_MS = 1_000_000
# Ollama knows neither tool calls nor cancelled answers as reasons.
DONE_REASONS = {"tool_calls": "stop", "cancelled": "length"}


@dataclass(frozen=True)
class Form:
    """How the text of an answer is wrapped: `{"before": text "after"}`."""

    before: str
    after: str
    chat: bool

    def body(self, text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """Return the part of an object that has the text and the tool calls."""
        if not self.chat:
            return {"response": text}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [_call(i, call) for i, call in enumerate(calls)]
        return {"message": message}


CHAT = Form('"message":{"role":"assistant","content":', "}", chat=True)
GENERATE = Form('"response":', "", chat=False)


@dataclass(frozen=True)
class Running:
    """An exchange under way, with what its last object reports. Times are of the monotonic clock."""

    exchange: Exchange
    name: str
    form: Form
    arrived_ns: int
    started_ns: int
    notes: tuple[str, ...]

    @property
    def choice(self) -> Choice:
        """The only answer."""
        return self.exchange.choices[0]


def encoded(body: dict[str, Any]) -> bytes:
    """Return a JSON object in UTF-8, on one line.

    A lone surrogate, which a model can write as an escape in the arguments of a tool call, stays an escape, and so
    does everything at which clients split lines.
    """
    return streams.encoded(body).encode("utf-8", "backslashreplace")


def json_response(body: dict[str, Any], status: int = 200) -> Response:
    """Return one JSON object as a response."""
    return Response(encoded(body), status, media_type="application/json")


def now() -> str:
    """Return the time in RFC 3339."""
    return rfc3339(time.time())


def rfc3339(seconds: float) -> str:
    """Return a time since the epoch in RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def respond(
    services: Services, request: Request, form: Form, name: str, ask: Ask, *, stream: bool, notes: list[str]
) -> Response:
    """Start an exchange and answer in the form asked for. Raises EdgepdError if it cannot be started."""
    arrived_ns = time.monotonic_ns()
    try:
        exchange = await services.exchanges.start(ask)
    except NotFoundError as error:
        raise unknown_model(name, error) from error
    running = Running(exchange, name, form, arrived_ns, time.monotonic_ns(), tuple(notes))
    if stream:
        events = await streams.started(request, [exchange], exchange.events())
        return StreamingResponse(_lines(running, events), media_type="application/x-ndjson")
    async with cancel_on_disconnect(request, exchange):
        async for _ in exchange.events():
            continue
    return json_response(_final(running, running.choice.content, running.choice.calls, running.choice.scored))


def unknown_model(name: str, error: NotFoundError) -> NotFoundError:
    """Return the error with the words "not found", which Ollama's clients look for."""
    return NotFoundError(f"model '{name}' not found ({error})")


async def _lines(running: Running, events: AsyncIterator[Piece | End]) -> AsyncIterator[bytes]:
    """Yield an answer as it comes. What is the same in every line is built once."""
    head = f'{{"model":{streams.quoted(running.name)},"created_at":"'
    before, after = f'",{running.form.before}', f'{running.form.after},"done":false}}\n'
    try:
        async for event in events:
            if not isinstance(event, Piece):
                continue
            if event.calls or event.scored:
                yield _piece(running, event)
            else:
                yield f"{head}{now()}{before}{streams.quoted(event.text)}{after}".encode()
    except EdgepdError as error:
        yield encoded({"error": str(error)}) + b"\n"
        return
    yield encoded(_final(running)) + b"\n"


def _piece(running: Running, event: Piece) -> bytes:
    """Return a line with tool calls or log-probabilities."""
    body = {"model": running.name, "created_at": now(), **running.form.body(event.text, event.calls), "done": False}
    if event.scored:
        body["logprobs"] = [_scored(one) for one in event.scored]
    return encoded(body) + b"\n"


def _final(
    running: Running, text: str = "", calls: Sequence[ToolCall] = (), scored: Sequence[ScoredToken] = ()
) -> dict[str, Any]:
    """Return the object that ends an answer; with the text if it was not streamed."""
    choice, exchange = running.choice, running.exchange
    reason = choice.finish_reason or "stop"
    body = {"model": running.name, "created_at": now(), **running.form.body(text, calls), "done": True}
    body["done_reason"] = DONE_REASONS.get(reason, reason)
    if scored:
        body["logprobs"] = [_scored(one) for one in scored]
    return {
        **body,
        **_durations(running, choice.timings),
        "prompt_eval_count": len(exchange.prompt.tokens),
        "eval_count": choice.completion_tokens,
        "interaction_id": choice.interaction_id,
        "generation": exchange.version.generation,
        "warnings": [*exchange.warnings, *running.notes],
    }


def _durations(running: Running, timings: Timings | None) -> dict[str, int]:
    """Return nanoseconds. Loading is all that happened before the engine had the prompt, the template included."""
    durations = {
        "total_duration": time.monotonic_ns() - running.arrived_ns,
        "load_duration": running.started_ns - running.arrived_ns,
    }
    if timings is not None:
        # At least 1, because clients divide by them.
        durations["prompt_eval_duration"] = max(1, round(timings.prefill_ms * NANOSECONDS_PER_MS))
        durations["eval_duration"] = max(1, round(timings.decode_ms * NANOSECONDS_PER_MS))
    return durations


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    # Numbers that JSON cannot hold, which Python's parser takes, become null.
    arguments = json.loads(call.arguments, parse_float=_finite, parse_constant=lambda _: None)
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _scored(scored: ScoredToken) -> dict[str, Any]:
    body = _score(scored)
    if scored.top:
        body["top_logprobs"] = [_score(one) for one in scored.top]
    return body


def _score(score: TokenScore) -> dict[str, Any]:
    token = score.piece.decode("utf-8", errors="replace")
    return {"token": token, "logprob": score.logprob, "bytes": list(score.piece)}
