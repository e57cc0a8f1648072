"""A generation that brings the daemon down is withdrawn by itself; one that answers is confirmed. Real daemons."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.daemon.adapters import random_lora
from tests.daemon.running import TINY_SETTINGS, Daemon, Json, running, wait_for

GENERATIONS = "/edgepd/v1/generations"
ANSWERED = {"max_tokens": 2}


def imported(daemon: Daemon, model: Path, seed: int) -> int:
    """Import an adapter and make it active."""
    path = random_lora(daemon.paths.data_dir / "outside.gguf", model, seed=seed, deviation=0.5)
    number: int = daemon.post(f"{GENERATIONS}/import", {"path": str(path)})["generation"]["id"]
    path.unlink()
    daemon.post(f"{GENERATIONS}/activate", {"generation": number})
    return number


def generation(daemon: Daemon, number: int) -> Json:
    found: Json = daemon.get(f"{GENERATIONS}/{number}")["generation"]
    return found


def more_healthy(daemon: Daemon, number: int, before: int) -> bool:
    """Whether more answers have come to their end, or enough of them."""
    found = generation(daemon, number)
    return found["healthy"] > before or not found["pending"]


def problems(daemon: Daemon) -> list[str]:
    found: list[str] = daemon.get("/edgepd/v1/status")["problems"]
    return found


def test_after_two_crashes_the_last_good_generation_serves(
    edgepd_home: Path, tiny_models: Path, tiny_model: Path
) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as first:
        good = imported(first, tiny_model, 1)
        assert generation(first, good)["pending"]
        for _ in range(3):
            first.chat("Hello", **ANSWERED)
        wait_for(lambda: not generation(first, good)["pending"])
        bad = imported(first, tiny_model, 2)
        first.kill()
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as idle:
        assert (idle.get(GENERATIONS)["active"], problems(idle)) == (bad, [])
        assert generation(idle, bad)["strikes"] == 1
        idle.kill()  # nothing was loaded, so nothing that was loaded can be to blame
    with running(edgepd_home, tiny_models, *TINY_SETTINGS, "serve.preload=true") as second:
        assert generation(second, bad)["strikes"] == 1
        wait_for(lambda: second.get("/healthz")["status"] == "ready")
        second.kill()
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as third:
        assert third.get(GENERATIONS)["active"] == good
        sentence = (
            f"generation {bad} was withdrawn after two unclean exits; generation {good} serves; "
            f"`edgepd adapters use {bad}` tries again"
        )
        assert problems(third) == [sentence]
        assert sentence in third.log
        assert third.chat("Hello", **ANSWERED)["generation"] == good
        assert "unclean exits" in generation(third, bad)["reason"]
        assert third.post(f"{GENERATIONS}/activate", {"generation": bad})["active"] == bad
        assert problems(third) == []
        assert third.chat("Hello", **ANSWERED)["generation"] == bad
        assert third.stop() == 0
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as fourth:
        assert fourth.get(GENERATIONS)["active"] == bad
        assert generation(fourth, bad)["strikes"] == 0


def test_power_cuts_after_good_answers_withdraw_nothing_even_if_no_answer_is_stored(
    edgepd_home: Path, tiny_models: Path, tiny_model: Path
) -> None:
    settings = (*TINY_SETTINGS, "log.interactions=false")
    with running(edgepd_home, tiny_models, *settings) as daemon:
        number = imported(daemon, tiny_model, 1)
        daemon.chat("Hello", **ANSWERED)
        wait_for(lambda: generation(daemon, number)["healthy"] == 1)
        daemon.kill()
    for _ in range(2):
        with running(edgepd_home, tiny_models, *settings) as daemon:
            assert daemon.get(GENERATIONS)["active"] == number
            before = generation(daemon, number)["healthy"]
            daemon.chat("Hello", store=False, **ANSWERED)
            wait_for(partial(more_healthy, daemon, number, before))
            daemon.kill()
    with running(edgepd_home, tiny_models, *settings) as daemon:
        assert daemon.get(GENERATIONS)["active"] == number
        assert generation(daemon, number)["strikes"] == 0
        assert daemon.get("/edgepd/v1/interactions")["interactions"] == []


def test_answers_that_were_broken_off_confirm_nothing(edgepd_home: Path, tiny_models: Path, tiny_model: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS, "serve.context_tokens=8192") as daemon:
        number = imported(daemon, tiny_model, 1)
        events = daemon.stream("Hello", max_tokens=8000, ignore_eos=True)
        next(events)
        events.close()
        wait_for(lambda: daemon.get("/edgepd/v1/status")["engine"]["active"] == 0)
        daemon.chat("Hello", **ANSWERED)  # stored when it is over, and after whatever the other one wrote
        assert generation(daemon, number)["healthy"] == 1
