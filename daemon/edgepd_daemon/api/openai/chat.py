"""/v1/chat/completions: a conversation in, one or several answers out, whole or streamed."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from edgepd.errors import RequestError
from edgepd_daemon.api import streams
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import MAX_TOP_LOGPROBS
from edgepd_daemon.api.disconnect import cancel_on_disconnect
from edgepd_daemon.api.openai import report, sse
from edgepd_daemon.api.openai.chat_stream import ChatStream
from edgepd_daemon.api.openai.fields import Generating, StreamOptions, check_count
from edgepd_daemon.api.openai.formats import grammar_of
from edgepd_daemon.api.openai.messages import ChatMessage, template_messages
from edgepd_daemon.api.openai.tools import ChatTools, Choice, of_chat
from edgepd_daemon.ask import Ask
from edgepd_daemon.choices import Choice as Answer
from edgepd_daemon.exchange import Exchange
from edgepd_daemon.services import Services

router = APIRouter()


class ChatRequest(Generating):
    """Body of /v1/chat/completions: OpenAI's fields, llama-server's samplers, and a few of our own.

    Ignored, because they have a meaning for OpenAI's service only: `user`, `metadata`, `safety_identifier`,
    `service_tier`, `prompt_cache_key` and the like. Every other field that is not listed is refused unless it is null.
    """

    messages: list[ChatMessage] = Field(min_length=1)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: dict[str, Any] | None = Field(None, description="of type text, json_object or json_schema")
    tools: ChatTools = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = Field(None, description="only ['text'] is understood")
    verbosity: str | None = Field(None, description="only 'medium' is understood")

    def ask(self, services: Services, request: Request) -> Ask:
        """Translate into what the daemon understands. Raises RequestError for what it does not. Slow with a schema."""
        self.check()
        if self.modalities not in (None, ["text"]):
            raise RequestError("`modalities` can only be ['text']; leave it out")
        if self.verbosity not in (None, "medium"):
            raise RequestError("`verbosity` is not supported; ask for it in the prompt")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("`top_logprobs` needs `logprobs` to be true")
        tools, choice = of_chat(self.tools, self.tool_choice)
        return self.asked(
            services,
            request,
            self.max_completion_tokens or self.max_tokens,
            messages=template_messages(self.messages),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            grammar=grammar_of(self.response_format, self.grammar, calls_tools=bool(tools)),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            n=check_count(self.n or 1, services.settings),
        )


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, services: Access, request: Request) -> Response:
    """Answer a conversation. The answer carries `interaction_id`, `generation`, `timings` and `warnings`.

    With `n` above 1 these are the first answer's, and each choice has its own.
    """
    ask = await asyncio.to_thread(body.ask, services, request)
    exchange = await services.exchanges.start(ask)
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        events = await streams.started(request, [exchange], exchange.events())
        return sse.response(ChatStream(exchange, include_usage=include_usage).lines(events))
    async with cancel_on_disconnect(request, exchange):
        async for _ in exchange.events():
            continue
    return JSONResponse(_whole(exchange))


def _whole(exchange: Exchange) -> dict[str, Any]:
    first = exchange.choices[0]
    return {
        "id": f"chatcmpl-{first.interaction.id}",
        "object": "chat.completion",
        "created": int(exchange.created_at),
        "model": exchange.model_id,
        "choices": [_choice(exchange, index, choice) for index, choice in enumerate(exchange.choices)],
        "usage": report.usage([exchange]),
        "interaction_id": first.interaction_id,
        "generation": exchange.version.generation,
        **report.additions(exchange, first),
    }


def _choice(exchange: Exchange, index: int, choice: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.calls:
        message["content"] = choice.content or None
        message["tool_calls"] = [report.made_call(call) for call in choice.calls]
    return {
        "index": index,
        "message": message,
        "finish_reason": report.finish_reason(choice),
        "logprobs": report.chat_logprobs(choice.scored) if choice.scored else None,
        **(report.own_additions(exchange, choice) if len(exchange.choices) > 1 else {}),
    }
