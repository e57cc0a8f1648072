"""`edgepd forget` and `edgepd receipts`: nothing goes unseen or unasked, and the receipt is in plain sentences."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from edgepd.cli.privacy import plan_text, receipt_text, time_of
from edgepd.errors import RequestError
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import INTERACTION, FakeDaemon, Json, error
from tests.cli.fake_privacy import COUNTS, NOTHING, PLAN, RECEIPT, done, planned

FORGET = "/edgepd/v1/forget"
SHOWN = (
    "this goes for good: 1,200 exchanges, 1 later exchange that repeats them, 1 fact, 2 survey answers\n"
    "generations 4 and 6 learned from it and will be retired; generation 3 will serve\n"
    "2 backups will be replaced by a new one\n"
    "1 saved conversation will be removed\n"
)
GONE = (
    "forgotten: 1,200 exchanges, 1 later exchange that repeats them, 1 fact, 2 survey answers\n"
    "generations 4 and 6 had learned from it and are retired; generation 3 serves now\n"
    "2 backups were replaced by a new one\n"
    "1 saved conversation was removed\n"
    "a search of 37 files (1.5 MiB) found the text nowhere\n"
    "training without it is queued\n"
    "receipt r_1\n"
)
NOW = datetime(2026, 3, 5, 15, 30).timestamp()


def test_events_are_named_and_the_models_that_saw_them() -> None:
    counts = dict.fromkeys(COUNTS, 0) | {"events": 12, "mapped_events": 1, "students": 2}
    assert plan_text(PLAN | {"counts": counts, "generations": []}) == (
        "this goes for good: 12 events, 1 event on the map\n"
        "no generation has learned from it\n"
        "2 tuned models of what comes next will be deleted"
    )
    told = RECEIPT | {"counts": counts | {"students": 1}, "generations": [], "verified": None, "retraining": True}
    assert receipt_text(told) == (
        "forgotten: 12 events, 1 event on the map\n"
        "no generation had learned from it\n"
        "1 tuned model of what comes next was deleted\n"
        "training without it is queued\n"
        "receipt r_1"
    )


@pytest.fixture
def forgetful(daemon: FakeDaemon) -> FakeDaemon:
    daemon.on(f"POST {FORGET}", planned(), done())
    return daemon


@pytest.mark.parametrize(
    ("args", "selector"),
    [
        (("i1",), {"ids": ["i1"]}),
        (("i1", "i2", "i1"), {"ids": ["i1", "i2"]}),
        (("i1", "last"), {"ids": ["i1", "i7"]}),
        (("--search", "Lake Street 5"), {"search": "Lake Street 5"}),
        (("--since", "2026-03-01"), {"since": datetime(2026, 3, 1).timestamp()}),
        (
            ("--since", "2026-03-01T10:00", "--until", "2026-03-02"),
            {"since": datetime(2026, 3, 1, 10).timestamp(), "until": datetime(2026, 3, 3).timestamp()},
        ),
        (("--app", "mail"), {"app_name": "mail"}),
        (("--app", ""), {"app_name": ""}),
        (("--all",), {"all": True}),
    ],
)
def test_what_the_daemon_is_told(forgetful: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], selector: Json) -> None:
    forgetful.on("GET /edgepd/v1/interactions/last", INTERACTION)
    result = edgepd("forget", *args, "--yes")
    assert (result.exit_code, result.stderr, result.stdout) == (0, SHOWN, GONE)
    assert forgetful.asked(FORGET) == [selector | {"dry_run": True}, selector | {"dry_run": False}]


@pytest.mark.parametrize(
    "args", [(), ("i1", "--all"), ("--search", "x", "--since", "2h"), ("--app", "mail", "--all"), ("--dry-run",)]
)
def test_it_is_said_in_one_way(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...]) -> None:
    result = edgepd("forget", *args, "--yes")
    assert (result.exit_code, daemon.requests) == (2, [])
    assert result.stderr == (
        "Error: say what to forget in one way: by ID, --search, --since and --until, --app, or --all\n"
    )


def test_times_in_the_wrong_order(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("forget", "--since", "2026-03-03", "--until", "2026-03-01")
    assert (result.exit_code, daemon.requests) == (2, [])
    assert result.stderr == (
        "Error: --since 2026-03-03 is later than --until 2026-03-01; nothing can lie between them\n"
    )


@pytest.mark.parametrize(("typed", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_it_asks(
    forgetful: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch, typed: str, gone: bool
) -> None:
    monkeypatch.setattr("edgepd.cli.privacy.stdin_is_terminal", lambda: True)
    result = edgepd("forget", "--all", stdin=typed)
    assert result.exit_code == 0
    assert result.stderr.startswith(SHOWN + "Forget this for good? [y/N]: ")
    assert result.stdout == (GONE if gone else "")
    assert result.stderr.endswith("nothing was forgotten\n") is not gone
    assert [body["dry_run"] for body in forgetful.asked(FORGET)] == [True, *([False] if gone else [])]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nobody_to_ask(forgetful: FakeDaemon, edgepd: Edgepd, options: tuple[str, ...]) -> None:
    result = edgepd("forget", "i1", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(SHOWN)
    assert (
        "nobody can be asked whether this is to go, so nothing was forgotten; add --yes to forget it" in result.stderr
    )
    assert [body["dry_run"] for body in forgetful.asked(FORGET)] == [True]


def test_dry_run(forgetful: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("forget", "--all", "--dry-run", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, SHOWN, "")
    forgetful.on(f"POST {FORGET}", planned())
    assert json.loads(edgepd("forget", "--all", "--dry-run", "--json").stdout) == planned()
    assert [body["dry_run"] for body in forgetful.asked(FORGET)] == [True, True]


def test_json(forgetful: FakeDaemon, edgepd: Edgepd) -> None:
    assert json.loads(edgepd("forget", "--all", "--yes", "--json").stdout) == done()


def test_nothing_matches(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"POST {FORGET}", planned(NOTHING))
    result = edgepd("forget", "--search", "unicorn")
    assert (result.exit_code, result.stdout) == (0, "nothing was forgotten\n")
    assert result.stderr == "nothing that is kept matches this\n"
    assert len(daemon.asked(FORGET)) == 1


def test_unknown_id(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"POST {FORGET}", error(404, "not_found", "no interaction 'i9'"))
    result = edgepd("forget", "i9", "--yes")
    assert (result.exit_code, result.stderr) == (4, "Error: no interaction 'i9'\n")


def test_text_that_is_still_there_is_a_failure(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    verified = {"files": 37, "bytes": 2**20, "found": 2, "kept_elsewhere": 1}
    daemon.on(f"POST {FORGET}", planned(), done(RECEIPT | {"verified": verified}))
    result = edgepd("forget", "--all", "--yes")
    assert result.exit_code == 1
    assert "a search of 37 files (1.0 MiB) STILL found the text in 2 places\n" in result.stdout
    assert "the same words stay in 1 place that you keep\n" in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "Error: the text is still in 2 places of the data directory; restart the daemon and run the same command again"
    )


def test_receipt_of_little() -> None:
    little = RECEIPT | {
        "counts": {"interactions": 1, "edits": 3, "similar_pairs": 2},
        "generations": [5],
        "retraining": False,
    }
    assert receipt_text(little).splitlines()[:2] == [
        "forgotten: 1 exchange, 3 edits of the profile, 2 similar pairs",
        "generation 5 had learned from it and is retired; generation 3 serves now",
    ]
    small = PLAN | {"counts": {"facts": 2}, "generations": []}
    assert plan_text(small) == "this goes for good: 2 facts\nno generation has learned from it"


def test_receipts(daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.privacy.moment", lambda seconds: f"t{seconds:.0f}")
    stored = {"id": "r_1", "at": 3000.0, "what": "everything", "counts": COUNTS, "state": "begun"}
    daemon.on("GET /edgepd/v1/receipts", {"receipts": [stored, stored | {"counts": {}, "state": "done"}]})
    assert edgepd("receipts").stdout == (
        "id   at     state  forgotten\n"
        "r_1  t3000  begun  1,200 exchanges, 1 later exchange that repeats them, 1 fact, 2 survey answers\n"
        "r_1  t3000  done   nothing\n"
    )
    assert len(json.loads(edgepd("receipts", "--json").stdout)["receipts"]) == 2
    daemon.on("GET /edgepd/v1/receipts", {"receipts": []})
    assert edgepd("receipts").stdout == "nothing was forgotten yet\n"


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("90m", False, NOW - 5400),
        ("90 min", True, NOW - 5400),
        ("2h", False, NOW - 7200),
        ("1.5d", False, NOW - 129_600),
        ("1w", False, NOW - 604_800),
        ("999999999w", False, 0.0),
        ("today", False, datetime(2026, 3, 5).timestamp()),
        ("Yesterday", False, datetime(2026, 3, 4).timestamp()),
        ("yesterday", True, datetime(2026, 3, 5).timestamp()),
        ("2026-01-31", False, datetime(2026, 1, 31).timestamp()),
        ("2026-01-31", True, datetime(2026, 2, 1).timestamp()),
        ("2026-01-31 18:05", True, datetime(2026, 1, 31, 18, 5).timestamp()),
        ("2026-01-31T18:05:00Z", False, 1_769_882_700.0),
        ("2026-01-31T18:05:00+01:00", False, 1_769_879_100.0),
    ],
)
def test_times(text: str, end: bool, expected: float) -> None:
    assert time_of(text, NOW, end=end) == expected


@pytest.mark.parametrize("text", ["", "soon", "2026-02-30", "-2h", "2y", "h", "12:00", "9999-12-31"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(RequestError, match=r"is no time; write 2026-01-31, .* for how long ago"):
        time_of(text, NOW, end=True)
