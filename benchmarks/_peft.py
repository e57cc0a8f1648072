"""The peer of `make bench-training`: PEFT and transformers, in a process and an environment of their own.

`python benchmarks/_peft.py` reads a specification from its input (see `_trainers.py`) and prints what `_steps.py`
recorded. It is written as PEFT's own documentation does it: the GGUF goes through transformers' `gguf_file`, LoRA on
all linears of the blocks, labels of -100 where there is nothing to learn, logits at all positions. It gets token ids,
batches and learning rates from outside, so that nothing but the trainers differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _steps import Steps
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100  # the label that the loss of transformers leaves out
EVALUATED_TOGETHER = 4  # sequences


def main() -> None:
    """Train and print the result."""
    spec = json.load(sys.stdin)
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    model = load(spec)
    held_out = spec["held_out"]
    steps = Steps(spec["started"], lambda: held_out_loss(model, held_out), spec["eval_every"], len(spec["batches"]))
    train(model, spec, steps)
    result = steps.result()
    if held_out:
        with model.disable_adapter():
            result["base_held_out"] = held_out_loss(model, held_out)
    print(json.dumps(result))


def load(spec: dict[str, Any]) -> PeftModel:
    """Open the GGUF and put the adapter on it."""
    file = Path(spec["model"])
    # bf16 would be 5 to 9 times slower on a CPU without instructions for it.
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    base.config.use_cache = False
    if spec["gradient_checkpointing"]:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    adapter = LoraConfig(
        r=spec["rank"], lora_alpha=spec["alpha"], target_modules=LINEARS, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, adapter)


def train(model: PeftModel, spec: dict[str, Any], steps: Steps) -> None:
    """Make one optimiser step for each batch, at the learning rate given for it."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec["rates"][0], weight_decay=spec["weight_decay"], fused=True)
    for indices, rate in zip(spec["batches"], spec["rates"], strict=True):
        examples = [spec["train"][index] for index in indices]
        steps.forward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**padded(examples)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        steps.step(loss.item(), sum(len(example["tokens"]) for example in examples))


def held_out_loss(model: PeftModel, examples: Sequence[dict[str, Any]]) -> float:
    """Return nats per supervised token."""
    training = model.training
    model.eval()
    ordered = sorted(examples, key=lambda example: len(example["tokens"]))
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ordered), EVALUATED_TOGETHER):
            group = ordered[start : start + EVALUATED_TOGETHER]
            supervised = sum(len(example["tokens"]) - example["supervised_from"] for example in group)
            total += model(**padded(group)).loss.item() * supervised
            count += supervised
    model.train(training)
    return total / count


def padded(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest, as transformers' collator does."""
    longest = max(len(example["tokens"]) for example in examples)
    shape = (len(examples), longest)
    tokens, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        length, first = len(example["tokens"]), example["supervised_from"]
        tokens[row, :length] = torch.tensor(example["tokens"])
        mask[row, :length] = 1
        labels[row, first:length] = tokens[row, first:length]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    main()
