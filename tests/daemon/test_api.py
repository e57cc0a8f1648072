"""The socket API of a real daemon with the tiny model: dialect, feedback, reports, and every kind of bad input."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from tests.daemon.running import Daemon, Json, error_of, joined, question, text_of

CHAT = "/v1/chat/completions"
FEEDBACK = "/edgepd/v1/feedback"


def stored(daemon: Daemon, interaction_id: str = "last") -> Json:
    return daemon.get(f"/edgepd/v1/interactions/{interaction_id}")


def test_health(daemon: Daemon) -> None:
    found = daemon.get("/healthz")
    assert found.pop("uptime_s") >= 0
    assert found == {"status": "ready", "version": "0.1.0", "pid": daemon.process.pid, "model": "tiny"}


def test_only_the_user_can_reach_the_socket(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.paths.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.paths.runtime_dir.stat().st_mode) == 0o700
    for file in daemon.paths.data_dir.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file


def test_a_whole_answer(daemon: Daemon) -> None:
    answer = daemon.chat("Hello", max_tokens=12, conversation="c-1", app="tests")
    row = answer["interaction_id"]
    assert answer["id"] == f"chatcmpl-{row}"
    assert (answer["object"], answer["model"], answer["generation"]) == ("chat.completion", "tiny@1", 1)
    [choice] = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["message"]["role"]) == (0, "length", "assistant")
    usage = answer["usage"]
    assert usage["completion_tokens"] == answer["timings"]["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert (answer["logged"], answer["warnings"]) == (True, [])
    kept = stored(daemon, row)
    assert (kept["id"], kept["conversation"], kept["app"]) == (row, "c-1", "tests")
    assert kept["messages"] == [{"role": "user", "content": "Hello"}]
    assert (kept["response"], kept["state"], kept["finish_reason"]) == (text_of(answer), "done", "length")
    assert (kept["model"], kept["generation"], kept["feedback"]) == ("tiny@1", 1, [])
    assert (kept["prompt_tokens"], kept["completion_tokens"]) == (usage["prompt_tokens"], 12)
    assert 0 < kept["ttft_ms"] <= kept["duration_ms"]


def test_a_stream_has_the_text_of_the_whole_answer(daemon: Daemon) -> None:
    whole = daemon.chat("Tell me more", max_tokens=30, cache_prompt=False)
    events = list(daemon.stream("Tell me more", max_tokens=30, cache_prompt=False))
    assert joined(events) == text_of(whole)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in e["choices"][0]["delta"] for e in events[1:])
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * (len(events) - 1) + ["length"]
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert len({e["id"] for e in events}) == len({e["interaction_id"] for e in events}) == 1
    assert events[-1]["timings"]["completion_tokens"] == 30
    assert (events[-1]["logged"], events[-1]["warnings"]) == (True, [])
    assert stored(daemon, events[0]["interaction_id"])["response"] == joined(events)


def test_a_stream_reports_usage_when_asked(daemon: Daemon) -> None:
    *_, last = daemon.stream("Hello", max_tokens=5, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_what_shall_not_be_stored_is_not(daemon: Daemon, stream: bool) -> None:
    before = daemon.get("/edgepd/v1/status")["profile"]["interactions"]
    if stream:
        *_, answer = daemon.stream("Secret", max_tokens=3, store=False)
    else:
        answer = daemon.chat("Secret", max_tokens=3, store=False)
    assert (answer["interaction_id"], answer["logged"], answer["warnings"]) == (None, False, [])
    assert daemon.get("/edgepd/v1/status")["profile"]["interactions"] == before


def test_content_parts_and_the_developer_role_mean_the_same_as_plain_ones(daemon: Daemon) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello you"}]
    parts: list[Json] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]},
    ]
    answers = [
        daemon.post(CHAT, {"messages": m, "temperature": 0, "max_tokens": 9, "cache_prompt": False})
        for m in (plain, parts)
    ]
    assert text_of(answers[0]) == text_of(answers[1])
    assert stored(daemon)["messages"] == plain


def test_sampling_and_stop_strings_reach_the_engine(daemon: Daemon) -> None:
    def drawn(seed: int) -> str:
        return daemon.answer("Hello", temperature=2, top_k=0, top_p=1, min_p=0, seed=seed, max_tokens=20)

    assert drawn(1) == drawn(1) != drawn(2)
    whole = daemon.answer("Hello", max_tokens=20)
    assert daemon.answer("Hello", temperature=2, top_k=1, max_tokens=20) == whole
    answer = daemon.chat("Hello", max_tokens=20, stop=whole[5])
    assert (text_of(answer), answer["choices"][0]["finish_reason"]) == (whole[: whole.find(whole[5])], "stop")
    assert daemon.answer("Hello", max_tokens=20, repeat_penalty=5) != whole
    assert daemon.chat("Hello", max_completion_tokens=4, max_tokens=20)["usage"]["completion_tokens"] == 4


def test_a_conversation_that_goes_on_is_not_computed_again(daemon: Daemon) -> None:
    text = "A question that nobody else in this file asks"
    first = daemon.chat(text, max_tokens=3)
    again = daemon.chat(text, max_tokens=3)
    cold = daemon.chat(text, max_tokens=3, cache_prompt=False)
    prompt = first["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == prompt - 1
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_every_listed_model_can_be_named(daemon: Daemon) -> None:
    listed = daemon.get("/v1/models")
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["default", "base", "tiny@1"]
    assert all((m["object"], m["owned_by"], m["generation"]) == ("model", "edgepd", 1) for m in listed["data"])
    for name in ["default", "base", "tiny@1", "tiny", "default@1"]:
        assert daemon.chat("Hi", model=name, max_tokens=1)["model"] == "tiny@1"


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        (question("Hi", tools=[{"type": "function"}]), 400, "invalid_request", "not supported: tools"),
        (question("Hi", n=2), 400, "invalid_request", "not supported: n > 1"),
        (question("Hi", logprobs=True), 400, "invalid_request", "not supported: logprobs"),
        (question("Hi", response_format={"type": "json_object"}), 400, "invalid_request", "response_format"),
        (question(""), 400, "invalid_request", "the last message is empty"),
        (question(" \n "), 400, "invalid_request", "the last message is empty"),
        ({"messages": []}, 400, "invalid_request", "body.messages"),
        ({}, 400, "invalid_request", "body.messages: Field required"),
        (question("Hi", temperature=-1), 400, "invalid_request", "body.temperature"),
        (question("Hi", max_tokens=0), 400, "invalid_request", "body.max_tokens"),
        (question("Hi", stop=[""]), 400, "invalid_request", "`stop` takes at most 4 strings, none of them empty"),
        (question("Hi", stop=["a"] * 5), 400, "invalid_request", "`stop` takes at most 4"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, 400, "invalid_request", "body.messages.0.role"),
        (question("word " * 1000), 400, "context_length_exceeded", "but the context window holds 512"),
        (question("Hi", model="other"), 404, "not_found", "model 'other' is not known; use 'default', 'base', 'tiny'"),
        (question("Hi", model="tiny@99"), 404, "not_found", "generation 99 is not known"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_are_refused(
    daemon: Daemon, body: Json, status: int, code: str, message: str, stream: bool
) -> None:
    found = daemon.refused(CHAT, body | {"stream": stream})
    assert found[:2] == (status, code)
    assert message in found[2]


def test_what_is_supported_when_it_says_nothing(daemon: Daemon) -> None:
    daemon.chat("Hi", max_tokens=1, n=1, tools=[], response_format={"type": "text"}, user="me", logprobs=False)


def test_a_refusal_does_not_repeat_what_the_user_wrote(daemon: Daemon) -> None:
    status, _, message = daemon.refused(CHAT, {"messages": [{"role": "user", "content": {"secret": "swordfish"}}]})
    assert status == 400
    assert "swordfish" not in message


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"messages": "x"}', b""])
def test_a_body_that_is_no_request(daemon: Daemon, content: bytes) -> None:
    response = daemon.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(response)[:2] == (400, "invalid_request")


@pytest.mark.parametrize("field", ["content", "model", "app", "conversation", "stop"])
def test_half_a_character_is_refused(daemon: Daemon, field: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "%b"}], "%b": "\\ud83d"}'
    content = body % (b"\\ud83d" if field == "content" else b"Hi", b"x" if field == "content" else field.encode())
    response = daemon.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(response)[:2] == (400, "invalid_request")


def test_routes_that_do_not_exist(daemon: Daemon) -> None:
    assert error_of(daemon.client.get("/v1/nothing")) == (404, "not_found", "GET /v1/nothing: Not Found")
    assert error_of(daemon.client.get(CHAT))[:2] == (405, "invalid_request")


def test_thumbs_and_edits(daemon: Daemon) -> None:
    row = daemon.chat("Judge this", max_tokens=2)["interaction_id"]
    given = daemon.post(FEEDBACK, {"interaction_id": row, "thumb": 1})
    [thumb] = given["feedback"]
    assert given["interaction_id"] == row
    assert (thumb["kind"], thumb["value"], thumb["text"], thumb["source"]) == ("thumb", 1, None, "user")
    assert daemon.post(FEEDBACK, {"interaction_id": row, "thumb": 1})["feedback"] == [thumb]  # not even a new time
    [replaced] = daemon.post(FEEDBACK, {"thumb": -1, "source": "test"})["feedback"]  # on the last one
    assert (replaced["value"], replaced["source"]) == (-1, "test")
    both = daemon.post(FEEDBACK, {"interaction_id": "last", "edit": "Better."})["feedback"]
    assert [(f["kind"], f["value"], f["text"]) for f in both] == [("edit", None, "Better."), ("thumb", -1, None)]
    assert stored(daemon, row)["feedback"] == both
    undo = daemon.client.delete(f"{FEEDBACK}/{row}", params={"kind": "thumb"}).json()
    assert undo == {"interaction_id": row, "removed": 1}
    assert stored(daemon, row)["feedback"] == both[:1]
    assert daemon.client.delete(f"{FEEDBACK}/last").json() == {"interaction_id": row, "removed": 1}
    assert daemon.client.delete(f"{FEEDBACK}/last").json() == {"interaction_id": row, "removed": 0}


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({}, 400, "invalid_request", "give either `thumb` (1 or -1) or `edit`"),
        ({"thumb": 1, "edit": "x"}, 400, "invalid_request", "give either `thumb`"),
        ({"thumb": 5}, 400, "invalid_request", "a thumb is 5, but must be 1 (good) or -1 (bad)"),
        ({"edit": "  "}, 400, "invalid_request", "the corrected answer is empty"),
        ({"thumb": 1, "stars": 3}, 400, "invalid_request", "body.stars"),
        ({"interaction_id": "i_unknown", "thumb": 1}, 404, "not_found", "interaction 'i_unknown' is not known"),
        ({"interaction_id": "", "thumb": 1}, 404, "not_found", "the interaction id is empty"),
    ],
)
def test_feedback_that_is_refused(daemon: Daemon, body: Json, status: int, code: str, message: str) -> None:
    daemon.chat("Something to judge", max_tokens=1)
    found = daemon.refused(FEEDBACK, body)
    assert found[:2] == (status, code)
    assert message in found[2]


def test_undoing_what_cannot_be_undone(daemon: Daemon) -> None:
    daemon.chat("Hi", max_tokens=1)
    assert error_of(daemon.client.delete(f"{FEEDBACK}/i_unknown"))[:2] == (404, "not_found")
    assert error_of(daemon.client.delete(f"{FEEDBACK}/last", params={"kind": "x"}))[:2] == (400, "invalid_request")


def test_interactions_are_listed_newest_first(daemon: Daemon) -> None:
    rows = [daemon.chat(f"Number {n}", max_tokens=1)["interaction_id"] for n in range(3)]
    listed = daemon.get("/edgepd/v1/interactions", params={"limit": 2})["interactions"]
    assert [i["id"] for i in listed] == rows[:0:-1]
    assert error_of(daemon.client.get("/edgepd/v1/interactions", params={"limit": 0}))[:2] == (400, "invalid_request")
    assert error_of(daemon.client.get("/edgepd/v1/interactions/i_unknown"))[:2] == (404, "not_found")


def test_status(daemon: Daemon) -> None:
    daemon.chat("Hi", max_tokens=1)
    found = daemon.get("/edgepd/v1/status")
    assert found["pid"] == daemon.process.pid
    assert found["socket"] == str(daemon.paths.socket)
    assert found["model"]["name"] == "tiny"
    assert (found["generation"]["id"], found["generation"]["kind"]) == (1, "base")
    assert (found["engine"]["active"], found["engine"]["queued"]) == (0, 0)
    assert found["engine"]["tokens_generated"] > 0
    assert found["engine"]["models"] == ["tiny.gguf"]
    assert found["profile"]["interactions"] > 0
    assert found["training"] == {"run": None, "progress": None}
    assert found["memory"]["rss_bytes"] > 10_000_000
    assert found["problems"] == []


def test_training_with_too_little_to_learn_from(daemon: Daemon) -> None:
    status, code, message = daemon.refused("/edgepd/v1/training", {})
    assert (status, code) == (409, "training_refused")
    assert "training needs at least 6" in message
    assert "correct more answers with `edgepd fix`" in message
    assert daemon.get("/edgepd/v1/training") == {"runs": []}
    assert daemon.refused("/edgepd/v1/training", {"kind": "huge"})[:2] == (400, "invalid_request")
    assert error_of(daemon.client.get("/edgepd/v1/training/7"))[:2] == (404, "not_found")
    assert error_of(daemon.client.delete("/edgepd/v1/training/7"))[:2] == (409, "conflict")


def test_generations_when_there_is_only_the_base(daemon: Daemon) -> None:
    found = daemon.get("/edgepd/v1/generations")
    assert found["active"] == 1
    assert [(g["id"], g["kind"], g["state"]) for g in found["generations"]] == [(1, "base", "active")]
    assert daemon.refused("/edgepd/v1/generations/rollback", {})[:2] == (409, "conflict")
    assert daemon.refused("/edgepd/v1/generations/rollback", {"to": 5})[:2] == (404, "not_found")
    assert daemon.refused("/edgepd/v1/generations/activate", {"generation": 5})[:2] == (404, "not_found")
    again = daemon.post("/edgepd/v1/generations/activate", {"generation": 1, "expected": 1})
    assert (again["active"], again["previous"]) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/edgepd/v1/generations/activate", {"generation": 2**70}),
        ("/edgepd/v1/generations/rollback", {"to": 2**70}),
        ("/edgepd/v1/generations/activate", {"generation": 1, "expected": 2**70}),
    ],
)
def test_numbers_that_no_row_can_have(daemon: Daemon, path: str, body: dict[str, Any]) -> None:
    assert daemon.refused(path, body)[0] in (400, 404, 409)


def test_a_run_number_that_no_row_can_have(daemon: Daemon) -> None:
    assert error_of(daemon.client.get(f"/edgepd/v1/training/{2**70}"))[0] in (400, 404)


def test_the_daemon_describes_itself(daemon: Daemon) -> None:
    paths = daemon.get("/openapi.json")["paths"]
    assert {CHAT, "/v1/models", "/healthz", FEEDBACK, "/edgepd/v1/status"} <= set(paths)
