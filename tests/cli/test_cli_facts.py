"""`edgepd remember`, `recall`, `facts` and `suggest`, and the client's routes for them."""

from __future__ import annotations

import json

import pytest

from edgepd.client import Client
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, Json, error
from tests.cli.fake_privacy import FACT, FOUND, RECEIPT, SUGGESTIONS, done

FACTS = "/edgepd/v1/facts"
NEXT: list[Json] = [
    {"intent": "mail", "probability": 0.62, "reason": "usually at this time", "app": "mail"},
    {"intent": "write\nreport", "probability": 0.081, "reason": "often after mail", "app": None},
]


@pytest.fixture(autouse=True)
def plain_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.facts.moment", lambda seconds: f"t{seconds:.0f}")


@pytest.mark.parametrize(
    ("args", "stdin", "body"),
    [
        (("My sister is called Ada",), None, {"text": "My sister is called Ada"}),
        ((), "  My sister is called Ada\n", {"text": "My sister is called Ada"}),
        (("I write in British English", "--app", "mail"), None, {"text": "I write in British English", "app": "mail"}),
    ],
)
def test_remember(
    daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], stdin: str | None, body: dict[str, str]
) -> None:
    daemon.on(f"POST {FACTS}", {"fact": FACT})
    result = edgepd("remember", *args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, "remembered as fact 3\n")
    assert daemon.asked(FACTS) == [body]
    assert json.loads(edgepd("remember", *args, "--json", stdin=stdin).stdout) == {"fact": FACT}


def test_remember_nothing_or_a_secret(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("remember", "  ")
    assert (result.exit_code, daemon.requests) == (2, [])
    assert result.stderr == "Error: the fact is empty; give it as an argument or through a pipe\n"
    daemon.on(f"POST {FACTS}", error(400, "invalid_request", "this looks like a password"))
    result = edgepd("remember", "my password is hunter2")
    assert (result.exit_code, result.stderr) == (2, "Error: this looks like a password\n")


def test_recall(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /edgepd/v1/recall", {"found": FOUND})
    result = edgepd("recall", "Ada & tea", "--limit", "2")
    assert result.stdout == (
        "fact 3: My sister is called Ada\nanswer i7 of t2000\n  What does Ada like?\n  Ada likes tea.\n"
    )
    assert daemon.requests[-1].query == "q=Ada+%26+tea&limit=2"
    assert json.loads(edgepd("recall", "Ada", "--json").stdout) == {"found": FOUND}


def test_recall_shortens_long_answers(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /edgepd/v1/recall", {"found": [FOUND[1] | {"text": "x" * 61, "prompt": "y" * 60}]})
    assert edgepd("recall", "Ada").stdout.splitlines()[1:] == ["  " + "y" * 60, "  " + "x" * 59 + "…"]
    daemon.on("GET /edgepd/v1/recall", {"found": []})
    assert edgepd("recall", "Ada").stdout == "nothing that is kept fits this\n"


def test_list_of_facts(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"GET {FACTS}", {"facts": [FACT, FACT | {"id": 12, "app": "mail", "text": "two\nlines"}]})
    assert edgepd("facts").stdout == (
        "id  for       since  fact\n3   all apps  t1000  My sister is called Ada\n12  mail      t1000  two lines\n"
    )
    assert len(json.loads(edgepd("facts", "--json").stdout)["facts"]) == 2
    daemon.on(f"GET {FACTS}", {"facts": []})
    assert edgepd("facts").stdout == "no facts; tell one with: edgepd remember TEXT\n"


def test_forget_a_fact(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    receipt = RECEIPT | {"counts": {"facts": 1}, "generations": [], "retraining": False}
    daemon.on(f"DELETE {FACTS}/3", done(receipt))
    assert edgepd("facts", "--forget", "3").stdout == (
        "forgotten: 1 fact\n"
        "no generation had learned from it\n"
        "a search of 37 files (1.5 MiB) found the text nowhere\n"
        "receipt r_1\n"
    )
    assert json.loads(edgepd("facts", "--forget", "3", "--json").stdout) == done(receipt)
    daemon.on(f"DELETE {FACTS}/4", error(404, "not_found", "no fact 4"))
    assert edgepd("facts", "--forget", "4").exit_code == 4


def test_suggest(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    found = {"suggestions": SUGGESTIONS, "next": NEXT, "predicting": True}
    daemon.on("GET /edgepd/v1/suggestions", found)
    result = edgepd("suggest", "--limit", "5")
    assert result.stdout == (
        "likely next:\n"
        "mail          62%  (usually at this time)\n"
        "write report  8%   (often after mail)\n"
        "to ask:\n"
        "1.  Plan my week        (you ask this on Mondays)\n"
        "2.  Shorten the letter  (it often comes next)\n"
    )
    assert daemon.requests[-1].query == "limit=5"
    assert json.loads(edgepd("suggest", "--json").stdout) == found


@pytest.mark.parametrize(
    ("found", "out", "err"),
    [
        (
            {"suggestions": SUGGESTIONS[:1], "next": [], "predicting": True},
            "1.  Plan my week  (you ask this on Mondays)\n",
            "",
        ),
        (
            {"suggestions": [], "next": NEXT[:1], "predicting": True},
            "likely next:\nmail  62%  (usually at this time)\n",
            "",
        ),
        ({"suggestions": [], "next": [], "predicting": True}, "", "no suggestions yet; they come from what you ask\n"),
        (
            {"suggestions": SUGGESTIONS[:1], "next": [], "predicting": False},
            "1.  Plan my week  (you ask this on Mondays)\n",
            "prediction is switched off (intent.enabled)\n",
        ),
        ({"suggestions": SUGGESTIONS[:1]}, "1.  Plan my week  (you ask this on Mondays)\n", ""),  # an older daemon
    ],
)
def test_what_there_is_is_suggested(daemon: FakeDaemon, edgepd: Edgepd, found: Json, out: str, err: str) -> None:
    daemon.on("GET /edgepd/v1/suggestions", found)
    result = edgepd("suggest")
    assert (result.exit_code, result.stdout, result.stderr) == (0, out, err)
    as_json = edgepd("suggest", "--json")
    assert (json.loads(as_json.stdout), as_json.stderr) == (found, "")


def test_take_a_suggestion(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /edgepd/v1/suggestions", {"suggestions": SUGGESTIONS})
    daemon.on("POST /edgepd/v1/suggestions/s_2", {"suggestion": SUGGESTIONS[1] | {"outcome": "taken"}})
    assert edgepd("suggest", "--take", "2").stdout == "Shorten the\nletter\n"
    assert daemon.asked("/edgepd/v1/suggestions/s_2") == [{"outcome": "taken"}]
    result = edgepd("suggest", "--take", "3")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "Error: there is no suggestion 3, only 2; list them with: edgepd suggest\n"


def test_client_names_the_app_that_asks(daemon: FakeDaemon) -> None:
    daemon.on(f"GET {FACTS}", {"facts": []})
    daemon.on("GET /edgepd/v1/recall", {"found": []})
    daemon.on("GET /edgepd/v1/suggestions", {"suggestions": []})
    with Client(daemon.socket) as client:
        client.facts(app="mail")
        client.recall("tea", app="mail")
        client.suggestions(app="mail")
        client.facts()
    assert [asked.query for asked in daemon.requests] == ["app=mail", "q=tea&app=mail", "app=mail", ""]
