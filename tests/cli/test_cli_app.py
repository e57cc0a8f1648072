"""The group itself: start-up, help, exit codes, and errors in both forms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

import edgepd as package
from edgepd.cli import main
from edgepd.errors import BusyError, EdgepdError, ModelError, NotFoundError, StoreError
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, error


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_version(edgepd: Edgepd) -> None:
    result = edgepd("--version")
    assert (result.exit_code, result.stdout) == (0, f"edgepd {package.__version__}\n")


def test_commands_are_these() -> None:
    assert sorted(" ".join(path) for path, _ in commands(main)) == [
        *("adapters bake", "adapters delete", "adapters diff", "adapters export", "adapters import", "adapters list"),
        *("adapters merge", "adapters pin", "adapters rollback", "adapters show", "adapters unpin", "adapters use"),
        *("ask", "backup", "backups", "bad", "budget pause", "budget resume", "budget show", "chat", "comment"),
        *("compare", "config show"),
        *("daemon reload", "daemon run", "daemon stop", "demo", "doctor"),
        *("events add", "events import", "events list", "events map", "export", "facts", "fix", "forget", "good"),
        *("import", "model add", "model list", "model remove", "model use", "prefer"),
        *("profile apps", "profile channels", "profile edit", "profile pin", "profile reset", "profile rules"),
        *("profile selection", "profile show", "profile unpin", "rate", "recall", "receipts", "remember", "report"),
        *("restore", "review", "service install", "service logs", "service restart", "service start"),
        *("service status", "service stop", "service uninstall"),
        *("status", "suggest", "survey", "train", "undo", "watch"),
    ]


@pytest.mark.parametrize(("path", "command"), [pytest.param(*item, id=" ".join(item[0])) for item in commands(main)])
def test_every_command_has_help_and_json(edgepd: Edgepd, path: tuple[str, ...], command: click.Command) -> None:
    result = edgepd(*path, "--help")
    assert result.exit_code == 0
    assert command.help
    if path not in (("daemon", "run"), ("demo",)):  # one prints nothing of its own, the other is a show for people
        assert "--json" in result.stdout


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys\nfrom edgepd.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'llama_cpp', 'fastapi', 'uvicorn'}))"
    )
    env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_edgepd_is_the_same_program() -> None:
    env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "edgepd", "--version"], capture_output=True, text=True, env=env, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"edgepd {package.__version__}\n")


@pytest.mark.parametrize(
    ("args", "stdin"),
    [
        (("status",), None),
        (("ask", "hi"), None),
        (("chat",), "hi\n"),
        (("good",), None),
        (("bad",), None),
        (("fix", "--text", "x"), None),
        (("undo",), None),
        (("budget", "show"), None),
        (("budget", "pause", "2h"), None),
        (("budget", "resume"), None),
        (("train",), None),
        (("train", "--plan"), None),
        (("watch",), None),
        (("watch", "--once"), None),
        (("prefer", "i1", "i2"), None),
        (("compare", "--choose", "1", "Who?"), None),
        (("adapters", "list"), None),
        (("adapters", "show", "1"), None),
        (("adapters", "diff", "1", "2"), None),
        (("adapters", "delete", "1", "--yes"), None),
        (("adapters", "pin", "1"), None),
        (("adapters", "bake"), None),
        (("adapters", "export", "1", "x.gguf"), None),
        (("adapters", "merge", "1", "2"), None),
        (("adapters", "rollback"), None),
        (("adapters", "use", "1"), None),
        (("daemon", "reload"), None),
        (("daemon", "stop"), None),
    ],
)
def test_daemon_not_running(edgepd: Edgepd, args: tuple[str, ...], stdin: str | None) -> None:
    result = edgepd(*args, stdin=stdin)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("Error: no daemon answers on ")
    assert result.stderr.endswith("; start one with: edgepd service start, or edgepd daemon run\n")


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFoundError), (503, BusyError), (503, ModelError), (507, StoreError)]
)
def test_exit_code_is_that_of_the_daemon_s_error(
    daemon: FakeDaemon, edgepd: Edgepd, status: int, kind: type[EdgepdError]
) -> None:
    daemon.on("GET /edgepd/v1/status", error(status, kind.code, "because"))
    result = edgepd("status")
    assert (result.exit_code, result.stdout, result.stderr) == (kind.exit_code, "", "Error: because\n")


def test_error_as_json(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("POST /edgepd/v1/feedback", error(404, "not_found", "no interaction 'nope'"))
    result = edgepd("good", "nope", "--json")
    assert (result.exit_code, result.stdout) == (4, "")
    assert json.loads(result.stderr) == {
        "error": {
            "message": "no interaction 'nope'",
            "type": "invalid_request_error",
            "param": None,
            "code": "not_found",
        }
    }


def test_usage_error_in_both_forms(edgepd: Edgepd) -> None:
    plain = edgepd("ask", "--max-tokens", "0", "hi")
    assert plain.exit_code == 2
    assert "Usage:" in plain.stderr
    as_json = edgepd("ask", "--json", "--max-tokens", "0", "hi")
    assert as_json.exit_code == 2
    found = json.loads(as_json.stderr)["error"]
    assert found["code"] == "invalid_request"
    assert "--max-tokens" in found["message"]


def test_json_after_a_double_dash_is_text(edgepd: Edgepd) -> None:
    result = edgepd("ask", "--", "--json")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no daemon")


def test_interrupt_ends_with_130(edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgepd.cli.status.connect", interrupted)
    assert edgepd("status").exit_code == 130


def test_impossible_socket_path_is_a_config_error(edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPD_HOME", "/" + "x" * 120)
    result = edgepd("status")
    assert result.exit_code == 2
    assert "longer than 107 bytes" in result.stderr
