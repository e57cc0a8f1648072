"""Two programs and a real daemon with the tiny model: all that its client offers about the user, from end to end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgepd.client import Client
from edgepd.errors import NotFoundError, RequestError
from tests.daemon.running import TINY_SETTINGS, Daemon, Json, question, running, short_directory

SECRET = "Grandmother keeps the zinnia seeds in the blue teapot"
PAST = {
    "messages": [{"role": "user", "content": "When do I water the zinnias?"}, {"role": "assistant", "content": "At"}],
    "edgepd": {
        "id": "i_past", "app": "mail", "created_at": time.time() - 7200, "state": "cancelled", "response": "At",
    },
}  # fmt: skip


@pytest.fixture
def daemon(tiny_models: Path) -> Iterator[Daemon]:
    with (
        short_directory() as home,
        running(home, tiny_models, *TINY_SETTINGS, "profile.prompt=off", "train.min_examples=1000") as started,
    ):
        yield started


def ask(client: Client, text: str, app: str, **fields: object) -> Json:
    return client.chat(question(text, app=app, max_tokens=4, **fields))


def places(daemon: Daemon, text: str) -> list[Path]:
    """Return the files of the daemon that hold a text."""
    files = [path for path in daemon.paths.data_dir.rglob("*") if path.is_file()]
    assert daemon.paths.profile in files
    return [path for path in files if text.encode() in path.read_bytes()]


def test_two_programs_and_one_user(daemon: Daemon) -> None:
    with ExitStack() as stack:
        mail, editor = (stack.enter_context(Client(daemon.paths.socket)) for _ in range(2))
        asked = ask(mail, "Where are the seeds?", "mail")["interaction_id"]
        ask(editor, "Mend this sentence", "editor")
        judged(mail, asked)
        shown_and_set(mail, editor)
        told_and_found(mail, editor, asked)
        taken_in_and_suggested(mail)
        taken_out(mail, editor)
        forgotten(daemon, mail, asked)
        assert [i["app"] for i in editor.interactions(app="editor")] == ["editor"]
        assert mail.status()["problems"] == []


def judged(mail: Client, asked: str) -> None:
    mail.rate(asked, 5, source="mail")
    mail.comment(asked, "Just right")
    mail.copied(asked)
    mail.dwelt(asked, 900)
    given = mail.edit(asked, SECRET)["feedback"]
    assert {f["kind"]: f["source"] for f in given} == {
        "rating": "mail", "comment": "user", "copied": "user", "dwell": "user", "edit": "user",
    }  # fmt: skip
    assert mail.remove_feedback(asked, "dwell") == {"interaction_id": asked, "removed": 1}
    active, passive, *_ = mail.feedback_channels(app="mail")["channels"]
    assert (active["channel"], active["opportunities"], active["given"]) == ("active", 1, 1)
    assert (passive["channel"], passive["given"]) == ("passive", 1)
    assert "shorter" in [rule["name"] for rule in mail.feedback_rules()]
    assert mail.next_survey("mail") is None


def shown_and_set(mail: Client, editor: Client) -> None:
    profile = mail.profile("mail")
    assert (profile["app"], profile["exchanges"], profile["prompt_used"]) == ("mail", 1, False)
    assert "seeds" in [each["name"] for each in profile["groups"]["interest"]]
    assert "seeds" not in [each["name"] for each in editor.profile("editor")["groups"]["interest"]]
    mail.edit_profile("preference", "words", "40", "mail")
    mail.pin_feature("interest", "seeds", True, "mail")
    assert "about 40 words" in mail.profile("mail")["prompt"]
    assert editor.profile("editor")["prompt"] is None
    assert mail.reset_profile("preference", "mail")["prompt"] is not None  # the pinned interest stays
    assert [app["name"] for app in mail.apps()] == ["editor", "mail"]
    assert mail.change_app("editor", {"teaches": False})["teaches"] is False
    pools = mail.selection()["pools"]
    assert [len(pools[pool]) for pool in ("examples", "questions")] == [1, 0]
    assert mail.next_question() is None  # one is judged, the other one does not teach


def told_and_found(mail: Client, editor: Client, asked: str) -> None:
    fact = mail.remember("The zinnia seeds are from Aunt Olga", "mail")
    assert mail.facts("mail") == [fact]
    assert editor.facts("editor") == []
    with pytest.raises(RequestError, match="secret"):
        mail.remember("My password is Tr4il-Horse-77")
    assert {(f["kind"], f["id"]) for f in mail.recall("zinnia", app="mail")} == {
        ("fact", str(fact["id"])),
        ("answer", asked),
    }
    assert editor.recall("zinnia", app="editor") == []
    told = ask(mail, "Who are the zinnia seeds from?", "mail")
    assert told["personal"]["facts"] == [fact["id"]]
    assert ask(editor, "Who are the zinnia seeds from?", "editor", store=False)["personal"] == {}
    assert {i["id"] for i in mail.interactions(query="seeds", app="mail")} == {told["interaction_id"], asked}


def taken_in_and_suggested(mail: Client) -> None:
    done = mail.import_lines([json.dumps(PAST), "{}"])
    assert (done["added"], [each["line"] for each in done["refused"]]) == (1, [2])
    [suggested] = mail.suggestions(app="mail")
    assert suggested["text"] == "When do I water the zinnias?"
    assert mail.settle_suggestion(suggested["id"], "ignored")["outcome"] == "ignored"


def taken_out(mail: Client, editor: Client) -> None:
    lines = list(mail.export("mail"))
    assert [json.loads(line)["messages"][-1]["content"] for line in lines[:1]] == [SECRET]
    assert len(lines) == 6  # three exchanges and a fact; two of them were asked here, and are events
    assert len(list(editor.export("editor"))) == 2  # an exchange, and that it was asked here
    done = editor.import_lines(lines)
    assert (done["added"], done["known"], done["refused"]) == (0, 6, [])
    made = mail.backup()
    assert [b["path"] for b in mail.backups()] == [made["path"]]


def forgotten(daemon: Daemon, mail: Client, asked: str) -> None:
    assert {daemon.paths.profile, *daemon.paths.backups_dir.iterdir()} & set(places(daemon, "blue teapot"))
    planned = mail.forget({"ids": [asked]}, dry_run=True)
    assert (planned["dry_run"], planned["receipt"]["counts"]["interactions"]) == (True, 1)
    assert mail.interaction(asked)["id"] == asked
    done = mail.forget({"ids": [asked]})["receipt"]
    assert (done["counts"]["interactions"], done["counts"]["backups"], done["active"]) == (1, 1, 1)
    assert done["verified"]["found"] == 0
    assert done["verified"]["files"] >= 2
    assert places(daemon, "blue teapot") == []
    with pytest.raises(NotFoundError, match=asked):
        mail.interaction(asked)
    [fact] = mail.facts()
    assert mail.forget_fact(fact["id"])["receipt"]["counts"]["facts"] == 1
    assert places(daemon, "Aunt Olga") == []
    assert [r["state"] for r in mail.receipts()] == ["done", "done"]
    assert len(mail.backups()) == 1
