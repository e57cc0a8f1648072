"""The client: every route, and every way in which an answer can go wrong."""

from __future__ import annotations

import inspect
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from edgepd import errors
from edgepd.client import Client
from edgepd.client_errors import ERROR_CLASSES
from edgepd.errors import (
    BusyError,
    ContextOverflowError,
    DaemonNotRunningError,
    EdgepdError,
    ModelError,
    NotFoundError,
    RequestError,
)
from tests.cli.fake_daemon import HEALTH, FakeDaemon, Reply, chunk, error, stream

REQUEST = {"model": "default", "messages": [{"role": "user", "content": "Hi"}]}


def test_missing_socket_says_how_to_start_the_daemon(home: Path) -> None:
    socket = home / "run" / "edgepd.sock"
    with Client(socket) as client, pytest.raises(DaemonNotRunningError) as raised:
        client.health()
    assert (
        str(raised.value)
        == f"no daemon answers on {socket}; start one with: edgepd service start, or edgepd daemon run"
    )


def test_socket_of_a_dead_daemon_counts_as_not_running(daemon: FakeDaemon) -> None:
    daemon._server.shutdown()
    daemon._server.server_close()  # the file stays
    assert daemon.socket.exists()
    with Client(daemon.socket) as client, pytest.raises(DaemonNotRunningError):
        list(client.stream_chat(REQUEST))


def test_every_error_code_comes_back_as_its_class() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EdgepdError)]
    codes = {kind.code for kind in kinds} - {EdgepdError.code}
    assert codes == set(ERROR_CLASSES)
    assert ERROR_CLASSES["model_unavailable"] is ModelError
    assert all(ERROR_CLASSES[code].code == code for code in codes)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (error(404, "not_found", "no interaction 'x'"), NotFoundError, "no interaction 'x'"),
        (error(400, "context_length_exceeded", "too long"), ContextOverflowError, "too long"),
        (error(418, "teapot", "short and stout"), EdgepdError, "short and stout"),
        (Reply(b"<h1>Bad gateway", 502), EdgepdError, "the daemon answered with status 502: '<h1>Bad gateway'"),
        (Reply(b"too many connections", 503), BusyError, "the daemon answered with status 503: 'too many connections'"),
        (Reply({"error": "plain"}, 500), EdgepdError, "the daemon answered with status 500: 'plain'"),
        (Reply([1], 500), EdgepdError, "the daemon answered with status 500: '[1]'"),
        (Reply(b"no json"), EdgepdError, "the daemon sent an answer that is not JSON: 'no json'"),
        (Reply([]), EdgepdError, "the daemon sent an answer that is not a JSON object: '[]'"),
    ],
)
def test_bad_answers(daemon: FakeDaemon, reply: Reply, kind: type[EdgepdError], message: str) -> None:
    daemon.on("GET /edgepd/v1/status", reply)
    with Client(daemon.socket) as client, pytest.raises(EdgepdError) as raised:
        client.status()
    assert (type(raised.value), str(raised.value)) == (kind, message)


@pytest.mark.parametrize("status", ["failed", "draining"])
def test_health_of_a_daemon_that_serves_no_more_is_an_answer(daemon: FakeDaemon, status: str) -> None:
    daemon.on("GET /healthz", Reply({**HEALTH, "status": status, "pid": 4711}, 503))
    with Client(daemon.socket) as client:
        assert client.health() == {**HEALTH, "status": status, "pid": 4711}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(503, "busy", "because"), "because"),
        (Reply(b"too many connections", 503), "too many connections"),
        (Reply({"status": "made up"}, 503), "status 503"),
        (Reply([], 503), "status 503"),
    ],
)
def test_any_other_503_of_the_health_is_an_error(daemon: FakeDaemon, reply: Reply, message: str) -> None:
    daemon.on("GET /healthz", reply)
    with Client(daemon.socket) as client, pytest.raises(BusyError, match=message):
        client.health()


def test_slow_answer_is_busy(daemon: FakeDaemon) -> None:
    release = Event()
    daemon.on("GET /edgepd/v1/status", Reply(events=[{}, {}], before_end=partial(release.wait, 5)))
    try:
        with Client(daemon.socket, timeout=0.05) as client, pytest.raises(BusyError, match="did not answer in time"):
            client.status()
    finally:
        release.set()


def test_stream_yields_the_events_in_order(daemon: FakeDaemon) -> None:
    daemon.on("POST /v1/chat/completions", stream("Hel", "lo"))
    with Client(daemon.socket) as client:
        events = list(client.stream_chat(REQUEST))
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["Hel", "lo", ""]
    assert daemon.asked("/v1/chat/completions") == [{**REQUEST, "stream": True}]


def test_refused_stream_raises_before_the_first_event(daemon: FakeDaemon) -> None:
    daemon.on("POST /v1/chat/completions", error(503, "busy", "the queue is full"))
    with Client(daemon.socket) as client, pytest.raises(BusyError, match="the queue is full"):
        next(client.stream_chat(REQUEST))


def test_error_in_the_middle_of_a_stream(daemon: FakeDaemon) -> None:
    failed = {"error": {"message": "out of memory", "code": "model_unavailable"}}
    daemon.on("POST /v1/chat/completions", Reply(events=[chunk("Hel"), failed], done=False))
    with Client(daemon.socket) as client:
        events = client.stream_chat(REQUEST)
        assert next(events)["choices"][0]["delta"]["content"] == "Hel"
        with pytest.raises(ModelError, match="out of memory"):
            next(events)


def test_stream_without_its_end_is_an_error(daemon: FakeDaemon) -> None:
    daemon.on("POST /v1/chat/completions", Reply(events=[chunk("Hel")], done=False))
    with Client(daemon.socket) as client, pytest.raises(EdgepdError, match="broke off the answer"):
        list(client.stream_chat(REQUEST))


def test_closing_the_stream_hangs_up(daemon: FakeDaemon) -> None:
    closed = Event()
    reply = Reply(events=[chunk("x")] * 200, before_end=partial(closed.wait, 5))
    daemon.on("POST /v1/chat/completions", reply)
    with Client(daemon.socket) as client:
        with closing(client.stream_chat(REQUEST)) as events:
            next(events)
        closed.set()
        assert daemon.hung_up.wait(5)


def test_what_json_cannot_hold_is_refused_before_sending(daemon: FakeDaemon) -> None:
    with Client(daemon.socket) as client:
        with pytest.raises(RequestError, match="surrogates not allowed"):
            client.chat({"messages": [{"role": "user", "content": "\udcff"}]})
        with pytest.raises(RequestError, match="not JSON compliant"):
            client.chat(REQUEST | {"temperature": float("nan")})
    assert daemon.requests == []


@pytest.mark.parametrize("bad", ["../status", "a/b", "a?b", "", "ü", " "])
def test_id_that_would_change_the_path_is_unknown(daemon: FakeDaemon, bad: str) -> None:
    with Client(daemon.socket) as client, pytest.raises(NotFoundError, match="is not an id"):
        client.interaction(bad)
    assert daemon.requests == []


def test_routes_and_bodies(daemon: FakeDaemon) -> None:
    daemon.on("GET /v1/models", {"object": "list", "data": [{"id": "base"}]})
    daemon.on("POST /v1/chat/completions", {"id": "x"})
    daemon.on("POST /edgepd/v1/feedback", {"interaction_id": "i1", "feedback": []})
    daemon.on("DELETE /edgepd/v1/feedback/i1", {"interaction_id": "i1", "removed": 1})
    daemon.on("GET /edgepd/v1/interactions", {"interactions": [{"id": "i1"}]})
    daemon.on("POST /edgepd/v1/training", Reply({"run": {"id": "r1"}}, 202))
    daemon.on("GET /edgepd/v1/training", {"runs": [{"id": "r1"}]})
    daemon.on("GET /edgepd/v1/training/r1", {"run": {"id": "r1"}, "progress": None})
    daemon.on("DELETE /edgepd/v1/training/r1", {"run": {"id": "r1"}})
    daemon.on("POST /edgepd/v1/training/plan", {"plan": {"rank": 8}})
    daemon.on("GET /edgepd/v1/activity", {"model": "tiny"})
    daemon.on("POST /edgepd/v1/reload", {"applied": ["log.level"], "needs_restart": []})
    daemon.on("POST /edgepd/v1/generations/rollback", {"active": 1, "previous": 2, "prepare_ms": 3.0})
    daemon.on("POST /edgepd/v1/generations/activate", {"active": 1, "previous": 2, "prepare_ms": 3.0})
    daemon.on("GET /edgepd/v1/generations/3", {"generation": {"id": 3}})
    daemon.on("GET /edgepd/v1/generations/2/diff/3", {"a": 2, "b": 3})
    daemon.on("DELETE /edgepd/v1/generations/3", {"generation": {"id": 3}, "freed_bytes": 7})
    for route in ("3/pin", "import", "merge"):
        daemon.on(f"POST /edgepd/v1/generations/{route}", {"generation": {"id": 3}})
    with Client(daemon.socket) as client:
        assert client.models() == [{"id": "base"}]
        assert client.chat(REQUEST) == {"id": "x"}
        client.thumb("last", -1)
        client.edit("i1", "better", source="cli")
        assert client.remove_feedback("i1", "edit")["removed"] == 1
        assert client.interactions(5) == [{"id": "i1"}]
        assert client.start_training("baked") == {"id": "r1"}
        assert client.training_runs() == [{"id": "r1"}]
        assert client.training("r1") == {"run": {"id": "r1"}, "progress": None}
        client.stop_training("r1")
        assert client.plan_training("live") == {"rank": 8}
        assert client.activity() == {"model": "tiny"}
        client.rollback()
        client.rollback(4)
        client.activate(3, expected=2)
        assert client.generation(3) == {"generation": {"id": 3}}
        assert client.diff_generations(2, 3) == {"a": 2, "b": 3}
        assert client.delete_generation(3)["freed_bytes"] == 7
        assert client.pin_generation(3, True) == {"id": 3}
        assert client.import_generation(Path("/tmp/x.gguf")) == {"id": 3}
        assert client.merge_generations([2, 4]) == {"id": 3}
        assert client.merge_generations((2, 4), (0.5, 2), 8) == {"id": 3}
        client.prefer("i1", "i2", source="cli")
        assert client.reload() == {"applied": ["log.level"], "needs_restart": []}
    assert [(asked.method, asked.path, asked.query, asked.body) for asked in daemon.requests] == [
        ("GET", "/v1/models", "", {}),
        ("POST", "/v1/chat/completions", "", {**REQUEST, "stream": False}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "last", "thumb": -1}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "edit": "better", "source": "cli"}),
        ("DELETE", "/edgepd/v1/feedback/i1", "kind=edit", {}),
        ("GET", "/edgepd/v1/interactions", "limit=5", {}),
        ("POST", "/edgepd/v1/training", "", {"kind": "baked"}),
        ("GET", "/edgepd/v1/training", "", {}),
        ("GET", "/edgepd/v1/training/r1", "", {}),
        ("DELETE", "/edgepd/v1/training/r1", "", {}),
        ("POST", "/edgepd/v1/training/plan", "", {"kind": "live"}),
        ("GET", "/edgepd/v1/activity", "", {}),
        ("POST", "/edgepd/v1/generations/rollback", "", {}),
        ("POST", "/edgepd/v1/generations/rollback", "", {"to": 4}),
        ("POST", "/edgepd/v1/generations/activate", "", {"generation": 3, "expected": 2}),
        ("GET", "/edgepd/v1/generations/3", "", {}),
        ("GET", "/edgepd/v1/generations/2/diff/3", "", {}),
        ("DELETE", "/edgepd/v1/generations/3", "", {}),
        ("POST", "/edgepd/v1/generations/3/pin", "", {"pinned": True}),
        ("POST", "/edgepd/v1/generations/import", "", {"path": "/tmp/x.gguf"}),
        ("POST", "/edgepd/v1/generations/merge", "", {"generations": [2, 4], "weights": None, "rank": None}),
        ("POST", "/edgepd/v1/generations/merge", "", {"generations": [2, 4], "weights": [0.5, 2], "rank": 8}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "preferred_over": "i2", "source": "cli"}),
        ("POST", "/edgepd/v1/reload", "", {}),
    ]


def test_routes_about_the_user(daemon: FakeDaemon) -> None:
    daemon.routes.append(
        lambda asked: Reply(
            {"rules": [], "apps": [], "app": {}, "survey": None if asked.method == "GET" else {}, "question": None}
        )
    )
    with Client(daemon.socket) as client:
        client.rate("i1", 4, source="cli")
        client.comment("i1", "fine")
        client.copied("i1")
        client.dwelt("i1", 1200, source="mail")
        client.abandoned("i1")
        client.feedback_channels()
        client.feedback_channels(7, app="mail")
        assert client.feedback_rules() == []
        client.profile()
        client.profile(app="mail")
        client.edit_profile("preference", "words", "40", app="mail")
        client.pin_feature("preference", "words", False)
        client.reset_profile()
        client.reset_profile("context", app="mail")
        client.selection("mail")
        assert client.apps() == []
        assert client.change_app("a b", {"shared": True}) == {}
        assert client.next_survey("mail") is None
        assert client.answer_survey("s1", value=4) == {}
        client.answer_survey("s1", text="fine")
        client.answer_survey("s1")
        assert client.next_question() is None
        client.settle_question("i1", "bad")
        client.correct_question("i1", "better")
    assert [(asked.method, asked.path, asked.query, asked.body) for asked in daemon.requests] == [
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "rating": 4, "source": "cli"}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "comment": "fine"}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "copied": True}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "dwell_ms": 1200, "source": "mail"}),
        ("POST", "/edgepd/v1/feedback", "", {"interaction_id": "i1", "abandoned": True}),
        ("GET", "/edgepd/v1/feedback/channels", "", {}),
        ("GET", "/edgepd/v1/feedback/channels", "days=7&app=mail", {}),
        ("GET", "/edgepd/v1/feedback/rules", "", {}),
        ("GET", "/edgepd/v1/profile", "", {}),
        ("GET", "/edgepd/v1/profile", "app=mail", {}),
        (
            "PUT",
            "/edgepd/v1/profile/features",
            "",
            {"kind": "preference", "name": "words", "value": "40", "app": "mail"},
        ),
        ("POST", "/edgepd/v1/profile/features/pin", "", {"kind": "preference", "name": "words", "pinned": False}),
        ("DELETE", "/edgepd/v1/profile", "", {}),
        ("DELETE", "/edgepd/v1/profile", "kind=context&app=mail", {}),
        ("GET", "/edgepd/v1/profile/selection", "app=mail", {}),
        ("GET", "/edgepd/v1/apps", "", {}),
        ("PUT", "/edgepd/v1/apps/a%20b", "", {"shared": True}),
        ("GET", "/edgepd/v1/surveys/next", "app=mail", {}),
        ("POST", "/edgepd/v1/surveys/s1", "", {"value": 4, "text": None, "skipped": False}),
        ("POST", "/edgepd/v1/surveys/s1", "", {"value": None, "text": "fine", "skipped": False}),
        ("POST", "/edgepd/v1/surveys/s1", "", {"value": None, "text": None, "skipped": True}),
        ("GET", "/edgepd/v1/questions/next", "", {}),
        ("POST", "/edgepd/v1/questions/i1", "", {"outcome": "bad"}),
        ("POST", "/edgepd/v1/questions/i1", "", {"edit": "better"}),
    ]


def test_search_in_the_interactions(daemon: FakeDaemon) -> None:
    daemon.on("GET /edgepd/v1/interactions", {"interactions": []})
    with Client(daemon.socket) as client:
        assert client.interactions(5, query="a b", since=1.5, until=2.5, app="mail") == []
    assert daemon.requests[-1].query == "limit=5&q=a+b&since=1.5&until=2.5&app=mail"


def test_lines_end_at_newlines_only(daemon: FakeDaemon) -> None:
    text = '{"a": "one\u2028two\x85three"}\n\n{"b": 1}'  # what str.splitlines would break into five
    daemon.on("GET /edgepd/v1/export", Reply(text.encode()))
    with Client(daemon.socket) as client:
        assert list(client.export()) == ['{"a": "one\u2028two\x85three"}', '{"b": 1}']


def test_refused_lines_raise(daemon: FakeDaemon) -> None:
    daemon.on("GET /edgepd/v1/export", error(404, "not_found", "no app 'x'"))
    with Client(daemon.socket) as client, pytest.raises(NotFoundError, match="no app 'x'"):
        next(client.export())


def test_observation_does_not_wait_long(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Event()
    monkeypatch.setattr("edgepd.profile_client.OBSERVE_TIMEOUT_S", 0.05)
    daemon.on("POST /edgepd/v1/feedback", Reply(events=[{}, {}], before_end=partial(release.wait, 5)))
    try:
        with Client(daemon.socket) as client, pytest.raises(BusyError, match="did not answer in time"):
            client.dwelt("i1", 5)
    finally:
        release.set()
