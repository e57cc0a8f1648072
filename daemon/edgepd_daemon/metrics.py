"""Numbers about the daemon in Prometheus' text form.

The idea: what happens once is counted when it happens (answers, refusals); what others know is asked for when
somebody reads (engine, profile, process). The invariant: a registry of our own, so two daemons in one process, as
in tests, do not share numbers; every name begins with `edgepd_` or, for the process, `process_`.
What this does not do: keep history, or label anything with what a user could have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from edgepd.adapt.job import Progress
from edgepd_daemon.engine.types import EngineStatus, Timings
from edgepd_daemon.foresight import Predicted
from edgepd_daemon.scheduler.types import Action
from edgepd_daemon.warming import Warmings

CONTENT_TYPE = CONTENT_TYPE_LATEST
TTFT_BUCKETS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
QUEUE_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 5, 30, 60)
SPEED_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 400)  # tokens per second
OUTCOMES = ("stop", "length", "cancelled", "failed")
STAGES = ("load", "replay", "train", "write", "gate", "review")  # of a training run, in their order


@dataclass(frozen=True)
class Snapshot:
    """What the other parts say at the moment of reading. `engine` is None if its thread has died."""

    version: str
    model: str
    generation: int
    uptime_s: float
    ready: bool
    engine: EngineStatus | None
    training: bool
    runs: Mapping[str, int] = field(default_factory=dict)  # number of training runs that ended in each state
    progress: Progress | None = None  # of the training run that is going on
    budget: Mapping[str, Any] | None = None  # what the supervisor says of itself
    predicted: Predicted | None = None  # how good the predictions of what comes next were
    warmings: Warmings | None = None  # prompts that were computed ahead


class Metrics:
    """Counts what happens, and renders it together with a snapshot. Safe to use from any thread."""

    def __init__(self) -> None:
        registry = CollectorRegistry(auto_describe=True)
        self._registry = registry
        self._answers = Counter("edgepd_answers", "Answers that ended, by how.", ["outcome"], registry=registry)
        for outcome in OUTCOMES:
            self._answers.labels(outcome)
        self._refused = Counter(
            "edgepd_refusals", "Requests that got an error, by its code.", ["code"], registry=registry
        )
        self._ttft = Histogram(
            "edgepd_time_to_first_token_seconds",
            "From submission to the first token, waiting included.",
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        self._queue = Histogram(
            "edgepd_queue_seconds", "From submission to a free slot.", buckets=QUEUE_BUCKETS_S, registry=registry
        )
        self._speed = Histogram(
            "edgepd_decode_tokens_per_second",
            "Speed of one answer after its first token.",
            buckets=SPEED_BUCKETS,
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def exchange_ended(self, timings: Timings | None, reason: str) -> None:
        """Count an answer that ended, for whatever reason; `timings` is None if it failed."""
        self._answers.labels(reason).inc()
        if timings is None:
            return
        self._queue.observe(timings.queue_ms / 1000)
        if timings.completion_tokens > 0:
            self._ttft.observe(timings.ttft_ms / 1000)
        if timings.completion_tokens > 1 and timings.decode_ms > 0:
            self._speed.observe(timings.decode_tokens_per_second)

    def refused(self, code: str) -> None:
        """Count a request that got an error."""
        self._refused.labels(code).inc()

    def render(self, snapshot: Snapshot) -> bytes:
        """Return everything in Prometheus' text form."""
        now = CollectorRegistry(auto_describe=False)
        now.register(_Now(snapshot))
        return generate_latest(self._registry) + generate_latest(now)


class _Now(Collector):
    """A snapshot as Prometheus sees it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield every number of the snapshot."""
        snapshot = self._snapshot
        about = {"version": snapshot.version, "model": snapshot.model}
        yield InfoMetricFamily("edgepd", "Which daemon this is.", value=about)
        yield _gauge("uptime_seconds", "Time since the start of the daemon.", snapshot.uptime_s)
        yield _gauge("ready", "Whether a request would be taken now.", snapshot.ready)
        yield _gauge("generation", "The adapter generation that new requests get.", snapshot.generation)
        yield _gauge("training", "Whether a training run is going on.", snapshot.training)
        runs = CounterMetricFamily("edgepd_training_runs", "Training runs that ended, by result.", labels=["result"])
        for result, count in sorted(snapshot.runs.items()):
            runs.add_metric([result], count)
        yield runs
        if snapshot.progress is not None:
            yield from _training(snapshot.progress)
        yield from _paused(snapshot)
        if snapshot.budget is not None:
            yield from _budget(snapshot.budget)
        if snapshot.predicted is not None:
            yield from _predictions(snapshot.predicted)
        if snapshot.warmings is not None:
            yield from _warmings(snapshot.warmings)
        if snapshot.engine is not None:
            yield from _engine(snapshot.engine)


def _engine(status: EngineStatus) -> Iterable[Metric]:
    yield _gauge("queue_depth", "Requests that wait for a slot.", status.queued)
    yield _gauge("active_answers", "Answers that are being generated.", status.active)
    yield _gauge("slots", "Answers that can be generated at the same time.", status.slots)
    yield _gauge("threads", "Threads that the engine computes with.", status.threads)
    yield _gauge("models_loaded", "Models in memory.", len(status.models))
    yield _gauge("model_bytes", "Size of the models in memory.", sum(model.size_bytes for model in status.models))
    loading = status.loading_percent if status.loading_percent is not None else 100.0 * bool(status.models)
    yield _gauge("model_loading_ratio", "How much of the model is loaded.", loading / 100)
    yield _counter("prompt_tokens", "Tokens of prompts.", status.prompt_tokens)
    yield _counter("cached_prompt_tokens", "Tokens of prompts that were not computed again.", status.cached_tokens)
    yield _counter("generated_tokens", "Tokens of answers.", status.tokens_generated)
    yield _counter("cancelled_requests", "Requests that were cancelled, before or while answered.", status.cancelled)
    yield _counter("adapter_switches", "Changes of the adapter between two steps.", status.switches)
    yield _gauge("adapter_last_switch_seconds", "How long the last change took.", status.last_switch_ms / 1000)
    yield _counter("model_loads", "Models that were loaded.", status.loads)
    yield _counter("model_unloads", "Models that were unloaded.", status.unloads)


def _training(progress: Progress) -> Iterable[Metric]:
    """Yield where a run is. What is not known yet is left out: a loss of 0 would be a lie."""
    stages = GaugeMetricFamily("edgepd_training_stage", "Where the training run is, by stage.", labels=["stage"])
    for stage in dict.fromkeys((*STAGES, progress.stage)):
        stages.add_metric([stage], float(stage == progress.stage))
    yield stages
    if progress.total:
        done = progress.done / progress.total
        yield _gauge("training_stage_ratio", "How much of the stage is done.", done)
    rss_bytes = None if progress.rss_mb is None else progress.rss_mb * 2**20
    for name, documentation, value in (
        ("training_loss_nats", "Loss of the last optimiser step, per supervised token.", progress.loss),
        ("training_held_out_loss_nats", "Loss on examples set aside, per supervised token.", progress.held_out_loss),
        ("training_tokens_per_second", "Speed of training.", progress.tokens_per_second),
        ("training_seconds_left", "Time that the stage will still take.", progress.seconds_left),
        ("training_resident_memory_bytes", "Resident memory of the trainer.", rss_bytes),
    ):
        if value is not None:
            yield _gauge(name, documentation, value)


def _budget(view: Mapping[str, Any]) -> Iterable[Metric]:
    """Yield what training may take and takes. A sensor that is not there is left out."""
    decision = view["decision"]
    actions = GaugeMetricFamily("edgepd_scheduler_decision", "What is done about training now.", labels=["action"])
    for action in Action:
        actions.add_metric([str(action)], float(decision["action"] == action))
    yield actions
    held = GaugeMetricFamily("edgepd_scheduler_held", "Which constraint holds training now.", labels=["constraint"])
    if decision["constraint"]:
        held.add_metric([decision["constraint"]], 1.0)
    yield held
    if (pauses := view.get("pauses")) is not None:
        yield _counter("trainer_pauses", "How often a trainer was paused.", pauses)
    readings, today, trainer = view["readings"], view["today"], view["trainer"] or {}
    for name, documentation, value, unit in (
        ("budget_at_work_seconds_today", "Time that unasked training was at work today.", today["at_work_s"], 1),
        ("budget_limit_seconds_today", "Time that it may be at work today.", today["limit_s"], 1),
        ("trainer_cpu_ratio", "Share of all cores that the trainer uses.", trainer.get("cpu_percent"), 0.01),
        ("trainer_resident_bytes", "Resident memory of the trainer.", trainer.get("rss_mb"), 2**20),
        ("battery_ratio", "Charge of the battery.", readings["battery_percent"], 0.01),
        ("on_ac", "Whether there is mains power.", readings["on_ac"], 1),
        ("temperature_celsius", "Temperature of the hottest sensor.", readings["temperature_c"], 1),
    ):
        if value is not None:
            yield _gauge(name, documentation, value * unit)


def _predictions(found: Predicted) -> Iterable[Metric]:
    yield _counter("intent_predictions", "Predictions that were compared with the event that came.", found.made)
    yield _counter("intent_predictions_top1", "Those that had the intent of the event first.", found.top1)
    yield _counter("intent_predictions_top3", "Those that had it among the first three.", found.top3)


def _warmings(found: Warmings) -> Iterable[Metric]:
    yield _counter("warmings", "Prompts of the likely next app that were computed ahead.", found.made)
    yield _counter("warmings_cancelled", "Those that were ended by a request; not among the others.", found.cancelled)
    yield _counter("warming_hits", "Those that the app's next request reused.", found.hits)
    yield _counter("warming_misses", "Those that the app's next request had no use for.", found.misses)
    yield _counter("warming_tokens", "Tokens that were computed ahead.", found.tokens)
    yield _counter("warming_saved_seconds", "Time that hits did not have to wait for.", found.saved_s)


def _paused(snapshot: Snapshot) -> Iterable[Metric]:
    """Yield whether the run waits, which it says itself or is made to do from outside."""
    trainer = (snapshot.budget or {}).get("trainer")
    if snapshot.progress is None and trainer is None:
        return
    told = snapshot.progress is not None and snapshot.progress.paused is not None
    stopped = trainer is not None and trainer["paused"] is not None
    yield _gauge("training_paused", "Whether the training run waits.", told or stopped)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"edgepd_{name}", documentation, value=float(value))


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"edgepd_{name}", documentation, value=float(value))
