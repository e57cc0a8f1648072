"""The sums of the profile follow what happens, and what is read of them is the formula."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles import apps, features, feedback, interactions, migrations, profile
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.profile import Feature, Profile

DAY = 86_400.0
NOW = 20_000 * DAY
HALF_LIFE = 30.0
WEIGHTS = {"active": 1.0, "survey": 0.7, "suggestion": 0.4, "implicit": 0.5, "passive": 0.3, "unjudged": 0.1}
PROMPTS = ("Explain tides to me.", "Explain tides and ferries.", "Wie ist die Fähre?", "My password: Tr0ub4dor&3x")
Log = Callable[..., Interaction]


def near(number: float | list[float], rel: float | None = None, abs: float | None = None) -> Any:  # noqa: A002
    return pytest.approx(number, rel=rel, abs=abs)


def feature(found: Profile, kind: str, name: str) -> Feature | None:
    return next((f for f in found.groups[kind] if f.name == name), None)


def alpha(found: Profile, kind: str, name: str) -> float:
    one = feature(found, kind, name)
    return one.alpha if one else 0.0


def read(conn: sqlite3.Connection, viewer: str | None = None, **more: Any) -> Profile:
    return profile.read(conn, viewer, WEIGHTS, NOW, utc_offset_s=0, **more)


def ask(log: Log, name: str, prompt: str, days_ago: float = 0.0, **fields: object) -> str:
    messages = [{"role": "user", "content": prompt}]
    log(name, **({"messages": messages, "created_at": NOW - days_ago * DAY} | fields))
    return name


def delete(conn: sqlite3.Connection, name: str) -> None:
    with profile.refolded(conn, name):
        conn.execute("DELETE FROM interactions WHERE id = ?", (name,))


def sums(conn: sqlite3.Connection) -> dict[tuple[str, ...], tuple[float, float, int]]:
    rows = conn.execute("SELECT app, kind, name, channel, mass, total, count FROM features")
    return {row[:4]: row[4:] for row in rows}


def assert_same_sums(
    found: dict[tuple[str, ...], tuple[float, float, int]], expected: dict[tuple[str, ...], tuple[float, float, int]]
) -> None:
    assert found.keys() == expected.keys()
    for key, (mass, total, count) in expected.items():
        assert found[key] == (near(mass, rel=1e-9), near(total, rel=1e-9, abs=1e-9 * mass), count)


def test_alpha_is_the_weight_of_the_channel_times_the_decay(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", 0)
    ask(log, "i_2", "Explain tides.", 30)
    ask(log, "i_3", "Explain tides.", 45)
    feedback.set_thumb(conn, "i_2", 1)
    feedback.note(conn, "i_3", "copied")
    assert profile.catch_up(conn, HALF_LIFE) == 3
    found = feature(read(conn), "interest", "tides")
    assert found == Feature("tides", near(0.1 + 1.0 / 2 + 0.3 / 2**1.5), 1.0, 3)
    assert profile.catch_up(conn, HALF_LIFE) == 0


@pytest.mark.parametrize("days", [0, 400, 4000])
def test_eras_do_not_show(conn: sqlite3.Connection, log: Log, days: float) -> None:
    for n in range(40):
        ask(log, f"i_{n}", "Explain tides.", days + 30 * n)
    profile.catch_up(conn, HALF_LIFE)
    expected = 0.1 * 2 ** (-days / 30) * sum(2.0**-n for n in range(40))
    assert alpha(read(conn), "interest", "tides") == near(expected, rel=1e-9)


def test_weights_are_applied_at_reading(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.")
    profile.catch_up(conn, HALF_LIFE)
    for weight in (0.1, 3.0):
        found = profile.read(conn, None, {"unjudged": weight}, NOW)
        assert alpha(found, "interest", "tides") == near(weight)
    assert profile.read(conn, None, {"active": 1.0}, NOW).groups["interest"] == []


def test_values_are_shares_of_what_was_wanted_less_what_was_not(conn: sqlite3.Connection, log: Log) -> None:
    answers = [("- a\n- b", 1), ("- c\n- d", 1), ("- e\n- f", 1), ("Plain.", 1), ("- g\n- h", -1), ("Plain 🍞", -1)]
    for n, (answer, thumb) in enumerate(answers):
        ask(log, f"i_{n}", "Go.", response=answer)
        feedback.set_thumb(conn, f"i_{n}", thumb)
    profile.catch_up(conn, HALF_LIFE)
    found = {f.name: (f.value, f.count) for f in read(conn).groups["preference"]}
    assert found["format:list"] == (near((3 - 1) / 4), 4)
    assert found["tone:emoji"] == (near(-1 / 4), 1)
    # The geometric mean of 4, 4, 4 and 1.
    assert found["words"] == (near(4**0.75), 4)
    assert read(conn).exchanges == 6


def test_hours_are_shown_in_local_time(conn: sqlite3.Connection, log: Log) -> None:
    # 1970-01-03 was a Saturday: 20:00 UTC is Sunday, 01:00, five hours to the east.
    ask(log, "i_1", "Explain tides.", created_at=2 * DAY + 20 * 3600)
    profile.catch_up(conn, 36_500)
    for offset, names in ((0, {"time:evening", "day:weekend"}), (5, {"time:night", "day:weekend"})):
        found = profile.read(conn, None, WEIGHTS, NOW, utc_offset_s=offset * 3600)
        assert {f.name for f in found.groups["context"]} >= names
    found = profile.read(conn, None, WEIGHTS, NOW, utc_offset_s=-24 * 3600)
    assert {f.name for f in found.groups["context"]} >= {"time:evening", "day:weekday"}


def test_only_the_heaviest_are_shown_and_all_set_by_hand(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(20):
        word = "word" + "abcdefghijklmnopqrst"[n]
        for again in range(n + 1):
            ask(log, f"i_{n}_{again}", word)
    profile.catch_up(conn, HALF_LIFE)
    profile.edit(conn, None, "interest", "worda", 0.5)
    shown = [f.name for f in read(conn).groups["interest"]]
    assert shown == [f"word{c}" for c in "tsrqponmlkji"] + ["worda"]


def test_folding_stops_before_an_exchange_that_is_still_streaming(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.")
    ask(log, "i_2", "Explain ferries.", state="streaming")
    ask(log, "i_3", "Explain harbours.")
    ask(log, "i_4", "Explain sails.", app="mail")
    assert profile.catch_up(conn, HALF_LIFE) == 2
    assert {f.name for f in read(conn).groups["interest"]} == {"tides", "sails"}
    interactions.finish(
        conn, "i_2", "Ok.", "done", "stop", prompt_tokens=1, completion_tokens=1, ttft_ms=None, duration_ms=None
    )
    assert profile.catch_up(conn, HALF_LIFE) == 2
    assert {f.name for f in read(conn).groups["interest"]} == {"tides", "ferries", "harbours", "sails"}


def test_a_call_folds_no_more_than_its_limit(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(7):
        ask(log, f"i_{n}", "Explain tides.", app="ab"[n % 2])
    assert [profile.catch_up(conn, HALF_LIFE, 3) for _ in range(4)] == [3, 3, 1, 0]
    assert read(conn).exchanges == 7


def test_a_deleted_exchange_leaves_no_trace(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", 3)
    profile.catch_up(conn, HALF_LIFE)
    before = sums(conn)
    ask(log, "i_2", "Explain tides and secret gardens.", 1)
    feedback.set_edit(conn, "i_2", "My dearest Ann, this is between the two of us only, love Jo")
    profile.catch_up(conn, HALF_LIFE)
    assert any("gardens" in key for key in sums(conn))
    delete(conn, "i_2")
    assert_same_sums(sums(conn), before)
    # SQLite gives the place of the last row away again.
    ask(log, "i_3", "Explain anchors.", 0)
    assert profile.catch_up(conn, HALF_LIFE) == 1
    assert alpha(read(conn), "interest", "anchors") == near(0.1)


def test_what_is_much_older_than_a_deleted_exchange_keeps_its_weight(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", 1500)
    profile.catch_up(conn, HALF_LIFE)
    before = sums(conn)
    ask(log, "i_2", "Explain tides.")
    profile.catch_up(conn, HALF_LIFE)
    delete(conn, "i_2")
    assert_same_sums(sums(conn), before)


def test_feedback_moves_an_exchange_to_another_channel_and_back(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", 30)
    profile.catch_up(conn, HALF_LIFE)
    before = sums(conn)
    feedback.set_thumb(conn, "i_1", 1)
    assert alpha(read(conn), "interest", "tides") == near(0.5)
    feedback.remove(conn, "i_1", "thumb")
    assert sums(conn).keys() == before.keys()
    assert alpha(read(conn), "interest", "tides") == near(0.05)


def test_another_half_life_or_version_makes_the_sums_anew(
    conn: sqlite3.Connection, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(log, "i_1", "Explain tides.", 60)
    ask(log, "i_2", "Explain ferries.", 60)
    profile.catch_up(conn, HALF_LIFE)
    assert alpha(read(conn), "interest", "tides") == near(0.1 / 4)
    assert profile.catch_up(conn, 60.0) == 2
    assert alpha(read(conn), "interest", "tides") == near(0.1 / 2)
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    delete(conn, "i_1")  # what the older version took from it is not known, so all goes
    assert sums(conn) == {}
    assert profile.catch_up(conn, 60.0) == 1
    assert alpha(read(conn), "interest", "ferries") == near(0.1 / 2)


def test_who_deletes_many_begins_anew_first(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(4):
        ask(log, f"i_{n}", PROMPTS[n % 2])
    profile.catch_up(conn, HALF_LIFE)
    profile.begin_anew(conn, "cli")
    assert sums(conn) == {}
    for n in range(3):
        delete(conn, f"i_{n}")
    assert profile.catch_up(conn, HALF_LIFE) == 1
    assert {f.name for f in read(conn).groups["interest"]} == {"tides", "ferries"}
    assert read(conn).exchanges == 1


def test_a_clock_that_was_ahead_does_not_outweigh_all(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", -40_000)
    ask(log, "i_2", "Explain ferries.")
    profile.catch_up(conn, HALF_LIFE)
    assert alpha(read(conn), "interest", "ferries") == near(0.1)
    assert 0 < alpha(read(conn), "interest", "tides") <= 0.1


def test_an_app_sees_its_own_and_what_is_shared(conn: sqlite3.Connection, log: Log) -> None:
    for n, app in enumerate(("mail", "notes", "")):
        ask(log, f"i_{n}", f"Explain {('tides', 'ferries', 'sails')[n]}.", app=app)
    profile.catch_up(conn, HALF_LIFE)

    def seen(viewer: str | None) -> set[str]:
        return {f.name for f in read(conn, viewer).groups["interest"]}

    assert seen(None) == {"tides", "ferries", "sails"}
    assert seen("mail") == {"tides", "sails"}
    assert seen("other") == {"sails"}
    apps.change(conn, "notes", shared=True)
    assert seen("mail") == {"tides", "ferries", "sails"}


def test_what_is_set_by_hand_stands_over_what_was_observed(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", app="mail")
    profile.catch_up(conn, HALF_LIFE)
    profile.edit(conn, None, "interest", "tides", -1)
    profile.edit(conn, None, "preference", "style", "dry humour")
    found = read(conn)
    assert feature(found, "interest", "tides") == Feature("tides", near(0.1), -1.0, 1, False, True)
    assert feature(found, "preference", "style") == Feature("style", 0.0, "dry humour", 0, False, True)
    assert {kind: [f.name for f in group] for kind, group in found.only_edited().groups.items() if group} == {
        "interest": ["tides"],
        "preference": ["style"],
    }
    profile.edit(conn, "mail", "preference", "style", "plain")
    assert [feature(read(conn, viewer), "preference", "style").value for viewer in ("mail", "x", None)] == [  # type: ignore[union-attr]
        "plain",
        "dry humour",
        "dry humour",
    ]


def test_a_pinned_feature_stays_as_it_was(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", 30)
    ask(log, "i_2", "Explain ferries.", 30, app="mail")
    profile.catch_up(conn, HALF_LIFE)
    profile.pin(conn, None, "interest", "tides", at=NOW)
    before = feature(read(conn), "interest", "tides")
    assert before == Feature("tides", near(0.05), near(0.5), 1, True)
    for n in range(3, 9):
        ask(log, f"i_{n}", "Explain tides.", app="mail" if n % 2 else "cli")
    profile.catch_up(conn, HALF_LIFE)
    assert feature(read(conn), "interest", "tides") == before
    # The part of an app that it may not see is not in it.
    assert alpha(read(conn, "mail"), "interest", "tides") == 0
    profile.pin(conn, None, "interest", "tides", False)
    assert alpha(read(conn), "interest", "tides") == near(0.05 + 6 * 0.1)


def test_an_edited_feature_can_be_pinned_and_let_go(conn: sqlite3.Connection) -> None:
    profile.edit(conn, None, "preference", "words", 50)
    profile.pin(conn, None, "preference", "words")
    assert feature(read(conn), "preference", "words") == Feature("words", 0.0, 50.0, 0, True, True)
    profile.edit(conn, None, "preference", "words", 40)
    profile.pin(conn, None, "preference", "words", False)
    assert feature(read(conn), "preference", "words") == Feature("words", 0.0, 40.0, 0, False, True)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("mood", "x", 1.0),
        ("interest", "", 1.0),
        ("interest", "*", 1.0),
        ("interest", "x" * 101, 1.0),
        ("interest", "two\nlines", 1.0),
        ("preference", "style", " "),
        ("preference", "style", "x" * 301),
        ("preference", "style", "my password: Tr0ub4dor&3x"),
        ("preference", "words", float("nan")),
    ],
)
def test_bad_edits_are_refused(conn: sqlite3.Connection, kind: str, name: str, value: float | str) -> None:
    with pytest.raises(RequestError):
        profile.edit(conn, None, kind, name, value)


def test_what_is_not_there_cannot_be_pinned(conn: sqlite3.Connection) -> None:
    with pytest.raises(NotFoundError, match="no interest 'tides'"):
        profile.pin(conn, None, "interest", "tides")
    with pytest.raises(RequestError, match="mood"):
        profile.reset(conn, None, "mood")


def test_a_reset_begins_anew(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.", app="mail")
    ask(log, "i_2", "Explain tides.")
    profile.catch_up(conn, HALF_LIFE)
    profile.edit(conn, "mail", "interest", "sails", 1.0)
    profile.reset(conn, "mail")
    assert [f.name for f in read(conn, "mail").groups["interest"]] == []
    assert alpha(read(conn), "interest", "tides") == near(0.1)
    ask(log, "i_3", "Explain ferries.", app="mail")
    profile.recompute(conn, HALF_LIFE)
    assert [f.name for f in read(conn, "mail").groups["interest"]] == ["ferries"]
    profile.reset(conn, None)
    assert profile.recompute(conn, HALF_LIFE) == 0
    assert sums(conn) == {}


def test_after_a_reset_older_exchanges_stay_out(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.")
    profile.catch_up(conn, HALF_LIFE)
    profile.reset(conn, None)
    feedback.set_thumb(conn, "i_1", 1)
    assert sums(conn) == {}
    delete(conn, "i_1")
    assert sums(conn) == {}


@pytest.mark.parametrize("kind", [None, "interest"])
def test_after_a_reset_a_place_that_was_given_away_again_counts(
    conn: sqlite3.Connection, log: Log, kind: str | None
) -> None:
    ask(log, "i_1", "Explain tides.")
    ask(log, "i_2", "Explain tides.")
    profile.catch_up(conn, HALF_LIFE)
    profile.reset(conn, "cli", kind)
    delete(conn, "i_2")
    ask(log, "i_3", "Explain ferries.")
    profile.catch_up(conn, HALF_LIFE)
    assert [f.name for f in read(conn).groups["interest"]] == ["ferries"]


def test_a_reset_of_one_kind_leaves_the_others(conn: sqlite3.Connection, log: Log) -> None:
    ask(log, "i_1", "Explain tides.")
    profile.catch_up(conn, HALF_LIFE)
    profile.edit(conn, None, "quality", "given:thumb", 1.0)
    profile.reset(conn, None, "interest")
    ask(log, "i_2", "Explain ferries.")
    profile.catch_up(conn, HALF_LIFE)
    found = read(conn)
    assert [f.name for f in found.groups["interest"]] == ["ferries"]
    assert feature(found, "history", "turns") == Feature("turns", near(0.2), 1.0, 2)
    assert feature(found, "quality", "given:thumb") is not None
    feedback.set_thumb(conn, "i_1", 1)  # still counts in the other groups only
    assert feature(read(conn), "interest", "tides") is None
    assert alpha(read(conn), "history", "turns") == near(1.1)


def test_the_user_as_a_vector(conn: sqlite3.Connection, log: Log) -> None:
    assert profile.user_embedding(conn, None) is None
    for n, (vector, days) in enumerate((((1.0, 0.0), 0), ((0.0, 1.0), 30))):
        ask(log, f"i_{n}", "Explain tides.", days, app=("cli", "mail")[n])
        conn.execute("INSERT INTO embeddings VALUES (?, 'm', ?, 0.5)", (f"i_{n}", struct.pack("<2e", *vector)))
    feedback.set_thumb(conn, "i_1", 1)
    profile.catch_up(conn, HALF_LIFE)
    assert profile.user_embedding(conn, None, now=NOW) == near([1 / 1.5, 0.5 / 1.5])
    assert profile.user_embedding(conn, None, WEIGHTS, NOW) == near([0.1 / 0.6, 0.5 / 0.6])
    assert profile.user_embedding(conn, "mail", WEIGHTS, NOW) == near([0.0, 1.0])
    delete(conn, "i_1")
    assert profile.user_embedding(conn, None, WEIGHTS, NOW) == near([1.0, 0.0])


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3), st.floats(0, 2000), st.sampled_from(["", "mail"])),
    st.tuples(st.just("stream"), st.integers(0, 3), st.floats(0, 2000), st.sampled_from(["", "mail"])),
    st.tuples(st.just("end"), st.integers(0, 2)),
    st.tuples(st.just("thumb"), st.integers(0, 2), st.sampled_from([1, -1])),
    st.tuples(st.just("edit"), st.integers(0, 2), st.sampled_from(["- a\n- b", "In short: it is the moon!"])),
    st.tuples(st.just("copied"), st.integers(0, 2)),
    st.tuples(st.just("undo"), st.integers(0, 2)),
    st.tuples(st.just("delete"), st.integers(0, 2)),
    st.tuples(st.just("catch up"), st.integers(1, 3)),
    st.tuples(st.just("reset"), st.sampled_from(["", "mail", None]), st.sampled_from([None, "interest"])),
    st.tuples(st.just("begin anew"), st.sampled_from(["", "mail"])),
    st.tuples(st.just("half-life"), st.sampled_from([30.0, 7.0])),
)


class World:
    """A profile to which things happen; steps on exchanges that are not there do nothing."""

    def __init__(self) -> None:
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        self.conn.execute("PRAGMA foreign_keys = ON")
        migrations.migrate(self.conn)
        self.half_life, self.made = HALF_LIFE, 0

    def step(self, what: str, *values: Any) -> None:
        if what in ("add", "stream"):
            prompt, days, app = values
            state = "streaming" if what == "stream" else "done"
            self.made += 1
            asked = [{"role": "user", "content": PROMPTS[prompt]}]
            at = NOW - days * DAY
            new = Interaction(f"i_{self.made}", "c", at, app, "m", 1, asked, response="Because.", state=state)
            interactions.begin(self.conn, new)
        elif what == "catch up":
            profile.catch_up(self.conn, self.half_life, values[0])
        elif what == "reset":
            profile.reset(self.conn, *values)
        elif what == "begin anew":
            profile.begin_anew(self.conn, *values)
        elif what == "half-life":
            self.half_life = values[0]
        else:
            self.to_one(what, *values)

    def to_one(self, what: str, n: int, *values: Any) -> None:
        rows = self.conn.execute("SELECT id, state FROM interactions ORDER BY seq DESC LIMIT 1 OFFSET ?", (n,))
        name, state = rows.fetchone() or ("", "")
        if what == "end" and state == "streaming":
            interactions.finish(
                self.conn, name, "Ok.", "done", "stop",
                prompt_tokens=1, completion_tokens=1, ttft_ms=None, duration_ms=None,
            )  # fmt: skip
        elif state == "done":
            if what == "thumb":
                feedback.set_thumb(self.conn, name, *values, at=5.0)
            elif what == "edit":
                feedback.set_edit(self.conn, name, *values, at=5.0)
            elif what == "copied":
                feedback.note(self.conn, name, "copied", at=5.0)
            elif what == "undo":
                feedback.remove(self.conn, name)
            elif what == "delete":
                delete(self.conn, name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=8, max_size=40))
def test_whatever_happens_the_sums_are_those_of_a_recompute(steps: list[tuple[Any, ...]]) -> None:
    world = World()
    try:
        for step in (("add", 0, 400.0, "mail"), ("add", 1, 1.0, "mail"), ("catch up", 3), *steps):
            world.step(*step)
        while profile.catch_up(world.conn, world.half_life):
            pass
        found = sums(world.conn)
        profile.recompute(world.conn, world.half_life)
        assert_same_sums(found, sums(world.conn))
        assert all(count > 0 for _, _, count in found.values())
        kept = "\n".join(key[2] for key in found)
        assert "Tr0ub4dor" not in kept
    finally:
        world.conn.close()
