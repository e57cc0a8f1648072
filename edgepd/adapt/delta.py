"""What is learned: a few numbers that change a frozen weight, as LoRA (live) or in a form a quantised file can hold.

The idea: every kind turns the dequantised base weight into the changed one in place, so that a product costs one matrix
product whatever the kind, and forms its gradients by hand from the same two matrices. The invariant: a fresh delta
changes nothing, the gradients equal those of the dense formula, and what is exported means the same change (tested).
What this does not do: touch the quantised weight, multiply (see linear.py), decide where deltas go (see decoder.py), or
write files (see edgepd_quant).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from edgepd.adapt.linear import QuantLinear
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Kind, LowRank, Vector
from edgepd_quant.bake import HELD_BY
from edgepd_quant.types import BLOCK_SIZES

TILE_ELEMENTS: Final = 1 << 20  # of the dense gradient of kind scale: 4 MB
TINY_FACTOR: Final = 1e-3  # a weight multiplied by less than this is not divided by it again


class Delta(ABC):
    """A change of one frozen linear layer, with its trainable parameters (float32 leaves)."""

    kind: ClassVar[Kind]

    def __init__(self, base: QuantLinear, parameters: list[Tensor]) -> None:
        self.base = base
        self.parameters = [parameter.requires_grad_() for parameter in parameters]

    @property
    def name(self) -> str:
        """Name of the base tensor."""
        return self.base.name

    @abstractmethod
    def change_(self, weight: Tensor) -> None:
        """Turn the dequantised base weight (out, in) into the changed one, in place, outside of autograd."""

    @abstractmethod
    def gradients(self, x: Tensor, grad: Tensor, changed: Tensor) -> list[Tensor]:
        """Return the gradient of each parameter of y = x changed^T, given x (N, in) and grad (N, out) of y."""

    @abstractmethod
    def export(self) -> LowRank | Vector:
        """Copy the parameters out as numpy arrays, in the form of an adapter file."""

    @abstractmethod
    def load(self, values: LowRank | Vector, alpha: float | None = None) -> None:
        """Continue from what an adapter file with this alpha holds (0: no scaling; None: the alpha of `export_all`).

        Raises TrainingError if it does not fit.
        """


class _Factors(Delta):
    """A delta with factors a (r, n) and b (out, r); each number of a is used for `repeat` numbers in a file."""

    def __init__(
        self, base: QuantLinear, width: int, rank: int, generator: torch.Generator, *, repeat: int = 1
    ) -> None:
        bound = 1 / math.sqrt(width)  # Kaiming-uniform with slope sqrt(5), as in the LoRA reference code
        a = torch.empty(rank, width).uniform_(-bound, bound, generator=generator)
        super().__init__(base, [a, torch.zeros(base.out_features, rank)])
        self.rank = rank
        self._repeat = repeat

    @property
    def a(self) -> Tensor:
        """The factor on the side of the input, (r, n)."""
        return self.parameters[0]

    @property
    def b(self) -> Tensor:
        """The factor on the side of the output, (out, r)."""
        return self.parameters[1]

    def export(self) -> LowRank:
        return LowRank(np.repeat(self.a.detach().numpy(), self._repeat, 1), self.b.detach().numpy().copy())

    def load(self, values: LowRank | Vector, alpha: float | None = None) -> None:
        """Set the factors. Of a lower rank than this one, the rest stays fresh: random in a, zero in b."""
        if not isinstance(values, LowRank) or not self._fits(values):
            shapes = [values.a.shape, values.b.shape] if isinstance(values, LowRank) else [values.values.shape]
            raise TrainingError(
                f"the adapter's values for '{self.name}' have the shapes {shapes}, but {self.kind} of rank {self.rank}"
                f" continues from ({self.rank}, {self.a.shape[1] * self._repeat}) and ({self.base.out_features},"
                f" {self.rank}); set the rank it was trained with, or train afresh"
            )
        rank = values.a.shape[0]
        with torch.no_grad():
            self.a[:rank] = torch.from_numpy(values.a[:, :: self._repeat].copy())
            self.b[:, :rank] = torch.from_numpy(values.b * np.float32(self._scaling_ratio(rank, alpha)))
            self.b[:, rank:] = 0

    def _fits(self, values: LowRank) -> bool:
        rank, width = values.a.shape
        if rank > self.rank or values.b.shape != (len(self.b), rank) or width != self.a.shape[1] * self._repeat:
            return False
        return np.array_equal(np.repeat(values.a[:, :: self._repeat], self._repeat, 1), values.a)

    def _scaling_ratio(self, rank: int, alpha: float | None) -> float:
        """Return the scaling that a file of this rank and alpha asks for, over that of this delta."""
        del rank, alpha
        return 1.0


class LoRA(_Factors):
    """W' = W + s B A with A (r, in); s = alpha / r (arXiv 2106.09685) or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""

    kind = "lora"

    def __init__(
        self, base: QuantLinear, rank: int, alpha: float, generator: torch.Generator, *, rs_lora: bool = False
    ) -> None:
        """Raises TrainingError unless alpha is positive: for 0, llama.cpp would multiply by 1."""
        if alpha <= 0:
            raise TrainingError(f"alpha is {alpha}, but a LoRA needs a positive one; twice the rank is usual")
        super().__init__(base, base.in_features, rank, generator)
        self.scaling = alpha / math.sqrt(rank) if rs_lora else alpha / rank
        # What a file must say, as its reader divides by the rank.
        self.file_alpha = alpha * math.sqrt(rank) if rs_lora else alpha

    def change_(self, weight: Tensor) -> None:
        weight.addmm_(self.b.detach(), self.a.detach(), alpha=self.scaling)

    def gradients(self, x: Tensor, grad: Tensor, changed: Tensor) -> list[Tensor]:
        del changed  # W' enters neither gradient
        reduced = (grad @ self.b.detach()).mul_(self.scaling)  # (N, r)
        return [reduced.T @ x, (grad.T @ (x @ self.a.detach().T)).mul_(self.scaling)]

    def _scaling_ratio(self, rank: int, alpha: float | None) -> float:
        if alpha == 0:
            return 1 / self.scaling
        return (self.file_alpha if alpha is None else alpha) / rank / self.scaling


class _Blocks(_Factors):
    """Factors whose product g = B A, (out, blocks per row), is constant in each block of `block_size` weights.

    That is the format's own block (32 weights, 256 in K-quants) or a multiple of it.
    """

    def __init__(
        self, base: QuantLinear, rank: int, generator: torch.Generator, *, block_size: int | None = None
    ) -> None:
        """Raises TrainingError where the tensor's type cannot hold the change, or the size does not divide."""
        if base.qtype not in HELD_BY[self.kind]:
            lacking = {"scale": "block scales", "shift": "block minimum"}[self.kind]
            raise TrainingError(
                f"tensor '{base.name}' is {base.qtype.name}, which has no {lacking}; train kind 'lora' instead,"
                f" or use a model file of {', '.join(known.name for known in HELD_BY[self.kind])}"
            )
        own = BLOCK_SIZES[base.qtype].elements
        self.block_size = own if block_size is None else block_size
        if self.block_size <= 0 or self.block_size % own or base.in_features % self.block_size:
            raise TrainingError(
                f"blocks of {self.block_size} do not suit tensor '{base.name}': take a multiple of {own}, the block of"
                f" {base.qtype.name}, that divides its row of {base.in_features}"
            )
        super().__init__(base, base.in_features // self.block_size, rank, generator, repeat=self.block_size // own)

    def _in_blocks(self, matrix: Tensor) -> Tensor:
        """View (rows, in) as (rows, blocks, block_size)."""
        return matrix.view(len(matrix), -1, self.block_size)

    def _product(self) -> Tensor:
        return self.b.detach() @ self.a.detach()


class Scale(_Blocks):
    """W' = W * (1 + g): a blockwise HiRA (high-rank update by Hadamard product), held by the block scales."""

    kind = "scale"

    def change_(self, weight: Tensor) -> None:
        self._in_blocks(weight).mul_(self._product().add_(1).unsqueeze(-1))

    def gradients(self, x: Tensor, grad: Tensor, changed: Tensor) -> list[Tensor]:
        # The dense gradient lives for some rows at a time, until it is reduced to one number per block.
        factor = self._product().add_(1)
        of_blocks = torch.empty_like(factor)  # (out, blocks)
        rows, columns = changed.shape
        step = max(1, TILE_ELEMENTS // columns)
        scratch = torch.empty(min(step, rows), columns)
        for start in range(0, rows, step):
            part = slice(start, min(rows, start + step))
            dense = torch.mm(grad[:, part].T, x, out=scratch[: part.stop - start])
            of_blocks[part] = self._reduced(dense, changed[part], factor[part], start)
        return [self.b.detach().T @ of_blocks, of_blocks @ self.a.detach().T]

    def _reduced(self, dense: Tensor, changed: Tensor, factor: Tensor, start: int) -> Tensor:
        """Sum dense * W over each block; W is changed / factor, or decoded again where factor is next to 0."""
        tiny = factor.abs() < TINY_FACTOR
        index = tiny.any(1).nonzero().flatten()
        exact = self._in_blocks(dense[index] * self.base.rows(index + start)).sum(-1) if len(index) else None
        reduced = self._in_blocks(dense.mul_(changed)).sum(-1).div_(factor)
        if exact is not None:
            reduced[index] = torch.where(tiny[index], exact, reduced[index])
        return reduced


class Shift(_Blocks):
    """W' = W + g, held by the block's minimum; QA-LoRA, arXiv 2309.14717 (there on the sum of x over each block)."""

    kind = "shift"

    def change_(self, weight: Tensor) -> None:
        self._in_blocks(weight).add_(self._product().unsqueeze(-1))

    def gradients(self, x: Tensor, grad: Tensor, changed: Tensor) -> list[Tensor]:
        del changed  # W' enters neither gradient
        pooled = self._in_blocks(x).sum(-1)  # (N, blocks)
        return [(grad @ self.b.detach()).T @ pooled, grad.T @ (pooled @ self.a.detach().T)]

    def to_lora(self) -> LowRank:
        """Return the factors of the equal plain LoRA, whose a is (r, in) and whose alpha is the rank."""
        a = np.repeat(self.a.detach().numpy(), self.block_size, 1)
        return LowRank(a, self.b.detach().numpy().copy())


class RowGain(Delta):
    """W' = W * (1 + rho) with one rho for each row, held by all block scales of the row, or by unquantised values."""

    kind = "gain"

    def __init__(self, base: QuantLinear) -> None:
        """Raises TrainingError where the tensor's type cannot hold the change."""
        if base.qtype not in HELD_BY["gain"]:
            raise TrainingError(
                f"tensor '{base.name}' is {base.qtype.name}, into which no row gain can be baked;"
                " train kind 'lora' instead"
            )
        super().__init__(base, [torch.zeros(base.out_features)])

    @property
    def rho(self) -> Tensor:
        """The gains, (out,)."""
        return self.parameters[0]

    def change_(self, weight: Tensor) -> None:
        weight.mul_((1 + self.rho.detach()).unsqueeze(1))

    def gradients(self, x: Tensor, grad: Tensor, changed: Tensor) -> list[Tensor]:
        factor = 1 + self.rho.detach()
        reduced = torch.linalg.vecdot(grad, x @ changed.T, dim=0).div_(factor)
        index = (factor.abs() < TINY_FACTOR).nonzero().flatten()
        if len(index):
            reduced[index] = torch.linalg.vecdot(grad[:, index], x @ self.base.rows(index).T, dim=0)
        return [reduced]

    def export(self) -> Vector:
        return Vector(self.rho.detach().numpy().copy())

    def load(self, values: LowRank | Vector, alpha: float | None = None) -> None:
        del alpha
        _set_vector(self.name, self.rho, values)


class VectorDelta:
    """A trained change of an F32 vector: base * (1 + v) for norm gains, base + v for biases (which may be zero)."""

    kind: ClassVar[Kind] = "gain"

    def __init__(self, name: str, base: Tensor) -> None:
        self.name = name
        self._base = base
        self.parameters = [torch.zeros_like(base).requires_grad_()]

    def value(self) -> Tensor:
        """Return the changed vector, differentiable."""
        (v,) = self.parameters
        return self._base + v if self.name.endswith(".bias") else self._base * (1 + v)

    def export(self) -> Vector:
        """Copy the change out."""
        return Vector(self.parameters[0].detach().numpy().copy())

    def load(self, values: LowRank | Vector, alpha: float | None = None) -> None:
        """Continue from what an adapter file holds. Raises TrainingError if it does not fit."""
        del alpha
        _set_vector(self.name, self.parameters[0], values)


def _set_vector(name: str, parameter: Tensor, values: LowRank | Vector) -> None:
    if not isinstance(values, Vector) or values.values.shape != parameter.shape:
        found = values.values.shape if isinstance(values, Vector) else "of low rank"
        raise TrainingError(
            f"the adapter's gains for '{name}' are {found}, but {tuple(parameter.shape)} is needed; train afresh"
        )
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values.values))
