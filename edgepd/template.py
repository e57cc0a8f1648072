"""The chat template of a model file, rendered the same way for serving and for training.

The idea: a GGUF carries its own Jinja template; both the daemon and the trainer render it through this one class,
so a prompt that is trained on is token for token the prompt that is served. The template comes from a file that
may be hostile, so it runs in Jinja's immutable sandbox and its output is bounded.
What this does not do: tool calls, reasoning switches, or a bound on rendering time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgepd.errors import TemplateError

Message = Mapping[str, str]  # {"role": ..., "content": ...}

MAX_RENDERED_CHARS = 16 * 1024 * 1024

# What llama.cpp falls back to as well when a file has no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        """Compile `source` (ChatML if None); `bos` and `eos` are the texts of those special tokens."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        self._variables = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(CHATML if source is None else source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Return the prompt text for `messages`, ready for the assistant's turn if asked for."""
        context: dict[str, Any] = {
            **self._variables,
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(context):
                size += len(part)
                if size > MAX_RENDERED_CHARS:
                    raise TemplateError(f"the chat template renders to more than {MAX_RENDERED_CHARS} characters")
                parts.append(part)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            raise TemplateError(f"the model's chat template cannot render these messages: {error}") from error
        return "".join(parts)


def _raise_exception(message: str) -> NoReturn:
    """Let a template refuse its input, as the templates of Hugging Face models do."""
    raise jinja2.TemplateError(message)
