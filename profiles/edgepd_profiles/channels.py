"""How much each channel of feedback is used, and how satisfied those are who use it.

The idea: two numbers for each of the five channels, as ASLS measures them (appendix A.1, table 8). The paper defines
neither, so `report` says what they mean here. The invariant: only what is counted as an opportunity can be counted as
given, so engagement is a share.
What this does not do: compare the channels fairly. Whoever says something says it of what stands out, and the implicit
channel only ever hears complaints: its satisfaction is that of answers that were complained about.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from edgepd_profiles import apps
from edgepd_profiles.feedback_kinds import CHANNELS, Feedback, satisfaction
from edgepd_profiles.implicit import FOLLOWS_WITHIN_S

_ENDED = "i.created_at >= ? AND i.state IN ('done', 'cancelled', 'interrupted')"


@dataclass(frozen=True)
class ChannelReport:
    """One channel. `engagement` is given / opportunities (0 if there were none), `satisfaction` 1 to 5 or None."""

    channel: str
    opportunities: int
    given: int
    engagement: float
    satisfaction: float | None


def report(conn: sqlite3.Connection, since: float, viewer: str | None = None) -> list[ChannelReport]:
    """Return the five channels, in the order of CHANNELS, for what happened since then and the viewer may see.

    opportunities are what could have been judged:
        active: exchanges that have ended, failed ones apart
        passive: the same, of apps that reported something in that time at all
        survey: questions asked
        implicit: exchanges that were followed by another one in their conversation, or in their app within 30 minutes
        suggestion: suggestions shown
    given are those of them with feedback of that channel, whenever it came: for a survey an answer, for a suggestion
    that it was taken. satisfaction is the mean of `feedback.satisfaction` over all feedback of the channel on them,
    from [-1, 1] to [1, 5]; None if none of it says anything. Suggestions that were ignored count in it.
    Time grows with the exchanges since then.
    """
    condition, names = apps.visible_sql(viewer, "i.app")
    ended, parameters = f"{_ENDED} AND {condition}", (since, *names)
    reporting = f"""
        AND +i.app IN (SELECT i.app FROM feedback AS f CROSS JOIN interactions AS i ON i.id = f.interaction
                       WHERE f.at >= ? AND f.kind IN {_kinds("passive")} AND {ended})"""  # noqa: S608
    followed = f"""
        AND (EXISTS (SELECT 1 FROM interactions AS j WHERE j.conversation = i.conversation
                     AND j.app = i.app AND j.seq > i.seq)
             OR i.created_at + {FOLLOWS_WITHIN_S} >=
                (SELECT j.created_at FROM interactions AS j WHERE j.app = i.app AND j.seq > i.seq
                 ORDER BY j.seq LIMIT 1))"""  # noqa: S608
    return [
        _of_exchanges(conn, "active", ended, parameters),
        _of_exchanges(conn, "passive", ended + reporting, (*parameters, since, *parameters)),
        _surveys(conn, since, viewer),
        _of_exchanges(conn, "implicit", ended + followed, parameters),
        _suggestions(conn, since, viewer),
    ]


def _of_exchanges(conn: sqlite3.Connection, channel: str, where: str, parameters: tuple[object, ...]) -> ChannelReport:
    """Report a channel whose opportunities are exchanges: those that meet a condition on interactions AS i."""
    opportunities = conn.execute(f"SELECT count(*) FROM interactions AS i WHERE {where}", parameters).fetchone()[0]  # noqa: S608
    rows = conn.execute(
        f"""
        SELECT f.interaction, f.kind, f.value FROM interactions AS i JOIN feedback AS f ON f.interaction = i.id
        WHERE {where} AND f.kind IN {_kinds(channel)}
        """,  # noqa: S608
        parameters,
    ).fetchall()
    given = len({interaction for interaction, _, _ in rows})
    return _report(channel, opportunities, given, ((kind, value) for _, kind, value in rows))


def _surveys(conn: sqlite3.Connection, since: float, viewer: str | None) -> ChannelReport:
    condition, names = apps.visible_sql(viewer)
    rows = conn.execute(
        f"SELECT outcome, value FROM surveys WHERE asked_at >= ? AND {condition}",  # noqa: S608
        (since, *names),
    ).fetchall()
    answers = [value for outcome, value in rows if outcome == "answered"]
    return _report("survey", len(rows), len(answers), (("survey", value) for value in answers))


def _suggestions(conn: sqlite3.Connection, since: float, viewer: str | None) -> ChannelReport:
    condition, names = apps.visible_sql(viewer)
    rows = conn.execute(
        f"SELECT outcome FROM suggestions WHERE shown_at >= ? AND {condition}",  # noqa: S608
        (since, *names),
    ).fetchall()
    settled = [outcome for (outcome,) in rows if outcome in CHANNELS["suggestion"]]
    return _report("suggestion", len(rows), settled.count("taken"), ((outcome, None) for outcome in settled))


def _report(channel: str, opportunities: int, given: int, signals: Iterable[tuple[str, int | None]]) -> ChannelReport:
    """Put a report together; `signals` are kind and value of each piece of feedback."""
    said = (satisfaction(Feedback("", kind, value, None, "", 0.0)) for kind, value in signals)
    scores = [score for score in said if score is not None]
    mean = 3 + 2 * sum(scores) / len(scores) if scores else None
    return ChannelReport(channel, opportunities, given, given / opportunities if opportunities else 0.0, mean)


def _kinds(channel: str) -> str:
    """Return the kinds of a channel as an SQL list."""
    return "(" + ", ".join(f"'{kind}'" for kind in CHANNELS[channel]) + ")"
