from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from edgepd.errors import RequestError
from edgepd_profiles import apps
from edgepd_profiles.apps import App
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]


def seen(conn: sqlite3.Connection, viewer: str | None) -> list[str]:
    condition, parameters = apps.visible_sql(viewer, "i.app")
    rows = conn.execute(f"SELECT i.app FROM interactions AS i WHERE {condition} ORDER BY i.app", parameters)
    return [name for (name,) in rows]


def test_an_app_that_is_not_listed_keeps_to_itself_and_teaches(conn: sqlite3.Connection) -> None:
    assert apps.get(conn, "mail") == App("mail", shared=False, stored=True, teaches=True)
    assert apps.listing(conn) == []


def test_only_what_is_given_changes(conn: sqlite3.Connection) -> None:
    assert apps.change(conn, "mail", stored=False) == App("mail", shared=False, stored=False, teaches=True)
    assert apps.change(conn, "mail", shared=True) == App("mail", shared=True, stored=False, teaches=True)
    assert apps.change(conn, "mail", teaches=False, stored=True) == App("mail", True, True, False)
    assert apps.get(conn, "mail") == App("mail", True, True, False)
    assert apps.change(conn, "mail") == App("mail", True, True, False)


def test_the_listing_has_apps_with_settings_and_apps_with_exchanges(conn: sqlite3.Connection, log: Log) -> None:
    for n, name in enumerate(["notes", "", "editor", "notes"]):
        log(f"i_{n}", app=name)
    apps.change(conn, "editor", teaches=False)
    apps.change(conn, "absent", shared=True)
    assert apps.listing(conn) == [
        App("", shared=True),
        App("absent", shared=True),
        App("editor", teaches=False),
        App("notes"),
    ]
    assert apps.counts(conn) == {"": 1, "editor": 1, "notes": 2}


def test_who_sees_what(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("", "editor", "mail", "notes"):
        log(f"i_{name}", app=name)
    apps.change(conn, "notes", shared=True)
    assert seen(conn, None) == ["", "editor", "mail", "notes"]
    assert seen(conn, "mail") == ["", "mail", "notes"]
    assert seen(conn, "") == ["", "notes"]
    assert seen(conn, "unheard of") == ["", "notes"]
    assert apps.visible(conn, None) is None
    assert apps.visible(conn, "mail") == ["", "mail", "notes"]
    assert apps.visible(conn, "") == ["", "notes"]
    apps.change(conn, "notes", shared=False)
    assert seen(conn, "mail") == ["", "mail"]


def test_a_name_is_a_value_and_never_a_part_of_the_query(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", app="mail")
    assert seen(conn, "') OR 1 --") == []
    assert apps.change(conn, "') OR 1 --", shared=True).shared
    assert seen(conn, "x") == []


def test_clients_without_a_name_are_seen_by_all(conn: sqlite3.Connection) -> None:
    assert apps.get(conn, "") == App("", shared=True)
    assert apps.change(conn, "", stored=False) == App("", shared=True, stored=False)
    with pytest.raises(RequestError, match="without a name are seen by all; give the client a name"):
        apps.change(conn, "", shared=False)


@pytest.mark.parametrize(
    ("name", "said"),
    [("x" * 201, "has 201 characters, but at most 200"), ("a\nb", r"'a\\nb'.*cannot be shown"), ("\ud800", "ud800")],
)
def test_names_that_no_client_can_give(conn: sqlite3.Connection, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        apps.change(conn, name, shared=True)
    assert apps.listing(conn) == []
