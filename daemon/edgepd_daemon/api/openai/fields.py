"""The fields that the requests of this dialect share, their checks, and what they mean to the daemon.

The names and ranges are OpenAI's, then llama-server's for samplers that OpenAI does not have, then our own:
`conversation`, `app`, `context_overflow` and `keep_alive`.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd.settings import Settings
from edgepd_daemon.api.common import INT32, client_of, refuse_half_characters, texts_in
from edgepd_daemon.api.durations import parse_keep_alive
from edgepd_daemon.ask import Ask
from edgepd_daemon.engine.types import Sampling
from edgepd_daemon.services import Services

MAX_STOP_STRINGS = 4  # as OpenAI's own API has it
MAX_LOGIT_BIAS = 100.0  # the same

# Has a meaning for OpenAI's service only, and none for the text of an answer.
IGNORED = frozenset(
    {
        *("user", "metadata", "safety_identifier", "service_tier"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    }
)
INSTEAD = {
    "functions": "describe them in `tools`",
    "function_call": "use `tool_choice`",
    "audio": "only text is generated",
    "suffix": "put everything into `prompt`",
    "reasoning": "ask for it in the prompt",
    "reasoning_effort": "ask for it in the prompt",
    "previous_response_id": "send the whole conversation",
    "max_tool_calls": "set `parallel_tool_calls` to false to get one call at most",
}

Probability = Annotated[float | None, Field(ge=0, le=1)]
Window = Annotated[int | None, Field(ge=-1, le=INT32, description="in tokens; -1 is the whole context")]
Name = Annotated[str | None, Field(max_length=200)]


class Body(BaseModel):
    """A request body. Fields that nobody knows are refused, unless they are null."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = IGNORED
    model: str = Field("default", max_length=200)

    def check(self) -> None:
        """Raise RequestError for half characters anywhere, and for fields that have a value and no meaning here."""
        refuse_half_characters(texts_in(self))
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in self.ignored:
                raise RequestError(f"`{name}` is not supported; {self._advice(name)}")

    def _advice(self, name: str) -> str:
        near = difflib.get_close_matches(name, type(self).model_fields, n=1, cutoff=0.7)
        return INSTEAD.get(name) or (f"did you mean `{near[0]}`?" if near else "leave it out")


class StreamOptions(BaseModel):
    """What a stream reports besides the text."""

    include_usage: bool | None = None


class Generating(Body):
    """What every request for text may say about how it is generated."""

    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: Probability = None
    top_k: int | None = Field(None, ge=0, le=INT32)
    min_p: Probability = None
    typical_p: Probability = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    repeat_last_n: Window = None
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=1, le=100)
    dry_allowed_length: int | None = Field(None, ge=0, le=INT32)
    dry_penalty_last_n: Window = None
    dry_sequence_breakers: list[Annotated[str, Field(min_length=1, max_length=100)]] | None = Field(None, max_length=32)
    logit_bias: dict[str, Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    grammar: str | None = Field(None, description="what the answer may consist of, in llama.cpp's GBNF")
    ignore_eos: bool = False
    store: bool | None = Field(None, description="whether the profile keeps the exchange; by default it does")
    personal: bool = Field(True, description="whether what the profile knows may be put before the question")
    cache_prompt: bool = Field(True, description="whether the KV cache of an earlier prompt may be reused")
    conversation: Name = Field(None, description="any name for what belongs together")
    app: Annotated[str, Field(max_length=200, description="who is asking, for the profile")] = ""
    context_overflow: Literal["error", "shift"] = "error"
    keep_alive: float | str | None = Field(None, description="how long the model stays loaded, such as 300 or '5m'")

    def sampling(self) -> Sampling:
        """Return how tokens are chosen."""
        given: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value, list) else value
            for field in dataclasses.fields(Sampling)
            if (value := getattr(self, field.name)) is not None
        }
        if self.logit_bias is not None:
            given["logit_bias"] = tuple((_token(key), bias) for key, bias in self.logit_bias.items())
        return Sampling(**given)

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings. Raises RequestError for too many or empty ones."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOP_STRINGS or "" in stops:
            raise RequestError(f"`stop` takes at most {MAX_STOP_STRINGS} strings, none of them empty")
        return stops

    def asked(self, services: Services, request: Request, max_tokens: int | None, **own: Any) -> Ask:
        """Return the question with what all of this dialect's requests may say, and the route's own part of it.

        Raises RequestError. Loads the model if tokens have to be checked.
        """
        sampling = self.sampling()
        prompt = own.get("prompt")
        named = [token for token, _ in sampling.logit_bias] + (prompt if isinstance(prompt, list) else [])
        check_tokens(services, self.model, named)
        common: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens or services.settings.serve.max_tokens,
            "sampling": sampling,
            "stop": self.stops(),
            "ignore_end": self.ignore_eos,
            "overflow": self.context_overflow,
            "keep_alive": parse_keep_alive(self.keep_alive),
            "store": self.store is not False,
            "personal": self.personal,
            "conversation": self.conversation,
            "app": self.app,
            "client": client_of(request),
            "reuse_cache": self.cache_prompt,
        }
        return Ask(**common | own)


def check_count(n: int, settings: Settings) -> int:
    """Return `n`, the number of answers to one prompt. Raises RequestError if there are not as many slots."""
    if n > settings.serve.slots:
        raise RequestError(
            f"`n` is {n}, but at most {settings.serve.slots} answers (serve.slots) can be generated at once"
        )
    return n


def check_tokens(services: Services, model: str, tokens: list[int]) -> None:
    """Raise RequestError for tokens that the model does not have; llama.cpp ends the process over some of them."""
    if not tokens:
        return
    known = services.engine.model_facts(services.generations.resolve(model)).n_vocab
    if max(tokens) >= known:
        raise RequestError(f"token {max(tokens)} is not in the vocabulary, which has {known} tokens")


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and int(key[:11]) <= INT32):
        raise RequestError("the keys of `logit_bias` must be numbers of tokens, such as '42'")
    return int(key)
