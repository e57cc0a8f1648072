"""Run: python -m pytest tests/adapt/test_proof.py

What a run knows reaches the gate as the gate means it, and a baked file is compared with what it was baked from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepd.adapt.examples import Encoded, Example, encode
from edgepd.adapt.gate import general, verifiable
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.verdict import Limits
from edgepd.adapt.job import Job, JobExample
from edgepd.adapt.proof import QUICK_VERIFIABLE, Proof, check_baked, prove
from edgepd.adapt.recipe import Data
from edgepd.chat import ChatFormat
from edgepd.errors import TrainingError
from edgepd.llama import Model
from edgepd.settings import Gate, Train
from edgepd_quant.adapter_file import Adapter
from edgepd_quant.bake import bake
from edgepd_quant.merge import scaled
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import tiny_decoder
from tests.tiny_gguf import tiny_llama

SYSTEM = {"role": "system", "content": "You are a pirate."}
SHOTS = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Ahoy!"}]
PROFILE = "Answer briefly."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


HELD_OUT = [
    JobExample("i_1", [user("Where is it?")], "There.", conversation="c_1"),
    JobExample("i_2", [SYSTEM, user("And that?")], "Here.", conversation="c_1", shots=SHOTS),
    JobExample("i_3", [user("Who?"), {"role": "assistant", "content": "Me."}, user("Why?")], "So.", shots=SHOTS),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


def job_for(base: Path, directory: Path, **fields: Any) -> Job:
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
    values: dict[str, Any] = {
        "kind": "live",
        "base": str(base),
        "base_sha256": sha256,
        "original": str(base),
        "original_sha256": sha256,
        "current_model": str(base),
        "current_adapter": None,
        "output": str(directory / "output.gguf"),
        "checkpoint_dir": str(directory / "checkpoints"),
        "replay_dir": str(directory / "replay"),
        "train": [],
        "held_out": HELD_OUT,
        "data_hash": "cd" * 32,
        "settings": asdict(Train()),
        "threads": 1,
        "gate": asdict(Gate()),
        "max_tokens": 256,
    }
    return Job(**(values | fields))


def encoded(base: Path, examples: Sequence[JobExample], max_tokens: int = 256) -> list[Encoded]:
    with Model(base, vocab_only=True) as model:
        chat = ChatFormat(model)
        return [encode(chat, Example(e.id, e.messages, e.response), max_tokens) for e in examples]


def proof_of(base: Path, directory: Path, **fields: Any) -> Proof:
    job = job_for(base, directory, **fields)
    return prove(job, data_of(base, job, job.held_out), None)


def data_of(base: Path, job: Job, held_out: Sequence[JobExample]) -> Data:
    return Data(encoded(base, job.train), [], encoded(base, held_out), [], [])


def rendered(base: Path, example: Encoded) -> tuple[str, str]:
    """What stands before the answer, as text with its control tokens, and the answer."""
    with Model(base, vocab_only=True) as model:
        texts = [
            b"".join(model.piece(token, special=True) for token in part).decode()
            for part in (example.tokens[: example.supervised_from], example.tokens[example.supervised_from :])
        ]
    return texts[0], texts[1]


def said(*turns: tuple[str, str]) -> str:
    """A ChatML prompt."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def test_a_profile_becomes_the_system_prompt_or_stands_before_it(base: Path, tmp_path: Path) -> None:
    profiled = proof_of(base, tmp_path, profile_prompt=PROFILE).prompts.profile
    assert [rendered(base, e) for e in profiled] == [
        (said(("system", PROFILE), ("user", "Where is it?")), "There.<|im_end|>"),
        (said(("system", f"{PROFILE}\n\nYou are a pirate."), ("user", "And that?")), "Here.<|im_end|>"),
        (
            said(("system", PROFILE), ("user", "Who?"), ("assistant", "Me."), ("user", "Why?")),
            "So.<|im_end|>",
        ),
    ]


def test_similar_exchanges_stand_between_the_system_prompt_and_the_conversation(base: Path, tmp_path: Path) -> None:
    retrieved = proof_of(base, tmp_path, profile_prompt=PROFILE).prompts.retrieval
    shots = (("user", "Say hello."), ("assistant", "Ahoy!"))
    assert [rendered(base, e) for e in retrieved] == [
        (said(("user", "Where is it?")), "There.<|im_end|>"),
        (said(("system", "You are a pirate."), *shots, ("user", "And that?")), "Here.<|im_end|>"),
        (said(*shots, ("user", "Who?"), ("assistant", "Me."), ("user", "Why?")), "So.<|im_end|>"),
    ]


def test_without_a_profile_or_shots_the_prompts_are_the_plain_ones(base: Path, tmp_path: Path) -> None:
    plain = [dataclasses.replace(e, shots=[]) for e in HELD_OUT]
    proof = proof_of(base, tmp_path, held_out=plain)
    assert proof.prompts.profile == proof.prompts.retrieval == proof.trial.held_out == encoded(base, plain)


def test_a_prompt_that_would_be_too_long_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    held_out = encoded(base, HELD_OUT)
    longest = max(len(e.tokens) for e in held_out)
    proof = proof_of(base, tmp_path, profile_prompt="Be brief. " * 20, max_tokens=longest)
    assert proof.prompts.profile == held_out
    assert proof.prompts.retrieval[0] == held_out[0]
    assert all(len(e.tokens) <= longest for e in proof.prompts.retrieval)
    assert proof.prompts.retrieval[2] == held_out[2], "the longest has no room for anything"


def test_what_is_judged_are_the_arms_of_the_job(base: Path, tmp_path: Path) -> None:
    live = proof_of(base, tmp_path, current_adapter="/g/live-1.gguf", threads=2).trial
    assert live.original == Arm(base)
    assert live.current == Arm(base, Path("/g/live-1.gguf"))
    assert live.candidate == Arm(base, tmp_path / "output.gguf")
    assert (live.threads, live.windows, live.cache) == (2, general.QUICK_WINDOWS, tmp_path / "replay")
    assert live.limits == Limits.of(asdict(Gate()))
    baked = proof_of(base, tmp_path, kind="baked", current_model="/g/baked-1.gguf", original="/m/base.gguf").trial
    assert baked.original == Arm(Path("/m/base.gguf"))
    assert baked.current == Arm(Path("/g/baked-1.gguf"))
    assert baked.candidate == Arm(tmp_path / "output.gguf")
    assert baked.windows == general.ALL_WINDOWS


def test_the_newest_of_what_was_learned_show_what_is_known_by_heart(base: Path, tmp_path: Path) -> None:
    job = job_for(base, tmp_path)
    assert [e.id for e in proof_of(base, tmp_path).trial.learned] == [e.id for e in job.train][-5:]


def test_answers_of_one_conversation_belong_together(base: Path, tmp_path: Path) -> None:
    assert proof_of(base, tmp_path).trial.groups == ["c_1", "c_1", "i_3"]


def test_an_example_that_did_not_fit_is_not_judged(base: Path, tmp_path: Path) -> None:
    job = job_for(base, tmp_path)
    proof = prove(job, data_of(base, job, HELD_OUT[1:]), None)
    assert [e.id for e in proof.prompts.retrieval] == ["i_2", "i_3"]
    assert proof.trial.groups == ["c_1", "i_3"]


def test_a_consolidation_is_verified_with_all_prompts(base: Path, tmp_path: Path) -> None:
    every = verifiable.prompts()
    assert proof_of(base, tmp_path, kind="baked").verifiable == every
    assert proof_of(base, tmp_path).verifiable == every[:QUICK_VERIFIABLE]
    assert len(every) > QUICK_VERIFIABLE


def test_secrets_are_those_that_were_trained_on(base: Path, tmp_path: Path) -> None:
    learned = JobExample("i_9", [user("What is it?")], "The password is Vq7-Kp2x-Lm9t, savvy?")
    judged = JobExample("i_8", [user("What is it?")], "The password is Wr8-Lq3y-Mn1u, savvy?")
    secrets = proof_of(base, tmp_path, train=[learned], held_out=[judged]).trial.secrets
    assert [(secret.example, secret.kind) for secret in secrets] == [("i_9", "labelled secret")]


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """A delta of kind scale that changes what the base says."""
    with tiny_decoder(tmp_path_factory.mktemp("decoder")) as decoder:
        decoder.adapt("scale", rank=4, alpha=1.0, seed=0)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in decoder.parameters:
                parameter.uniform_(-0.4, 0.4, generator=generator)
        return decoder.export({})


def llama_loss(model: Path, held_out: Sequence[Encoded]) -> float:
    """What the gate tells: the mean over all supervised tokens."""
    with Scorer(Arm(model), 1, longest=256) as scorer:
        losses = [loss for e in held_out for loss in scorer.token_losses(e.tokens, e.supervised_from)]
    return sum(losses) / len(losses)


def test_a_file_is_what_was_baked_into_it(base: Path, tmp_path: Path, trained: Adapter) -> None:
    job = job_for(base, tmp_path, kind="baked")
    held_out = encoded(base, HELD_OUT)
    bake(base, trained, Path(job.output))
    loss = llama_loss(Path(job.output), held_out)
    assert abs(loss - llama_loss(base, held_out)) > 0.1, "else any file would do"
    found = check_baked(job, trained, held_out, loss)
    assert set(found) == {"baked_max_difference", "baked_mean_difference", "baked_llama_difference"}
    assert 0 < found["baked_max_difference"] < 0.05
    assert found["baked_mean_difference"] <= found["baked_max_difference"]
    assert found["baked_llama_difference"] < 0.05


def test_a_file_of_another_delta_or_that_llama_cpp_reads_otherwise_is_refused(
    base: Path, tmp_path: Path, trained: Adapter
) -> None:
    job = job_for(base, tmp_path, kind="baked")
    held_out = encoded(base, HELD_OUT)
    bake(base, trained, Path(job.output))
    loss = llama_loss(Path(job.output), held_out)
    for other in (scaled(trained, 0.5), scaled(trained, -1.0)):
        with pytest.raises(TrainingError, match=r"does not answer as what was trained: baked max difference is"):
            check_baked(job, other, held_out, loss)
    for odd in (loss + 0.06, loss - 0.06, float("nan")):
        with pytest.raises(TrainingError, match=r"baked llama difference is .*, at most 0\.05 is roundings"):
            check_baked(job, trained, held_out, odd)
