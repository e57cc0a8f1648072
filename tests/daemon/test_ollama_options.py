"""Ollama's options and bodies, and the Ask that they become."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgepd.errors import RequestError
from edgepd_daemon.api.ollama.fields import ChatBody, GenerateBody
from edgepd_daemon.api.ollama.options import Options
from edgepd_daemon.ask import Ask
from edgepd_daemon.engine.types import Sampling

HELLO: dict[str, Any] = {"role": "user", "content": "Hello"}


def options(**given: Any) -> Options:
    return Options.model_validate(given)


def chat(**given: Any) -> Ask:
    return ChatBody.model_validate({"messages": [HELLO], **given}).ask(512, 2048, "pid:1")


def generate(**given: Any) -> Ask:
    return GenerateBody.model_validate({"prompt": "Hello", **given}).ask(512, 2048, "pid:1")


def test_every_sampling_option_is_passed_on() -> None:
    given = options(
        temperature=0.1,
        top_k=5,
        top_p=0.5,
        min_p=0.2,
        typical_p=0.9,
        repeat_penalty=1.2,
        repeat_last_n=-1,
        presence_penalty=0.3,
        frequency_penalty=-0.4,
        seed=42,
    )
    assert given.sampling() == Sampling(
        temperature=0.1,
        top_k=5,
        top_p=0.5,
        min_p=0.2,
        typical_p=0.9,
        repeat_penalty=1.2,
        repeat_last_n=-1,
        presence_penalty=0.3,
        frequency_penalty=-0.4,
        seed=42,
    )


def test_without_options_the_defaults_are_edgepds() -> None:
    assert options().sampling() == Sampling()
    assert options(temperature=None, seed=None).sampling() == Sampling()


def test_minus_one_means_a_random_seed_and_all_tokens() -> None:
    assert options(seed=-1, top_k=-1).sampling() == Sampling(seed=None, top_k=0)


@pytest.mark.parametrize(("num_predict", "tokens"), [(None, 512), (7, 7), (0, 2048), (-1, 2048), (-2, 2048)])
def test_num_predict_is_the_length_limit(num_predict: int | None, tokens: int) -> None:
    assert options(num_predict=num_predict).max_tokens(512, 2048) == tokens


@pytest.mark.parametrize(
    "given",
    [
        {"num_thread": 4, "num_gpu": 99, "num_batch": 512, "use_mmap": True, "use_mlock": True, "numa": False},
        {"low_vram": False, "main_gpu": 0, "f16_kv": True, "logits_all": False},
        {"mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0, "tfs_z": 1.0, "penalize_newline": True},
        {"vocab_only": False, "embedding_only": False, "num_ctx": 2048},
        {"anything": None},
    ],
)
def test_what_does_not_change_the_text_is_accepted(given: dict[str, Any]) -> None:
    options(**given).refuse_unsupported(2048)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"mirostat": 2}, "`options.mirostat` is not supported"),
        ({"tfs_z": 0.5}, "`options.tfs_z` is not supported"),
        ({"penalize_newline": False}, "`options.penalize_newline` is not supported"),
        ({"embedding_only": True}, "`options.embedding_only` is not supported"),
        ({"temprature": 0.5}, "`options` does not understand `temprature`"),
        ({"num_ctx": 4096}, "set serve.context_tokens = 4096"),
    ],
)
def test_what_would_change_the_text_and_cannot_be_done_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        options(**given).refuse_unsupported(2048)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"frequency_penalty": float("inf")},
        {"top_k": 2**31},
        {"min_p": 1.5},
        {"repeat_penalty": 0},
        {"seed": 2**63},
        {"num_predict": -3},
        {"num_ctx": 0},
        {"stop": [1]},
    ],
)
def test_a_value_out_of_range_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        options(**given)


def test_num_keep_is_accepted_but_not_silently() -> None:
    assert options().notes() == []
    assert "`options.num_keep` is not followed" in options(num_keep=24).notes()[0]


def test_stop_is_a_text_or_several() -> None:
    assert options(stop="END").stops() == ("END",)
    assert options(stop=["a", "b"]).stops() == ("a", "b")
    for bad in ("", ["a", ""], ["x"] * 17):
        with pytest.raises(RequestError, match="none of them empty"):
            options(stop=bad).stops()


def test_a_chat_becomes_an_ask() -> None:
    ask = chat(
        model="tiny:latest",
        keep_alive="10m",
        options={"temperature": 0, "num_predict": 9, "stop": "END"},
        logprobs=True,
        top_logprobs=3,
        store=False,
        app="notes",
        conversation="c1",
    )
    assert ask == Ask(
        model="tiny",
        max_tokens=9,
        sampling=Sampling(temperature=0),
        messages=[HELLO],
        stop=("END",),
        logprobs=3,
        overflow="shift",
        keep_alive=600.0,
        store=False,
        app="notes",
        conversation="c1",
        client="pid:1",
    )


@pytest.mark.parametrize(
    ("given", "overflow"),
    [
        ({}, "shift"),
        ({"truncate": True, "shift": True}, "shift"),
        ({"truncate": False}, "error"),
        ({"shift": False}, "error"),
    ],
)
def test_a_full_context_forgets_unless_told_not_to(given: dict[str, Any], overflow: str) -> None:
    assert chat(**given).overflow == overflow


@pytest.mark.parametrize(
    ("given", "logprobs"),
    [({}, None), ({"top_logprobs": 5}, None), ({"logprobs": True}, 0), ({"logprobs": False}, None)],
)
def test_logprobs_are_given_only_if_asked_for(given: dict[str, Any], logprobs: int | None) -> None:
    assert chat(**given).logprobs == logprobs


def test_tool_calls_get_the_ids_that_templates_expect() -> None:
    def called(name: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"of": name}}}

    messages = [
        HELLO,
        {"role": "assistant", "content": "", "tool_calls": [called("time"), called("weather")]},
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "tool_calls": [{"id": "mine", **called("date")}]},
        {"role": "tool", "content": "May", "tool_call_id": "mine"},
        {"role": "tool", "content": "?", "tool_name": "unheard-of"},
    ]
    plain = chat(messages=messages).messages
    assert plain[1]["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "time", "arguments": {"of": "time"}}},
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"of": "weather"}}},
    ]
    assert plain[2] == {"role": "tool", "content": "sunny", "tool_call_id": "call_1", "name": "weather"}
    assert plain[3] == {"role": "tool", "content": "noon", "tool_call_id": "call_0", "name": "time"}
    assert plain[4]["content"] == ""
    assert plain[4]["tool_calls"][0]["id"] == "mine"
    assert plain[5] == {"role": "tool", "content": "May", "tool_call_id": "mine", "name": "date"}
    assert plain[6] == {"role": "tool", "content": "?", "tool_call_id": "", "name": "unheard-of"}


def test_tools_are_in_openais_form() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "Look out of the window", "parameters": schema}
    ask = chat(tools=[{"type": "function", "function": function}, {"function": {"name": "time"}}])
    assert ask.tools[0].as_json() == {"type": "function", "function": function}
    assert (ask.tools[1].name, ask.tools[1].description) == ("time", "")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"think": True}, "`think` is not supported"),
        ({"think": "high"}, "`think` is not supported"),
        ({"messages": [{**HELLO, "images": ["aGk="]}]}, "`images` are not supported"),
        ({"messages": [{"role": "user", "content": " "}]}, "the last message is empty"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half a character"),
        ({"keep_alive": "soon"}, "`keep_alive` is 'soon'"),
        ({"format": "yaml"}, "`format` is neither 'json' nor"),
        ({"format": "json", "tools": [{"function": {"name": "time"}}]}, "`tools` and `format` exclude each other"),
        ({"temperature": 0.5}, "this route does not understand `temperature`"),
        ({"tools": [{"function": {"name": "time", "description": "\udc00"}}]}, "half a character"),
        ({"tools": [{"function": {"name": "two words"}}]}, "a tool is called 'two words'"),
        ({"options": {"stop": "\udc00"}}, "half a character"),
        ({"format": {"a": [{"\udc00": 1}]}}, "half a character"),
    ],
)
def test_a_chat_that_cannot_be_honoured_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        chat(**given)


def test_empty_values_of_what_is_not_supported_are_accepted() -> None:
    chat(think=False, format="", tools=[], messages=[{**HELLO, "images": [], "thinking": "hm"}], template=None)
    generate(suffix="", template="", context=[], images=[], think=None, system="", raw=False)


def test_generate_asks_through_the_chat_template() -> None:
    assert generate().messages == [HELLO]
    assert generate(system="Be brief").messages == [{"role": "system", "content": "Be brief"}, HELLO]


def test_raw_is_the_bare_prompt() -> None:
    ask = generate(raw=True)
    assert (ask.prompt, ask.messages) == ("Hello", [])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"suffix": "end"}, "`suffix` is not supported"),
        ({"template": "{{ .Prompt }}"}, "`template` is not supported"),
        ({"context": [1, 2]}, "send the conversation with /api/chat"),
        ({"images": ["aGk="]}, "`images` are not supported"),
        ({"raw": True, "system": "x"}, "`system` would be lost"),
        ({"prompt": "a\udfff"}, "half a character"),
        ({"width": 512}, "does not understand `width`"),
    ],
)
def test_a_prompt_that_cannot_be_honoured_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        generate(**given)
