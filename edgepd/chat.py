"""How a conversation becomes tokens: one definition for serving, training and the gate.

The idea: `prompt` is what the engine prefills, `answer` is what the model would have had to emit for a given text,
up to and including the token that ends its turn. Training on `prompt + answer` with loss on `answer` alone therefore
teaches exactly what serving asks for.
What this does not do: keep control tokens that a user types from being read as such; the text of a message is
tokenised inside the rendered template, as every llama.cpp program does.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepd.errors import TemplateError
from edgepd.llama import Model
from edgepd.template import ChatTemplate, Message

# Cannot occur in a template; marks where an answer ends in a rendered conversation.
_MARK = "\ue000answer\ue000"


class ChatFormat:
    """The chat format of one model: its template and its tokenizer."""

    def __init__(self, model: Model) -> None:
        """Compile the model's chat template. Raises TemplateError if it cannot be used."""
        self._model = model
        self._template = ChatTemplate(
            model.metadata("tokenizer.chat_template"),
            bos=_text(model, model.bos_token),
            eos=_text(model, model.eos_token),
        )
        self.end_of_turn = self._find_end_of_turn()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the conversation so far, ready for the assistant's turn."""
        return self._model.tokenize(self._template.render(messages, add_generation_prompt=True), special=True)

    def answer(self, text: str) -> list[int]:
        """Return the tokens that an answer consists of, the end-of-turn token included."""
        return [*self._model.tokenize(text, special=False), self.end_of_turn]

    def _find_end_of_turn(self) -> int:
        """Return the token with which the template itself ends an assistant's message.

        llama.cpp's own guess (llama_vocab_eot) goes by token names and can name a token that the template never uses.
        """
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _MARK}]
        rendered = self._template.render(messages, add_generation_prompt=False)
        if _MARK not in rendered:
            raise TemplateError("the model's chat template leaves out the assistant's message")
        tail = self._model.tokenize(rendered.split(_MARK)[1], special=True)
        return next((t for t in tail if self._model.is_end(t)), self._model.eot_token)


def _text(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""
