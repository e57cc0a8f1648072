"""Data grouping: which general examples lie near the user's ("Personalization of Deep Learning", Algorithm 1).

The idea: place every example in a latent space, either the model's own (the mean of its last hidden states) or the 16
dimensions of a small autoencoder as in the paper, and add the nearest general examples to the user's few. Invariants:
no general example is added twice, and equal arguments on equal threads give an equal choice.
What this does not do: compare classes, which an open conversation does not have, or keep the general examples that it
chose out of D_G. Where the paper leaves something open, docs/shaping.md says what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgepd.adapt.batches import micro_batches
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.errors import ConfigError, TrainingError

LATENT = 16  # dimensions of the paper's autoencoder (section IV)
HIDDEN = 128  # width between the input and the latent code
EPOCHS, BATCH = 20, 128  # of the autoencoder (section IV)
# The paper has 30,000 samples, so 20 epochs are 4,700 steps; a few dozen need more passes to get anywhere.
LEAST_STEPS = 200
# Of D_G that may be added. The paper's larger choice, 22 % of D_G, is already worse than its smaller one, 5 %.
LARGEST_SHARE = 0.25


def grouped(
    grouping: str,
    distance: str,
    decoder: Decoder,
    personal: Sequence[Encoded],
    general: Sequence[Encoded],
    *,
    seed: int,
    per_example: int = 1,
) -> list[Encoded]:
    """Return the general examples that settings train.grouping and train.group_distance add to the user's.

    They are at most `per_example` for each personal example and at most LARGEST_SHARE of `general`, nearest first.
    Raises ConfigError for an unknown word.
    """
    if grouping not in ("none", "sg", "ig"):
        raise ConfigError(f"grouping is '{grouping}', but must be one of none, sg, ig")
    if distance not in ("embedding", "autoencoder"):
        raise ConfigError(f"group_distance is '{distance}', but must be embedding or autoencoder")
    if grouping == "none" or not general or not personal:
        return []
    embedded = embed(decoder, [*personal, *general])
    own, others = embedded[: len(personal)], embedded[len(personal) :]
    if distance == "autoencoder" and len(general) > 1:  # one sample has no latent space
        encoder = Autoencoder(others, seed=seed)
        own, others = encoder.encode(own), encoder.encode(others)
    limit = min(per_example * len(personal), max(1, int(LARGEST_SHARE * len(general))))
    if grouping == "sg":
        chosen = single_sample_grouping(own, others, per_example, limit=limit)
    else:
        chosen = individual_grouping(own, [row.unsqueeze(0) for row in others], limit)
    return [general[i] for i in chosen]


def embed(decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = 512) -> Tensor:
    """Return (n, C) float32: the base's last hidden states, after the output norm, averaged over each answer's tokens.

    The answer's states have read the prompt. Those of the prompt are left out, since most of what a chat template puts
    there is the same for all. Computed in micro-batches of at most `micro_tokens` padded tokens.
    """
    found: dict[Encoded, Tensor] = {}
    with decoder.base(), torch.no_grad():
        for micro in micro_batches(examples, micro_tokens):
            states = decoder.output_norm(decoder.hidden([example.tokens for example in micro]))  # (B * T, C)
            for example, row in zip(micro, states.view(len(micro), -1, states.shape[-1]), strict=True):
                found[example] = row[example.supervised_from : len(example.tokens)].mean(0)
    return torch.stack([found[example] for example in examples])


def single_sample_grouping(personal: Tensor, general: Tensor, count: int, *, limit: int | None = None) -> list[int]:
    """SG (Algorithm 1, lines 11 to 15): return the rows of general (m, d) that are added to personal (n, d).

    Each personal sample in turn takes the `count` nearest general ones, by Euclidean distance, that none before it
    took; equally near ones are taken in order. With `limit`, only so many of all that were taken are kept. Nearest
    first.
    """
    distances = _distances(personal, general)  # (n, m)
    taken: dict[int, float] = {}
    for row in distances:
        free = [i for i in row.argsort(stable=True).tolist() if i not in taken]
        taken |= {i: row[i].item() for i in free[:count]}
    nearest = sorted(taken, key=lambda i: (taken[i], i))
    return nearest if limit is None else nearest[:limit]


def individual_grouping(personal: Tensor, individuals: Sequence[Tensor], count: int) -> list[int]:
    """IG (Algorithm 1, lines 16 to 20): return which `count` of the individuals are nearest to the person.

    personal (n, d) and each of individuals (n_i, d) are one person's samples; persons are compared by their means,
    since there is one class only. A general example whose writer is not known is an individual with one sample.
    Nearest first, equally near ones in order.
    """
    means = torch.stack([samples.mean(0) for samples in individuals])
    return _distances(personal.mean(0, keepdim=True), means)[0].argsort(stable=True)[:count].tolist()


class Autoencoder:
    """The paper's autoencoder with dense layers instead of convolutions: d -> HIDDEN -> LATENT -> HIDDEN -> d.

    As in the paper ReLU and batch normalisation follow each layer but the code and the output, the loss is the squared
    error and the optimiser is Adam; its learning rate is not printed and is PyTorch's default.
    """

    def __init__(self, samples: Tensor, *, seed: int) -> None:
        """Train on samples (m, d), m >= 2, in EPOCHS epochs and at least LEAST_STEPS steps.

        Features are standardised first, since hidden states have a few that outweigh all others. The global random
        state is left alone. Raises TrainingError with fewer than two samples.
        """
        if len(samples) < 2:
            raise TrainingError(f"an autoencoder needs at least 2 general examples, not {len(samples)}")
        self._mean = samples.mean(0)
        self._deviation = samples.std(0).clamp_min(1e-6)
        width = samples.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self._encoder = nn.Sequential(*_layer(width, HIDDEN), nn.Linear(HIDDEN, LATENT))
            self._decoder = nn.Sequential(*_layer(LATENT, HIDDEN), nn.Linear(HIDDEN, width))
        self._train(self._standardised(samples), torch.Generator().manual_seed(seed % 2**63))
        self._encoder.eval()
        self._decoder.eval()

    def encode(self, samples: Tensor) -> Tensor:
        """Return the latent codes (n, LATENT) of samples (n, d)."""
        with torch.no_grad():
            codes: Tensor = self._encoder(self._standardised(samples))
        return codes

    def reconstruct(self, samples: Tensor) -> Tensor:
        """Return what is left of samples (n, d) after encoding and decoding, (n, d)."""
        with torch.no_grad():
            decoded: Tensor = self._decoder(self._encoder(self._standardised(samples)))
        return decoded * self._deviation + self._mean

    def _standardised(self, samples: Tensor) -> Tensor:
        return (samples - self._mean) / self._deviation

    def _train(self, samples: Tensor, generator: torch.Generator) -> None:
        optimizer = torch.optim.Adam([*self._encoder.parameters(), *self._decoder.parameters()], fused=True)
        # Batches of at least two, which batch normalisation needs.
        batches = max(1, min(-(-len(samples) // BATCH), len(samples) // 2))
        with torch.enable_grad():
            for _ in range(max(EPOCHS, -(-LEAST_STEPS // batches))):
                for part in torch.randperm(len(samples), generator=generator).tensor_split(batches):
                    wanted = samples[part]
                    loss = (self._decoder(self._encoder(wanted)) - wanted).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs)]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m), by differences: via a product they would be wrong for points that lie close."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
