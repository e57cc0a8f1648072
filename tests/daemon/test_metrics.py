"""Every number that the daemon shows, read back with Prometheus' own parser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgepd.adapt.job import Progress
from edgepd_daemon.engine.types import EngineStatus, LoadedModel, Timings
from edgepd_daemon.foresight import Predicted
from edgepd_daemon.metrics import Metrics, Snapshot
from edgepd_daemon.warming import Warmings
from tests.daemon.supervised import TRAINER, FakeSupervisor

ENGINE = EngineStatus(
    state="ready",
    queued=3,
    active=2,
    slots=4,
    threads=6,
    models=[LoadedModel("a.gguf", 100, None), LoadedModel("b.gguf", 11, 5.0)],
    switches=7,
    last_switch_ms=1.5,
    tokens_generated=1000,
    prompt_tokens=500,
    cached_tokens=400,
    cancelled=5,
    loads=9,
    unloads=8,
)
SNAPSHOT = Snapshot(
    version="1.2.3",
    model='odd "name"\n',
    generation=12,
    uptime_s=60.5,
    ready=True,
    engine=ENGINE,
    training=False,
    runs={"promoted": 2, "rejected": 1},
)


def read(metrics: Metrics, snapshot: Snapshot = SNAPSHOT) -> dict[tuple[str, str], float]:
    """All samples by name and label value."""
    families = text_string_to_metric_families(metrics.render(snapshot).decode())
    return {(s.name, ",".join(s.labels.values())): s.value for family in families for s in family.samples}


def timings(ttft_ms: float = 300.0, completion_tokens: int = 11, decode_ms: float = 500.0) -> Timings:
    return Timings(100, 80, completion_tokens, queue_ms=20.0, ttft_ms=ttft_ms, decode_ms=decode_ms)


def test_every_number_of_a_snapshot() -> None:
    found = read(Metrics())
    shown = {name: value for (name, label), value in found.items() if name.startswith("edgepd_") and not label}
    expected = {
        "edgepd_uptime_seconds": 60.5,
        "edgepd_ready": 1,
        "edgepd_generation": 12,
        "edgepd_training": 0,
        "edgepd_queue_depth": 3,
        "edgepd_active_answers": 2,
        "edgepd_slots": 4,
        "edgepd_threads": 6,
        "edgepd_models_loaded": 2,
        "edgepd_model_bytes": 111,
        "edgepd_model_loading_ratio": 1,
        "edgepd_prompt_tokens_total": 500,
        "edgepd_cached_prompt_tokens_total": 400,
        "edgepd_generated_tokens_total": 1000,
        "edgepd_cancelled_requests_total": 5,
        "edgepd_adapter_switches_total": 7,
        "edgepd_adapter_last_switch_seconds": 0.0015,
        "edgepd_model_loads_total": 9,
        "edgepd_model_unloads_total": 8,
    }
    assert shown.items() >= expected.items()
    assert found["edgepd_training_runs_total", "promoted"] == 2
    assert found["edgepd_training_runs_total", "rejected"] == 1
    assert found["edgepd_info", 'odd "name"\n,1.2.3'] == 1
    assert found["process_resident_memory_bytes", ""] > 10_000_000


def test_every_family_is_explained_and_has_one_name() -> None:
    snapshot = replace(SNAPSHOT, progress=Progress("train", 3, 12, 2.5, 2.75, 180.0, 9.5, 512.0))
    snapshot = replace(snapshot, budget=FakeSupervisor(trainer=TRAINER).view())
    snapshot = replace(snapshot, predicted=Predicted(), warmings=Warmings())
    families = list(text_string_to_metric_families(Metrics().render(snapshot).decode()))
    assert all(family.documentation for family in families)
    assert len({family.name for family in families}) == len(families)
    assert {family.name.partition("_")[0] for family in families} == {"edgepd", "process"}


def test_answers_are_counted_by_how_they_ended() -> None:
    metrics = Metrics()
    assert read(metrics)["edgepd_answers_total", "stop"] == 0  # there from the start
    for reason in ("stop", "stop", "length", "cancelled"):
        metrics.exchange_ended(timings(), reason)
    metrics.exchange_ended(None, "failed")
    found = read(metrics)
    counted = {label: value for (name, label), value in found.items() if name == "edgepd_answers_total"}
    assert counted == {"stop": 2, "length": 1, "cancelled": 1, "failed": 1}
    assert found["edgepd_time_to_first_token_seconds_count", ""] == 4
    assert found["edgepd_time_to_first_token_seconds_sum", ""] == pytest.approx(1.2)
    assert found["edgepd_time_to_first_token_seconds_bucket", "0.25"] == 0
    assert found["edgepd_time_to_first_token_seconds_bucket", "0.5"] == 4
    assert found["edgepd_decode_tokens_per_second_sum", ""] == pytest.approx(4 * 20)
    assert found["edgepd_queue_seconds_sum", ""] == pytest.approx(0.08)


def test_an_answer_without_tokens_has_no_speed() -> None:
    metrics = Metrics()
    metrics.exchange_ended(timings(completion_tokens=0, decode_ms=0), "cancelled")
    metrics.exchange_ended(timings(completion_tokens=1, decode_ms=0), "stop")
    found = read(metrics)
    assert found["edgepd_time_to_first_token_seconds_count", ""] == 1
    assert found["edgepd_decode_tokens_per_second_count", ""] == 0


def test_refusals_are_counted_by_code() -> None:
    metrics = Metrics()
    metrics.refused("busy")
    metrics.refused("busy")
    assert read(metrics)["edgepd_refusals_total", "busy"] == 2


def test_a_dead_engine_leaves_the_rest_readable() -> None:
    dead = Snapshot("1", "tiny", 1, 1.0, ready=False, engine=None, training=True)
    found = read(Metrics(), dead)
    assert (found["edgepd_ready", ""], found["edgepd_training", ""]) == (0, 1)
    assert ("edgepd_queue_depth", "") not in found


def training(progress: Progress | None) -> dict[tuple[str, str], float]:
    """The samples about training, without those about runs that ended."""
    found = read(Metrics(), Snapshot("1", "tiny", 1, 1.0, ready=True, engine=None, training=True, progress=progress))
    about = {key: value for key, value in found.items() if key[0].startswith("edgepd_training_")}
    return {key: value for key, value in about.items() if not key[0].startswith("edgepd_training_runs")}


def test_every_number_of_a_training_run() -> None:
    assert training(Progress("train", 3, 12, 2.5, 2.75, 180.0, 9.5, 512.0, "on battery")) == {
        ("edgepd_training_stage", "load"): 0,
        ("edgepd_training_stage", "replay"): 0,
        ("edgepd_training_stage", "review"): 0,
        ("edgepd_training_stage", "train"): 1,
        ("edgepd_training_stage", "write"): 0,
        ("edgepd_training_stage", "gate"): 0,
        ("edgepd_training_paused", ""): 1,
        ("edgepd_training_stage_ratio", ""): 0.25,
        ("edgepd_training_loss_nats", ""): 2.5,
        ("edgepd_training_held_out_loss_nats", ""): 2.75,
        ("edgepd_training_tokens_per_second", ""): 180,
        ("edgepd_training_seconds_left", ""): 9.5,
        ("edgepd_training_resident_memory_bytes", ""): 512 * 2**20,
    }


def test_what_is_not_known_of_a_training_run_is_left_out() -> None:
    found = training(Progress("replay"))
    assert found["edgepd_training_stage", "replay"] == 1  # a stage that only newer trainers have
    assert {name for name, _ in found} == {"edgepd_training_stage", "edgepd_training_paused"}
    assert training(None) == {}


def test_what_was_foreseen() -> None:
    snapshot = replace(SNAPSHOT, predicted=Predicted(9, 4, 7), warmings=Warmings(5, 1, 3, 2, 1200, 1.5))
    found = read(Metrics(), snapshot)
    assert {name: value for (name, _), value in found.items() if name.startswith(("edgepd_intent", "edgepd_warm"))} == {
        "edgepd_intent_predictions_total": 9,
        "edgepd_intent_predictions_top1_total": 4,
        "edgepd_intent_predictions_top3_total": 7,
        "edgepd_warmings_total": 5,
        "edgepd_warmings_cancelled_total": 1,
        "edgepd_warming_hits_total": 3,
        "edgepd_warming_misses_total": 2,
        "edgepd_warming_tokens_total": 1200,
        "edgepd_warming_saved_seconds_total": 1.5,
    }


def test_loading_is_a_ratio() -> None:
    loading = Snapshot("1", "tiny", 1, 1.0, ready=True, training=False, engine=EngineStatus("loading", 25.0))
    assert read(Metrics(), loading)["edgepd_model_loading_ratio", ""] == 0.25
    unloaded = Snapshot("1", "tiny", 1, 1.0, ready=True, training=False, engine=EngineStatus())
    assert read(Metrics(), unloaded)["edgepd_model_loading_ratio", ""] == 0


def test_two_daemons_in_one_process_do_not_share_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.refused("busy")
    assert ("edgepd_refusals_total", "busy") not in read(second)
