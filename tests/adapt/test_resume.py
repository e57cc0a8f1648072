"""Run: python -m pytest tests/adapt/test_resume.py

Interrupted at any moment and resumed, a run gives the adapter that it would have given.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch
from edgepd.adapt.hyperparameters import TrainConfig
from edgepd.adapt.loop import CHECKPOINT_NAME, TrainResult
from edgepd.adapt.objectives import DPO, SFT, AnchorKL, Objective
from edgepd_quant.adapter_file import Adapter
from tests.adapt.helpers import (
    CONFIG,
    Recorder,
    contrary,
    epochs_of,
    flat_parameters,
    random_examples,
    run,
    tiny_decoder,
)


@dataclass(frozen=True)
class Case:
    """One way to train, that has to survive being killed."""

    config: TrainConfig = CONFIG
    kept_layers: int | None = None
    preferences: bool = False  # pairs, general batches in between and anchors, instead of plain imitation
    start: bool = False

    def train(self, decoder: Decoder, report: Recorder, directory: Path | None) -> TrainResult:
        """Go through two epochs."""
        examples = random_examples(7, seed=1)
        epochs, objective = epochs_of(examples, 2), SFT() if not self.preferences else None
        if self.preferences:
            other = random_examples(7, seed=2)
            examples = [
                dataclasses.replace(e, rejected=e.tokens[:4] + o.tokens[4:])
                for e, o in zip(examples, other, strict=True)
            ]
            general = Batch(tuple(random_examples(3, seed=3)), general=True)
            epochs = [[general, *epoch] for epoch in epochs_of(examples, 2)]
        decoder.arrange(kept_layers=self.kept_layers)
        return run(
            decoder,
            self.config,
            directory,
            epochs=epochs,
            held_out=examples,
            objective=objective or AnchorKL(DPO(), random_examples(3, seed=4), 0.5),
            report=report,
            start=self._start(decoder) if self.start else None,
        )

    def _start(self, decoder: Decoder) -> Adapter:
        decoder.adapt("lora", rank=2, alpha=4.0, seed=7, top_layers=self.config.top_layers)
        for parameter in decoder.parameters:
            parameter.data.add_(0.01)
        return decoder.export({})


CASES = {
    "lora": Case(),
    "scale": Case(dataclasses.replace(CONFIG, kind="scale", learning_rate=3e-2)),
    "recomputed": Case(dataclasses.replace(CONFIG, kind="scale", micro_tokens=20), kept_layers=0),
    "top layer": Case(dataclasses.replace(CONFIG, top_layers=1, lora_plus=4.0), start=True),
    "cut": Case(dataclasses.replace(CONFIG, max_steps=3)),
    "preferences": Case(dataclasses.replace(CONFIG, micro_tokens=30, learning_rate=2e-3), preferences=True),
}


def killed_run(directory: Path, name: str, moment: str) -> None:
    """Train with a checkpoint after every step and die without warning, at a step or in an evaluation."""

    class Killer(Recorder):
        def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
            if moment == f"step {step}":
                os.kill(os.getpid(), signal.SIGKILL)

        def on_eval(self, epoch: int, held_out_loss: float) -> None:
            if moment == f"eval {epoch}":
                os.kill(os.getpid(), signal.SIGKILL)

    with tiny_decoder(directory) as decoder:
        CASES[name].train(decoder, Killer(), directory)


@pytest.mark.parametrize(
    ("name", "moment", "resumed_at"),
    [("lora", "eval 2", 4), ("recomputed", "step 3", 2)],
)
def test_a_killed_process_is_resumed_to_the_same_adapter(
    tmp_path: Path, name: str, moment: str, resumed_at: int
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.adapt.test_resume import killed_run; "
        "killed_run(Path(sys.argv[1]), *sys.argv[2:])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = [sys.executable, "-c", code, str(tmp_path), name, moment]
    child = subprocess.run(arguments, env=environment, cwd=Path(__file__).parents[2], timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL
    with tiny_decoder(tmp_path) as decoder:
        expected = CASES[name].train(decoder, Recorder(), None)
        parameters = flat_parameters(decoder)
        result = CASES[name].train(decoder, Recorder(), tmp_path)
        assert (result.resumed_at_step, result.ignored_checkpoint) == (resumed_at, None)
        assert (result.steps, result.best_epoch) == (expected.steps, expected.best_epoch)
        assert (flat_parameters(decoder) - parameters).abs().max() <= 1e-6


class Interrupted(Exception):
    """Raised where a signal would have ended the process: only what is in the checkpoint is left."""


class Countdown(Recorder):
    """Interrupts at the n-th thing that happens: a micro-batch, a step or an evaluation."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def tick(self) -> None:
        """Count one more."""
        self.left -= 1
        if self.left == 0:
            raise Interrupted

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        self.tick()

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        self.tick()


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Countdown], None]:
    """Let micro-batches count as well; give it the countdown that is to be used from now on."""
    current: list[Countdown] = []
    plain = Objective.parts

    def counted(self: Objective, *args: Any) -> Iterator[torch.Tensor]:
        for part in plain(self, *args):
            if part.requires_grad:
                current[-1].tick()
            yield part

    monkeypatch.setattr(Objective, "parts", counted)
    return current.append


@pytest.mark.parametrize(
    ("name", "stride"),
    [("lora", 1), ("scale", 3), ("recomputed", 6), ("top layer", 3), ("cut", 2), ("preferences", 9)],
)
def test_interrupted_anywhere_and_resumed_it_is_the_same_adapter(
    tmp_path: Path, name: str, stride: int, ticking: Callable[[Countdown], None]
) -> None:
    """At every `stride`-th moment, and at the last ones."""
    whole = Countdown(0)
    ticking(whole)
    with tiny_decoder(tmp_path) as decoder:
        expected = CASES[name].train(decoder, whole, None)
        parameters, moments = flat_parameters(decoder), -whole.left
        assert moments >= 3 + 2 * expected.steps, "three evaluations, and for each step a micro-batch and a report"
        for moment in sorted({*range(1, moments, stride), moments - 1, moments}):
            directory = tmp_path / str(moment)
            directory.mkdir()
            for countdown in (Countdown(moment), Countdown(-1)):
                ticking(countdown)
                with pytest.raises(Interrupted) if countdown.left > 0 else nullcontext():
                    result = CASES[name].train(decoder, countdown, directory)
            assert result.ignored_checkpoint is None, moment
            assert (result.steps, result.best_epoch) == (expected.steps, expected.best_epoch), moment
            assert result.held_out == pytest.approx(expected.held_out, abs=1e-6), moment
            assert (flat_parameters(decoder) - parameters).abs().max() <= 1e-6, moment


def test_a_finished_or_stopped_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        both: list[dict[str, Any]] = [{}, {"held_out": contrary(random_examples(10, seed=1))}]
        for options in both:
            first = run(decoder, directory=tmp_path, **options)
            parameters = flat_parameters(decoder)
            recorder = Recorder()
            again = run(decoder, directory=tmp_path, report=recorder, **options)
            assert (again.resumed_at_step, again.steps, recorder.losses) == (first.steps, first.steps, [])
            assert (again.held_out, again.best_epoch) == (first.held_out, first.best_epoch)
            assert torch.equal(flat_parameters(decoder), parameters)
            (tmp_path / CHECKPOINT_NAME).unlink()


def test_a_checkpoint_of_another_run_is_ignored_with_the_reason(tmp_path: Path) -> None:
    """Of other settings, data, start or base."""
    examples, path = random_examples(4, seed=1), tmp_path / CHECKPOINT_NAME
    plain: dict[str, Any] = {"config": CONFIG, "epochs": epochs_of(examples, 1), "held_out": examples, "start": None}
    with tiny_decoder(tmp_path) as decoder, tiny_decoder(tmp_path, seed=2) as other_base:
        run(decoder, directory=tmp_path, **plain)
        adapter, whole = decoder.export({}), path.read_bytes()
        others: list[dict[str, Any]] = [
            {"config": dataclasses.replace(CONFIG, seed=1)},
            {"config": dataclasses.replace(CONFIG, rank=8)},
            {"config": dataclasses.replace(CONFIG, max_steps=6)},
            {"config": dataclasses.replace(CONFIG, objective="dpo")},
            {"held_out": examples[1:]},
            {"epochs": epochs_of(examples[1:], 1)},
            {"epochs": epochs_of([dataclasses.replace(e, weight=0.5) for e in examples], 1)},
            {"epochs": epochs_of([dataclasses.replace(e, rejected=e.tokens[:5]) for e in examples], 1)},
            {"start": adapter},
            {"decoder": other_base},
            {},
        ]
        for other in others:
            path.write_bytes(whole)
            arguments = {"decoder": decoder, "directory": tmp_path, **plain, **other}
            ignored = run(**arguments).ignored_checkpoint
            assert (ignored is None) == (not other), other
            assert ignored is None or "other data, settings or base" in ignored


def test_a_checkpoint_of_other_anchors_is_ignored(tmp_path: Path) -> None:
    """They decide the result as much as the examples do."""
    epochs = epochs_of(random_examples(4, seed=1), 1)
    with tiny_decoder(tmp_path) as decoder:
        for seed in (3, 4):
            objective = AnchorKL(SFT(), random_examples(2, seed=seed), 1.0)
            result = run(decoder, directory=tmp_path, objective=objective, epochs=epochs)
            assert result.resumed_at_step == 0


def test_a_torn_checkpoint_is_ignored_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_NAME
    epochs = epochs_of(random_examples(4, seed=1), 2)
    with tiny_decoder(tmp_path) as decoder:
        run(decoder, directory=tmp_path, epochs=epochs)
        expected, whole = flat_parameters(decoder), path.read_bytes()
        for torn in (whole[:-100], whole[: len(whole) // 2], b"", whole[:4000] + b"!" + whole[4001:]):
            path.write_bytes(torn)
            result = run(decoder, directory=tmp_path, epochs=epochs)
            assert result.resumed_at_step == 0
            assert "damaged" in str(result.ignored_checkpoint)
            assert torch.equal(flat_parameters(decoder), expected)
