"""`edgepd doctor --report`: nothing private is in it, wherever it may stand."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import edgepd.cli.doctor as doctor
from edgepd.cli.doctor_checks.own_words import OwnWords, vocabulary
from edgepd.cli.doctor_checks.situation import Check, Situation
from edgepd_profiles.integrity import Finding
from edgepd_profiles.store import Store
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import HEALTH, STATUS, FakeDaemon

CANARY = "qxzkanari"
# What must be JSON to be read at all, with canaries as keys and values.
OBJECT = json.dumps({CANARY: CANARY, "loss": 0.25, "deep": {CANARY: 1, "text": CANARY}})
JSON_TEXT = {
    ("generations", "config"): OBJECT,
    ("generations", "scores"): OBJECT,
    ("runs", "numbers"): OBJECT,
    ("generations", "example_ids"): json.dumps([CANARY]),
    ("interactions", "messages"): json.dumps([{"role": CANARY, "content": CANARY}]),
    ("interactions", "state"): "done",  # the only column that takes no other words
}
MACHINE = ("llama.cpp", "model", "service")  # processes that these tests need not wait for


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", tuple((what, check) for what, check in doctor.CHECKS if what not in MACHINE))


@pytest.fixture
def profile(home: Path) -> Path:
    """A profile with a row in each table and a canary in each column of text."""
    path = home / "data" / "profile.db"
    Store.open(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        tables = [
            str(name)
            for name, sql in conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
            if not name.startswith(("sqlite_", "_sqlite", "interaction_search")) and "VIRTUAL" not in sql
        ]
        filled = sum(fill(conn, table) for table in tables)
        conn.execute(
            "INSERT INTO runs (kind, state, started_at, reason, numbers) VALUES ('live', 'failed', 1, ?, '{}')",
            ("the training run was interrupted",),
        )
    assert {"interactions", "feedback", "facts", "apps", "runs", "decisions", "surveys"} <= set(tables)
    assert filled > 60
    return path


def fill(conn: sqlite3.Connection, table: str) -> int:
    """Insert a row; return how many of its columns hold a canary."""
    columns = [(str(row[1]), str(row[2])) for row in conn.execute(f"PRAGMA table_info ({table})")]
    values: list[object] = []
    for name, kind in columns:
        text = JSON_TEXT.get((table, name), f"{CANARY} {CANARY}@{CANARY}.org")
        values.append({"TEXT": text, "REAL": 1.5, "BLOB": CANARY.encode()}.get(kind, 1))
    marks = ", ".join("?" * len(columns))
    conn.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(name for name, _ in columns)}) VALUES ({marks})", values)
    return sum(CANARY in str(value) for value in values)


def test_no_text_of_the_profile_is_in_the_report(profile: Path, edgepd: Edgepd) -> None:
    for options in ((), ("--json",)):
        printed = edgepd("doctor", "--report", *options).stdout
        assert CANARY not in printed.lower()
        assert "this check failed" not in printed
    text = edgepd("doctor", "--report").stdout
    assert "interactions: 1" in text
    assert "facts: 1" in text
    assert "loss 0.25" in text
    assert "reason the training run was interrupted" in text


def test_report_as_a_file(profile: Path, edgepd: Edgepd, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    result = edgepd("doctor", "--report", str(file))
    assert result.stdout == f"{file}\n"
    assert result.stderr == "look through it before you attach it\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text("utf-8").startswith("edgepd doctor --report\n")


def test_settings_that_differ_are_in_the_report(home: Path, edgepd: Edgepd) -> None:
    (home / "config.toml").write_text(f'[serve]\nmodel = "{CANARY}-q4"\nslots = 3\n[budget]\npreset = "sbc"\n')
    told = json.loads(edgepd("doctor", "--report", "--json").stdout)["settings"]
    assert told["serve.slots"] == "3 (file)"
    assert told["budget.preset"] == "sbc (file)"
    assert told["budget.ac_only"] == "False (preset sbc)"
    assert told["serve.model"] == "…-q4 (file)"
    assert "serve.threads" not in told


def test_broken_settings_are_not_quoted(home: Path, edgepd: Edgepd) -> None:
    (home / "config.toml").write_text(f"[serve]\n{CANARY} = 1\n")
    text = edgepd("doctor", "--report").stdout
    assert CANARY not in text
    assert "unknown setting 'serve.…'" in text


def test_neither_the_daemon_nor_a_check_that_fails_can_tell_anything(
    home: Path, daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_situation: Situation) -> list[Finding]:
        raise ValueError(f"{CANARY} is not a number")

    checks: list[tuple[str, Check]] = [*doctor.CHECKS, ("own", failing)]
    monkeypatch.setattr(doctor, "CHECKS", checks)
    daemon.on("GET /healthz", HEALTH | {"pid": 1})
    daemon.on("GET /edgepd/v1/status", STATUS | {"problems": [f"the file {CANARY}.txt is gone"]})
    text = edgepd("doctor", "--report").stdout
    assert CANARY not in text
    assert "the file …" in text
    assert "this check failed: ValueError: … is not a number; please report it" in text


def test_names_of_user_and_machine_and_home_are_hidden() -> None:
    words = OwnWords(
        frozenset({"the", "model", "is", "in", "work", "anna", "data", "of"}), Path("/home/anna"), ["Anna", "work-pc"]
    )
    assert words.text("The model of anna is in /home/anna/data") == "The model of … is in ~/data"
    assert words.text("Anna's work") == "…'… …"
    assert words.of({"anna": ["data", 5, None, True]}) == {"…": ["data", 5, None, True]}


def test_long_numbers_and_foreign_letters_are_hidden() -> None:
    words = OwnWords(frozenset({"call"}), Path("/"), [])
    assert words.text("call 00491711234567, 12345678, Zürich, 電話, mañana") == "call …, 12345678, …, …, …"


def test_without_sources_nothing_but_signs_is_left() -> None:
    assert OwnWords(frozenset(), Path("/"), []).text("the model, 5 MiB") == "… …, 5 …"


def test_words_of_edgepd_are_known() -> None:
    known = vocabulary()
    assert {"interaction", "reason", "budget", "temperature"} <= known
    assert CANARY not in known
