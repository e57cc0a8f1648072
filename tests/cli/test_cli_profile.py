"""`edgepd profile`: what is shown of it, and what is sent to change it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepd.cli.profile_text import described, readable_value, selection_text
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, Reply

PROFILE = "/edgepd/v1/profile"
FEATURES = f"{PROFILE}/features"


def feature(name: str, value: object, alpha: float = 1.0, count: int = 1, **more: bool) -> dict[str, Any]:
    return {"name": name, "alpha": alpha, "value": value, "count": count, "pinned": False, "edited": False, **more}


FOUND: dict[str, Any] = {
    "app": None,
    "exchanges": 12,
    "groups": {
        "interest": [feature("sailing", 0.25, 2.04, 3), feature("soup", 0.5, 3.0, 1)],
        "preference": [feature("words", 23.4, 4.1, 9), feature("language:de", "yes", 0.0, 0, edited=True, pinned=True)],
        "history": [],
    },
    "prompt": "The user likes short answers.",
    "prompt_used": True,
    "why": "it made wanted answers likelier",
    "embedding": {"model": "ab", "dimensions": 576},
}


@pytest.fixture
def known(daemon: FakeDaemon) -> FakeDaemon:
    daemon.on(f"GET {PROFILE}", FOUND)
    daemon.on(f"PUT {FEATURES}", FOUND)
    daemon.on(f"POST {FEATURES}/pin", FOUND)
    daemon.on(f"DELETE {PROFILE}", FOUND)
    return daemon


def test_show(known: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("profile", "show")
    assert (result.exit_code, known.requests[-1].query) == (0, "")
    assert result.stdout.splitlines() == [
        "The profile of all apps, from 12 exchanges.",
        "",
        "Interests            soup         50%             alpha 3.0, 1 answer",
        "                     sailing      25%             alpha 2.0, 3 answers",
        "Contextual usage     -            nothing yet",
        "Feedback quality     -            nothing yet",
        "Response preference  language:de  yes             alpha 0.0, 0 answers  set by you, pinned",
        "                     words        about 23 words  alpha 4.1, 9 answers",
        "Interaction history  -            nothing yet",
        "",
        "The model is told: The user likes short answers.",
        "It made wanted answers likelier.",
        "There is an embedding of you too: 576 numbers.",
    ]


def test_show_as_an_app_sees_it(known: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("profile", "show", "--app", "mail", "--json")
    assert json.loads(result.stdout) == FOUND
    assert known.requests[-1].query == "app=mail"
    text = described(FOUND | {"app": "mail", "exchanges": 1, "prompt_used": False, "why": None, "embedding": None})
    assert text.startswith("The profile of app mail, from 1 exchange.\n")
    assert text.endswith("\n\nThe model could be told: The user likes short answers.")


def test_only_the_heaviest_features_are_shown_and_those_set_by_hand() -> None:
    many = [feature(f"word{n}", 0.1, float(n), n) for n in range(30)]
    many.append(feature("mine", "yes", 0.0, 0, edited=True))
    lines = described(FOUND | {"groups": {"interest": many}}).splitlines()
    shown = [line.split()[1 if line.startswith("Interests") else 0] for line in lines[2:11]]
    assert shown == ["mine", *(f"word{n}" for n in range(29, 22, -1)), "and"]
    assert lines[10].split() == ["and", "23", "more"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("turns", 2.26, "about 2.3"),
        ("satisfaction", 0.4, "+0.40, from -1 to 1"),
        ("format:list", -0.25, "-25%"),
        ("exchanges", 1234.0, "1.23e+03"),
        ("words", "40", "40"),
        ("morning", None, "-"),
    ],
)
def test_values_have_units(name: str, value: object, text: str) -> None:
    assert readable_value(name, value) == text


@pytest.mark.parametrize(
    ("args", "method", "path", "body"),
    [
        (
            ("edit", "preference", "words", " 40 "),
            *("PUT", FEATURES),
            {"kind": "preference", "name": "words", "value": "40"},
        ),
        (
            ("pin", "preference", "words", "--app", "mail"),
            *("POST", f"{FEATURES}/pin"),
            {"kind": "preference", "name": "words", "pinned": True, "app": "mail"},
        ),
        (
            ("unpin", "preference", "words"),
            *("POST", f"{FEATURES}/pin"),
            {"kind": "preference", "name": "words", "pinned": False},
        ),
    ],
)
def test_change_of_a_feature(
    known: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], method: str, path: str, body: dict[str, object]
) -> None:
    result = edgepd("profile", *args)
    assert (result.exit_code, result.stdout) == (
        0,
        "Response preference  words  about 23 words  alpha 4.1, 9 answers\n",
    )
    asked = known.requests[-1]
    assert (asked.method, asked.path, asked.body) == (method, path, body)
    assert json.loads(edgepd("profile", *args, "--json").stdout) == FOUND


def test_feature_that_is_gone_after_the_change(known: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("profile", "unpin", "history", "turns")
    assert result.stdout == "Interaction history  turns  nothing is known of it\n"


def test_unknown_kind_is_refused_before_sending(known: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("profile", "pin", "tone", "formal")
    assert (result.exit_code, known.requests) == (2, [])
    assert "'tone' is not one of 'interest'" in result.stderr


@pytest.mark.parametrize(
    ("args", "query", "text"),
    [
        (("--yes",), "", "the profile begins anew\n"),
        (("--yes", "--kind", "context"), "kind=context", "the group context begins anew\n"),
        (("--yes", "--app", "mail"), "app=mail", "the profile of app mail begins anew\n"),
    ],
)
def test_reset(known: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], query: str, text: str) -> None:
    result = edgepd("profile", "reset", *args)
    assert (result.exit_code, result.stdout) == (0, text)
    assert [(asked.method, asked.query) for asked in known.requests] == [("DELETE", query)]


def test_reset_asks_first(known: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = edgepd("profile", "reset")
    assert (refused.exit_code, known.requests) == (2, [])
    assert "nobody can be asked whether the profile is to begin anew; add --yes" in refused.stderr
    monkeypatch.setattr("edgepd.cli.profile.stdin_is_terminal", lambda: True)
    kept = edgepd("profile", "reset", stdin="n\n")
    assert (kept.exit_code, kept.stdout, known.requests) == (0, "", [])
    assert kept.stderr.endswith("it stays\n")
    assert edgepd("profile", "reset", stdin="y\n").stdout == "the profile begins anew\n"
    assert len(known.requests) == 1


SELECTED: dict[str, Any] = {
    "policy": "qin",
    "slots": 1000,
    "pools": {
        "examples": [
            {"interaction": "i1", "prompt": "How do I\nsail?", "entropy": 1.25, "domain_score": 0.5}
            | {"dissimilarity": 0.75, "domain": 2, "reason": "a free slot", "at": 1000.0},
            {"interaction": "i2", "prompt": "x" * 60, "entropy": 1.0, "domain_score": 0.0}
            | {"dissimilarity": 1.0, "domain": 0, "reason": "beats i0 in all three", "at": 2000.0},
        ],
        "questions": [],
    },
}


def test_selection(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"GET {PROFILE}/selection", SELECTED)
    lines = edgepd("profile", "selection").stdout.splitlines()
    assert lines[0] == "Policy qin, at most 1000 examples."
    assert lines[2] == "Kept to learn from: 2"
    assert lines[4].split()[0] == "i2"  # the newest first
    assert lines[4].endswith("1.00     0.00          1.00           0       " + "x" * 45 + "...  beats i0 in all three")
    assert "  How do I sail?  " in lines[5]
    assert lines[5].endswith("a free slot")
    assert lines[7:] == ["Worth asking you about: 0"]


def test_selection_of_one_pool(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"GET {PROFILE}/selection", SELECTED)
    result = edgepd("profile", "selection", "--pool", "questions", "--json", "--app", "mail")
    assert json.loads(result.stdout)["pools"] == {"questions": []}
    assert daemon.requests[-1].query == "app=mail"
    many = {"examples": [SELECTED["pools"]["examples"][0]] * 25}
    assert selection_text(SELECTED | {"pools": many}, ["examples"]).endswith("\nand 5 more; --json has all")


def test_channels(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    counted = {"opportunities": 8, "given": 2, "engagement": 0.25, "satisfaction": 4.25}
    none = {"opportunities": 0, "given": 0, "engagement": 0.0, "satisfaction": None}
    found = {"days": 7.0, "channels": [{"channel": "active", **counted}, {"channel": "survey", **none}]}
    daemon.on("GET /edgepd/v1/feedback/channels", found)
    result = edgepd("profile", "channels", "--days", "7")
    assert result.stdout.splitlines() == [
        "Feedback of the last 7 days.",
        "channel  possible  given  engagement  satisfaction",
        "active   8         2      25%         4.2 of 5",
        "survey   0         0      -           -",
    ]
    assert daemon.requests[-1].query == "days=7.0"
    assert json.loads(edgepd("profile", "channels", "--json").stdout) == found
    assert daemon.requests[-1].query == ""
    assert edgepd("profile", "channels", "--days", "0").exit_code == 2


def test_rules(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    rules = [
        {"name": "shorter", "pattern": "short(er)?", "example": "shorter, please"},
        {"name": "list", "pattern": "as a list", "example": "as a list"},
    ]
    daemon.on("GET /edgepd/v1/feedback/rules", {"rules": rules})
    assert edgepd("profile", "rules").stdout == 'shorter  "shorter, please"\nlist     "as a list"\n'
    with_patterns = 'shorter  "shorter, please"\n    short(er)?\nlist     "as a list"\n    as a list\n'
    assert edgepd("profile", "rules", "--patterns").stdout == with_patterns
    assert json.loads(edgepd("profile", "rules", "--json").stdout) == {"rules": rules}


APPS = [
    {"name": "", "shared": False, "stored": True, "teaches": True, "interactions": 3},
    {"name": "mail", "shared": True, "stored": False, "teaches": False, "interactions": 40},
]


def test_apps(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /edgepd/v1/apps", {"apps": APPS})
    assert edgepd("profile", "apps").stdout.splitlines() == [
        "app        shared  stored  teaches  exchanges",
        "(unnamed)  no      yes     yes      3",
        "mail       yes     no      no       40",
    ]
    assert json.loads(edgepd("profile", "apps", "--json").stdout) == {"apps": APPS}
    assert json.loads(edgepd("profile", "apps", "mail", "--json").stdout) == {"app": APPS[1]}
    missing = edgepd("profile", "apps", "maul")
    assert (missing.exit_code, missing.stderr.split(";")[0]) == (4, "Error: app 'maul' is not known")


@pytest.mark.parametrize(
    ("args", "body"),
    [
        (("--share",), {"shared": True}),
        (("--no-share", "--no-store", "--no-teach"), {"shared": False, "stored": False, "teaches": False}),
        (("--store", "--teach"), {"stored": True, "teaches": True}),
    ],
)
def test_change_of_an_app(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], body: dict[str, bool]) -> None:
    changed = {"name": "my app", "shared": False, "stored": True, "teaches": True}
    daemon.on("PUT /edgepd/v1/apps/my%20app", Reply({"app": changed}))
    result = edgepd("profile", "apps", "my app", *args)
    assert (result.exit_code, result.stdout.splitlines()[1]) == (0, "my app  no      yes     yes      -")
    assert daemon.requests[-1].body == body


@pytest.mark.parametrize("name", ["", "a/b", ".", ".."])
def test_name_that_would_change_the_path(daemon: FakeDaemon, edgepd: Edgepd, name: str) -> None:
    result = edgepd("profile", "apps", name, "--share")
    assert (result.exit_code, daemon.requests) == (2, [])
    assert "is not the name of an app" in result.stderr


def test_change_without_a_name(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    assert (edgepd("profile", "apps", "--share").exit_code, daemon.requests) == (2, [])
