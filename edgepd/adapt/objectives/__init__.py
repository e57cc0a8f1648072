"""What is optimised: imitation, preference between answers, closeness to the base.

The idea: the training loop knows one interface (base.py), and the setting train.objective names what is behind it.
What this does not do: weigh examples by reward (edgepd.adapt.returns does, before they are encoded).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgepd.adapt.examples import Encoded
from edgepd.adapt.objectives.anchors import AnchorKL
from edgepd.adapt.objectives.base import Objective
from edgepd.adapt.objectives.imitation import SFT
from edgepd.adapt.objectives.pairs import DPO, SimPO
from edgepd.adapt.objectives.unpaired import KTO, APOZero
from edgepd.errors import TrainingError

__all__ = ["DPO", "KTO", "SFT", "APOZero", "AnchorKL", "Objective", "SimPO", "objective"]


def objective(
    name: str, *, sft_weight: float = 1.0, anchors: Sequence[Encoded] = (), kl_weight: float = 0.0
) -> Objective:
    """Return the objective of this name, as the setting train.objective has it.

    `sft_weight` is how much imitation of the chosen answer 'dpo' and 'simpo' add. With `kl_weight` above zero the
    divergence from the base on the anchors is added, which there must be. Raises TrainingError for an unknown name.
    """
    known: dict[str, Callable[[], Objective]] = {
        "sft": SFT,
        "reward": SFT,
        "dpo": lambda: DPO(sft_weight=sft_weight),
        "kto": KTO,
        "apo-zero": APOZero,
        "simpo": lambda: SimPO(sft_weight=sft_weight),
    }
    if name not in known:
        raise TrainingError(f"objective '{name}' is not known; use one of {', '.join(known)}")
    found = known[name]()
    return AnchorKL(found, anchors, kl_weight) if kl_weight > 0 else found
