"""How a conversation becomes tokens: one definition for serving, training and the gate.

The idea: `prompt` is what the engine prefills, `answer` is what the model would have had to emit for a given text,
up to and including the token that ends its turn. Training on `prompt + answer` with loss on `answer` alone therefore
teaches exactly what serving asks for.
What this does not do: keep control tokens that a user types from being read as such; the text of a message is
tokenised inside the rendered template, as every llama.cpp program does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from edgepd.errors import TemplateError
from edgepd.llama import Model
from edgepd.messages import Message
from edgepd.template import ChatTemplate

# Cannot occur in a template; marks where an answer ends in a rendered conversation.
_MARK = "\ue000answer\ue000"


class Template(Protocol):
    """What renders a conversation: a ChatTemplate, or one that renders in another process."""

    @property
    def supports_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt text. Raises TemplateError."""
        ...


MakeTemplate = Callable[[str | None, str, str], Template]  # from the source and the texts of the bos and eos tokens


def in_process(source: str | None, bos: str, eos: str) -> Template:
    """Return a template that renders in this process, with no limit on its time."""
    return ChatTemplate(source, bos=bos, eos=eos)


class ChatFormat:
    """The chat format of one model: its template and its tokenizer."""

    def __init__(self, model: Model, make_template: MakeTemplate = in_process) -> None:
        """Compile the model's chat template. Raises TemplateError if it cannot be used."""
        self._model = model
        source = model.metadata("tokenizer.chat_template")
        self.template = make_template(source, _text(model, model.bos_token), _text(model, model.eos_token))
        self.end_of_turn = self._find_end_of_turn()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the conversation so far, ready for the assistant's turn."""
        return self._model.tokenize_prompt(self.template.render(messages, add_generation_prompt=True))

    def answer(self, text: str) -> list[int]:
        """Return the tokens that an answer consists of, the end-of-turn token included."""
        return [*self._model.tokenize(text, special=False), self.end_of_turn]

    def _find_end_of_turn(self) -> int:
        """Return the token with which the template itself ends an assistant's message.

        llama.cpp's own guess (llama_vocab_eot) goes by token names and can name a token that the template never uses.
        """
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _MARK}]
        rendered = self.template.render(messages, add_generation_prompt=False)
        if _MARK not in rendered:
            raise TemplateError("the model's chat template leaves out the assistant's message")
        tail = self._model.tokenize(rendered.split(_MARK)[1], special=True)
        return next((t for t in tail if self._model.is_end(t)), self._model.eot_token)


def _text(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""
