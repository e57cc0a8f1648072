"""What a response consists of, and the events that build it up.

The idea: one object takes the events of the exchange, keeps the items and returns the lines of the stream; a response
that is not streamed uses the same and drops the lines. Invariants: every item that is added is done before the
response is, unless that fails; the sequence numbers have no gaps.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from edgepd.errors import EdgepdError
from edgepd_daemon.api import streams
from edgepd_daemon.api.openai import report
from edgepd_daemon.api.openai.response_input import ID_PREFIX
from edgepd_daemon.choices import End, Piece
from edgepd_daemon.engine.types import ScoredToken
from edgepd_daemon.exchange import Exchange
from edgepd_daemon.tools.types import ToolCall

COMPLETED = ("stop", "tool_calls")


class ResponseStream:
    """A response as far as it has come."""

    def __init__(self, exchange: Exchange, echoed: dict[str, Any]) -> None:
        """`echoed` is what the response repeats of its request."""
        self._exchange = exchange
        self._choice = exchange.choices[0]
        self._echoed = echoed
        self._items: list[dict[str, Any]] = []
        self._text: list[str] | None = None  # of the message that is open
        self._scores: list[dict[str, Any]] = []
        self._number = 0
        self._delta_head = ""

    async def lines(self, events: AsyncGenerator[Piece | End, None]) -> AsyncIterator[str]:
        """Yield the stream. A failure is its last event."""
        try:
            async with aclosing(events):
                begun = False
                async for event in events:
                    if not begun:
                        begun = True
                        yield self._event("response.created", response=self.response("in_progress"))
                        yield self._event("response.in_progress", response=self.response("in_progress"))
                    for line in self.take(event):
                        yield line
        except EdgepdError as error:
            code = "invalid_prompt" if error.http_status < 500 else "server_error"
            failed = self.response("failed") | {"error": {"code": code, "message": str(error)}}
            yield self._event("response.failed", response=failed)
            return
        status = self._status()
        yield self._event(f"response.{status}", response=self.response(status))

    def take(self, event: Piece | End) -> list[str]:
        """Take in an event of the exchange and return the lines that tell of it."""
        if isinstance(event, End):
            opened = [] if self._items or self._text is not None else self._open_message()
            return opened + self._close_message()
        lines = []
        if event.text or event.scored:
            if self._text is None:
                lines += self._open_message()
            lines.append(self._delta(event.text, event.scored))
        for call in event.calls:
            lines += self._close_message() + self._call(call)
        return lines

    def response(self, status: str | None = None) -> dict[str, Any]:
        """Return the response object, by default the one at the end."""
        ended = status is None or status in ("completed", "incomplete")
        status = status or self._status()
        exchange, choice = self._exchange, self._choice
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"{ID_PREFIX}{choice.interaction.id}",
            "object": "response",
            "created_at": int(exchange.created_at),
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "model": exchange.model_id,
            "output": list(self._items),
            **self._echoed,
            "interaction_id": choice.interaction_id,
            "generation": exchange.version.generation,
            **({"usage": self._usage(), **report.additions(exchange, choice)} if ended else {}),
        }

    def _open_message(self) -> list[str]:
        self._text, self._scores = [], []
        where = self._where()
        item = {"id": where["item_id"], "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        # The text comes last but one, so that only it and the sequence number are made for each token.
        constant = {"type": "response.output_text.delta", **where, "content_index": 0}
        self._delta_head = f"event: response.output_text.delta\ndata: {streams.encoded(constant)[:-1]}"
        return [
            self._event("response.output_item.added", output_index=where["output_index"], item=item),
            self._event("response.content_part.added", **where, content_index=0, part=_part("", [])),
        ]

    def _delta(self, text: str, scored: tuple[ScoredToken, ...]) -> str:
        if self._text is not None:
            self._text.append(text)
        scores = [report.token_scores(token) for token in scored]
        self._scores += scores
        number, self._number = self._number, self._number + 1
        shown = streams.encoded({"logprobs": scores})[1:-1] if scores else '"logprobs":[]'
        return f'{self._delta_head},{shown},"delta":{streams.quoted(text)},"sequence_number":{number}}}\n\n'

    def _close_message(self) -> list[str]:
        if self._text is None:
            return []
        text, where, self._text = "".join(self._text), self._where(), None
        part = _part(text, self._scores)
        status = "incomplete" if self._choice.ended and self._status() == "incomplete" else "completed"
        item = {"id": where["item_id"], "type": "message", "role": "assistant", "status": status, "content": [part]}
        self._items.append(item)
        return [
            self._event("response.output_text.done", **where, content_index=0, text=text, logprobs=self._scores),
            self._event("response.content_part.done", **where, content_index=0, part=part),
            self._event("response.output_item.done", output_index=where["output_index"], item=item),
        ]

    def _call(self, call: ToolCall) -> list[str]:
        where = {"item_id": f"fc_{call.id}", "output_index": len(self._items)}
        item = {"id": where["item_id"], "type": "function_call", "call_id": call.id, "name": call.name}
        begun = {**item, "status": "in_progress", "arguments": ""}
        done = {**item, "status": "completed", "arguments": call.arguments}
        self._items.append(done)
        arguments = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=where["output_index"], item=begun),
            self._event(f"{arguments}.delta", **where, delta=call.arguments),
            self._event(f"{arguments}.done", **where, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=where["output_index"], item=done),
        ]

    def _where(self) -> dict[str, Any]:
        number = len(self._items)
        return {"item_id": f"msg_{self._choice.interaction.id}_{number}", "output_index": number}

    def _event(self, kind: str, **fields: Any) -> str:
        number, self._number = self._number, self._number + 1
        return f"event: {kind}\ndata: {streams.encoded({'type': kind, **fields, 'sequence_number': number})}\n\n"

    def _status(self) -> str:
        return "completed" if self._choice.finish_reason in COMPLETED else "incomplete"

    def _usage(self) -> dict[str, Any]:
        counted = report.usage([self._exchange])
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        }


def _part(text: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}
