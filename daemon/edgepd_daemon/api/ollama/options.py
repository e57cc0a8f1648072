"""The `options` of Ollama's requests: sampling, limits, and switches of Ollama's own engine.

The idea: an option is honoured, or has no influence on the text and is accepted, or is refused. One that would
change the text but cannot be honoured never passes silently.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.api.common import INT32, refuse_unknown
from edgepd_daemon.engine.types import Sampling

MAX_STOP_STRINGS = 16
RANDOM_SEED = -1

# How Ollama's engine lays a model out in memory. Here the configuration decides that; the text stays the same.
SPEED_ONLY = frozenset(
    {"f16_kv", "logits_all", "low_vram", "main_gpu", "num_batch", "num_gpu", "num_thread", "numa", "use_mlock"}
    | {"use_mmap", "mirostat_eta", "mirostat_tau"}  # the last two do nothing without mirostat
)
# What cannot be switched on, with the values that mean off.
ONLY_OFF: tuple[tuple[str, object], ...] = (
    ("mirostat", 0),
    ("tfs_z", 1),
    ("penalize_newline", True),
    ("vocab_only", False),
    ("embedding_only", False),
)

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Options(BaseModel):
    """The options that are honoured. Others that only affect speed are ignored, and the rest is refused."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    num_predict: Annotated[int, Field(ge=-2, le=INT32)] | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    num_keep: int | None = None

    def refuse_unsupported(self, context_tokens: int) -> None:
        """Raise RequestError for an option that is unknown, or that would change the text and cannot be honoured."""
        if self.num_ctx is not None and self.num_ctx > context_tokens:
            raise RequestError(
                f"`options.num_ctx` is {self.num_ctx}, but a conversation has {context_tokens} tokens here; "
                f"set serve.context_tokens = {self.num_ctx} in edgepd's configuration, or leave it out"
            )
        rest = {name: value for name, value in (self.model_extra or {}).items() if name not in SPEED_ONLY}
        for name, off in ONLY_OFF:
            if (value := rest.pop(name, None)) is not None and value != off:
                raise RequestError(f"`options.{name}` is not supported; leave it out")
        refuse_unknown(rest, "`options`")

    def sampling(self) -> Sampling:
        """Return how tokens are chosen; what is not given is edgepd's default."""
        values = {f.name: getattr(self, f.name) for f in fields(Sampling) if f.name in type(self).model_fields}
        given = {name: value for name, value in values.items() if value is not None}
        if self.seed == RANDOM_SEED:
            del given["seed"]
        if self.top_k == -1:
            given["top_k"] = 0
        return Sampling(**given)

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings. Raises RequestError for too many of them or an empty one."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MAX_STOP_STRINGS or "" in stop:
            raise RequestError(f"`options.stop` takes at most {MAX_STOP_STRINGS} strings, none of them empty")
        return tuple(stop)

    def max_tokens(self, default: int, context_tokens: int) -> int:
        """Return the length limit of the answer: Ollama's zero and negative numbers mean as much as there is room."""
        if self.num_predict is None:
            return default
        return self.num_predict if self.num_predict > 0 else context_tokens

    def notes(self) -> list[str]:
        """Return what the answer has to say about options that were accepted without being followed."""
        if self.num_keep is None:
            return []
        return ["`options.num_keep` is not followed: a full context always keeps the system message"]
