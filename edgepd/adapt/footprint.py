"""What a training run costs: bytes of memory and floating-point operations, from shapes alone.

The idea: count what the code keeps, tensor by tensor, in the terms of the architecture; nothing here is measured but
the memory of the process before it starts. The invariant: the same run has the same footprint on every machine.
What this does not do: choose (see planner.py), or know how fast the machine is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgepd.adapt.allocator import Allocator
from edgepd.adapt.architecture import Architecture, layer_shapes, linear_groups
from edgepd.adapt.linear import RESIDENT_TYPES, Residency
from edgepd.adapt.loss import TILE_ROWS
from edgepd_quant.reader import GGUFFile

FLOAT = 4  # bytes
# Copies of the trained parameters: themselves, gradients, two moments of Adam, the best state, and the flat vector that
# they are set from.
PARAMETER_COPIES = 6
# What the allocator holds beyond what is counted here: holes, and pieces too small to be given back. Measured; what is
# counted here never exists all at once, which makes up for the pieces of the thrifty one.
ALLOCATOR_SLACK: dict[Allocator, float] = {"thrifty": 0.0, "fast": 0.22}
# Code of torch and of the BLAS that is mapped with the first products, and the buffers that they pack matrices into.
BLAS_BYTES = 45 << 20


@dataclass(frozen=True)
class Shapes:
    """Sizes of the model that the sums below are made of; counts of elements."""

    arch: Architecture
    groups: tuple[int, ...]  # weights in each of the four products of a layer
    mapped: int  # bytes of the largest tensors that are mapped at the same time

    @classmethod
    def of(cls, model: GGUFFile, arch: Architecture) -> Shapes:
        """Read them from the header."""
        shapes = layer_shapes(arch, 0)
        groups = tuple(sum(math.prod(shapes[name]) for name in names) for names in linear_groups(arch, 0))
        sizes = [model.tensors[name].nbytes for name in shapes]
        head = "output.weight" if "output.weight" in model.tensors else "token_embd.weight"
        return cls(arch, groups, max(sizes) + model.tensors[head].nbytes)

    @property
    def layer_weights(self) -> int:
        """Weights in the products of one layer."""
        return sum(self.groups)

    @property
    def head_weights(self) -> int:
        """Weights of the output matrix."""
        return self.arch.vocabulary * self.arch.hidden


@dataclass(frozen=True)
class Load:
    """The largest micro-batch of a run, and what else decides how much memory it takes."""

    tokens: int  # rows x longest sequence
    supervised: int  # positions whose likelihood is wanted
    parameters: int  # trained numbers
    cached_tokens: int = 0  # whose hidden states are kept for frozen lower layers


def kept_floats(arch: Architecture) -> int:
    """Floats that one token keeps in one layer that remembers its activations."""
    heads, kv = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    attention = arch.hidden + (heads + 2 * kv) + heads + arch.heads  # input, rotated q/k and v, mixed values, logsumexp
    # The norms of q and k keep what goes into them as views, and with these all of the product.
    attention += heads + 2 * kv if arch.qk_norm else 0
    mlp = arch.hidden + 2 * arch.feed_forward
    return attention + mlp + (2 * arch.hidden if arch.post_norms else 0)


def passing_floats(arch: Architecture) -> int:
    """Floats per token that exist for a moment in the backward pass of a layer's MLP, the widest place."""
    return 4 * arch.feed_forward + 3 * arch.hidden


def peak_bytes(
    shapes: Shapes, load: Load, *, residency: Residency, kept_layers: int, trained_layers: int, allocator: Allocator
) -> int:
    """Return how much a training step adds to the resident memory of the process at its peak."""
    arch = shapes.arch
    recomputed = max(0, trained_layers - kept_layers)
    kept = trained_layers - recomputed
    per_token = kept * kept_floats(arch) + recomputed * arch.hidden + passing_floats(arch) + 2 * arch.hidden
    if recomputed:
        per_token += kept_floats(arch)  # the one that is being recomputed
    scratch = shapes.layer_weights if recomputed else max(shapes.groups)
    tile = min(TILE_ROWS, arch.vocabulary)
    head = tile * arch.hidden + load.supervised * (3 * tile + 4 * arch.hidden)
    floats = load.tokens * per_token + scratch + PARAMETER_COPIES * load.parameters + head
    resident = 0
    if residency != "stream":
        resident = shapes.layer_weights * arch.layers * RESIDENT_TYPES[residency].itemsize
    cache = 2 * load.cached_tokens * arch.hidden
    passing = int(floats * FLOAT * (1 + ALLOCATOR_SLACK[allocator]))
    return passing + resident + cache + BLAS_BYTES + shapes.mapped


def step_flops(
    shapes: Shapes,
    tokens: int,
    supervised: int,
    length: float,
    *,
    kept_layers: int,
    trained_layers: int,
    dense_gradient: bool,
) -> float:
    """Return the floating-point operations of a forward and backward pass over `tokens` tokens.

    Products forward and backward are 2 operations per weight and token each (there is no gradient of frozen weights,
    except for the dense one that 'scale' and 'gain' reduce at once); recomputation repeats the forward pass but for its
    last product; `length` is the mean length of a sequence, for attention.
    """
    arch = shapes.arch
    recomputed = max(0, trained_layers - kept_layers)
    attention = 2 * length * arch.heads * arch.head_dim  # causal: half of 4 T d
    forward = 2 * shapes.layer_weights + attention
    backward = forward + attention + (2 * shapes.layer_weights if dense_gradient else 0)
    again = 2 * (shapes.layer_weights - shapes.groups[-1]) + attention
    layers = arch.layers * forward + trained_layers * backward + recomputed * again
    return tokens * layers + supervised * 4 * shapes.head_weights
