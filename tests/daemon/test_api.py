"""The socket API of a real daemon with the tiny model: feedback, reports, and every kind of bad input."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.running import Daemon, Json, error_of, question

CHAT = "/v1/chat/completions"
FEEDBACK = "/edgepd/v1/feedback"


def stored(daemon: Daemon, interaction_id: str = "last") -> Json:
    return daemon.get(f"/edgepd/v1/interactions/{interaction_id}")


def test_health(daemon: Daemon) -> None:
    daemon.chat("Hi", max_tokens=1)
    found = daemon.get("/healthz")
    assert found.pop("uptime_s") >= 0
    assert found == {
        "status": "ready",
        "live": True,
        "ready": True,
        "loading_percent": None,
        "version": "0.1.0",
        "pid": daemon.process.pid,
        "model": "tiny",
        "generation": 1,
    }


def test_only_the_user_can_reach_the_socket(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.paths.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.paths.runtime_dir.stat().st_mode) == 0o700
    for file in daemon.paths.data_dir.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file


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
        ({}, 400, "invalid_request", "give exactly one of"),
        ({"thumb": 1, "edit": "x"}, 400, "invalid_request", "give exactly one of"),
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
    [model] = found["engine"]["models"]
    assert Path(model["path"]).name == "tiny.gguf"
    assert model["size_bytes"] > 10_000
    assert 0 < model["expires_in_s"] <= 300
    assert found["engine"]["state"] == "ready"
    assert (found["engine"]["loads"], found["engine"]["unloads"]) == (1, 0)
    assert found["profile"]["interactions"] > 0
    assert found["training"] == {"run": None, "progress": None}
    assert found["memory"]["rss_bytes"] > 10_000_000
    assert (found["draining"], found["needs_restart"], found["problems"]) == (False, [], [])


def test_training_with_too_little_to_learn_from(daemon: Daemon) -> None:
    status, code, message = daemon.refused("/edgepd/v1/training", {})
    assert (status, code) == (409, "training_refused")
    assert "training needs at least 10" in message
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


@pytest.mark.parametrize("path", [CHAT, FEEDBACK, "/api/chat", "/api/embed", "/v1/responses"])
@pytest.mark.parametrize("brackets", [b"[", b'{"messages":'])
def test_a_bomb_of_brackets_is_refused(daemon: Daemon, path: str, brackets: bytes) -> None:
    content = b'{"messages": %b' % (brackets * 100_000)
    response = daemon.client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert daemon.get("/healthz")["live"]


def test_a_body_of_ten_megabytes_is_refused(daemon: Daemon) -> None:
    response = daemon.client.post(CHAT, json=question("x" * 10_000_000))
    assert error_of(response)[:2] == (413, "invalid_request")
    assert daemon.get("/healthz")["live"]


def test_half_a_character_in_a_correction_is_refused(daemon: Daemon) -> None:
    daemon.chat("Something to correct", max_tokens=1)
    content = b'{"edit": "half \\ud83d"}'
    response = daemon.client.post(FEEDBACK, content=content, headers={"content-type": "application/json"})
    assert error_of(response)[:2] == (400, "invalid_request")


def test_the_document_shows_the_errors_of_each_dialect(daemon: Daemon) -> None:
    document = daemon.get("/openapi.json")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            content = operation["responses"]["default"]["content"]["application/json"]
            name = "OllamaError" if path.startswith("/api/") else "Error"
            assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}
    assert {"Error", "OllamaError"} <= set(document["components"]["schemas"])
