"""The chat template of a model file, rendered the same way for serving and for training.

The idea: a GGUF carries its own Jinja template; both the daemon and the trainer render it through this one class,
so a prompt that is trained on is token for token the prompt that is served. Templates find what Hugging Face and
llama.cpp give them: `messages`, `tools` if there are any, `bos_token`, `eos_token`, `raise_exception`,
`strftime_now`, a `tojson` that escapes nothing for HTML, `break` and `continue`, and `{% generation %}`.
The template comes from a file that may be hostile, so it runs in Jinja's immutable sandbox, nothing of it is
evaluated while it compiles, and its output is bounded by the size of its input.
What this does not do: bound time or memory. A template can loop for hours, so a process that must not hang renders
in a child that has limits, as the daemon does (`edgepd_daemon.renderer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgepd.errors import TemplateError
from edgepd.messages import MAX_RENDERED_CHARS, Message

# Below that, what a template may add to its input: each text may come out escaped and indented, and each message
# may get some words of the template around it.
FREE_CHARS = 1024 * 1024
CHARS_PER_INPUT_CHAR = 8
CHARS_PER_MESSAGE = 4096

# What llama.cpp falls back to as well when a file has no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What Python raises while it compiles or runs a template that is broken or asks for too much.
_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    SyntaxError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        """Compile `source` (ChatML if None); `bos` and `eos` are the texts of those special tokens."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # else constant expressions, such as 9 ** 9 ** 9, are evaluated here
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _tojson
        self._variables = {"bos_token": bos, "eos_token": eos}
        try:
            tree = environment.parse(CHATML if source is None else source)
            self._supports_tools = any(
                name.name == "tools" and name.ctx == "load" for name in tree.find_all(nodes.Name)
            )
            self._template = environment.from_string(tree)
        except _FAILURES as error:
            raise TemplateError(f"the model's chat template does not compile: {_reason(error)}") from error

    @property
    def supports_tools(self) -> bool:
        """Whether the template itself tells the model which tools there are."""
        return self._supports_tools

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt text for `messages`, ready for the assistant's turn if asked for.

        `tools` are in OpenAI's form; `extra` are further variables that this template knows.
        """
        context: dict[str, Any] = {
            **(extra or {}),
            **self._variables,
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        if tools:
            context["tools"] = list(tools)
        most = _most_chars(context)
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(context):
                size += len(part)
                if size > most:
                    raise TemplateError(f"the model's chat template renders to more than {most} characters")
                parts.append(part)
        except _FAILURES as error:
            raise TemplateError(f"the model's chat template cannot render these messages: {_reason(error)}") from error
        return "".join(parts)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for trainers that ask; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _most_chars(context: Mapping[str, Any]) -> int:
    count = len(context["messages"])
    allowed = FREE_CHARS + CHARS_PER_MESSAGE * count + CHARS_PER_INPUT_CHAR * _chars(context)
    return min(MAX_RENDERED_CHARS, allowed)


def _chars(value: Any) -> int:
    """Return the number of characters in all texts of a JSON-like value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(key) + _chars(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_chars, value))
    return 8  # a number, a truth value or null


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return str(error) or type(error).__name__


def _raise_exception(message: str) -> NoReturn:
    """Let a template refuse its input, as the templates of Hugging Face models do."""
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    """Return the local time in this form; some templates tell the model the date."""
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without HTML escapes, which Jinja's own filter puts in."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
