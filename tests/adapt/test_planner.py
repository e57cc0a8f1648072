"""Run: python -m pytest tests/adapt/test_planner.py

Most plans are made for a model of SmolLM2-135M's shape, of which nothing but the shape is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from edgepd.adapt import planner
from edgepd.adapt.allocator import Allocator, use
from edgepd.adapt.architecture import Architecture, layer_shapes
from edgepd.adapt.batches import answer
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.footprint import Load, Shapes, peak_bytes
from edgepd.adapt.hyperparameters import TrainConfig
from edgepd.adapt.linear import Residency
from edgepd.adapt.loop import train
from edgepd.adapt.objectives import DPO, SFT
from edgepd.adapt.planner import MIB, Plan, Request, as_dict, carry_out, plan, probe_gemm
from edgepd.config import declarations
from edgepd.errors import TrainingError
from edgepd_daemon.training_child import CHILD_ENVIRONMENT
from edgepd_quant.reader import GGUFFile
from tests.adapt.helpers import Recorder, epochs_of, random_examples, tiny_decoder

ARCH = Architecture(
    name="llama",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    feed_forward=1536,
    context=8192,
    vocabulary=49152,
    rope_dims=64,
    rope_base=1e5,
    rms_eps=1e-5,
    attention_scale=0.125,
)
GFLOPS = 100e9
RSS = 300 * MIB


def decoder_of(trained_layers: int = 30, kind: str = "lora", parameters: int = 2_400_000) -> Decoder:
    """What the planner looks at of a decoder: shapes, bytes in the file (Q4_1), and how many numbers are trained."""
    shapes = {"token_embd.weight": (49152, 576)} | layer_shapes(ARCH, 0)
    tensors = {name: SimpleNamespace(nbytes=shape[0] * shape[-1] // 32 * 20) for name, shape in shapes.items()}
    return cast(
        "Decoder",
        SimpleNamespace(
            architecture=ARCH,
            model=SimpleNamespace(tensors=tensors),
            trained_layers=trained_layers,
            kind=kind,
            parameters=[torch.empty(parameters)],
        ),
    )


def examples_of(lengths: list[int], prompt: int = 40) -> list[Encoded]:
    return [Encoded(f"e{n}", tuple(range(length)), min(prompt, length // 2)) for n, length in enumerate(lengths)]


def request(lengths: list[int] | None = None, **changed: Any) -> Request:
    """Three epochs over twelve examples of 100 to 155 tokens, with 4 GiB."""
    examples = examples_of(lengths or [100 + 5 * n for n in range(12)])
    fields: dict[str, Any] = {
        "decoder": decoder_of(),
        "rank": 8,
        "epochs": epochs_of(examples, 3),
        "held_out": [],
        "judged": [],
        "sequences": answer,
        "threads": 2,
        "rss_bytes": RSS,
        "budget_bytes": 4096 * MIB,
        "gemm_flops": GFLOPS,
    }
    return Request(**(fields | changed))


def test_with_plenty_of_memory_everything_is_kept() -> None:
    found = plan(request())
    assert (found.residency, found.kept_layers) == ("fp32", 30)
    assert (found.layers, found.trained_layers, found.kind, found.rank, found.threads) == (30, 30, "lora", 8, 2)
    assert (found.examples, found.epochs, found.steps) == (12, 3, 9)
    assert found.tokens_per_epoch == sum(100 + 5 * n for n in range(12))
    assert found.predicted_tokens_per_second == pytest.approx(3 * found.tokens_per_epoch / found.predicted_seconds)
    assert any("all activations are kept" in reason for reason in found.reasons)


def plans_by_budget(budgets: range, **changed: Any) -> list[Plan]:
    """The plans of the budgets (MiB) that are enough."""
    found = []
    for budget in budgets:
        try:
            found.append(plan(request(budget_bytes=budget * MIB, **changed)))
        except TrainingError:
            assert not found, "what fits into less memory fits into more"
    return found


def least_budget(**changed: Any) -> int:
    """The MiB without which it is refused, as the refusal has it."""
    with pytest.raises(TrainingError, match=r"needs \d+ MiB") as caught:
        plan(request(budget_bytes=1, **changed))
    return int(re.findall(r"needs (\d+) MiB", str(caught.value))[0])


@pytest.fixture
def only_layers_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing to choose but how many layers keep their activations, as long as weights are not resident."""
    monkeypatch.setattr(planner, "MICRO_CHOICES", (384,))
    monkeypatch.setattr(planner, "ALLOCATORS", ("thrifty",))


def test_more_memory_never_makes_it_slower_and_no_budget_is_exceeded() -> None:
    found = plans_by_budget(range(400, 1800, 20))
    assert len(found) > 40
    for smaller, larger in zip(found, found[1:], strict=False):
        assert larger.predicted_seconds <= smaller.predicted_seconds
    for each in found:
        assert each.predicted_rss_mb <= each.budget_mb
    assert {each.residency for each in found} == {"stream", "fp32"}, "fp16 would round the weights"


def test_fp16_is_for_those_who_ask() -> None:
    asked = plan(request(residencies=planner.residencies("fp16")))
    assert asked.residency == "fp16"
    assert planner.residencies("auto") == ("stream", "fp32")
    assert planner.residencies("stream") == ("stream",)


def test_more_memory_keeps_more_layers(only_layers_to_choose: None) -> None:
    least = least_budget()
    found = plans_by_budget(range(least - 2, least + 226, 3))
    assert {each.residency for each in found} == {"stream"}
    kept = [each.kept_layers for each in found]
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, 30)
    assert len(set(kept)) > 20


def test_as_many_layers_are_kept_as_fit(only_layers_to_choose: None) -> None:
    """A plan's own prediction is enough for it, and any less is not."""
    budget = least_budget() + 100
    found = plan(request(budget_bytes=budget * MIB))
    assert 0 < found.kept_layers < 30
    exact = plan(request(budget_bytes=found.predicted_rss_mb * MIB))
    assert dataclasses.replace(exact, budget_mb=budget) == found
    less = plan(request(budget_bytes=(found.predicted_rss_mb - 1) * MIB))
    assert less.kept_layers == found.kept_layers - 1
    assert less.predicted_seconds > found.predicted_seconds


def test_the_least_budget_is_enough_and_less_is_not() -> None:
    least = least_budget()
    assert plan(request(budget_bytes=least * MIB)).predicted_rss_mb == least
    with pytest.raises(TrainingError, match=f"needs {least} MiB of memory at least, but the budget is {least - 1} MiB"):
        plan(request(budget_bytes=(least - 1) * MIB))


def test_resident_memory_of_the_process_counts() -> None:
    found = plan(request(budget_bytes=600 * MIB))
    heavier = plan(request(budget_bytes=700 * MIB, rss_bytes=RSS + 100 * MIB))
    assert heavier == dataclasses.replace(found, budget_mb=700, predicted_rss_mb=found.predicted_rss_mb + 100)


def test_the_artificial_cap_of_600_mb_still_trains() -> None:
    """With the 250 MB that a process with torch and the mapped model takes."""
    found = plan(request([500] * 12, rss_bytes=250 * MIB, budget_bytes=600 * MIB))
    assert found.predicted_rss_mb <= 600


def test_smaller_micro_batches_where_memory_is_short() -> None:
    least = least_budget()
    assert plan(request(budget_bytes=least * MIB)).micro_tokens < 256, "no example is longer than 155 tokens"
    with_long: dict[str, Any] = {"epochs": epochs_of(examples_of([100] * 11 + [600]), 3)}
    more = least_budget(**with_long)
    assert more > least
    found = plan(request(budget_bytes=more * MIB, **with_long))
    assert found.micro_tokens == 512, "with one of 600, cutting the others smaller gains nothing"


def test_frozen_layers_cost_less() -> None:
    whole, top = plan(request()), plan(request(decoder=decoder_of(trained_layers=6, parameters=500_000)))
    assert (top.trained_layers, top.kept_layers) == (6, 6)
    assert top.predicted_seconds < 0.75 * whole.predicted_seconds
    assert top.predicted_rss_mb < whole.predicted_rss_mb


def test_a_dense_gradient_costs_a_product_more() -> None:
    lora, scale, shift = (plan(request(decoder=decoder_of(kind=kind))) for kind in ("lora", "scale", "shift"))
    assert 1.3 * lora.predicted_seconds < scale.predicted_seconds < 1.5 * lora.predicted_seconds
    assert shift.predicted_seconds == lora.predicted_seconds


def test_a_pair_is_two_sequences() -> None:
    examples = [dataclasses.replace(e, rejected=e.tokens) for e in examples_of([150] * 12)]
    single = plan(request(epochs=epochs_of(examples, 3), budget_bytes=600 * MIB))
    pairs = plan(request(epochs=epochs_of(examples, 3), sequences=DPO().sequences, budget_bytes=600 * MIB))
    assert pairs.predicted_seconds > 1.9 * single.predicted_seconds
    assert pairs.steps == single.steps
    least = [least_budget(epochs=epochs_of(examples, 3), sequences=of) for of in (answer, DPO().sequences)]
    assert least[1] > least[0] + 5, "150 tokens twice are at least 300 at once"


def test_general_batches_are_work_but_not_examples() -> None:
    own = epochs_of(examples_of([100] * 12), 3)
    general = Batch(tuple(dataclasses.replace(e, id=f"general-{e.id}") for e in examples_of([100] * 4)), general=True)
    both = (own, [[general, *epoch] for epoch in own])
    plain, mixed = (plan(request(epochs=epochs, residencies=("stream",))) for epochs in both)
    assert (mixed.examples, mixed.tokens_per_epoch) == (plain.examples, plain.tokens_per_epoch) == (12, 1200)
    assert (mixed.steps, plain.steps) == (12, 9)
    assert mixed.predicted_seconds == pytest.approx(plain.predicted_seconds * 4 / 3)


def test_speed_follows_the_machine() -> None:
    """Products take half as long on a machine twice as fast; what is not a product takes as long as before."""
    seconds = [plan(request(gemm_flops=GFLOPS * faster)).predicted_seconds for faster in (1, 2, 4)]
    assert seconds[0] - seconds[1] == pytest.approx(2 * (seconds[1] - seconds[2]))
    assert 1.5 < seconds[0] / seconds[1] < 2
    assert plan(request(held_out=examples_of([150] * 4))).predicted_seconds > seconds[0]


def test_time_cuts_the_steps() -> None:
    whole = plan(request())
    half = plan(request(seconds=whole.predicted_seconds / 2))
    assert (whole.steps, half.steps) == (9, 4)
    assert half.predicted_seconds <= whole.predicted_seconds / 2
    assert half.predicted_seconds == pytest.approx(whole.predicted_seconds * 4 / 9)
    assert "4 of 9 steps fit into" in half.reasons[-1]
    assert plan(request(seconds=whole.predicted_seconds + 1)) == whole
    least = plan(request(seconds=0.001))
    assert least.steps == 2, "fewer than two steps teach nothing"
    one = plan(request(epochs=epochs_of(examples_of([100]), 1), seconds=0.001))
    assert one.steps == 1


def test_a_refusal_says_what_would_fit() -> None:
    lengths = [100] * 8 + [1000] * 4
    short, all_of_them = (least_budget(epochs=epochs_of(examples_of(some), 3)) for some in ([100] * 8, lengths))
    with pytest.raises(TrainingError) as caught:
        plan(request(lengths, budget_bytes=(short + 5) * MIB))
    assert str(caught.value) == (
        f"training needs {all_of_them} MiB of memory at least, but the budget is {short + 5} MiB; it would fit with "
        f"examples of at most 750 tokens (8 of 12 examples, {short} MiB): set serve.context_tokens=750, or allow more "
        f"with train.memory_mb={all_of_them}"
    )
    assert plan(request([100] * 8, budget_bytes=short * MIB)).predicted_rss_mb == short
    assert plan(request(lengths, budget_bytes=all_of_them * MIB)).predicted_rss_mb == all_of_them


def test_a_refusal_without_a_shorter_way() -> None:
    with pytest.raises(TrainingError, match=r"budget is 100 MiB; set train.memory_mb=\d+, a lower train.rank, or"):
        plan(request([500] * 12, budget_bytes=100 * MIB))


def test_what_a_refusal_advises_can_be_set() -> None:
    """A context shorter than the setting allows is no advice."""
    least = declarations()["serve.context_tokens"].minimum
    assert least is not None
    lengths = [40] * 6 + [160] * 6
    short, all_of_them = (least_budget(epochs=epochs_of(examples_of(some), 3)) for some in ([40] * 6, lengths))
    assert short < all_of_them
    for budget in range(short, all_of_them, 3):
        with pytest.raises(TrainingError) as caught:
            plan(request(lengths, budget_bytes=budget * MIB))
        for bound in re.findall(r"serve.context_tokens=(\d+)", str(caught.value)):
            assert int(bound) >= least, str(caught.value)


def test_a_plan_fits_into_json() -> None:
    found = plan(request(seconds=1.0))
    shown = as_dict(found)
    assert json.loads(json.dumps(shown)) == shown
    assert Plan(**{**shown, "reasons": tuple(shown["reasons"])}) == found


def test_examples_that_take_no_part_cost_nothing() -> None:
    """Such as unwanted answers in imitation; that nothing is left to train on is for the loop to say."""
    unwanted = [dataclasses.replace(e, desirable=False) for e in examples_of([100] * 4)]
    alone = plan(request(epochs=epochs_of(unwanted, 1), sequences=SFT().sequences))
    assert alone.predicted_seconds == 0
    both = epochs_of(examples_of([100] * 4), 1)
    mixed = [[Batch((*batch.examples, *unwanted)) for batch in epoch] for epoch in both]
    found = plan(request(epochs=mixed, sequences=SFT().sequences))
    assert found.predicted_seconds == plan(request(epochs=both)).predicted_seconds


def test_a_real_decoder_can_be_planned_and_the_plan_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = random_examples(6, seed=1)
    with tiny_decoder(tmp_path) as decoder:
        decoder.adapt("scale", rank=4, alpha=8.0, seed=0, top_layers=1)
        found = plan(request(decoder=decoder, epochs=epochs_of(examples, 2), rank=4))
        assert (found.kind, found.layers, found.trained_layers, found.steps) == ("scale", 2, 1, 4)
        monkeypatch.setattr(planner, "use", lambda allocator: True)  # would change the whole process of the tests
        carry_out(found, decoder)
        config = TrainConfig(kind="scale", rank=4, top_layers=1, micro_tokens=found.micro_tokens, max_steps=found.steps)
        assert train(decoder, epochs_of(examples, 2), examples, SFT(), config, Recorder()).steps == 4


def test_the_probe_is_a_speed() -> None:
    assert 1e8 < probe_gemm() < 1e14


def measured_run(path: Path, residency: Residency, kept: int, allocator: Allocator) -> dict[str, float]:
    """In a process of its own: predict, make two steps of 1 x 256 tokens, and read the peak of resident memory."""
    torch.set_num_threads(1)
    example = Encoded("e", tuple(100 + 7 * n % 4000 for n in range(256)), 128)
    with GGUFFile.open(path) as model:
        decoder = Decoder(model)
        decoder.adapt("lora", rank=8, alpha=16.0, seed=0)
        before = status("VmRSS")
        load = Load(255, 128, sum(parameter.numel() for parameter in decoder.parameters))
        added = peak_bytes(
            Shapes.of(model, decoder.architecture),
            load,
            residency=residency,
            kept_layers=kept,
            trained_layers=decoder.trained_layers,
            allocator=allocator,
        )
        assert use(allocator)
        decoder.arrange(residency=residency, kept_layers=kept)
        epochs = [[Batch((example,))], [Batch((example,))]]
        result = train(decoder, epochs, [], SFT(), TrainConfig(), Recorder())
    return {"steps": result.steps, "predicted": before + added / MIB, "measured": status("VmHWM")}


def status(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("residency", "kept", "allocator"),
    [("stream", 0, "thrifty"), ("stream", 30, "thrifty"), ("stream", 0, "fast"), ("fp32", 30, "fast")],
)
def test_predicted_memory_is_what_a_run_takes(
    model_path: Path, residency: Residency, kept: int, allocator: Allocator
) -> None:
    """Within 15 %, and never more than 10 % too low."""
    code = (
        "import json; from pathlib import Path; from tests.adapt.test_planner import measured_run; "
        f"print(json.dumps(measured_run(Path({str(model_path)!r}), {residency!r}, {kept}, {allocator!r})))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | CHILD_ENVIRONMENT | {"PYTHONPATH": path},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 2
    assert 0.9 <= found["predicted"] / found["measured"] <= 1.15, found


def test_a_part_of_the_budget_can_be_left_alone() -> None:
    found = plan(request(budget_bytes=700 * MIB, used=0.9))
    assert (found.budget_mb, found.predicted_rss_mb <= 630) == (700, True)
    assert least_budget(used=0.9) == pytest.approx(least_budget() / 0.9, abs=1)
