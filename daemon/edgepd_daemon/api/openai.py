"""The OpenAI dialect: chat completions, streamed or whole, and the list of models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import EdgepdError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.errors import error_body
from edgepd_daemon.engine.types import Finished, Sampling, Text
from edgepd_daemon.exchange import Ask, Exchange

router = APIRouter()

MAX_STOP_STRINGS = 4  # as OpenAI's own API has it


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return role and text as chat templates expect them."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What a stream reports besides the text."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of /v1/chat/completions: OpenAI's fields, llama.cpp's samplers, and `conversation` and `app` of our own."""

    model_config = ConfigDict(extra="allow")
    model: str = "default"
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1)
    store: bool = True
    cache_prompt: bool = True  # llama-server's name: whether an earlier prompt's KV cache may be reused
    conversation: str | None = Field(None, max_length=200)
    app: str = Field("", max_length=200)

    def ask(self, default_max_tokens: int) -> Ask:
        """Translate into what the daemon understands. Raises RequestError for what it does not."""
        self._refuse_unsupported()
        messages = [m.plain() for m in self.messages]
        if not messages[-1]["content"].strip():
            raise RequestError("the last message is empty; say something in `messages[-1].content`")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        _refuse_half_characters([self.model, *stop, *(m["content"] for m in messages)])
        if len(stop) > MAX_STOP_STRINGS or "" in stop:
            raise RequestError(f"`stop` takes at most {MAX_STOP_STRINGS} strings, none of them empty")
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "seed")
            if (value := getattr(self, name)) is not None
        }
        if self.repeat_penalty is not None:
            given["repeat_penalty"] = self.repeat_penalty
        return Ask(
            model=self.model,
            messages=messages,
            max_tokens=self.max_completion_tokens or self.max_tokens or default_max_tokens,
            sampling=Sampling(**given),
            stop=tuple(stop),
            store=self.store,
            conversation=self.conversation,
            app=self.app,
            reuse_cache=self.cache_prompt,
        )

    def _refuse_unsupported(self) -> None:
        extra = self.model_extra or {}
        unsupported = [name for name in ("tools", "functions", "logprobs", "audio") if extra.get(name)]
        if (extra.get("response_format") or {}).get("type", "text") != "text":
            unsupported.append("response_format")
        if self.n != 1:
            unsupported.append("n > 1")
        if unsupported:
            raise RequestError(f"not supported: {', '.join(unsupported)}; leave it out")


def _refuse_half_characters(texts: list[str]) -> None:
    """JSON can spell half a surrogate pair, which no tokenizer and no file can take."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"a text has half a character (a lone surrogate) at position {error.start}") from error


@router.post("/v1/chat/completions", response_model=None, tags=["openai"])
async def chat_completions(body: ChatRequest, services: Access, request: Request) -> Response:
    """Answer a conversation. The answer carries `interaction_id`, `generation`, `timings` and `warnings`."""
    ask = body.ask(services.settings.serve.max_tokens)
    exchange = await Exchange.start(services.engine, services.generations, services.recorder, ask)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(_stream(exchange, include_usage), media_type="text/event-stream")
    hang_up = asyncio.create_task(_cancel_on_disconnect(request, exchange))
    try:
        async for _ in exchange.events():
            continue
    finally:
        hang_up.cancel()
    message = {"role": "assistant", "content": exchange.text}
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(exchange), "logprobs": None}
    answer = _envelope(exchange, "chat.completion", [choice])
    return JSONResponse({**answer, "usage": _usage(exchange), **_report(exchange)})


@router.get("/v1/models", tags=["openai"])
def models(services: Access) -> dict[str, Any]:
    """List what a request may name as its `model`."""
    generations = services.generations
    active = generations.current.generation
    listed = [(g.id, int(g.created_at)) for g in generations.listing() if g.state in ("active", "retired")]
    created = dict(listed)
    base = min(created)
    names = [("default", active), ("base", base)]
    names += [(f"{generations.base.name}@{generation}", generation) for generation, _ in listed]
    data = [
        {"id": name, "object": "model", "created": created[g], "owned_by": "edgepd", "generation": g}
        for name, g in names
    ]
    return {"object": "list", "data": data}


async def _cancel_on_disconnect(request: Request, exchange: Exchange) -> None:
    """Free the slot of an answer that nobody waits for any more. A stream is watched by Starlette itself."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    exchange.cancel()


async def _stream(exchange: Exchange, include_usage: bool) -> AsyncIterator[str]:
    """Yield server-sent events in OpenAI's form."""
    role: dict[str, str] = {"role": "assistant"}
    try:
        async for event in exchange.events():
            if isinstance(event, Text):
                yield _chunk(exchange, {**role, "content": event.text})
                role = {}
            elif isinstance(event, Finished):
                yield _chunk(exchange, role, _finish_reason(exchange), _report(exchange))
    except EdgepdError as error:
        yield _event(error_body(str(error), error.code, error.http_status))
        return
    if include_usage:
        yield _event({**_envelope(exchange, "chat.completion.chunk", []), "usage": _usage(exchange)})
    yield "data: [DONE]\n\n"


def _chunk(
    exchange: Exchange, delta: dict[str, str], finish: str | None = None, report: dict[str, Any] | None = None
) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return _event({**_envelope(exchange, "chat.completion.chunk", [choice]), **(report or {})})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _envelope(exchange: Exchange, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{exchange.interaction.id}",
        "object": kind,
        "created": int(exchange.interaction.created_at or time.time()),
        "model": exchange.model_id,
        "choices": choices,
        "interaction_id": exchange.interaction_id,
        "generation": exchange.version.generation,
    }


def _finish_reason(exchange: Exchange) -> str | None:
    # OpenAI knows no cancelled answers; they end like those that were cut.
    return "length" if exchange.finish_reason == "cancelled" else exchange.finish_reason


def _usage(exchange: Exchange) -> dict[str, Any]:
    prompt = exchange.interaction.prompt_tokens
    completion = exchange.timings.completion_tokens if exchange.timings else exchange.completion_tokens
    cached = exchange.timings.cached_tokens if exchange.timings else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _report(exchange: Exchange) -> dict[str, Any]:
    """Return what edgepd adds to a finished answer."""
    timings = exchange.timings
    shown = None
    if timings is not None:
        shown = {
            "prompt_tokens": timings.prompt_tokens,
            "cached_tokens": timings.cached_tokens,
            "completion_tokens": timings.completion_tokens,
            "queue_ms": round(timings.queue_ms, 3),
            "ttft_ms": round(timings.ttft_ms, 3),
            "decode_ms": round(timings.decode_ms, 3),
            "tokens_per_second": round(timings.decode_tokens_per_second, 2),
        }
    return {"logged": exchange.logged, "timings": shown, "warnings": exchange.warnings}
