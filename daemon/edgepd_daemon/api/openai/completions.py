"""/v1/completions: bare prompts in, their continuations out, whole or streamed.

The idea: each prompt is an exchange of its own; choice `c` of prompt `p` has the index `p * n + c`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from edgepd.errors import EdgepdError, RequestError
from edgepd_daemon.api import streams
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import INT32, MAX_TOP_LOGPROBS
from edgepd_daemon.api.disconnect import cancel_on_disconnect
from edgepd_daemon.api.errors import error_body
from edgepd_daemon.api.openai import report, sse
from edgepd_daemon.api.openai.fields import Generating, StreamOptions, check_count
from edgepd_daemon.api.openai.formats import grammar_of
from edgepd_daemon.api.openai.merge import Event, merged
from edgepd_daemon.ask import Ask
from edgepd_daemon.choices import Choice, Piece
from edgepd_daemon.engine.types import ScoredToken
from edgepd_daemon.exchange import Exchange
from edgepd_daemon.services import Services

router = APIRouter()

Token = Annotated[int, Field(ge=0, le=INT32)]


class CompletionRequest(Generating):
    """Body of /v1/completions: one or several prompts, each a text or a list of tokens."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    best_of: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = Field(None, description="whether the text begins with the prompt")

    def asks(self, services: Services, request: Request) -> list[Ask]:
        """Translate into one question for each prompt. Raises RequestError. Slow with a grammar."""
        self.check()
        settings = services.settings
        n = check_count(self.n or 1, settings)
        if self.best_of not in (None, n):
            raise RequestError(f"`best_of` is {self.best_of}, but only as many answers as `n` ({n}) can be generated")
        if self.echo and self.logprobs is not None:
            raise RequestError("`echo` and `logprobs` exclude each other: prompts are not scored")
        prompts = self._prompts()
        if len(prompts) * n > settings.serve.max_queue:
            raise RequestError(
                f"{len(prompts)} prompts with {n} answers each are more than may wait (serve.max_queue is "
                f"{settings.serve.max_queue}); send them in several requests"
            )
        grammar = grammar_of(None, self.grammar, calls_tools=False)
        own: dict[str, Any] = {"n": n, "logprobs": self.logprobs, "grammar": grammar}
        return [self.asked(services, request, self.max_tokens, prompt=prompt, **own) for prompt in prompts]

    def _prompts(self) -> list[str | list[int]]:
        given = self.prompt
        prompts: list[str | list[int]]
        if isinstance(given, str):
            prompts = [given]
        elif given and isinstance(given[0], int):
            prompts = [[token for token in given if isinstance(token, int)]]
        else:
            prompts = [prompt for prompt in given if not isinstance(prompt, int)]
        if not prompts or not all(prompts):
            raise RequestError("the prompt is empty; give a text or tokens to continue")
        return prompts


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, services: Access, request: Request) -> Response:
    """Continue a text. The answer carries `interaction_id`, `generation`, `timings` and `warnings`."""
    asks = await asyncio.to_thread(body.asks, services, request)
    several = _Several(await _started(services, asks), echo=bool(body.echo))
    events = merged([exchange.events() for exchange in several.exchanges])
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return sse.response(several.lines(await streams.started(request, several.exchanges, events), include_usage))
    async with AsyncExitStack() as stack:
        for exchange in several.exchanges:
            await stack.enter_async_context(cancel_on_disconnect(request, exchange))
        async for _ in events:
            continue
    return JSONResponse(several.whole())


async def _started(services: Services, asks: list[Ask]) -> list[Exchange]:
    """Start all exchanges or, if one is refused, none."""
    started: list[Exchange] = []
    try:
        for ask in asks:
            started.append(await services.exchanges.start(ask))
    except BaseException:
        for exchange in started:
            exchange.cancel()
        raise
    return started


@dataclass
class _Several:
    """The exchanges of one request."""

    exchanges: list[Exchange]
    echo: bool

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        first = self.exchanges[0]
        choices = []
        for prompt, exchange in enumerate(self.exchanges):
            for number, choice in enumerate(exchange.choices):
                text = self._echoed(prompt) + choice.content
                choices.append(self._choice(prompt, number, text, choice.scored, 0, ended=True))
        additions = report.additions(first, first.choices[0])
        return {**self._envelope(), "choices": choices, "usage": report.usage(self.exchanges), **additions}

    async def lines(self, events: AsyncGenerator[tuple[int, Event], None], include_usage: bool) -> AsyncIterator[str]:
        """Yield the stream. A failure is its last line."""
        told: dict[tuple[int, int], int] = {}  # characters of each choice so far
        extra = {"usage": None} if include_usage else {}
        try:
            async with aclosing(events):
                async for prompt, event in events:
                    key = (prompt, event.choice)
                    piece = event if isinstance(event, Piece) else Piece(event.choice, "")
                    text = piece.text if key in told else self._echoed(prompt) + piece.text
                    choice = self._choice(
                        prompt, event.choice, text, piece.scored, told.get(key, 0), ended=piece is not event
                    )
                    told[key] = told.get(key, 0) + sum(len(s.piece.decode(errors="replace")) for s in piece.scored)
                    whole = self._whole(prompt, event.choice) if piece is not event else {}
                    yield sse.data({**self._envelope(), "choices": [choice], **extra, **whole})
        except EdgepdError as error:
            yield sse.data(error_body(str(error), error.code, error.http_status))
            return
        if include_usage:
            yield sse.data({**self._envelope(), "choices": [], "usage": report.usage(self.exchanges)})
        yield sse.DONE

    def _choice(
        self,
        prompt: int,
        number: int,
        text: str,
        scored: list[ScoredToken] | tuple[ScoredToken, ...],
        offset: int,
        *,
        ended: bool,
    ) -> dict[str, Any]:
        exchange = self.exchanges[prompt]
        choice: Choice = exchange.choices[number]
        several = len(self.exchanges) * len(exchange.choices) > 1
        return {
            "index": prompt * len(exchange.choices) + number,
            "text": text,
            "logprobs": report.legacy_logprobs(scored, offset) if scored else None,
            "finish_reason": report.finish_reason(choice) if ended else None,
            **(report.own_additions(exchange, choice) if several and ended else {}),
        }

    def _whole(self, prompt: int, number: int) -> dict[str, Any]:
        first = prompt == number == 0
        return report.additions(self.exchanges[0], self.exchanges[0].choices[0]) if first else {}

    def _echoed(self, prompt: int) -> str:
        return self.exchanges[prompt].prompt.text if self.echo else ""

    def _envelope(self) -> dict[str, Any]:
        exchange = self.exchanges[0]
        first = exchange.choices[0]
        return {
            "id": f"cmpl-{first.interaction.id}",
            "object": "text_completion",
            "created": int(exchange.created_at),
            "model": exchange.model_id,
            "interaction_id": first.interaction_id,
            "generation": exchange.version.generation,
        }
