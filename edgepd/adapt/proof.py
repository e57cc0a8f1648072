"""The gate of one run: the job's examples as the gate wants them, and its verdict on the file that was written.

The idea: what worker.py knows (a job, its data, the trained delta) becomes what gate/ judges (arms, tokens, secrets). A
baked file is also compared with what it was baked from: torch computes both the base with the delta and the baked file,
which may differ by the roundings of fp16 alone, and llama.cpp must give the baked file the loss that torch does. The
invariant: a file that fails is never called promoted.
What this does not do: decide (see gate/verdict.py), or write anything but the candidate's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgepd.adapt.batches import sequence_nll
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded, Example, encode
from edgepd.adapt.gate import general, verifiable
from edgepd.adapt.gate.arms import Arm
from edgepd.adapt.gate.judge import Trial, judge
from edgepd.adapt.gate.regurgitation import Planted, planted
from edgepd.adapt.gate.review import Prompts, Review, review
from edgepd.adapt.gate.verdict import Limits, Verdict
from edgepd.adapt.job import Job, JobExample
from edgepd.adapt.recipe import Data
from edgepd.chat import ChatFormat
from edgepd.errors import TrainingError
from edgepd.llama import Model
from edgepd_quant.adapter_file import Adapter, LowRank
from edgepd_quant.reader import GGUFFile

MOST_LEARNED = 5  # answers that were learned, the newest, with which unseen ones are compared
QUICK_VERIFIABLE = 24  # prompts that a live adapter is reviewed with; a consolidation is with all
# Nats. Rounding a block's scale to fp16 changes it by 2^-11 at most; over all layers a token's loss moves by some
# thousandths. llama.cpp rounds activations too, which shows in the mean of few tokens as some hundredths.
MOST_ROUNDED = 0.1  # of any token
MOST_ROUNDED_MEAN = 0.01
MOST_BETWEEN = 0.05  # between torch and llama.cpp, of the mean


@dataclass(frozen=True)
class Proof:
    """What the gate needs of a run."""

    trial: Trial
    prompts: Prompts
    verifiable: Sequence[verifiable.VerifiablePrompt]

    def judge(self, weaken: Callable[[float], None]) -> Verdict:
        """Decide; `weaken` writes the candidate's file again with a share of its strength."""
        return judge(self.trial, weaken)

    def review(self, scores: dict[str, Any], *, abilities: bool = True) -> Review:
        """Measure the other arms and, unless it is of no interest any more, abilities."""
        return review(self.trial, self.prompts, self.verifiable if abilities else (), scores)


def prove(job: Job, data: Data, progress: Callable[[int, int], None] | None) -> Proof:
    """Return what the gate needs to judge the output of `job`. Raises ModelError if its tokenizer cannot be loaded."""
    live, base, output, held_out = job.kind == "live", Path(job.base), Path(job.output), data.held_out
    asked = {e.id: e for e in job.held_out}
    pairs = [(asked[encoded.id], encoded) for encoded in held_out]
    with Model(base, vocab_only=True) as tokenizer:
        chat = ChatFormat(tokenizer)
        prompts = Prompts(
            [_behind(chat, e, encoded, _profiled(e, job.profile_prompt), job) for e, encoded in pairs],
            [_behind(chat, e, encoded, _after_shots(e), job) for e, encoded in pairs],
        )
        secrets = _secrets(chat, tokenizer, job)
    trial = Trial(
        original=Arm(Path(job.original)),
        original_sha256=job.original_sha256,
        current=Arm(Path(job.current_model), Path(job.current_adapter) if job.current_adapter else None),
        candidate=Arm(base, output) if live else Arm(output),
        held_out=held_out,
        groups=[e.conversation or e.id for e, _ in pairs],
        learned=[e for e in data.learn_from if e.desirable][-MOST_LEARNED:],
        secrets=secrets,
        limits=Limits.of(job.gate),
        cache=Path(job.replay_dir),
        threads=job.threads,
        windows=general.QUICK_WINDOWS if live else general.ALL_WINDOWS,
        progress=progress,
    )
    prompts_to_verify = verifiable.prompts()
    return Proof(trial, prompts, prompts_to_verify[:QUICK_VERIFIABLE] if live else prompts_to_verify)


def check_baked(job: Job, delta: Adapter, held_out: Sequence[Encoded], llama_loss: float) -> dict[str, float]:
    """Compare the baked output with the base and the delta that it was baked from, on held-out answers.

    `llama_loss` is what llama.cpp gives the baked file, in nats per supervised token. Returns what was measured. Raises
    TrainingError if the file does not say what the delta says.
    """
    with GGUFFile.open(Path(job.base)) as file:
        decoder = Decoder(file)
        decoder.adapt(delta.kind, rank=_rank(delta), alpha=1.0, seed=0)
        decoder.load(delta)
        unbaked = _losses(decoder, held_out)
        del decoder
    with GGUFFile.open(Path(job.output)) as file:
        baked = _losses(Decoder(file), held_out)
    difference = (baked - unbaked).abs()
    found = {
        "baked_max_difference": difference.max().item(),
        "baked_mean_difference": difference.mean().item(),
        "baked_llama_difference": abs(baked.mean().item() - llama_loss),
    }
    limits = dict(zip(found, (MOST_ROUNDED, MOST_ROUNDED_MEAN, MOST_BETWEEN), strict=True))
    for name, value in found.items():
        if not value <= limits[name]:
            raise TrainingError(
                f"the baked file does not answer as what was trained: {name.replace('_', ' ')} is {value:.4f} nats, "
                f"at most {limits[name]} is roundings; nothing was changed, train again"
            )
    return found


def _losses(decoder: Decoder, held_out: Sequence[Encoded]) -> torch.Tensor:
    """Return the loss of each supervised token (S,), one example at a time."""
    with torch.no_grad():
        return torch.cat([sequence_nll(decoder, [(e.tokens, e.supervised_from)])[0] for e in held_out])


def _rank(delta: Adapter) -> int:
    return max((len(values.a) for values in delta.tensors.values() if isinstance(values, LowRank)), default=1)


def _behind(
    chat: ChatFormat, example: JobExample, plain: Encoded, messages: Sequence[Mapping[str, Any]], job: Job
) -> Encoded:
    """Return the answer behind another prompt, or as it is if that is too long."""
    try:
        return encode(chat, Example(example.id, messages, example.response), job.max_tokens)
    except TrainingError:
        return plain


def _profiled(example: JobExample, profile: str | None) -> list[Mapping[str, Any]]:
    """Return the messages with the profile as, or before, what the system says."""
    if profile is None:
        return list(example.messages)
    first, rest = _system(example.messages)
    said = f"{profile}\n\n{first['content']}" if first else profile
    return [{"role": "system", "content": said}, *rest]


def _after_shots(example: JobExample) -> list[Mapping[str, Any]]:
    """Return the messages with the retrieved exchanges before them."""
    first, rest = _system(example.messages)
    return [*([first] if first else []), *example.shots, *rest]


def _system(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """Return what the system says, and the rest."""
    if messages and messages[0].get("role") == "system":
        return messages[0], list(messages[1:])
    return None, list(messages)


def _secrets(chat: ChatFormat, tokenizer: Model, job: Job) -> list[Planted]:
    examples = [Example(e.id, e.messages, e.response) for e in job.train]
    return planted(chat, lambda text: tokenizer.tokenize(text, special=False), examples)
