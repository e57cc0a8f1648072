"""What watches the daemon and adjusts it: health in every state, metrics, reload, threads; without a model."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgepd.errors import BusyError, ConfigError
from edgepd.settings import Settings
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.engine.types import EngineStatus
from tests.daemon.scripted import Scripted, scripted
from tests.daemon.supervised import FakeSupervisor

QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def api() -> Iterator[Scripted]:
    trainer = SimpleNamespace(run=None, progress=None, _settings=Settings())
    with scripted(trainer=trainer, load_settings=Settings) as served:
        services: Any = served.services
        services.supervisor = FakeSupervisor()
        yield served


def engine_says(api: Scripted, **status: Any) -> None:
    api.engine.status = lambda: EngineStatus(**status)  # type: ignore[method-assign]


def samples(api: Scripted) -> dict[tuple[str, str], float]:
    response = api.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {(s.name, ",".join(s.labels.values())): s.value for family in families for s in family.samples}


@pytest.mark.parametrize(
    ("engine", "status", "percent"),
    [
        ({"state": "unloaded"}, "unloaded", None),
        ({"state": "loading", "loading_percent": 12.5}, "loading", 12.5),
        ({"state": "ready"}, "ready", None),
    ],
)
def test_a_daemon_that_can_take_requests(api: Scripted, engine: dict[str, Any], status: str, percent: float) -> None:
    engine_says(api, **engine)
    response = api.client.get("/healthz")
    found = response.json()
    assert response.status_code == 200
    assert (found["status"], found["loading_percent"]) == (status, percent)
    assert (found["live"], found["ready"]) == (True, True)
    assert (found["model"], found["generation"], found["version"]) == ("tiny", 2, "0.1.0")
    assert found["pid"] > 0
    assert found["uptime_s"] >= 0


def test_a_full_queue_is_not_ready(api: Scripted) -> None:
    engine_says(api, state="ready", queued=32)
    response = api.client.get("/healthz")
    assert (response.status_code, response.json()["status"], response.json()["ready"]) == (200, "ready", False)


def test_a_daemon_that_drains(api: Scripted) -> None:
    api.services.draining = True
    response = api.client.get("/healthz")
    found = response.json()
    assert (response.status_code, found["status"], found["live"], found["ready"]) == (503, "draining", True, False)


def test_a_daemon_whose_engine_has_died(api: Scripted) -> None:
    api.engine.alive = False
    response = api.client.get("/healthz")
    found = response.json()
    assert (response.status_code, found["status"], found["live"], found["ready"]) == (503, "failed", False, False)
    assert samples(api)["edgepd_ready", ""] == 0


def test_metrics_count_answers_and_refusals(api: Scripted) -> None:
    api.engine.refuse = BusyError("3 requests are waiting already; try again later")
    assert api.client.post("/v1/chat/completions", json=QUESTION).status_code == 503
    assert api.client.get("/v1/nothing").status_code == 404
    engine_says(api, state="ready", slots=4, queued=2, prompt_tokens=10, cached_tokens=4)
    found = samples(api)
    assert found["edgepd_refusals_total", "busy"] == 1
    assert found["edgepd_refusals_total", "not_found"] == 1
    assert (found["edgepd_queue_depth", ""], found["edgepd_slots", ""]) == (2, 4)
    assert (found["edgepd_prompt_tokens_total", ""], found["edgepd_cached_prompt_tokens_total", ""]) == (10, 4)
    assert found["edgepd_generation", ""] == 2
    assert found["edgepd_training_runs_total", "promoted"] == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_who_is_refused_learns_how_long_the_queue_is(api: Scripted, path: str) -> None:
    busy = BusyError("3 requests are waiting already; try again later")
    busy.queued = 3
    api.engine.refuse = busy
    response = api.client.post(path, json=QUESTION | {"model": "tiny"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    body = response.json()
    assert body["queued"] == 3
    message = body["error"] if path == "/api/chat" else body["error"]["message"]
    assert message == "3 requests are waiting already; try again later"


def test_each_dialect_gets_its_errors(api: Scripted) -> None:
    assert api.client.get("/api/nothing").json() == {"error": "GET /api/nothing: Not Found"}
    error = api.client.get("/v1/nothing").json()["error"]
    assert error == {
        "message": "GET /v1/nothing: Not Found",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }


def test_the_offending_field_is_named(api: Scripted) -> None:
    def param(body: Any, path: str = "/edgepd/v1/feedback") -> str | None:
        response = api.client.post(path, json=body)
        assert response.status_code == 400, response.text
        named: str | None = response.json()["error"]["param"]
        return named

    assert param({"thumb": "up"}) == "thumb"
    assert param({"thumb": 1, "stars": 5}) == "stars"
    assert param({"messages": [{"role": "robot", "content": "x"}]}, "/v1/chat/completions") == "messages[0].role"
    assert param([]) is None
    wrong = api.client.get("/edgepd/v1/interactions", params={"limit": "many"})
    assert wrong.json()["error"]["param"] == "limit"


def test_reload_says_what_it_did(api: Scripted) -> None:
    api.services.load_settings = lambda: Settings()
    assert api.client.post("/edgepd/v1/reload").json() == {"applied": [], "needs_restart": []}

    def broken() -> Settings:
        raise ConfigError("config.toml: unknown setting 'serve.x'")

    api.services.load_settings = broken
    response = api.client.post("/edgepd/v1/reload")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_config")


def test_threads_can_be_changed_while_it_serves(api: Scripted) -> None:
    assert api.client.put("/edgepd/v1/serving", json={"threads": 1}).json() == {"threads": 1}
    assert api.engine.threads == 1
    assert api.client.put("/edgepd/v1/serving", json={"threads": 0}).json() == {"threads": physical_cores()}
    for body in ({}, {"threads": -1}, {"threads": 257}, {"threads": 1, "slots": 2}):
        assert api.client.put("/edgepd/v1/serving", json=body).status_code == 400
    assert api.engine.threads == physical_cores()


def test_an_unexpected_failure_is_told_in_general_and_logged(
    api: Scripted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode() -> EngineStatus:
        raise KeyError("secret")

    monkeypatch.setattr(api.engine, "status", explode)
    response = api.client.get("/edgepd/v1/status")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "GET /edgepd/v1/status failed" in caplog.text
