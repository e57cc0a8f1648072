"""What answers tell besides their text: usage, log-probabilities, and edgepd's own additions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgepd_daemon.choices import Choice
from edgepd_daemon.engine.types import ScoredToken, TokenScore
from edgepd_daemon.exchange import Exchange
from edgepd_daemon.tools.types import ToolCall


def finish_reason(choice: Choice) -> str | None:
    """Return why an answer ended. OpenAI knows no cancelled answers; they end like those that were cut."""
    return "length" if choice.finish_reason == "cancelled" else choice.finish_reason


def usage(exchanges: Iterable[Exchange]) -> dict[str, Any]:
    """Return the tokens that prompts and answers have; a prompt with several answers counts once."""
    prompt = completion = cached = 0
    for exchange in exchanges:
        prompt += len(exchange.prompt.tokens)
        completion += sum(choice.completion_tokens for choice in exchange.choices)
        timings = exchange.choices[0].timings
        cached += timings.cached_tokens if timings else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def additions(exchange: Exchange, choice: Choice) -> dict[str, Any]:
    """Return what edgepd adds to a finished answer."""
    timings = choice.timings
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
    return {"logged": choice.logged, "timings": shown, "warnings": exchange.warnings, "personal": exchange.personal}


def own_additions(exchange: Exchange, choice: Choice) -> dict[str, Any]:
    """Return the same with the interaction's id, for one answer of several."""
    return {"interaction_id": choice.interaction_id, **additions(exchange, choice)}


def chat_logprobs(scored: Sequence[ScoredToken]) -> dict[str, Any]:
    """Return log-probabilities in the form of chat completions."""
    return {"content": [token_scores(token) for token in scored], "refusal": None}


def token_scores(token: ScoredToken) -> dict[str, Any]:
    """Return one token with its alternatives."""
    return {**_score(token), "top_logprobs": [_score(other) for other in token.top]}


def legacy_logprobs(scored: Sequence[ScoredToken], offset: int) -> dict[str, Any]:
    """Return log-probabilities in the form of completions; `offset` is how many characters came before."""
    tokens = [_text(token) for token in scored]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in scored],
        "top_logprobs": [{_text(other): other.logprob for other in token.top} for token in scored],
        "text_offset": offsets,
    }


def made_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call in the form of chat completions."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _score(token: TokenScore) -> dict[str, Any]:
    return {"token": _text(token), "logprob": token.logprob, "bytes": list(token.piece)}


def _text(token: TokenScore) -> str:
    return token.piece.decode(errors="replace")
