"""How the families of models write tool calls.

The idea: most write a marker, then the name and the arguments in JSON, then perhaps a closing marker; `Family` says
which. The family is recognised by what the model's chat template contains, as in llama.cpp's `common/chat.cpp`. A
model whose template knows no tools, or writes calls in a way that is not here, is told how to do it: as Hermes does.
What this does not do: formats that are not JSON, but for Qwen3-Coder's; and reasoning, which stays in the text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A way to write calls: behind `opening` comes a call, or with `listed` a list of calls, and then `closing`."""

    name: str
    opening: tuple[str, ...]  # the first is the one that is asked for
    closing: str = ""
    ending: str = ""  # may come after the last call
    listed: bool = False
    arguments: str = "arguments"  # the key of the arguments
    bare: bool = False  # a call may be all of the answer, without any marker
    separated: str = ""  # name and arguments have this between them, instead of being one JSON object
    xml: bool = False  # <function=name><parameter=key>value</parameter></function>
    in_template: bool = True  # whether the chat template itself shows the tools and the calls
    text_arguments: bool = False  # whether the template wants the arguments of earlier calls as text
    short_ids: bool = False  # whether ids have to be nine letters or digits


HERMES = Family("hermes", ("<tool_call>",), "</tool_call>")
GENERIC = Family("generic", ("<tool_call>",), "</tool_call>", in_template=False)
QWEN_CODER = Family("qwen3-coder", ("<tool_call>",), "</tool_call>", xml=True)
LLAMA_3 = Family("llama-3", ("<|python_tag|>",), arguments="parameters", bare=True)
MISTRAL = Family("mistral", ("[TOOL_CALLS]",), listed=True, short_ids=True)
MINISTRAL = Family("ministral", ("[TOOL_CALLS]",), separated="[ARGS]", short_ids=True)
PHI_4_MINI = Family("phi-4-mini", ("<|tool_call|>",), "<|/tool_call|>")
GRANITE = Family("granite", ("<|tool_call|>",), listed=True)
NEMOTRON = Family("nemotron", ("<TOOLCALL>",), "</TOOLCALL>", listed=True)
DEEPSEEK = Family(
    "deepseek",
    ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁begin｜>"),
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    separated="<｜tool▁sep｜>",
    text_arguments=True,
)

# Which texts a template of a family contains; the first line that fits counts. GENERIC stands for formats that are
# not here but share a mark with one that is.
_MARKS: tuple[tuple[tuple[str, ...], Family], ...] = (
    (("<arg_key>",), GENERIC),  # GLM 4.5
    (("<tool_call>", "<function=", "<parameter="), QWEN_CODER),
    (("[TOOL_CALLS]", "[ARGS]"), MINISTRAL),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<TOOLCALL>",), NEMOTRON),
    (("<｜tool▁call▁begin｜>", "```json"), GENERIC),  # DeepSeek V3 and R1 write the arguments as a block of code
    (("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"), DEEPSEEK),
    (("<|tool_call|>", "<|/tool_call|>"), PHI_4_MINI),
    (("<|tool_call|>",), GRANITE),
    (("<tool_call>",), HERMES),
    (("<|start_header_id|>", "ipython"), LLAMA_3),
    (("<|python_tag|>",), LLAMA_3),
)


def family_of(template: str | None, supports_tools: bool) -> Family:
    """Return the family of a model by its chat template."""
    source = template or ""
    if not supports_tools:
        return GENERIC
    return next((family for marks, family in _MARKS if all(mark in source for mark in marks)), GENERIC)
