"""From a question to a prompt: what is dropped when it does not fit, and what tools change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepd_daemon.ask import Ask
from edgepd_daemon.engine.types import Sampling, Version
from edgepd_daemon.prompt import prepare
from edgepd_daemon.tools.types import Tool
from tests.daemon.scripted_engine import ScriptedEngine

VERSION = Version(1, Path("model.gguf"))
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    *({"role": role, "content": f"{n}" * 20} for n in range(6) for role in ("user", "assistant")),
    {"role": "user", "content": "last"},
]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(context_tokens=200)


def prompt_of(engine: Any, **fields: Any) -> tuple[str, Any]:
    prompt = prepare(engine, VERSION, Ask("default", 10, Sampling(temperature=0), **fields))
    return bytes(prompt.tokens).decode(), prompt


def test_everything_is_kept_unless_a_shift_was_asked_for(engine: ScriptedEngine) -> None:
    text, _ = prompt_of(engine, messages=TURNS)
    assert len(text) > 200 and "000" in text


def test_the_oldest_turns_go_and_the_system_message_stays(engine: ScriptedEngine) -> None:
    text, _ = prompt_of(engine, messages=TURNS, overflow="shift")
    assert text.startswith("system: S\nuser: ") and text.endswith("user: last\n")
    assert len(text) <= 150 < len(text) + len("user: 00000000000000000000\nassistant: 00000000000000000000\n")


def test_the_last_turn_stays_even_if_it_does_not_fit(engine: ScriptedEngine) -> None:
    text, _ = prompt_of(engine, messages=[*TURNS, {"role": "user", "content": "x" * 300}], overflow="shift")
    assert text == f"system: S\nuser: {'x' * 300}\n"


def test_of_a_bare_prompt_the_end_stays(engine: ScriptedEngine) -> None:
    text, prompt = prompt_of(engine, prompt="a" * 200 + "b" * 100, overflow="shift")
    assert text == "a" * 50 + "b" * 100
    assert prompt.text == "a" * 200 + "b" * 100


def test_without_tools_there_is_nothing_to_parse(engine: ScriptedEngine) -> None:
    tool = Tool("look", parameters={"type": "object"})
    for fields in ({}, {"tools": (tool,), "tool_choice": "none"}):
        _, prompt = prompt_of(engine, messages=TURNS[:2], **fields)
        assert (prompt.parser(), prompt.markers, prompt.grammar) == (None, (), None)
    _, prompt = prompt_of(engine, messages=TURNS[:2], tools=(tool,))
    assert prompt.parser() is not None and "<tool_call>" in prompt.markers and prompt.grammar.triggers
