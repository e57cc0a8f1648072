"""The stream of a chat completion.

The idea: what is the same in every chunk of a choice is turned into JSON once, so that a token costs little more than
the escaping of its text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from edgepd.errors import EdgepdError
from edgepd_daemon.api import streams
from edgepd_daemon.api.errors import error_body
from edgepd_daemon.api.openai import report, sse
from edgepd_daemon.choices import End, Piece
from edgepd_daemon.exchange import Exchange

TAIL = ',"logprobs":null,"finish_reason":null}]}\n\n'


class ChatStream:
    """Turns the events of an exchange into the chunks of its stream."""

    def __init__(self, exchange: Exchange, *, include_usage: bool) -> None:
        """With `include_usage`, a last chunk says how many tokens there were."""
        self._exchange = exchange
        self._include_usage = include_usage
        self._heads: dict[int, tuple[tuple[bool, bool], str]] = {}
        self._begun: set[int] = set()  # choices whose role is told
        self._calls: dict[int, int] = {}  # tool calls of each choice so far

    async def lines(self, events: AsyncGenerator[Piece | End, None]) -> AsyncIterator[str]:
        """Yield the stream. A failure is its last line."""
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Piece):
                        for line in self._piece(event):
                            yield line
                    else:
                        yield self._end(event.choice)
        except EdgepdError as error:
            yield sse.data(error_body(str(error), error.code, error.http_status))
            return
        if self._include_usage:
            yield sse.data({**self._envelope(), "choices": [], "usage": report.usage([self._exchange])})
        yield sse.DONE

    def _piece(self, piece: Piece) -> list[str]:
        lines = []
        if piece.text or piece.scored:
            tail = TAIL
            if piece.scored:
                tail = (
                    f',"logprobs":{streams.encoded(report.chat_logprobs(piece.scored))},"finish_reason":null}}]}}\n\n'
                )
            content = f'"content":{streams.quoted(piece.text)}}}'
            lines.append(f"{self._head(piece.choice)}{self._role(piece.choice)}{content}{tail}")
        for call in piece.calls:
            number = self._calls.get(piece.choice, 0)
            self._calls[piece.choice] = number + 1
            content = "" if piece.choice in self._begun else '"content":null,'
            made = streams.encoded({"index": number, **report.made_call(call)})
            lines.append(f'{self._head(piece.choice)}{self._role(piece.choice)}{content}"tool_calls":[{made}]}}{TAIL}')
        return lines

    def _role(self, index: int) -> str:
        """Return the beginning of a delta; the first of a choice tells the role."""
        if index in self._begun:
            return "{"
        self._begun.add(index)
        return '{"role":"assistant",'

    def _head(self, index: int) -> str:
        """Return a chunk up to its delta. It changes only when an answer turns out to be stored, or not to be."""
        choices = self._exchange.choices
        logged = (choices[0].logged, choices[index].logged)
        known = self._heads.get(index)
        if known is None or known[0] != logged:
            own = {"interaction_id": choices[index].interaction_id} if len(choices) > 1 else {}
            choice = streams.encoded({"index": index, **own})
            head = f'data: {streams.encoded(self._envelope())[:-1]},"choices":[{choice[:-1]},"delta":'
            known = self._heads[index] = (logged, head)
        return known[1]

    def _end(self, index: int) -> str:
        choice = self._exchange.choices[index]
        several = len(self._exchange.choices) > 1
        ended = {
            "index": index,
            "delta": {} if index in self._begun else {"role": "assistant"},
            "finish_reason": report.finish_reason(choice),
            "logprobs": None,
            **(report.own_additions(self._exchange, choice) if several else {}),
        }
        whole = {} if index else report.additions(self._exchange, choice)
        return sse.data({**self._envelope(), "choices": [ended], **whole})

    def _envelope(self) -> dict[str, Any]:
        first = self._exchange.choices[0]
        return {
            "id": f"chatcmpl-{first.interaction.id}",
            "object": "chat.completion.chunk",
            "created": int(self._exchange.created_at),
            "model": self._exchange.model_id,
            "interaction_id": first.interaction_id,
            "generation": self._exchange.version.generation,
            **({"usage": None} if self._include_usage else {}),
        }
