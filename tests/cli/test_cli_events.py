"""`edgepd events`: telling, importing, listing and mapping events, and the client's routes for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepd.cli import events as command
from edgepd.client import Client
from edgepd.errors import RequestError
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import PREDICTION, Asked, FakeDaemon, Json, Reply, error

EVENTS = "/edgepd/v1/events"
STORED: Json = {
    "seq": 7,
    "at": 1_769_878_800.0,  # 2026-01-31T17:00:00Z
    "event": "cafe",
    "intent": "food",
    "context": "harbour",
    "utc_offset_s": 3600,
    "app": "phone",
    "interaction": None,
}
OFF = "prediction is switched off (intent.enabled), so no event was stored"
LOG = (
    "user,time,context,event\n"
    "ada,2026-01-31T18:00:00+01:00,harbour,cafe\n"
    "ada,2026-01-31T08:00:00,,train\n"
    "ada,2026-01-31T08:00:00,,train\n"
    "ada,1769883600,home,home\n"
)


def storing(asked: Asked) -> Reply | None:
    """Store what is sent; events before 9 in the morning of that day are known."""
    if (asked.method, asked.path) != ("POST", EVENTS):
        return None
    sent = asked.body["events"]
    new = sum(event["at"] > 1_769_850_000 for event in sent)
    return Reply({"seqs": list(range(1, len(sent) + 1)), "new": new})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


@pytest.mark.parametrize(
    ("args", "body"),
    [
        (("cafe",), {"events": [{"event": "cafe"}]}),
        (
            (" cafe ", "--intent", "food", "--context", "harbour", "--at", "2026-01-31T18:00+01:00", "--app", "phone"),
            {
                "events": [
                    {"event": "cafe", "intent": "food", "context": "harbour", "at": "2026-01-31T18:00+01:00"},
                ],
                "app": "phone",
            },
        ),
    ],
)
def test_add(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], body: Json) -> None:
    daemon.on(f"POST {EVENTS}", {"seqs": [7], "new": 1})
    result = edgepd("events", "add", *args)
    assert (result.exit_code, result.stdout) == (0, "event 7\n")
    assert daemon.asked(EVENTS) == [body]
    assert json.loads(edgepd("events", "add", *args, "--json").stdout) == {"seqs": [7], "new": 1}


def test_how_long_ago_is_counted_from_now(daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.events.time.time", lambda: 10_000.0)
    daemon.on(f"POST {EVENTS}", {"seqs": [7], "new": 0})
    assert edgepd("events", "add", "cafe", "--at", "2h").stdout == "event 7; it was known\n"
    assert daemon.asked(EVENTS) == [{"events": [{"event": "cafe", "at": 2800.0}]}]


def test_add_nothing_or_while_switched_off(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("events", "add", "  ")
    assert (result.exit_code, daemon.requests) == (2, [])
    assert result.stderr == "Error: the event is empty; give it as an argument or through a pipe\n"
    daemon.on(f"POST {EVENTS}", error(409, "conflict", OFF))
    result = edgepd("events", "add", "cafe")
    assert (result.exit_code, result.stderr) == (6, f"Error: {OFF}\n")


def test_import(daemon: FakeDaemon, edgepd: Edgepd, log: Path) -> None:
    daemon.routes.append(storing)
    result = edgepd("events", "import", str(log), "--tz", "Europe/Berlin", "--app", "phone")
    assert (result.exit_code, result.stdout) == (0, "new events: 2, 1 known already\n")
    [body] = daemon.asked(EVENTS)
    assert body == {
        "app": "phone",
        "events": [
            {"event": "train", "intent": "train", "at": 1_769_842_800.0, "utc_offset_s": 3600, "context": ""},
            {"event": "cafe", "intent": "cafe", "at": 1_769_878_800.0, "utc_offset_s": 3600, "context": "harbour"},
            {"event": "home", "intent": "home", "at": 1_769_883_600.0, "utc_offset_s": 3600, "context": "home"},
        ],
    }


def test_import_with_a_map_sends_its_intents(daemon: FakeDaemon, edgepd: Edgepd, log: Path, tmp_path: Path) -> None:
    daemon.routes.append(storing)
    (tmp_path / "map.json").write_text('{"cafe": "food", "train": "travel", "home": "home"}')
    assert edgepd("events", "import", str(log), "--map", str(tmp_path / "map.json"), "--tz", "UTC").exit_code == 0
    sent = daemon.asked(EVENTS)[0]["events"]
    assert [each["intent"] for each in sent] == ["travel", "food", "home"]


def test_dry_run_sends_nothing(daemon: FakeDaemon, edgepd: Edgepd, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.events.moment", lambda seconds: f"t{seconds:.0f}")
    result = edgepd("events", "import", str(log), "--tz", "UTC", "--dry-run")
    assert result.stdout == "3 events, 3 intents, 2 contexts, from t1769846400 to t1769883600\n"
    assert json.loads(edgepd("events", "import", str(log), "--tz", "UTC", "--dry-run", "--json").stdout) == {
        "events": 3,
        "intents": 3,
        "contexts": 2,
        "first": 1_769_846_400.0,
        "last": 1_769_883_600.0,
        "dry_run": True,
    }
    assert daemon.requests == []


def test_a_large_file_goes_in_parts(daemon: FakeDaemon, edgepd: Edgepd, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(f'{{"time": {1_769_900_000 + n}, "event": "e{n % 3}"}}' for n in range(2001)))
    daemon.routes.append(storing)
    result = edgepd("events", "import", str(path), "--no-user", "--json")
    assert [len(body["events"]) for body in daemon.asked(EVENTS)] == [1000, 1000, 1]
    assert json.loads(result.stdout) == {
        "events": 2001,
        "intents": 3,
        "contexts": 0,
        "first": 1_769_900_000.0,
        "last": 1_769_902_000.0,
        "dry_run": False,
        "new": 2001,
    }


def test_an_import_that_breaks_off_says_how_far_it_came(daemon: FakeDaemon, edgepd: Edgepd, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(f'{{"time": {1_769_900_000 + n}, "event": "e"}}' for n in range(1001)))
    daemon.on(f"POST {EVENTS}", {"seqs": [], "new": 1000}, error(503, "busy", "try again"))
    result = edgepd("events", "import", str(path), "--no-user")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr == (
        "1,000 of 1,001 events are stored; the same command goes on with the rest\nError: try again\n"
    )


@pytest.mark.parametrize(
    ("text", "args", "code", "message"),
    [
        ("user,time,event\n", (), 2, "there is no event in it"),
        ("user,time,event\na,1,x\nb,1,x\n", (), 2, "it has the events of 2 users; take one with --user: 'a', 'b'"),
        ("user,time,event\na,1,x\nb,1,x\n", ("--user", "c"), 4, "there is no user 'c' in it, but 'a', 'b'"),
        ("user,time,event\na,1,x\na,soon,x\n", (), 2, "line 3"),
        ("time,event\n1,x\n", (), 2, "'user'"),
        ("user,time,event\na,1,x\n", ("--tz", "Mars/Olympus"), 2, "'Mars/Olympus' is not known here"),
        ("user,time,event\na,1,x\n", ("--user", "a", "--no-user"), 2, "exclude each other"),
    ],
)
def test_files_that_are_refused(
    daemon: FakeDaemon, edgepd: Edgepd, tmp_path: Path, text: str, args: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "log.csv").write_text(text)
    result = edgepd("events", "import", str(tmp_path / "log.csv"), *args)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert daemon.requests == []


def test_one_user_of_several(daemon: FakeDaemon, edgepd: Edgepd, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,time,event\na,1769900001,x\nb,1769900002,y\n")
    daemon.routes.append(storing)
    assert edgepd("events", "import", str(tmp_path / "log.csv"), "--user", "b").stdout == "new events: 1\n"
    assert [each["event"] for each in daemon.asked(EVENTS)[0]["events"]] == ["y"]


def test_zone_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TZ", ":Europe/Berlin")
    assert command.machine_zone(tmp_path) == "Europe/Berlin"
    monkeypatch.delenv("TZ")
    assert command.machine_zone(tmp_path) == "UTC"  # as localtime(5) has it
    (tmp_path / "etc").mkdir()
    zone = tmp_path / "usr/share/zoneinfo/America/Santiago"
    zone.parent.mkdir(parents=True)
    zone.write_bytes(b"TZif")
    (tmp_path / "etc/localtime").symlink_to(zone)
    assert command.machine_zone(tmp_path) == "America/Santiago"
    assert capsys.readouterr().err == ""
    (tmp_path / "etc/localtime").unlink()
    (tmp_path / "etc/localtime").write_bytes(b"TZif")
    assert command.machine_zone(tmp_path) == "UTC"
    assert "--tz gives one" in capsys.readouterr().err


def test_list_shows_local_times(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    early = STORED | {"seq": 6, "at": -3600.0, "utc_offset_s": 0, "event": "train", "intent": "train", "context": ""}
    daemon.on(f"GET {EVENTS}", {"events": [STORED, early]})
    assert edgepd("events", "list", "--limit", "2", "--app", "phone").stdout == (
        "at                event  intent  context  app\n"
        "2026-01-31 18:00  cafe   food    harbour  phone\n"
        "1969-12-31 23:00  train  train            phone\n"
    )
    assert daemon.requests[-1].query == "limit=2&app=phone"
    assert json.loads(edgepd("events", "list", "--json").stdout) == {"events": [STORED, early]}
    daemon.on(f"GET {EVENTS}", {"events": []})
    assert edgepd("events", "list").stdout == "no events yet; tell one with: edgepd events add EVENT\n"


def test_map(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(f"GET {EVENTS}/map", {"map": {"cafe": "food", "train": "travel"}})
    daemon.on(f"PUT {EVENTS}/map", {"event": "cafe", "intent": "food"})
    daemon.on(f"DELETE {EVENTS}/map", {"event": "mail:open/read"})
    assert edgepd("events", "map").stdout == "event  intent\ncafe   food\ntrain  travel\n"
    assert json.loads(edgepd("events", "map", "--json").stdout) == {"map": {"cafe": "food", "train": "travel"}}
    assert edgepd("events", "map", " cafe", "food").stdout == "cafe is for food\n"
    assert daemon.requests[-1].body == {"event": "cafe", "intent": "food"}
    assert edgepd("events", "map", "mail:open/read", "--remove").stdout == "mail:open/read is off the map\n"
    assert daemon.requests[-1].query == "event=mail%3Aopen%2Fread"
    daemon.on(f"GET {EVENTS}/map", {"map": {}})
    assert edgepd("events", "map").stdout == "no event has been given an intent yet\n"


@pytest.mark.parametrize("args", [("cafe",), ("--remove",), ("cafe", "food", "--remove")])
def test_half_a_mapping(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...]) -> None:
    result = edgepd("events", "map", *args)
    assert (result.exit_code, daemon.requests) == (2, [])
    assert result.stderr == "Error: give EVENT and INTENT, EVENT and --remove, or nothing to list the map\n"


def test_client_names_the_app(daemon: FakeDaemon) -> None:
    daemon.on(f"GET {EVENTS}", {"events": []})
    daemon.on("GET /edgepd/v1/suggestions", {"suggestions": [], "next": [], "predicting": True})
    with Client(daemon.socket) as client:
        client.events(app="mail")
        client.foresee(2, app="mail", at=1000.5)
        client.foresee()
        with pytest.raises(RequestError, match="cannot be sent"):
            client.add_events([{"event": "x", "at": float("nan")}])
    assert [asked.query for asked in daemon.requests] == ["app=mail", "limit=2&at=1000.5&app=mail", ""]


NOTHING: Json = PREDICTION | {"predicted": 0, "first": 0, "among_three": 0, "warmed": 0, "warmed_used": 0}


@pytest.mark.parametrize(
    ("found", "text", "brief"),
    [
        (None, "", ""),
        (PREDICTION | {"enabled": False}, "prediction is switched off (intent.enabled)", "switched off"),
        (NOTHING, "shipped model, 1,234 events", "nothing yet"),
        (
            PREDICTION | {"tuned_at": 5.0},
            "model tuned t5, 1,234 events, of 40 foreseen 42% first, 75% in three, "
            "9 of 12 prompts computed ahead were used",
            "42% first, 75% in three",
        ),
    ],
)
def test_prediction_in_words(found: Json | None, text: str, brief: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.events.moment", lambda seconds: f"t{seconds:.0f}")
    assert (command.prediction(found), command.hit_rates(found)) == (text, brief)
