"""Run: python -m pytest tests/adapt/test_sft.py"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgepd.adapt.batches import held_out_loss
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.loop import CHECKPOINT_NAME, TrainConfig, TrainResult, learning_rate, train
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Kind
from tests.adapt.helpers import Recorder, random_examples, tiny_decoder

CONFIG = TrainConfig(rank=4, alpha=8.0, learning_rate=1e-2, epochs=4, checkpoint_seconds=0.0)


def parameters(decoder: Decoder) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for delta in decoder.deltas for p in (delta.a, delta.b)])


def run(decoder: Decoder, config: TrainConfig, directory: Path | None = None) -> TrainResult:
    """Train on ten examples, with the same ten as held-out set, so that it keeps improving."""
    examples = random_examples(10, seed=1)
    return train(decoder, examples, examples, config, Recorder(), directory)


@pytest.mark.parametrize("kind", ["lora", "scale"])
def test_training_learns_and_leaves_the_base_alone(tmp_path: Path, kind: Kind) -> None:
    with tiny_decoder(tmp_path) as decoder:
        before = decoder.model.path.read_bytes()
        mapped = decoder.model.rows("blk.0.attn_q.weight").copy()
        result = run(decoder, dataclasses.replace(CONFIG, kind=kind))
        assert result.steps == 12  # three batches in each of four epochs
        assert result.best_epoch == 4
        assert result.held_out[-1] < result.held_out[0] - 0.1
        assert held_out_loss(decoder, random_examples(10, seed=1)) == pytest.approx(result.held_out[-1])
        assert (decoder.model.rows("blk.0.attn_q.weight") == mapped).all()
        assert decoder.model.path.read_bytes() == before


def test_early_stop_restores_the_best_state(tmp_path: Path) -> None:
    """The held-out answers contradict the trained ones, so every step away from the base makes them worse."""
    trained = random_examples(6, seed=1)
    contrary = [dataclasses.replace(e, tokens=(*e.tokens[:4], *reversed(e.tokens[4:]))) for e in trained]
    with tiny_decoder(tmp_path) as decoder:
        config = dataclasses.replace(CONFIG, epochs=30, learning_rate=2e-2)
        recorder = Recorder()
        result = train(decoder, trained, contrary, config, recorder)
        assert result.stopped_early
        assert result.held_out[result.best_epoch] == min(result.held_out)
        assert len(result.held_out) - 1 == result.best_epoch + 2  # patience
        assert held_out_loss(decoder, contrary) == pytest.approx(min(result.held_out), rel=1e-6)
        assert recorder.evaluations == list(enumerate(result.held_out))


def test_same_seed_same_result(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        run(decoder, CONFIG)
        first = parameters(decoder)
        run(decoder, CONFIG)
        assert torch.equal(parameters(decoder), first)
        run(decoder, dataclasses.replace(CONFIG, seed=1))
        assert not torch.equal(parameters(decoder), first)


def test_weights_and_micro_batches(tmp_path: Path) -> None:
    """Cutting a batch smaller changes nothing but rounding; weight 0 takes an example out; the scale cancels."""
    examples = random_examples(4, seed=1)
    with tiny_decoder(tmp_path) as decoder:
        config = dataclasses.replace(CONFIG, epochs=1)
        train(decoder, examples, [], config, Recorder())
        whole = parameters(decoder)
        halved = [dataclasses.replace(e, weight=0.5) for e in examples]
        train(decoder, halved, [], dataclasses.replace(config, micro_tokens=1), Recorder())
        torch.testing.assert_close(parameters(decoder), whole, rtol=1e-3, atol=2e-5)
        muted = [*examples, dataclasses.replace(random_examples(1, seed=9)[0], weight=0.0)]
        train(decoder, muted, [], config, Recorder())
        assert torch.equal(parameters(decoder), whole)
        uneven = [dataclasses.replace(e, weight=w) for e, w in zip(examples, (1, 1, 1, 0.1), strict=True)]
        train(decoder, uneven, [], config, Recorder())
        assert (parameters(decoder) - whole).abs().max() > 1e-3


def test_resume_after_kill_gives_the_same_adapter(tmp_path: Path) -> None:
    """The child kills itself in the report of step 5, in the middle of the second epoch."""
    with tiny_decoder(tmp_path) as decoder:
        run(decoder, CONFIG)
        uninterrupted = parameters(decoder)
    code = (
        "import sys; from pathlib import Path; from tests.adapt.test_sft import killed_run; "
        "killed_run(Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    child = subprocess.run(arguments, env=environment, cwd=Path(__file__).parents[2], timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL
    with tiny_decoder(tmp_path) as decoder:
        result = run(decoder, CONFIG, tmp_path)
        assert (result.resumed_at_step, result.steps, result.ignored_checkpoint) == (4, 12, None)
        assert (parameters(decoder) - uninterrupted).abs().max() <= 1e-6
        again = run(decoder, CONFIG, tmp_path)
        assert again.resumed_at_step == 12, "a finished run has nothing left to do"
        assert (parameters(decoder) - uninterrupted).abs().max() <= 1e-6


def killed_run(directory: Path) -> None:
    """Train with checkpoints after every step and die without warning before the fifth is saved."""

    class Killer(Recorder):
        def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    examples = random_examples(10, seed=1)
    with tiny_decoder(directory) as decoder:
        train(decoder, examples, examples, CONFIG, Killer(), directory)


def test_foreign_or_torn_checkpoint_is_ignored_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_NAME
    with tiny_decoder(tmp_path) as decoder:
        run(decoder, CONFIG, tmp_path)
        expected = parameters(decoder)
        for changed in (dataclasses.replace(CONFIG, seed=1), dataclasses.replace(CONFIG, rank=8)):
            result = run(decoder, changed, tmp_path)
            assert result.resumed_at_step == 0
            assert "other data, settings or base" in str(result.ignored_checkpoint)
        with tiny_decoder(tmp_path, seed=2) as other:
            assert "other data, settings or base" in str(run(other, changed, tmp_path).ignored_checkpoint)
        run(decoder, CONFIG, tmp_path)
        path.write_bytes(path.read_bytes()[:-100])
        result = run(decoder, CONFIG, tmp_path)
        assert "damaged" in str(result.ignored_checkpoint)
        assert torch.equal(parameters(decoder), expected)


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    mute = [dataclasses.replace(e, weight=0.0) for e in random_examples(2, seed=0)]
    with tiny_decoder(tmp_path) as decoder, pytest.raises(TrainingError, match="positive weight"):
        train(decoder, mute, [], CONFIG, Recorder())


def test_diverging_training_says_so(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    with tiny_decoder(tmp_path) as decoder, pytest.raises(TrainingError, match=r"not finite.*learning rate"):
        run(decoder, config)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.5 * (1 - 0.9238795325))
    assert learning_rate(config, 10, 10) == pytest.approx(0.0)
