"""/v1/responses: OpenAI's newer form of a chat, with items in and out.

The idea: the items become the messages of a chat, and `previous_response_id` continues an exchange that the profile
keeps. What this does not do: keep anything of its own; a response that was not stored cannot be continued.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.api import streams
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import MAX_TOP_LOGPROBS
from edgepd_daemon.api.disconnect import cancel_on_disconnect
from edgepd_daemon.api.openai import sse
from edgepd_daemon.api.openai.fields import Generating
from edgepd_daemon.api.openai.formats import grammar_of
from edgepd_daemon.api.openai.response_input import Item, continued, item_messages
from edgepd_daemon.api.openai.response_output import ResponseStream
from edgepd_daemon.api.openai.tools import Choice, ResponseTools, of_response
from edgepd_daemon.ask import Ask
from edgepd_daemon.services import Services

router = APIRouter()

LOGPROBS = "message.output_text.logprobs"


class TextOptions(BaseModel):
    """What the text must look like."""

    model_config = ConfigDict(extra="ignore")
    format: dict[str, Any] | None = Field(None, description="of type text, json_object or json_schema")
    verbosity: str | None = Field(None, description="only 'medium' is understood")


class ResponseRequest(Generating):
    """Body of /v1/responses: OpenAI's fields as far as a local model can honour them, and llama-server's samplers."""

    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=200)
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    tools: ResponseTools = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = Field(None, description=f"only {LOGPROBS} is understood")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    stream_options: dict[str, Any] | None = Field(None, description="ignored: there is nothing to obfuscate")
    background: Literal[False] | None = None

    def ask(self, services: Services, request: Request) -> Ask:
        """Translate into what the daemon understands. Raises RequestError or NotFoundError. Reads the profile."""
        self._refuse()
        tools, choice = of_response(self.tools, self.tool_choice)
        grammar = grammar_of(self.text.format if self.text else None, self.grammar, calls_tools=bool(tools))
        before = continued(services.store, self.previous_response_id)
        logprobs = (self.top_logprobs or 0) if LOGPROBS in (self.include or []) else None
        own: dict[str, Any] = {"conversation": self.conversation or before.conversation}
        if self.truncation == "auto":
            own["overflow"] = "shift"
        return self.asked(
            services,
            request,
            self.max_output_tokens,
            messages=item_messages(self.input, self.instructions, before),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            grammar=grammar,
            logprobs=logprobs,
            **own,
        )

    def _refuse(self) -> None:
        self.check()
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise RequestError("`text.verbosity` is not supported; ask for it in the prompt")
        if other := [name for name in self.include or [] if name != LOGPROBS]:
            raise RequestError(f"`include` has {other[0][:100]!r}, but only '{LOGPROBS}' is supported; leave it out")
        if self.top_logprobs is not None and not self.include:
            raise RequestError(f"`top_logprobs` needs `include` to have '{LOGPROBS}'")

    def echoed(self, ask: Ask) -> dict[str, Any]:
        """Return what a response repeats of its request."""
        flat = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict is not False,
            }
            for tool in self.tools or []
        ]
        text = {"format": (self.text.format if self.text else None) or {"type": "text"}, "verbosity": "medium"}
        return {
            "instructions": self.instructions,
            "max_output_tokens": ask.max_tokens if self.max_output_tokens else None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": ask.parallel_tool_calls,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": ask.store,
            "temperature": ask.sampling.temperature,
            "text": text,
            "tool_choice": self.tool_choice or "auto",
            "tools": flat,
            "top_logprobs": self.top_logprobs or 0,
            "top_p": ask.sampling.top_p,
            "truncation": "auto" if ask.overflow == "shift" else "disabled",
            "background": False,
        }


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponseRequest, services: Access, request: Request) -> Response:
    """Answer items with items. The answer carries `interaction_id`, `generation`, `timings` and `warnings`."""
    ask = await asyncio.to_thread(body.ask, services, request)
    exchange = await services.exchanges.start(ask)
    stream = ResponseStream(exchange, body.echoed(ask))
    if body.stream:
        return sse.response(stream.lines(await streams.started(request, [exchange], exchange.events())))
    async with cancel_on_disconnect(request, exchange):
        async for event in exchange.events():
            stream.take(event)
    return JSONResponse(stream.response())
