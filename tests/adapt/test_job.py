"""The contract between daemon and trainer: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from edgepd.adapt.job import (
    Event,
    Job,
    JobExample,
    Outcome,
    Parked,
    Planned,
    Progress,
    Refused,
    Reviewed,
    read_event,
    write_event,
)
from edgepd.errors import TrainingError
from edgepd.settings import Gate, Train

EXAMPLE = JobExample("i_1", [{"role": "user", "content": "Grüß\n\ud83dx"}], "Good\u2028day", 0.5)
SHOT = [{"role": "user", "content": "Before?"}, {"role": "assistant", "content": "After."}]
EDIT = JobExample("i_2", [], "yes", rejected="no", reward=-0.5, conversation="c_1", shots=SHOT)
UNWANTED = JobExample("i_3", [], "no", desirable=False)


def job(**fields: Any) -> Job:
    values: dict[str, Any] = {
        "kind": "live",
        "base": "/m/base.gguf",
        "base_sha256": "ab" * 32,
        "original": "/m/base.gguf",
        "original_sha256": "ab" * 32,
        "current_model": "/m/base.gguf",
        "current_adapter": None,
        "output": "/g/live-1.gguf",
        "checkpoint_dir": "/r/live",
        "replay_dir": "/r/replay",
        "train": [EXAMPLE, EDIT, UNWANTED],
        "held_out": [EXAMPLE, EXAMPLE],
        "data_hash": "cd" * 32,
        "settings": asdict(Train()),
        "threads": 2,
        "gate": asdict(Gate()),
        "max_tokens": 512,
    }
    return Job(**(values | fields))


@pytest.mark.parametrize(
    "given",
    [
        job(),
        job(kind="baked", current_adapter="/g/live-1.gguf", parent=7, plan_only=True),
        job(start_adapter="/g/live-1.gguf", profile_prompt="Answer\nbriefly."),
    ],
)
def test_a_job_survives_the_pipe(given: Job) -> None:
    text = given.to_json()
    assert "\n" not in text
    assert text.isascii()  # so that no encoding of the pipe matters
    assert Job.from_json(text) == given


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "5", "{}", json.dumps({"train": [], "held_out": []}), json.dumps({"train": [{"x": 1}]})],
)
def test_what_is_no_job(text: str) -> None:
    with pytest.raises(TrainingError, match="the training job on standard input is malformed"):
        Job.from_json(text)


def test_a_job_with_a_field_that_is_not_known() -> None:
    fields = json.loads(job().to_json()) | {"optimiser": "sgd"}
    with pytest.raises(TrainingError, match="optimiser"):
        Job.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "event",
    [
        Progress("load"),
        Progress("train", 3, 18, 2.5, 2.75, 120.0, 30.5, 512.0, "on battery"),
        Planned({"kind": "lora", "predicted_rss_mb": 512, "reasons": ["all activations are kept"]}),
        Outcome(True, "it is better", {"held_out_after": 1.5, "steps": 18}, "ab" * 32, {"i_1": "too long"}),
        Outcome(False, "worse"),
        Refused("the base\nhas changed"),
        Parked(17),
        Reviewed(True, "of all arms adapter does best", {"arms": {"base": 2.5, "adapter": 1.5}}),
        Reviewed(False, "too much was lost"),
    ],
)
def test_events_are_one_line_and_survive_the_pipe(event: Event) -> None:
    line = write_event(event)
    assert "\n" not in line
    assert read_event(line + "\n") == event


def test_numbers_that_are_none_survive_too() -> None:
    event = read_event(write_event(Outcome(False, "it diverged", {"loss": math.nan})))
    assert isinstance(event, Outcome)
    assert math.isnan(event.scores["loss"])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ggml: some message of a library",
        "{}",
        "[]",
        "5",
        '{"progress": {}}',
        '{"progress": {"stage": "load", "mood": 1}}',
        '{"news": {}}',
        '{"planned": {}}',
        '{"reviewed": {"kept": true}}',
        '{"progress": {"stage": "load"}, "refused": {"reason": "x"}}',
        '{"refused": null}',
        '{"refused": "x"}',
    ],
)
def test_what_is_no_event(line: str) -> None:
    with pytest.raises(TrainingError, match="the trainer wrote a line that is not an event"):
        read_event(line)
