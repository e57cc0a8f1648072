"""The routes of the profile, of selection, of apps, of facts, recall and suggestions, over a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgepd.settings import Profile, Settings
from edgepd_profiles import suggestions
from tests.daemon.profiled import ask, call, get, ok, post, profiled, put, refused
from tests.daemon.running import Json
from tests.daemon.scripted import Scripted

KINDS = {"interest", "context", "quality", "preference", "history"}
NOT_MEASURED = "it has not been measured with generation 2"


@pytest.fixture
def served() -> Iterator[Scripted]:
    with profiled() as found:
        yield found


def names(found: Json, kind: str) -> set[str]:
    return {feature["name"] for feature in found["groups"][kind]}


def feature(found: Json, kind: str, name: str) -> Json:
    [one] = [each for each in found["groups"][kind] if each["name"] == name]
    return dict(one)


def set_by_hand(served: Scripted, kind: str, name: str, value: object, **fields: object) -> Json:
    return ok(call(served, "PUT", "/profile/features", kind=kind, name=name, value=value, **fields))


def test_an_empty_profile(served: Scripted) -> None:
    assert get(served, "/profile") == {
        "app": None,
        "exchanges": 0,
        "groups": {kind: [] for kind in KINDS},
        "prompt": None,
        "prompt_used": False,
        "why": NOT_MEASURED,
        "embedding": None,
    }


def test_what_was_just_asked_is_in_the_profile(served: Scripted) -> None:
    for n in range(2):
        ask(served, "When do tides rise in Brest?", "mail", answer="At noon, as always.", conversation=f"c{n}")
    found = get(served, "/profile")
    assert (found["exchanges"], set(found["groups"])) == (2, KINDS)
    features = [each for group in found["groups"].values() for each in group]
    assert {frozenset(each) for each in features} == {
        frozenset({"name", "alpha", "value", "count", "pinned", "edited"})
    }
    # Names with "*" are sums of edgepd's own.
    assert not [each["name"] for each in features if each["name"].startswith("*")]
    assert {"tides", "brest"} <= names(found, "interest")
    assert feature(found, "context", "app:mail")["count"] == 2


@pytest.mark.parametrize(
    ("value", "kept", "told"),
    [
        (40, 40.0, "Keep it short: about 40 words."),
        ("40", 40.0, "Keep it short: about 40 words."),
        ("about as long as this", "about as long as this", "Words: about as long as this."),
    ],
)
def test_a_feature_is_set_by_hand_and_always_told(served: Scripted, value: object, kept: object, told: str) -> None:
    found = set_by_hand(served, "preference", "words", value)
    one = feature(found, "preference", "words")
    assert (one["value"], one["edited"], one["pinned"]) == (kept, True, False)
    assert (found["prompt_used"], told in found["prompt"]) == (True, True)
    assert found["why"] == f"what you set by hand is always told; of the rest, {NOT_MEASURED}"
    assert set_by_hand(served, "preference", "words", value) == found
    ask(served, "Hello there", "mail")
    system = served.engine.rendered[-1][0][0]
    assert (system["role"], told in system["content"]) == ("system", True)


def test_yes_and_no_are_understood(served: Scripted) -> None:
    for value, told in (
        (True, "Answer in"),
        ("yes", "Answer in"),
        ("No", "Do not answer in"),
        (False, "Do not answer in"),
    ):
        found = set_by_hand(served, "preference", "language:de", value)
        assert f"{told} German." in found["prompt"]


def test_what_could_be_told_is_shown_too() -> None:
    for prompt, used in (("off", False), ("on", True)):
        with profiled(settings=Settings(profile=Profile(prompt=prompt))) as served:
            found = set_by_hand(served, "preference", "words", 40)
            assert "Keep it short: about 40 words." in found["prompt"]
            assert (found["prompt_used"], found["why"]) == (used, f"the setting profile.prompt is '{prompt}'")
            ask(served, "Hello there")
            assert (served.engine.rendered[-1][0][0]["role"] == "system") is used


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"kind": "taste", "name": "x", "value": "y"}, "the profile has no kind 'taste'; use one of interest,"),
        ({"kind": "interest", "name": "*", "value": 1}, "those with '*' are edgepd's own"),
        ({"kind": "interest", "name": " ", "value": 1}, "the name of the feature is empty"),
        ({"kind": "interest", "name": "x" * 101, "value": 1}, "the name of the feature has 101 characters"),
        ({"kind": "interest", "name": "x", "value": ""}, "body.value"),
        ({"kind": "interest", "name": "x", "value": "y" * 301}, "the value has 301 characters, but at most 300"),
        ({"kind": "interest", "name": "x", "value": "a\nb"}, "more than one line"),
        ({"kind": "interest", "name": "x", "value": "password=Tr4il-Horse-77"}, "seems to hold a secret"),
        ({"kind": "interest", "name": "x", "value": None}, "body.value"),
        ({"kind": "interest", "name": "x"}, "body.value"),
        ({"kind": "interest", "name": "x", "value": 1, "alpha": 3}, "body.alpha"),
    ],
)
def test_edits_that_are_refused(served: Scripted, body: Json, message: str) -> None:
    found = refused(call(served, "PUT", "/profile/features", **body))
    assert (found[0], message in found[1]) == (400, True), found
    assert get(served, "/profile")["groups"]["interest"] == []


def test_pinning_what_was_observed_just_now(served: Scripted) -> None:
    ask(served, "When do tides rise?")
    found = post(served, "/profile/features/pin", kind="interest", name="tides", pinned=True)
    one = feature(found, "interest", "tides")
    assert (one["pinned"], one["edited"], one["count"]) == (True, False, 1)
    ask(served, "When do tides fall?")
    assert feature(get(served, "/profile"), "interest", "tides")["count"] == 1
    found = post(served, "/profile/features/pin", kind="interest", name="tides", pinned=False)
    assert feature(found, "interest", "tides") | {"alpha": 0} == {
        "name": "tides", "alpha": 0, "value": 1.0, "count": 2, "pinned": False, "edited": False,
    }  # fmt: skip
    status, message = refused(call(served, "POST", "/profile/features/pin", kind="interest", name="sails", pinned=True))
    assert (status, message.startswith("the profile has no interest 'sails' to pin")) == (404, True)


def test_a_group_or_everything_begins_anew(served: Scripted) -> None:
    row = ask(served, "When do tides rise?")
    set_by_hand(served, "preference", "words", 40)
    found = ok(call(served, "DELETE", "/profile", params={"kind": "interest"}))
    assert (names(found, "interest"), "words" in names(found, "preference")) == (set(), True)
    assert names(found, "context") != set()
    found = ok(call(served, "DELETE", "/profile"))
    assert (found["groups"], found["prompt"]) == ({kind: [] for kind in KINDS}, None)
    assert get(served, f"/interactions/{row}")["prompt"] == "When do tides rise?"  # exchanges stay
    status, message = refused(call(served, "DELETE", "/profile", params={"kind": "taste"}))
    assert (status, message.startswith("the profile has no kind 'taste'")) == (400, True)


def test_the_selection_with_its_reasons(served: Scripted) -> None:
    assert get(served, "/profile/selection") == {
        "policy": "recency",
        "slots": 1000,
        "pools": {"examples": [], "questions": []},
    }
    judged, other = ask(served, "When do tides rise?"), ask(served, "Where is Brest?")
    post(served, "/feedback", interaction_id=judged, thumb=1)
    pools = get(served, "/profile/selection")["pools"]
    shown = {pool: [(item["interaction"], item["prompt"]) for item in items] for pool, items in pools.items()}
    assert shown == {"examples": [(judged, "When do tides rise?")], "questions": [(other, "Where is Brest?")]}
    for item in (*pools["examples"], *pools["questions"]):
        assert set(item) == {
            "interaction", "prompt", "entropy", "domain_score", "dissimilarity", "domain", "reason", "at",
        }  # fmt: skip
        assert item["reason"]


def test_apps_and_what_they_may_do(served: Scripted) -> None:
    ask(served, "Hello", "mail")
    ask(served, "Hello again")
    mail = {"name": "mail", "shared": False, "stored": True, "teaches": True, "interactions": 1}
    unnamed = {"name": "", "shared": True, "stored": True, "teaches": True, "interactions": 1}
    assert get(served, "/apps") == {"apps": [unnamed, mail]}
    for _ in range(2):
        changed = ok(call(served, "PUT", "/apps/mail", teaches=False))
        assert changed == {"app": {"name": "mail", "shared": False, "stored": True, "teaches": False}}
    assert get(served, "/apps")["apps"][1] == mail | {"teaches": False}
    assert ok(call(served, "PUT", "/apps/not yet seen", shared=True))["app"]["name"] == "not yet seen"
    assert [app["name"] for app in get(served, "/apps", app="mail")["apps"]] == ["", "mail", "not yet seen"]
    assert [app["name"] for app in get(served, "/apps", app="x")["apps"]] == ["", "not yet seen"]
    for path, body, message in (
        ("/apps/mail", {}, "give at least one of `shared`, `stored` and `teaches`"),
        ("/apps/mail", {"shared": 7}, "body.shared"),
        ("/apps/mail", {"shared": True, "app": "editor"}, "app 'editor' cannot change what app 'mail' may do"),
        (f"/apps/{'x' * 201}", {"shared": True}, "path.name"),
        ("/apps/%07", {"shared": True}, "characters that cannot be shown"),
    ):
        found = refused(call(served, "PUT", path, **body))
        assert (found[0], message in found[1]) == (400, True), found


def test_facts_are_remembered_once_and_told(served: Scripted) -> None:
    assert get(served, "/facts") == {"facts": []}
    fact = post(served, "/facts", text=" My sister is\n called Ada ")["fact"]
    assert fact == {"id": 1, "app": "", "text": "My sister is called Ada", "at": fact["at"]}
    assert post(served, "/facts", text="My sister is called Ada")["fact"] == fact
    ask(served, "What is my sister called?", "mail")
    assert "My sister is called Ada" in served.engine.rendered[-1][0][0]["content"]
    ask(served, "What is my sister called?", "mail", personal=False)
    assert served.engine.rendered[-1][0] == [{"role": "user", "content": "What is my sister called?"}]
    done = ok(call(served, "DELETE", "/facts/1"))
    assert (done["dry_run"], done["receipt"]["counts"]["facts"], get(served, "/facts")) == (False, 1, {"facts": []})
    for path, status, message in (
        ("/facts/1", 404, "fact 1 is not known"),
        ("/facts/0", 400, "path.fact"),
        ("/facts/x", 400, "path.fact"),
        (f"/facts/{2**63}", 400, "path.fact"),
    ):
        found = refused(call(served, "DELETE", path))
        assert (found[0], message in found[1]) == (status, True), found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "body.text"),
        ({"text": " \n"}, "the fact is empty"),
        ({"text": "x" * 2001}, "the fact has 2001 characters, but at most 2000 are allowed"),
        ({"text": "My password is Tr4il-Horse-77"}, "seems to have a secret in it"),
        ({"text": "Short", "app": "x" * 201}, "body.app"),
    ],
)
def test_facts_that_are_refused(served: Scripted, body: Json, message: str) -> None:
    found = refused(call(served, "POST", "/facts", **body))
    assert (found[0], message in found[1]) == (400, True), found
    assert get(served, "/facts") == {"facts": []}


def test_recall_finds_facts_and_accepted_answers(served: Scripted) -> None:
    post(served, "/facts", text="My boat is called Heron")
    good = ask(served, "How long is my boat?", answer="Nine metres.")
    ask(served, "How fast is my boat?", answer="Nobody knows.")
    post(served, "/feedback", interaction_id=good, thumb=1)
    found = get(served, "/recall", q="boat")["found"]
    assert [set(each) for each in found] == [{"kind", "text", "prompt", "id", "score", "at"}] * 2
    assert {(each["kind"], each["id"], each["prompt"], each["text"]) for each in found} == {
        ("fact", "1", "", "My boat is called Heron"),
        ("answer", good, "How long is my boat?", "Nine metres."),
    }
    assert get(served, "/recall", q="boat", limit=1)["found"] == found[:1]
    assert get(served, "/recall", q="weather")["found"] == []
    for params in ({}, {"q": ""}, {"q": "x" * 10_001}, {"q": "boat", "limit": 0}, {"q": "boat", "limit": 101}):
        status, message = refused(call(served, "GET", "/recall", params=params))
        assert (status, message.startswith("query.")) == (400, True)


def test_a_suggestion_is_taken_when_it_is_asked(served: Scripted) -> None:
    assert get(served, "/suggestions") == {"suggestions": [], "next": [], "predicting": True}
    put(served, "i_1", "What is new in the harbour?", "mail", ago=3600, state="cancelled")
    [shown] = get(served, "/suggestions", app="mail")["suggestions"]
    assert (set(shown), shown["text"]) == ({"id", "text", "reason"}, "What is new in the harbour?")
    assert get(served, "/suggestions", app="mail")["suggestions"] == [shown]
    ask(served, "what is new in the harbour", "mail")
    with served.store.read() as conn:
        assert suggestions.get(conn, shown["id"]).outcome == "taken"
    for limit in (0, 21):
        assert refused(call(served, "GET", "/suggestions", params={"limit": limit}))[0] == 400


def test_a_suggestion_is_settled_by_the_app(served: Scripted) -> None:
    put(served, "i_1", "What is new in the harbour?", ago=3600, state="cancelled")
    [shown] = get(served, "/suggestions")["suggestions"]
    path = f"/suggestions/{shown['id']}"
    for outcome in ("ignored", "ignored", "taken"):
        settled = post(served, path, outcome=outcome)["suggestion"]
        assert settled == shown | {"source": "i_1", "outcome": outcome}
    row = ask(served, "Something else")
    post(served, path, outcome="taken", interaction=row)
    [given] = get(served, f"/interactions/{row}")["feedback"]
    assert (given["kind"], given["text"]) == ("taken", shown["id"])
    for path_, body, status, message in (
        ("/suggestions/s_no", {"outcome": "taken"}, 404, "suggestion 's_no' is not known"),
        (path, {"outcome": "liked"}, 400, "body.outcome"),
        (path, {"outcome": "taken", "interaction": "i_no"}, 404, "interaction 'i_no' is not known"),
        (path, {"outcome": "ignored", "interaction": row}, 400, "`interaction` says where a suggestion was asked"),
    ):
        found = refused(call(served, "POST", path_, **body))
        assert (found[0], message in found[1]) == (status, True), found
