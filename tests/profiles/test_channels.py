from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from edgepd_profiles import apps, channels, feedback
from edgepd_profiles.channels import ChannelReport
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]


def of(conn: sqlite3.Connection, channel: str, since: float = 0.0, viewer: str | None = None) -> ChannelReport:
    return next(r for r in channels.report(conn, since, viewer) if r.channel == channel)


def test_an_empty_profile_has_five_empty_channels(conn: sqlite3.Connection) -> None:
    assert channels.report(conn, 0.0) == [
        ChannelReport(name, 0, 0, 0.0, None) for name in ("active", "passive", "survey", "implicit", "suggestion")
    ]


def test_active_is_given_on_exchanges_that_have_ended(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(5):
        log(f"i_{n}")
    log("i_failed", state="failed")
    log("i_streaming", state="streaming")
    log("i_old", created_at=10.0)
    feedback.set_thumb(conn, "i_0", 1)
    feedback.set_comment(conn, "i_0", "nice")
    feedback.set_rating(conn, "i_1", 2)
    feedback.set_edit(conn, "i_2", "Red.")
    feedback.set_thumb(conn, "i_failed", -1)
    feedback.set_thumb(conn, "i_old", 1)
    feedback.note(conn, "i_3", "copied")
    # (1 - 0.5 - 0.5) / 3 = 0 is the middle of 1 to 5
    assert of(conn, "active", 500.0) == ChannelReport("active", 5, 3, 0.6, 3.0)
    assert of(conn, "active", 0.0) == ChannelReport("active", 6, 4, 4 / 6, 3.5)


def test_a_comment_alone_is_given_but_says_nothing_in_numbers(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_comment(conn, "i_1", "nice")
    assert of(conn, "active") == ChannelReport("active", 1, 1, 1.0, None)


def test_passive_counts_the_apps_that_report(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(4):
        log(f"e_{n}", app="editor")
    log("i_1", app="cli")
    log("o_1", app="old", created_at=10.0)
    log("o_2", app="old")
    feedback.note(conn, "o_1", "copied")
    assert of(conn, "passive", 500.0) == ChannelReport("passive", 0, 0, 0.0, None)
    feedback.note(conn, "e_0", "copied")
    feedback.note(conn, "e_0", "dwell", 900)
    feedback.note(conn, "e_1", "abandoned")
    feedback.note(conn, "e_2", "abandoned")
    found = of(conn, "passive", 500.0)
    assert found.satisfaction == pytest.approx(3 + 2 * (0.6 - 0.6 - 0.6) / 3)
    assert (found.opportunities, found.given, found.engagement) == (4, 3, 0.75)


def test_implicit_counts_what_was_followed(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", conversation="c1", app="a", created_at=1000.0)  # followed in its conversation, days later
    log("i_2", conversation="c2", app="b", created_at=1000.0)  # followed in its app, in half an hour
    log("i_3", conversation="c3", app="b", created_at=2800.0)  # not followed: the next is a second too late
    log("i_4", conversation="c4", app="b", created_at=2800.0 + 1801)
    log("i_5", conversation="c1", app="a", created_at=500000.0)
    assert of(conn, "implicit") == ChannelReport("implicit", 2, 0, 0.0, None)
    feedback.note(conn, "i_1", "corrected", text="shorter")
    found = of(conn, "implicit")
    assert (found.given, found.engagement) == (1, 0.5)
    assert found.satisfaction == pytest.approx(3 - 2 * 0.4)


def survey(conn: sqlite3.Connection, name: str, outcome: str | None, value: int | None = None, app: str = "") -> None:
    conn.execute(
        "INSERT INTO surveys (id, app, question, asked_at, outcome, value) VALUES (?, ?, 'q', 1000, ?, ?)",
        (name, app, outcome, value),
    )


def test_surveys_are_given_when_they_are_answered(conn: sqlite3.Connection) -> None:
    for name, outcome, value in (("s1", "answered", 5), ("s2", "answered", 4), ("s3", "skipped", None)):
        survey(conn, name, outcome, value)
    survey(conn, "s4", "expired")
    survey(conn, "s5", None)
    assert of(conn, "survey") == ChannelReport("survey", 5, 2, 0.4, 4.5)
    survey(conn, "s6", "answered")  # with words
    assert of(conn, "survey") == ChannelReport("survey", 6, 3, 0.5, 4.5)
    assert of(conn, "survey", 1001.0) == ChannelReport("survey", 0, 0, 0.0, None)


def suggestion(conn: sqlite3.Connection, name: str, outcome: str | None, app: str = "") -> None:
    conn.execute(
        "INSERT INTO suggestions (id, app, text, reason, shown_at, outcome) VALUES (?, ?, 't', 'r', 1000, ?)",
        (name, app, outcome),
    )


def test_suggestions_are_given_when_they_are_taken(conn: sqlite3.Connection) -> None:
    for name, outcome in (("g1", "taken"), ("g2", "ignored"), ("g3", "ignored"), ("g4", None)):
        suggestion(conn, name, outcome)
    found = of(conn, "suggestion")
    assert (found.opportunities, found.given, found.engagement) == (4, 1, 0.25)
    assert found.satisfaction == pytest.approx(3 + 2 * (0.8 - 0.2 - 0.2) / 3)


def test_a_viewer_sees_only_what_is_its_own_or_shared(conn: sqlite3.Connection, log: Log) -> None:
    for app in ("mail", "notes"):
        log(f"i_{app}", app=app)
        log(f"j_{app}", app=app)
        feedback.set_thumb(conn, f"i_{app}", 1)
        feedback.note(conn, f"i_{app}", "copied")
        feedback.note(conn, f"i_{app}", "regenerated")
        survey(conn, f"s_{app}", "answered", 5, app)
        suggestion(conn, f"g_{app}", "taken", app)
    both, mine = channels.report(conn, 0.0), channels.report(conn, 0.0, "mail")
    assert [(r.opportunities, r.given) for r in both] == [(4, 2), (4, 2), (2, 2), (2, 2), (2, 2)]
    assert [(r.opportunities, r.given) for r in mine] == [(2, 1), (2, 1), (1, 1), (1, 1), (1, 1)]
    apps.change(conn, "notes", shared=True)
    assert channels.report(conn, 0.0, "mail") == both
    assert [r.opportunities for r in channels.report(conn, 0.0, "other")] == [2, 2, 1, 1, 1]


def test_a_report_reads_what_happened_since_by_index(conn: sqlite3.Connection) -> None:
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    channels.report(conn, 1000.0)
    conn.set_trace_callback(None)
    plans = [row[3] for s in statements for row in conn.execute("EXPLAIN QUERY PLAN " + s) if "SCAN" in row[3]]
    assert plans == ["SCAN surveys", "SCAN suggestions"], "those are few"
