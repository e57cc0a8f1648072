"""Starting and ending: every failed start with its exit code and reason, and nothing lost by a signal."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from pathlib import Path

import httpx
import psutil
import pytest

from edgepd.models import Catalog
from tests.daemon.running import (
    TINY_SETTINGS,
    Background,
    Json,
    install_tiny,
    joined,
    question,
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
    """The daemon starts, because it looks no further than the header; requests and the status say what is wrong."""
    models = edgepd_home / "models"
    (edgepd_home / "alien.gguf").write_bytes(tiny_model.read_bytes().replace(b"llama", b"lla!a"))
    Catalog(models).add(str(edgepd_home / "alien.gguf"))
    with running(edgepd_home, models, "serve.preload=true") as daemon:
        [problem] = wait_for(lambda: daemon.get("/edgepd/v1/status")["problems"])
        assert problem.startswith("the model could not be loaded at start: ")
        status, code, message = daemon.refused("/v1/chat/completions", question("Hi"))
        assert (status, code) == (503, "model_unavailable")
        assert "alien.gguf; it is broken or of an unsupported architecture" in message
        assert daemon.get("/healthz")["live"]
        assert "Traceback" not in daemon.log
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ("serve.thread=2", 2, "unknown setting 'serve.thread'; did you mean 'serve.threads'?"),
        ("serve.threads=many", 2, "setting 'serve.threads' is 'many', but must be of type int"),
        ("serve.threads", 2, "--set serve.threads: write it as KEY=VALUE"),
        ("log.level=loud", 2, "setting 'log.level' is 'loud', but must be one of debug, info, warning, error"),
        ("serve.kv_type=q4_0", 2, "setting 'serve.kv_type' is 'q4_0', but must be one of f16, q8_0"),
        ("serve.keep_alive=soon", 2, "setting 'serve.keep_alive': `keep_alive` is 'soon'; give seconds"),
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


def test_a_second_daemon_on_the_same_home_is_refused(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        done = run_to_end(edgepd_home, tiny_models)
        assert done.returncode == 6
        assert f"another daemon (pid {daemon.process.pid}) uses" in done.stderr
        assert daemon.get("/healthz")["live"]
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
            body = {"messages": [{"role": "user", "content": "All"}], "ignore_eos": True}  # or it may end at once
            daemon.client.post("/v1/chat/completions", json=body, timeout=0.5)
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


def test_nothing_heavy_is_in_memory_before_the_first_request(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        process = psutil.Process(daemon.process.pid)
        assert daemon.get("/healthz")["status"] == "unloaded"
        loaded = {Path(m.path).name.partition(".")[0].partition("-")[0] for m in process.memory_maps()}
        assert loaded & {"libllama", "libggml", "libtorch", "_multiarray_umath"} == set()
        assert process.memory_info().rss <= 64 * 1024 * 1024
        daemon.chat("Hello", max_tokens=1)
        assert daemon.get("/healthz")["status"] == "ready"


def test_the_model_is_loaded_at_start_if_asked_for(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS, "serve.preload=true") as daemon:
        wait_for(lambda: daemon.get("/healthz")["status"] == "ready", 30)
        assert daemon.get("/edgepd/v1/status")["engine"]["loads"] == 1


def test_a_second_signal_ends_it_at_once(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *ROOMY) as daemon:
        stream = Background(daemon.stream("Everything"))
        row = stream.wait_for_first()["interaction_id"]
        started = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert daemon.process.poll() is None  # it waits for the answer
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
        assert time.monotonic() - started < 8  # the drain alone would take 10 s
        stream.join()
    profile = sqlite3.connect(daemon.paths.profile)
    [state] = profile.execute("SELECT state FROM interactions WHERE id = ?", (row,)).fetchone()
    profile.close()
    assert state == "cancelled"


def test_sighup_reads_the_settings_again(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:

        def hang_up(text: str, expected: str) -> None:
            daemon.paths.config_file.write_text(text)
            daemon.process.send_signal(signal.SIGHUP)
            wait_for(lambda: expected in daemon.log, 20)

        hang_up(
            "[serve]\nmax_tokens = 3\nbatch_tokens = 32\nmax_queue = 9\n", "applied: serve.max_queue, serve.max_tokens"
        )
        assert daemon.chat("Hello")["usage"]["completion_tokens"] == 3
        status = daemon.get("/edgepd/v1/status")
        assert status["needs_restart"] == []  # batch_tokens was given on the command line, which wins
        hang_up(
            "[serve]\nmax_tokens = 3\ntcp_port = 4711\n", "take effect when the daemon is restarted: serve.tcp_port"
        )
        status = daemon.get("/edgepd/v1/status")
        assert status["needs_restart"] == ["serve.tcp_port"]
        assert "not in effect until the daemon is restarted: serve.tcp_port" in status["problems"][0]
        hang_up("[serve\n", "the settings were not reloaded, the old ones stay in effect: ")
        assert daemon.chat("Hello")["usage"]["completion_tokens"] == 3
        daemon.paths.config_file.write_text("[serve]\nmax_tokens = 2\n")
        assert daemon.post("/edgepd/v1/reload", {})["needs_restart"] == []
        assert daemon.chat("Hello")["usage"]["completion_tokens"] == 2
        assert daemon.stop() == 0


def test_an_answer_that_nobody_reads_is_cancelled(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *ROOMY, "serve.write_timeout_s=0.5") as daemon:
        body = json.dumps(question("Everything", stream=True)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(daemon.paths.socket))
            silent.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_for(lambda: daemon.get("/edgepd/v1/status")["engine"]["active"] == 1, 30)
            wait_for(lambda: daemon.get("/edgepd/v1/status")["engine"]["active"] == 0, 30)
            kept = wait_for(lambda: (r := daemon.get("/edgepd/v1/interactions/last"))["state"] != "streaming" and r, 10)
        assert kept["state"] == "cancelled"
        assert 0 < kept["completion_tokens"] < 16000


def test_the_loopback_port_wants_the_token(edgepd_home: Path, tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(edgepd_home, tiny_models, *TINY_SETTINGS, f"serve.tcp_port={port}") as daemon:
        token = daemon.paths.token.read_text().strip()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers["Authorization"] = f"Bearer {token}"
            assert client.get("/v1/models").json()["data"][0]["id"] == "default"
        assert token not in daemon.log
        assert daemon.get("/edgepd/v1/status")["tcp_port"] == port
        assert daemon.stop() == 0
    assert daemon.paths.token.read_text().strip() == token


def test_without_a_port_nothing_listens_on_the_network(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        assert psutil.Process(daemon.process.pid).net_connections("inet") == []
        assert not daemon.paths.token.exists()
        assert [file.name for file in daemon.paths.runtime_dir.iterdir()] == ["edgepd.sock"]
