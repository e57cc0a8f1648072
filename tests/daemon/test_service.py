"""Starting and ending: every failed start with its exit code and reason, and nothing lost by a signal."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edgepd.models import Catalog
from tests.daemon.running import (
    TINY_SETTINGS,
    Background,
    Json,
    install_tiny,
    joined,
    run_to_end,
    running,
    wait_for,
)

# Room for answers that last long enough to be interfered with: about 15 s in all.
ROOMY = (*TINY_SETTINGS, "serve.context_tokens=16384", "serve.max_tokens=16000")


def test_without_a_model(edgepd_home: Path) -> None:
    done = run_to_end(edgepd_home, edgepd_home / "models")
    assert (done.returncode, done.stderr) == (5, "Error: no model is installed; run: edgepd model add default\n")


def test_with_a_model_that_was_cut_off_later(edgepd_home: Path) -> None:
    models = install_tiny(edgepd_home / "models")
    file = models / "tiny.gguf"
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:50_000])
    done = run_to_end(edgepd_home, models)
    assert done.returncode == 5
    assert "tiny.gguf has 50000 bytes instead of" in done.stderr
    assert "run: edgepd model remove tiny" in done.stderr


def test_with_a_model_that_was_broken_from_the_start(edgepd_home: Path, tiny_model: Path) -> None:
    models = edgepd_home / "models"
    (edgepd_home / "broken.gguf").write_bytes(tiny_model.read_bytes()[:50_000])
    Catalog(models).add(str(edgepd_home / "broken.gguf"))
    done = run_to_end(edgepd_home, models)
    assert done.returncode == 5
    assert "broken.gguf: byte " in done.stderr
    assert "Traceback" not in done.stderr


def test_with_a_model_that_llama_cpp_refuses(edgepd_home: Path, tiny_model: Path) -> None:
    models = edgepd_home / "models"
    (edgepd_home / "alien.gguf").write_bytes(tiny_model.read_bytes().replace(b"llama", b"lla!a"))
    Catalog(models).add(str(edgepd_home / "alien.gguf"))
    done = run_to_end(edgepd_home, models)
    assert done.returncode == 5
    assert "alien.gguf; it is broken or of an unsupported architecture" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ("serve.thread=2", 2, "unknown setting 'serve.thread'; did you mean 'serve.threads'?"),
        ("serve.threads=many", 2, "setting 'serve.threads' is 'many', but must be of type int"),
        ("serve.threads", 2, "--set serve.threads: write it as KEY=VALUE"),
        ("log.level=loud", 2, "log.level is 'loud', but must be one of debug, info, warning, error"),
        ("serve.model=other", 4, "model 'other' is not installed (installed: tiny)"),
    ],
)
def test_with_a_bad_setting(edgepd_home: Path, tiny_models: Path, settings: str, code: int, message: str) -> None:
    done = run_to_end(edgepd_home, tiny_models, settings)
    assert done.returncode == code
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr


def test_with_something_in_the_place_of_the_socket(edgepd_home: Path, tiny_models: Path) -> None:
    (edgepd_home / "run").mkdir()
    (edgepd_home / "run" / "edgepd.sock").write_text("precious")
    done = run_to_end(edgepd_home, tiny_models)
    assert done.returncode == 6
    assert "exists and is not a socket" in done.stderr


def test_with_a_corrupt_profile(edgepd_home: Path, tiny_models: Path) -> None:
    (edgepd_home / "data").mkdir()
    (edgepd_home / "data" / "profile.db").write_bytes(b"no database" * 100)
    done = run_to_end(edgepd_home, tiny_models)
    assert done.returncode == 8
    assert "not an SQLite database" in done.stderr


def test_a_second_daemon_on_the_same_home_is_refused(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        done = run_to_end(edgepd_home, tiny_models)
        assert done.returncode == 6
        assert f"another daemon (pid {daemon.process.pid}) uses" in done.stderr
        assert daemon.get("/healthz")["status"] == "ready"
        assert daemon.stop() == 0
    assert not daemon.paths.socket.exists()
    assert "ERROR" not in daemon.log


def test_a_client_that_hangs_up_ends_its_answer(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *ROOMY) as daemon:

        def idle() -> bool:
            return bool(daemon.get("/edgepd/v1/status")["engine"]["active"] == 0)

        def row(interaction_id: str) -> Json:
            return daemon.get(f"/edgepd/v1/interactions/{interaction_id}")

        events = daemon.stream("Tell me everything", conversation="c")
        first = next(events)
        # The row is there by the time the client sees anything, and gets the text while the answer goes on.
        assert row(first["interaction_id"])["state"] == "streaming"
        seen = [first]
        while not row(first["interaction_id"])["response"]:
            seen += [next(events) for _ in range(50)]
        assert row(first["interaction_id"])["state"] == "streaming"
        refused = daemon.refused("/edgepd/v1/feedback", {"interaction_id": first["interaction_id"], "thumb": 1})
        assert refused[:2] == (409, "conflict")
        events.close()
        wait_for(idle, 10)
        ended = wait_for(lambda: (r := row(first["interaction_id"]))["state"] != "streaming" and r, 10)
        assert (ended["state"], ended["finish_reason"]) == ("cancelled", "cancelled")
        assert ended["response"].startswith(joined(seen))
        assert len(seen) / 2 < ended["completion_tokens"] < 16000
        # The same for an answer that is not streamed: the client waits half a second only.
        before = daemon.get("/edgepd/v1/status")["profile"]["interactions"]
        with pytest.raises(Exception, match="timed out"):
            daemon.client.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "All"}]}, timeout=0.5
            )
        wait_for(idle, 10)
        assert daemon.get("/edgepd/v1/status")["profile"]["interactions"] == before + 1
        wait_for(lambda: row("last")["state"] == "cancelled", 10)
        assert row("last")["response"] != ""


def test_sigterm_lets_answers_finish_or_cancels_them(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *ROOMY) as daemon:
        short = Background(daemon.stream("Something short", max_tokens=400))
        long = Background(daemon.stream("Everything"))
        rows = [s.wait_for_first()["interaction_id"] for s in (short, long)]
        assert daemon.stop() == 0
        assert short.join()[-1]["choices"][0]["finish_reason"] == "length"
        long.join()
    profile = sqlite3.connect(daemon.paths.profile)
    kept = [profile.execute("SELECT state, response FROM interactions WHERE id = ?", (r,)).fetchone() for r in rows]
    profile.close()
    assert kept[0] == ("done", joined(short.events))
    assert kept[1][0] == "cancelled"
    assert kept[1][1].startswith(joined(long.events)[:100])
    assert not daemon.paths.socket.exists()


def test_after_kill_9_the_next_daemon_takes_over(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *ROOMY) as daemon:
        stream = Background(daemon.stream("Everything"))
        row = stream.wait_for_first()["interaction_id"]
        wait_for(lambda: daemon.get(f"/edgepd/v1/interactions/{row}")["response"], 30)
        daemon.kill()
        stream.join()
        assert daemon.paths.socket.exists()
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        kept = daemon.get(f"/edgepd/v1/interactions/{row}")
        assert kept["state"] == "interrupted"
        assert kept["response"]
        assert joined(stream.events).startswith(kept["response"])
        assert daemon.chat("Hello", max_tokens=2)["logged"]
        assert "an earlier daemon was interrupted: 1 answers and 0 training runs" in daemon.log
        assert daemon.stop() == 0
