"""The bodies of Ollama's requests and what they mean.

The idea: a body is translated into an Ask, which knows no dialect; what cannot be honoured is refused by name.
What this does not do: answer anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.api.common import MAX_TOP_LOGPROBS, refuse_half_characters, refuse_unknown, texts_in
from edgepd_daemon.api.durations import parse_keep_alive
from edgepd_daemon.api.ollama.options import Options
from edgepd_daemon.api.openai.messages import refuse_silence
from edgepd_daemon.api.openai.tools import ChatTools, of_chat
from edgepd_daemon.ask import Ask, Message
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.structured import json_grammar, schema_grammar

TAG = ":latest"  # Ollama's name for the only version of a model; clients append it

Label = Annotated[str, Field(max_length=200)]  # of a model, an app or a conversation


def untagged(name: str) -> str:
    """Return the name of a model as edgepd knows it."""
    return name.removesuffix(TAG)


class CalledFunction(BaseModel):
    """The function of a tool call; the arguments are an object, unlike OpenAI's."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)


class MadeCall(BaseModel):
    """A tool call of an earlier answer."""

    id: str | None = None
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message of the conversation. What other models thought before they answered is left out."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[MadeCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Body(BaseModel):
    """What chat and generate have in common; `store`, `personal`, `app` and `conversation` are edgepd's own."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: Label = "default"
    stream: bool | None = True
    format: Any = None
    options: Options | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncate: bool | None = None
    shift: bool | None = None
    store: bool | None = None
    personal: bool | None = None
    app: Label = ""
    conversation: Label | None = None

    @property
    def chosen(self) -> Options:
        """The options, none of them set if there are none."""
        return self.options or Options()

    def keep_alive_seconds(self) -> float | None:
        """Return how long the model stays loaded. Raises RequestError."""
        return parse_keep_alive(self.keep_alive)

    def refuse_unsupported(self, context_tokens: int) -> None:
        """Raise RequestError for what is not understood or cannot be done."""
        refuse_half_characters(texts_in(self))
        refuse_unknown(self.model_extra, "this route")
        if self.think not in (None, False):
            raise RequestError("`think` is not supported: the model does not think apart from its answer; leave it out")
        self.chosen.refuse_unsupported(context_tokens)

    def shared(self, default_max_tokens: int, context_tokens: int, client: str) -> dict[str, Any]:
        """Return the fields of an Ask that do not depend on what is asked. Raises RequestError."""
        self.refuse_unsupported(context_tokens)
        # One switch serves both: an answer that may not forget must not begin with a prompt that has forgotten.
        strict = self.truncate is False or self.shift is False
        options = self.chosen
        return {
            "model": untagged(self.model),
            "max_tokens": options.max_tokens(default_max_tokens, context_tokens),
            "sampling": options.sampling(),
            "stop": options.stops(),
            "grammar": self.grammar(),
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "overflow": "error" if strict else "shift",
            "keep_alive": self.keep_alive_seconds(),
            "store": self.store is not False,
            "personal": self.personal is not False,
            "app": self.app,
            "conversation": self.conversation,
            "client": client,
        }

    def grammar(self) -> Grammar | None:
        """Return what `format` allows as an answer, None if that is anything. Raises RequestError."""
        if self.format in (None, ""):
            return None
        if self.format == "json":
            return json_grammar()
        if isinstance(self.format, dict):
            return schema_grammar(self.format)
        raise RequestError("`format` is neither 'json' nor an object that is a JSON schema")


class ChatBody(Body):
    """Body of /api/chat. No messages: load the model, or with `keep_alive` 0 unload it."""

    messages: list[ChatMessage] | None = None
    tools: ChatTools = None

    def ask(self, default_max_tokens: int, context_tokens: int, client: str) -> Ask:
        """Translate into what the daemon understands. Slow with a schema. Raises RequestError for what it does not."""
        given = self.messages or []
        if any(m.images for m in given):
            raise RequestError("`images` are not supported: the model reads only text; leave them out")
        messages = list(_plain(given))
        refuse_silence(messages)
        tools, _ = of_chat(self.tools, None)
        ask = Ask(messages=messages, tools=tools, **self.shared(default_max_tokens, context_tokens, client))
        if ask.tools and ask.grammar:
            raise RequestError("`tools` and `format` exclude each other; leave one of them out")
        return ask


class GenerateBody(Body):
    """Body of /api/generate. No prompt: load the model, or with `keep_alive` 0 unload it."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None

    def ask(self, default_max_tokens: int, context_tokens: int, client: str) -> Ask:
        """Translate into what the daemon understands. Slow with a schema. Raises RequestError for what it does not."""
        self._refuse()
        shared = self.shared(default_max_tokens, context_tokens, client)
        if self.raw:
            return Ask(prompt=self.prompt, **shared)
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return Ask(messages=[*messages, {"role": "user", "content": self.prompt}], **shared)

    def _refuse(self) -> None:
        if self.suffix:
            raise RequestError("`suffix` is not supported: the model does not fill in the middle; leave it out")
        if self.template:
            raise RequestError("`template` is not supported: the model's own is used; leave it out, or use `raw`")
        if self.context:
            raise RequestError("`context` is not supported; send the conversation with /api/chat")
        if self.images:
            raise RequestError("`images` are not supported: the model reads only text; leave them out")
        if self.raw and self.system:
            raise RequestError("`raw` sends the prompt as it is, so `system` would be lost; leave one of them out")


class EmbedBody(BaseModel):
    """Body of /api/embed."""

    model_config = ConfigDict(extra="allow")
    model: Label = "default"
    input: str | list[str] = ""
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None
    options: Options | None = None


class OldEmbedBody(BaseModel):
    """Body of /api/embeddings, which /api/embed has replaced."""

    model_config = ConfigDict(extra="allow")
    model: Label = "default"
    prompt: str = ""
    keep_alive: float | str | None = None
    options: Options | None = None


class ShowBody(BaseModel):
    """Body of /api/show; the name of the model was once called `name`."""

    model: Label | None = None
    name: Label | None = None
    verbose: bool | None = None


def _plain(messages: list[ChatMessage]) -> Iterator[Message]:
    """Yield messages as chat templates expect them, with the ids that Ollama's tool calls need not have."""
    unanswered: list[tuple[str, str]] = []
    calls = 0
    for message in messages:
        plain: Message = {"role": message.role, "content": message.content or ""}
        if message.role == "assistant" and message.tool_calls:
            plain["tool_calls"] = []
            for call in message.tool_calls:
                made = call.id or f"call_{calls}"
                calls += 1
                unanswered.append((made, call.function.name))
                function = {"name": call.function.name, "arguments": call.function.arguments}
                plain["tool_calls"].append({"id": made, "type": "function", "function": function})
        elif message.role == "tool":
            found = _answered(message, unanswered)
            if found in unanswered:
                unanswered.remove(found)
            plain["tool_call_id"], plain["name"] = found
        yield plain


def _answered(message: ChatMessage, unanswered: list[tuple[str, str]]) -> tuple[str, str]:
    """Return the id and name of the call that a tool's message answers: by id, else by name, else the oldest."""
    for made, name in unanswered:
        if message.tool_call_id in (None, made) and message.tool_name in (None, name):
            return made, name
    return message.tool_call_id or "", message.tool_name or ""
