"""Two clients, mail and editor: what one has, the other never sees, judges, forgets or settles, unless it is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgepd.settings import Profile, Settings
from tests.daemon.profiled import OWN, ask, call, get, ok, post, profiled, put, refused
from tests.daemon.running import Json
from tests.daemon.scripted import Scripted

TEXT = "Where does the zeppelin land?"
WORDS = "zeppelin"


@pytest.fixture
def served() -> Iterator[Scripted]:
    """A server on which mail has asked and told things, and nobody else has."""
    with profiled(settings=Settings(profile=Profile(surveys=True, prompt="on", retrieval="on"))) as found:
        for n in range(4):
            put(found, f"i_mail{n}", TEXT, "mail", ago=3600 - n, state="cancelled" if n == 3 else "done")
        post(found, "/feedback", interaction_id="i_mail0", rating=5, app="mail")
        post(found, "/facts", text="My zeppelin is called Otto", app="mail")
        post(found, "/events", events=[{"event": "flight", "intent": "zeppelin"}], app="mail")
        ok(
            call(
                found, "PUT", "/profile/features", kind="preference", name="style", value="zeppelin jargon", app="mail"
            )
        )
        yield found


def interactions_of(served: Scripted, app: str | None) -> list[str]:
    return [row["id"] for row in get(served, "/interactions", **named(app))["interactions"]]


def named(app: str | None) -> Json:
    return {} if app is None else {"app": app}


def views(served: Scripted, app: str | None) -> dict[str, str]:
    """Return everything that an app is told, as text."""
    who = named(app)

    def text(path: str, **params: Any) -> str:
        response = served.client.get(OWN + path, params=params | who)
        assert response.status_code == 200, response.text
        return response.text

    return {
        "interactions": text("/interactions"),
        "search": text("/interactions", q=WORDS),
        "facts": text("/facts"),
        "events": text("/events"),
        "recall": text("/recall", q=WORDS),
        "profile": text("/profile"),
        "selection": text("/profile/selection"),
        "suggestions": text("/suggestions"),
        "question": text("/questions/next"),
        "export": text("/export"),
    }


def test_an_app_sees_its_own_and_another_one_nothing_of_it(served: Scripted) -> None:
    assert {name for name, text in views(served, "mail").items() if WORDS not in text} == set()
    assert {name for name, text in views(served, None).items() if WORDS not in text} == set()
    for app in ("editor", ""):
        assert {name for name, text in views(served, app).items() if WORDS in text} == set()
    assert [app["name"] for app in get(served, "/apps", app="editor")["apps"]] == []


def test_the_model_is_told_for_an_app_what_that_app_may_see(served: Scripted) -> None:
    ask(served, "Who pays for the zeppelin?", "editor")
    assert served.engine.rendered[-1][0] == [{"role": "user", "content": "Who pays for the zeppelin?"}]
    ask(served, "Who pays for the zeppelin?", "mail")
    [system, *rest] = served.engine.rendered[-1][0]
    assert ("Otto" in system["content"], "zeppelin jargon" in system["content"]) == (True, True)
    assert rest[0] == {"role": "user", "content": TEXT}  # an accepted answer to a similar question


def test_sharing_an_app_opens_it_and_no_other_one(served: Scripted) -> None:
    put(served, "i_notes", "A zeppelin in the notes", "notes")
    ok(call(served, "PUT", "/apps/mail", shared=True))
    assert {name for name, text in views(served, "editor").items() if WORDS not in text} == set()
    assert interactions_of(served, "editor") == ["i_mail3", "i_mail2", "i_mail1", "i_mail0"]
    ok(call(served, "PUT", "/apps/mail", shared=False))
    assert {name for name, text in views(served, "editor").items() if WORDS in text} == set()


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (lambda s: call(s, "GET", "/interactions/i_mail0", params={"app": "editor"}), "interaction 'i_mail0'"),
        (lambda s: call(s, "GET", "/interactions/last", params={"app": "editor"}), "there is no interaction yet"),
        (lambda s: call(s, "GET", "/interactions", params={"before": "i_mail3", "app": "editor"}), "'i_mail3'"),
        (lambda s: call(s, "POST", "/feedback", interaction_id="i_mail0", thumb=-1, app="editor"), "'i_mail0'"),
        (lambda s: call(s, "POST", "/feedback", thumb=-1, app="editor"), "there is no interaction yet"),
        (lambda s: call(s, "DELETE", "/feedback/i_mail0", params={"app": "editor"}), "interaction 'i_mail0'"),
        (lambda s: call(s, "POST", "/questions/i_mail0", outcome="bad", app="editor"), "interaction 'i_mail0'"),
        (lambda s: call(s, "DELETE", "/facts/1", params={"app": "editor"}), "fact 1 is not known"),
        (lambda s: call(s, "POST", "/forget", ids=["i_mail0"], app="editor"), "interaction 'i_mail0'"),
        (lambda s: call(s, "POST", "/forget", ids=["i_mail0"], app="editor", dry_run=True), "interaction 'i_mail0'"),
    ],
)
def test_what_is_not_seen_is_not_known(served: Scripted, send: Callable[[Scripted], Any], message: str) -> None:
    before = views(served, "mail")
    status, said = refused(send(served))
    assert (status, message in said) == (404, True), said
    assert WORDS not in said
    after = views(served, "mail")
    assert (after["interactions"], after["facts"], after["export"]) == (
        before["interactions"],
        before["facts"],
        before["export"],
    )


@pytest.mark.parametrize("selector", [{"search": WORDS}, {"since": 0}, {"app_name": "mail"}, {"all": True}])
def test_an_app_forgets_nothing_of_another_one(served: Scripted, selector: Json) -> None:
    put(served, "i_editor", f"An unrelated {WORDS}", "editor")
    post(served, "/facts", text=f"The editor knows a {WORDS}", app="editor")
    planned = post(served, "/forget", **selector, app="editor", dry_run=True)["receipt"]["counts"]
    mine = 0 if "app_name" in selector else 1
    assert (planned["interactions"], planned["facts"], planned["edits"]) == (mine, mine, 0)
    post(served, "/forget", **selector, app="editor")
    assert len(interactions_of(served, "mail")) == 4
    assert [fact["id"] for fact in get(served, "/facts", app="mail")["facts"]] == [1]
    assert "zeppelin jargon" in get(served, "/profile", app="mail")["prompt"]
    assert len(interactions_of(served, "editor")) == 1 - mine


def test_a_suggestion_is_settled_by_the_app_it_was_shown_in(served: Scripted) -> None:
    [shown] = get(served, "/suggestions", app="mail")["suggestions"]
    path = f"/suggestions/{shown['id']}"
    assert refused(call(served, "POST", path, outcome="ignored", app="editor"))[0] == 404
    row = ask(served, "Something else", "editor")
    # Nor is it said to have been asked in an exchange that mail does not see.
    assert refused(call(served, "POST", path, outcome="taken", interaction=row, app="mail"))[0] == 404
    ask(served, shown["text"], "editor")
    [again] = get(served, "/suggestions", app="mail")["suggestions"]
    assert again["id"] == shown["id"]  # still open
    assert post(served, path, outcome="taken", app="mail")["suggestion"]["outcome"] == "taken"


def test_a_survey_is_answered_in_the_app_it_was_asked_in(served: Scripted) -> None:
    assert get(served, "/surveys/next", app="mail") == {"survey": None}  # four answers are not enough
    put(served, "i_mail4", "Anything", "mail")
    assert get(served, "/surveys/next", app="editor") == {"survey": None}
    survey = get(served, "/surveys/next", app="mail")["survey"]
    for n in range(6):
        put(served, f"i_editor{n}", "Anything", "editor")
    assert get(served, "/surveys/next", app="editor") == {"survey": None}
    status, message = refused(call(served, "POST", f"/surveys/{survey['id']}", value=1, app="editor"))
    assert (status, message.startswith(f"survey '{survey['id']}' is not known")) == (404, True)
    assert post(served, f"/surveys/{survey['id']}", value=5, app="mail")["survey"]["value"] == 5


def test_what_an_app_sets_or_resets_is_its_own(served: Scripted) -> None:
    ok(call(served, "DELETE", "/profile", params={"app": "editor"}))
    assert "zeppelin jargon" in get(served, "/profile", app="mail")["prompt"]
    ok(call(served, "DELETE", "/profile", params={"app": "mail"}))
    assert get(served, "/profile", app="mail")["prompt"] is None
    ok(call(served, "PUT", "/profile/features", kind="preference", name="style", value="plain"))  # for all
    assert "Style: plain." in get(served, "/profile", app="editor")["prompt"]


def test_what_an_app_takes_in_becomes_its_own(served: Scripted) -> None:
    exported = served.client.get(f"{OWN}/export", params={"app": "mail"}).text.splitlines()
    with profiled() as other:
        done = post(other, "/import", lines=exported, app="editor")
        assert (done["added"], done["facts"]) == (4, 1)
        assert {row.app for row in other.rows()} == {"editor"}
        assert [fact["app"] for fact in get(other, "/facts")["facts"]] == ["editor"]
        assert interactions_of(other, "mail") == []
