"""Run: python -m pytest tests/adapt/test_loop.py"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgepd.adapt.batches import MICRO_TOKENS, held_out_loss
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.hyperparameters import TrainConfig, learning_rate
from edgepd.adapt.linear import Residency
from edgepd.adapt.objectives import SFT
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Adapter, Kind
from tests.adapt.helpers import (
    CONFIG,
    EPOCHS,
    Recorder,
    contrary,
    epochs_of,
    flat_parameters,
    random_examples,
    run,
    tiny_decoder,
)


@pytest.mark.parametrize(("kind", "rate"), [("lora", 1e-2), ("scale", 3e-2), ("shift", 1e-2), ("gain", 3e-2)])
def test_training_learns_and_leaves_the_base_alone(tmp_path: Path, kind: Kind, rate: float) -> None:
    with tiny_decoder(tmp_path) as decoder:
        before = decoder.model.path.read_bytes()
        mapped = {name: decoder.model.rows(name).copy() for name in decoder.model.tensors}
        result = run(decoder, dataclasses.replace(CONFIG, kind=kind, learning_rate=rate))
        assert result.steps == 12  # three batches in each of four epochs
        assert result.best_epoch == 4
        assert not result.stopped_early
        assert result.held_out[-1] < result.held_out[0] - 0.1
        assert held_out_loss(decoder, random_examples(10, seed=1)) == pytest.approx(result.held_out[-1])
        assert all((decoder.model.rows(name) == rows).all() for name, rows in mapped.items())
        assert decoder.model.path.read_bytes() == before


def test_early_stop_restores_the_best_state(tmp_path: Path) -> None:
    trained = random_examples(6, seed=1)
    with tiny_decoder(tmp_path) as decoder:
        recorder = Recorder()
        config = dataclasses.replace(CONFIG, learning_rate=2e-2)
        result = run(decoder, config, epochs=epochs_of(trained, 30), held_out=contrary(trained), report=recorder)
        assert result.stopped_early
        assert result.steps < 60
        assert result.held_out[result.best_epoch] == min(result.held_out)
        assert len(result.held_out) - 1 == result.best_epoch + 2  # patience
        assert held_out_loss(decoder, contrary(trained)) == pytest.approx(min(result.held_out), rel=1e-6)
        assert recorder.evaluations == list(enumerate(result.held_out))


def test_an_overfitting_toy_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    """Two examples by heart: what they share with others is learned first, and then lost while they are memorised."""
    learned, judged = random_examples(2, seed=1), random_examples(4, seed=2)
    judged = [dataclasses.replace(e, tokens=(*e.tokens[:4], *learned[0].tokens[4:8], *e.tokens[8:])) for e in judged]
    with tiny_decoder(tmp_path) as decoder:
        recorder = Recorder()
        config = dataclasses.replace(CONFIG, learning_rate=2e-2, constant_rate=True)
        result = run(decoder, config, epochs=epochs_of(learned, 40), held_out=judged, report=recorder)
        assert result.stopped_early
        assert 0 < result.best_epoch < len(result.held_out) - 1
        assert recorder.losses[-1] < recorder.losses[result.best_epoch - 1], "training itself still went on"
        assert held_out_loss(decoder, judged) == pytest.approx(min(result.held_out), rel=1e-6)


class Judged(SFT):
    """Imitation whose held-out values are written down."""

    def __init__(self, *values: float) -> None:
        self._values = iter(values)

    def evaluate(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> float:
        return next(self._values)


@pytest.mark.parametrize(
    ("values", "best", "steps"),
    [
        ((3.0, 3.0, 4.0), 0, 6),  # what is only as good is not better
        ((3.0, 4.0, 2.0, 3.0, 2.5), 2, 12),
        ((3.0, 2.0, math.nan, 2.5), 1, 9),
        ((3.0, 4.0, math.nan), 0, 6),
    ],
)
def test_what_is_best_and_when_patience_ends(tmp_path: Path, values: tuple[float, ...], best: int, steps: int) -> None:
    states: list[torch.Tensor] = []

    class Watching(Recorder):
        def on_eval(self, epoch: int, held_out_loss: float) -> None:
            states.append(flat_parameters(decoder))

    with tiny_decoder(tmp_path) as decoder:
        result = run(decoder, objective=Judged(*values), report=Watching())
        assert (result.best_epoch, result.steps, result.stopped_early) == (best, steps, steps < 12)
        assert torch.equal(flat_parameters(decoder), states[best])
        assert len(states) == len(values)


def test_without_held_out_the_last_state_is_kept(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        recorder = Recorder()
        result = run(decoder, held_out=[], report=recorder)
        assert (result.held_out, result.best_epoch, result.steps, recorder.evaluations) == ((), 4, 12, [])
        judged = random_examples(10, seed=1)
        alone = flat_parameters(decoder)
        run(decoder, held_out=judged)
        assert torch.equal(flat_parameters(decoder), alone), "judging it changes nothing where the last state is best"


def test_same_seed_same_result(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        run(decoder)
        first = flat_parameters(decoder)
        run(decoder)
        assert torch.equal(flat_parameters(decoder), first)
        run(decoder, dataclasses.replace(CONFIG, seed=1))
        assert not torch.equal(flat_parameters(decoder), first)


def test_weights_and_micro_batches(tmp_path: Path) -> None:
    """Cutting a batch smaller changes nothing but rounding; weight 0 takes an example out; the scale cancels."""
    examples = random_examples(4, seed=1)

    def trained(decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> torch.Tensor:
        config = dataclasses.replace(CONFIG, micro_tokens=micro_tokens)
        run(decoder, config, epochs=[[Batch(tuple(examples))]], held_out=[])
        return flat_parameters(decoder)

    with tiny_decoder(tmp_path) as decoder:
        whole = trained(decoder, examples)
        halved = [dataclasses.replace(e, weight=0.5) for e in examples]
        torch.testing.assert_close(trained(decoder, halved, micro_tokens=1), whole, rtol=1e-3, atol=2e-5)
        muted = [*examples, dataclasses.replace(random_examples(1, seed=9)[0], weight=0.0)]
        assert torch.equal(trained(decoder, muted), whole)
        unwanted = [*examples, dataclasses.replace(random_examples(1, seed=9)[0], desirable=False)]
        assert torch.equal(trained(decoder, unwanted), whole)
        uneven = [dataclasses.replace(e, weight=w) for e, w in zip(examples, (1, 1, 1, 0.1), strict=True)]
        assert (trained(decoder, uneven) - whole).abs().max() > 1e-3


def test_how_memory_is_used_changes_no_result(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        run(decoder)
        plain = flat_parameters(decoder)
        ways: list[tuple[Residency, int]] = [("stream", 0), ("stream", 1), ("fp32", 0), ("fp32", 2)]
        for residency, kept in ways:
            decoder.arrange(residency=residency, kept_layers=kept)
            run(decoder)
            assert (flat_parameters(decoder) - plain).abs().max() <= 1e-6, (residency, kept)


def test_max_steps_ends_the_run_and_its_schedule(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        recorder = Recorder()
        result = run(decoder, dataclasses.replace(CONFIG, max_steps=5), report=recorder)
        assert (result.steps, len(recorder.losses), result.stopped_early) == (5, 5, False)
        assert [epoch for epoch, _ in recorder.evaluations] == [0, 1, 2]  # the last one is judged, though cut short
        cut = flat_parameters(decoder)
        first, second, *_ = epochs_of(random_examples(10, seed=1), EPOCHS)
        run(decoder, epochs=[first, second[:2]])
        assert torch.equal(flat_parameters(decoder), cut), "as if the batches after the fifth did not exist"
        assert run(decoder, dataclasses.replace(CONFIG, max_steps=99)).steps == 12


def test_an_epoch_without_batches_is_only_judged(tmp_path: Path) -> None:
    """Such as one whose examples have no weight."""
    examples = random_examples(4, seed=1)
    mute = Batch((dataclasses.replace(examples[0], weight=0.0),))
    with tiny_decoder(tmp_path) as decoder:
        result = run(decoder, epochs=[[mute], [Batch(tuple(examples)), mute], []], held_out=examples)
        assert result.steps == 1
        assert result.held_out[0] == result.held_out[1]


def test_lora_plus_makes_b_faster(tmp_path: Path) -> None:
    """Adam's first step is as long as the rate, whatever the gradient. A has no gradient while B is 0, only decay."""
    config = dataclasses.replace(CONFIG, learning_rate=1e-3, weight_decay=0.1, max_steps=1)
    with tiny_decoder(tmp_path) as decoder:
        fresh = [delta.parameters[0].clone() for delta in decoder.adapt("lora", rank=4, alpha=8.0, seed=0)]
        for faster in (1.0, 16.0):
            run(decoder, dataclasses.replace(config, lora_plus=faster), held_out=[])
            steps = torch.cat([delta.parameters[1].detach().flatten().abs() for delta in decoder.deltas])
            assert steps.median().item() == pytest.approx(faster * 1e-3, rel=1e-3)
            for delta, before in zip(decoder.deltas, fresh, strict=True):
                torch.testing.assert_close(delta.parameters[0].detach(), before * (1 - 1e-3 * 0.1), rtol=1e-5, atol=0)


def taught(decoder: Decoder) -> Adapter:
    run(decoder)
    return decoder.export({})


def test_a_warm_start_begins_where_the_adapter_is(tmp_path: Path) -> None:
    judged = random_examples(10, seed=1)
    with tiny_decoder(tmp_path) as decoder:
        adapter = taught(decoder)
        before = held_out_loss(decoder, judged)
        config = dataclasses.replace(CONFIG, learning_rate=1e-3)
        warm = run(decoder, config, start=adapter)
        assert warm.held_out[0] == pytest.approx(before, rel=1e-6)
        assert warm.held_out[-1] < before
        higher = run(decoder, dataclasses.replace(config, rank=6, alpha=12.0), start=adapter)
        assert higher.held_out[0] == pytest.approx(before, rel=1e-6), "a higher rank begins at the same change"


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        adapter = taught(decoder)
        with pytest.raises(TrainingError, match="not 'scale'"):
            run(decoder, dataclasses.replace(CONFIG, kind="scale"), start=adapter)
        with pytest.raises(TrainingError, match="not trained now"):
            run(decoder, dataclasses.replace(CONFIG, top_layers=1), start=adapter)
        with pytest.raises(TrainingError, match="set the rank"):
            run(decoder, dataclasses.replace(CONFIG, rank=2), start=adapter)


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    mute = [dataclasses.replace(e, weight=0.0) for e in random_examples(2, seed=0)]
    with tiny_decoder(tmp_path) as decoder:
        nothing: list[list[list[Batch]]] = [[], [[]], epochs_of(mute, 2)]
        for epochs in nothing:
            with pytest.raises(TrainingError, match="positive weight"):
                run(decoder, epochs=epochs, held_out=[])


@pytest.mark.parametrize("rate", [1e30, 1e10])
def test_diverging_training_says_so(tmp_path: Path, rate: float) -> None:
    with tiny_decoder(tmp_path) as decoder, pytest.raises(TrainingError, match=r"not finite.*learning rate"):
        run(decoder, dataclasses.replace(CONFIG, learning_rate=rate))


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.5 * (1 - 0.9238795325))
    assert learning_rate(config, 10, 10) == pytest.approx(0.0)
    constant = dataclasses.replace(config, constant_rate=True)
    assert [learning_rate(constant, step, 10) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    assert learning_rate(config, 0, 1) == 1.0


def test_the_training_path_imports_no_network_and_no_other_trainer() -> None:
    program = "import sys, edgepd.adapt.worker\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert {"torch", "edgepd"} <= loaded
    assert not loaded & {"transformers", "peft", "accelerate", "huggingface_hub", "requests", "httpx", "urllib3"}
