"""`edgepd good`, `bad`, `fix`, `prefer` and `undo`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import INTERACTION, FakeDaemon, error

FEEDBACK = "POST /edgepd/v1/feedback"
PATH = "/edgepd/v1/feedback"


@pytest.fixture
def judged(daemon: FakeDaemon) -> FakeDaemon:
    daemon.on(FEEDBACK, {"interaction_id": "i7", "feedback": [{"kind": "thumb", "value": 1}]})
    daemon.on("GET /edgepd/v1/interactions/last", INTERACTION)
    return daemon


def test_good_means_the_last_answer(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("good")
    assert (result.exit_code, result.stdout) == (0, "thumb up for i7\n")
    assert judged.asked(PATH) == [{"interaction_id": "last", "thumb": 1, "source": "cli"}]


def test_bad_with_an_id(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("bad", "i7")
    assert (result.exit_code, result.stdout) == (0, "thumb down for i7\n")
    assert judged.asked(PATH) == [{"interaction_id": "i7", "thumb": -1, "source": "cli"}]


def test_json(judged: FakeDaemon, edgepd: Edgepd) -> None:
    assert json.loads(edgepd("good", "--json").stdout) == {
        "interaction_id": "i7",
        "feedback": [{"kind": "thumb", "value": 1}],
    }


def test_unknown_id(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(FEEDBACK, error(404, "not_found", "no interaction 'zz'"))
    result = edgepd("bad", "zz")
    assert (result.exit_code, result.stderr) == (4, "Error: no interaction 'zz'\n")


@pytest.mark.parametrize(("args", "stdin"), [(("--text", " Yes, sir. "), "not this"), ((), "Yes, sir.\n")])
def test_fix_from_option_or_pipe(judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], stdin: str) -> None:
    result = edgepd("fix", *args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, "correction kept for i7\n")
    assert judged.asked(PATH) == [{"interaction_id": "last", "edit": "Yes, sir.", "source": "cli"}]


@pytest.mark.parametrize("args", [(), ("--text", "")])
def test_empty_fix_is_refused(judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...]) -> None:
    result = edgepd("fix", *args, stdin="")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: the corrected text is empty")
    assert judged.requests == []


def test_fix_opens_the_editor_on_the_answer(
    judged: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd.cli.feedback.stdin_is_terminal", lambda: True)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/Me/You/")
    result = edgepd("fix")
    assert (result.exit_code, result.stdout) == (0, "correction kept for i7\n")
    # The id, not "last": another answer may have come while the editor was open.
    assert judged.asked(PATH) == [{"interaction_id": "i7", "edit": "You.", "source": "cli"}]


def test_closing_the_editor_without_a_change_keeps_nothing(
    judged: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd.cli.feedback.stdin_is_terminal", lambda: True)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "true")
    result = edgepd("fix")
    assert (result.exit_code, judged.asked(PATH)) == (2, [])
    assert result.stderr == "Error: the answer was not changed, so no correction was kept\n"


@pytest.mark.parametrize(
    ("args", "query", "removed", "text"),
    [
        ((), "", 2, "feedback on i7: 2 taken back\n"),
        (("i7", "--kind", "edit"), "kind=edit", 1, "feedback on i7: 1 taken back\n"),
        (("i7", "--kind", "preferred"), "kind=preferred", 1, "feedback on i7: 1 taken back\n"),
        (("i7",), "", 0, "feedback on i7: there was none\n"),
    ],
)
def test_undo(judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], query: str, removed: int, text: str) -> None:
    judged.on("DELETE /edgepd/v1/feedback/i7", {"interaction_id": "i7", "removed": removed})
    result = edgepd("undo", *args)
    assert (result.exit_code, result.stdout) == (0, text)
    last = judged.requests[-1]
    assert (last.method, last.path, last.query) == ("DELETE", "/edgepd/v1/feedback/i7", query)


def test_prefer(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("prefer", "i7", "i6")
    assert (result.exit_code, result.stdout) == (0, "i7 is preferred over i6\n")
    assert judged.asked(PATH) == [{"interaction_id": "i7", "preferred_over": "i6", "source": "cli"}]


def test_an_answer_is_not_better_than_itself(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("prefer", "i7", "i7")
    assert (result.exit_code, judged.requests) == (2, [])
    assert result.stderr == "Error: answer 'i7' cannot be better than itself; give the IDs of two answers\n"
