"""The routes of privacy: what is stored at all, forgetting, export and import, and backups."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepd.settings import Log, Settings
from tests.daemon.profiled import OWN, ask, call, get, ok, post, profiled, put, refused
from tests.daemon.running import Json, question
from tests.daemon.scripted import Scripted

SECRET = "The harbour master is called Quintus Fulmar."


@pytest.fixture
def served() -> Iterator[Scripted]:
    with profiled() as found:
        yield found


def lines(served: Scripted, **params: str) -> list[str]:
    response = served.client.get(f"{OWN}/export", params=params)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonl")
    assert response.text == "" or response.text.endswith("\n")
    return response.text.splitlines()


def logged(served: Scripted, app: str = "", **fields: object) -> object:
    found = ok(served.client.post("/v1/chat/completions", json=question("Hello", app=app, **fields)))
    served.wait_until_idle()
    return found["logged"]


def test_nothing_is_stored_of_a_request_that_does_not_want_it(served: Scripted) -> None:
    assert logged(served, store=False) is False
    assert served.rows() == []
    assert logged(served) is True
    assert len(served.rows()) == 1


def test_nothing_is_stored_of_an_app_that_is_not_kept(served: Scripted) -> None:
    ok(call(served, "PUT", "/apps/mail", stored=False))
    assert (logged(served, "mail"), logged(served, "mail", store=True), logged(served, "editor")) == (
        False,
        False,
        True,
    )
    assert [row.app for row in served.rows()] == ["editor"]
    ok(call(served, "PUT", "/apps/mail", stored=True))
    assert logged(served, "mail") is True


def test_nothing_is_stored_if_nothing_is_to_be(served: Scripted) -> None:
    served.services.load_settings = lambda: Settings(log=Log(interactions=False))
    assert post(served, "/reload") == {"applied": ["log.interactions"], "needs_restart": []}
    assert logged(served) is False
    assert served.rows() == []
    assert refused(call(served, "POST", "/feedback", thumb=1))[0] == 404


def test_what_was_not_stored_has_no_id_and_cannot_be_judged(served: Scripted) -> None:
    found = ok(served.client.post("/v1/chat/completions", json=question("Hello", store=False)))
    assert found["interaction_id"] is None
    assert refused(call(served, "POST", "/feedback", thumb=1))[0] == 404


@pytest.mark.parametrize("way", ["ids", "search", "since", "app_name", "all"])
def test_forgetting_is_shown_done_and_kept_as_a_receipt(served: Scripted, way: str) -> None:
    put(served, "i_old", "What is new?", ago=7200)
    row = put(served, "i_new", "Who is the harbour master?", "mail", response=SECRET, ago=60)
    before = [{"role": "user", "content": "Who is the harbour master?"}, {"role": "assistant", "content": SECRET}]
    after = [*before, {"role": "user", "content": "And who is not?"}]
    put(served, "i_later", "", "mail", response="Nobody.", ago=30, messages=after)
    since = served.rows()[1].created_at - 1
    selector = {"ids": [row], "search": "quintus FULMAR", "since": since, "app_name": "mail", "all": True}[way]
    planned = post(served, "/forget", **{way: selector}, dry_run=True)
    assert (planned["dry_run"], planned["receipt"]["id"], planned["receipt"]["verified"]) == (True, "", None)
    assert (len(served.rows()), get(served, "/receipts")) == (3, {"receipts": []})
    done = post(served, "/forget", **{way: selector})
    receipt = done["receipt"]
    assert done["dry_run"] is False
    assert receipt["counts"] | planned["receipt"]["counts"] == receipt["counts"]
    assert [r.id for r in served.rows()] == ([] if way == "all" else ["i_old"])
    counts = receipt["counts"]
    assert counts["interactions"] + counts["carried_along"] == (3 if way == "all" else 2)
    assert set(counts) >= {
        *("interactions", "carried_along", "facts", "suggestions", "surveys"),
        *("generations", "backups", "saved_conversations"),
    }
    assert (receipt["generations"], receipt["active"], receipt["retraining"]) == ([], 2, False)
    verified = receipt["verified"]
    assert set(verified) == {"files", "bytes", "pieces", "found", "kept_elsewhere"}
    assert (verified["files"] > 0, verified["bytes"] > 0, verified["pieces"] > 0) == (True, True, True)
    assert (verified["found"], verified["kept_elsewhere"]) == (0, 0)
    assert receipt["state"] == "done"
    assert get(served, "/receipts")["receipts"] == [{k: v for k, v in receipt.items() if k != "active"}]
    assert b"Fulmar" not in b"".join(p.read_bytes() for p in served.store.path.parent.glob("profile.db*"))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "give exactly one of `ids`, `search`, `since` and/or `until`, `app_name`, `all`"),
        ({"all": False}, 400, "give exactly one of `ids`"),
        ({"ids": ["i_1"], "all": True}, 400, "give exactly one of `ids`"),
        ({"search": "harbour", "since": 1}, 400, "give exactly one of `ids`"),
        ({"ids": []}, 400, "body.ids"),
        ({"ids": [""]}, 400, "body.ids.0"),
        ({"ids": ["i_1", "i_no"]}, 404, "interaction 'i_no' is not known"),
        ({"search": ""}, 400, "body.search"),
        ({"search": " x "}, 400, "the text to search for must have at least 2 characters"),
        ({"since": 5, "until": 5}, 400, "the time from 5.0 to 5.0 is empty"),
        ({"since": -1}, 400, "body.since"),
        ({"until": 1e12}, 400, "body.until"),
        ({"everything": True}, 400, "body.everything"),
    ],
)
def test_what_cannot_be_forgotten(served: Scripted, body: Json, status: int, message: str) -> None:
    put(served, "i_1", "Who is the harbour master?")
    for dry_run in (True, False):
        found = refused(call(served, "POST", "/forget", **body, dry_run=dry_run))
        assert (found[0], message in found[1]) == (status, True), found
    assert ([row.id for row in served.rows()], get(served, "/receipts")) == (["i_1"], {"receipts": []})


def test_a_search_for_half_a_character(served: Scripted) -> None:
    put(served, "i_1", "Who is the harbour master?")
    for body in (b'{"search": "\\ud800\\ud800"}', b'{"ids": ["\\ud800"]}', b'{"app_name": "\\ud800"}'):
        assert served.client.post(f"{OWN}/forget", content=body).status_code in (400, 404)
    assert len(served.rows()) == 1


def test_what_nothing_matches(served: Scripted) -> None:
    put(served, "i_1", "Who is the harbour master?")
    for selector in ({"search": "nowhere"}, {"since": 1e10}, {"app_name": "mail"}):
        assert not any(post(served, "/forget", **selector, dry_run=True)["receipt"]["counts"].values())
    assert len(served.rows()) == 1


def test_what_is_exported_is_taken_in_again(served: Scripted) -> None:
    first = ask(served, "Where is\u2028Brest?", "mail", answer="In France \N{LONG RIGHTWARDS ARROW}.")
    second = ask(served, "Who is there?")
    for given in ({"edit": "In Brittany."}, {"rating": 2}, {"comment": "Too coarse"}):
        post(served, "/feedback", interaction_id=first, **given)
    post(served, "/facts", text="My boat is called Heron", app="mail")
    exported = lines(served)
    parsed = [json.loads(line) for line in exported]
    assert [each["edgepd"].get("id") for each in parsed] == [first, second, None, None, None]
    assert parsed[0]["messages"] == [
        {"role": "user", "content": "Where is\u2028Brest?"},
        {"role": "assistant", "content": "In Brittany."},
    ]
    assert parsed[2] == {"edgepd": {"fact": "My boat is called Heron", "app": "mail", "at": parsed[2]["edgepd"]["at"]}}
    assert [(each["edgepd"]["event"], each["edgepd"]["interaction"]) for each in parsed[3:]] == [
        ("chat:brest", first),
        ("chat:", second),
    ]
    with profiled() as other:
        done = post(other, "/import", lines=exported)
        assert done == {"added": 2, "known": 0, "facts": 1, "events": 2, "mapped_events": 0, "refused": []}
        again = post(other, "/import", lines=exported)
        assert again == {"added": 0, "known": 5, "facts": 0, "events": 0, "mapped_events": 0, "refused": []}
        assert lines(other) == exported
        assert get(other, "/facts") == get(served, "/facts")
        for row in (first, second):
            here, there = (get(s, f"/interactions/{row}") for s in (served, other))
            made_anew = ("generation", "ttft_ms", "duration_ms", "personal")
            assert {k: v for k, v in here.items() if k not in made_anew} == {
                k: v for k, v in there.items() if k not in made_anew
            }
        assert [i["id"] for i in get(other, "/interactions", q="coarse OR Brest")["interactions"]] == [first]


def test_lines_of_other_programs_and_lines_that_are_refused(served: Scripted) -> None:
    foreign = json.dumps(
        {"messages": [{"role": "user", "content": "Where is Kiel?"}, {"role": "assistant", "content": "In Holstein."}]}
    )
    done = post(served, "/import", lines=[foreign, "", "no JSON", foreign, "[]", '{"edgepd": {"fact": ""}}'])
    assert (done["added"], done["known"], done["facts"]) == (1, 1, 0)
    assert [each["line"] for each in done["refused"]] == [3, 5, 6]
    assert done["refused"][0] == {"line": 3, "reason": "the line is not JSON, or too deeply nested"}
    [row] = served.rows()
    assert (row.prompt, row.response) == ("Where is Kiel?", "In Holstein.")
    [thumb] = get(served, f"/interactions/{row.id}")["feedback"]
    assert (thumb["kind"], thumb["value"], thumb["source"]) == ("thumb", 1, "import")


def test_imports_that_are_refused(served: Scripted) -> None:
    for body, message in (
        ({}, "body.lines"),
        ({"lines": ["{}"] * 501}, "body.lines"),
        ({"lines": [1]}, "body.lines.0"),
    ):
        found = refused(call(served, "POST", "/import", **body))
        assert (found[0], message in found[1]) == (400, True), found
    nothing = {"added": 0, "known": 0, "facts": 0, "events": 0, "mapped_events": 0, "refused": []}
    assert post(served, "/import", lines=[]) == nothing


def test_backups(served: Scripted) -> None:
    assert get(served, "/backups") == {"backups": []}
    ask(served, "Who is Quintus?")
    made = post(served, "/backup")
    path = Path(made["path"])
    assert (path.parent, stat.S_IMODE(path.stat().st_mode)) == (served.services.paths.backups_dir, 0o600)
    [found] = get(served, "/backups")["backups"]
    assert (found["path"], found["bytes"], found["at"] > 0) == (made["path"], made["bytes"], True)
    assert made["bytes"] == path.stat().st_size > 0
    older = path.with_name("profile-20240101-000000.db")
    older.write_bytes(path.read_bytes())
    assert [b["path"] for b in get(served, "/backups")["backups"]] == [str(path), str(older)]
    counts = post(served, "/forget", all=True)["receipt"]["counts"]
    assert counts["backups"] == 2
    [fresh] = get(served, "/backups")["backups"]
    assert b"Quintus" not in Path(fresh["path"]).read_bytes()
