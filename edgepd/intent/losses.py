"""The losses of PITuning, each a mean over the places that have a target.

Logits are (N, intents) and targets (N,) in [0, intents); a class that cannot be given has the logit -inf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of (1 - p)^gamma * -log p of the right class; arXiv 1708.02002, eq. 5 without alpha."""
    loss = cross_entropy(logits, target, reduction="none")
    return ((1 - (-loss).exp()) ** gamma * loss).mean()


def distillation(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float) -> Tensor:
    """Return alpha * KL(teacher || student) at a temperature + (1 - alpha) * cross-entropy; PITuning, eq. 6 and 7.

    The paper writes the divergence of logits, with the student first; it is that of the distributions, the teacher's as
    the reference, as in the work it cites (arXiv 1503.02531), whose factor temperature^2 keeps the gradients in scale.
    """
    soft = kept_divergence(teacher / temperature, student / temperature) * temperature**2
    return alpha * soft + (1 - alpha) * cross_entropy(student, target)


def kept_divergence(reference: Tensor, logits: Tensor, classes: Tensor | None = None) -> Tensor:
    """Return the mean KL(reference || logits) in nats, over `classes` (bool) alone if they are given."""
    if classes is not None:
        reference, logits = reference[:, classes], logits[:, classes]
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    difference = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return difference.sum(-1).mean()


def bounded_unlearning(logits: Tensor, target: Tensor, forget: Tensor, original: Tensor, weight: float) -> Tensor:
    """Return weight * (loss on what is retained) - (loss on what is forgotten), bounded; PITuning, eq. 11.

    `forget` (intents,) marks the classes to forget, `original` are the logits of the model as it was. -CE has no lower
    bound in the paper; here a place stops counting when its loss is that of chance, log(intents). What is retained is
    both its labels (eq. 11) and, as the paper's text says, the original's outputs among the retained classes.
    """
    gone = forget[target]
    chance = math.log(logits.shape[-1])
    loss = cross_entropy(logits, target, reduction="none")
    forgotten = loss[gone].clamp(max=chance).mean() if bool(gone.any()) else loss.new_zeros(())
    if bool(gone.all()):
        return -forgotten
    retained = loss[~gone].mean() + kept_divergence(original[~gone], logits[~gone], ~forget)
    return weight * retained - forgotten
