"""Run: python -m pytest tests/adapt/test_adamw.py"""

from __future__ import annotations

import subprocess
import sys

import torch

from edgepd.adapt.adamw import AdamW


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4), (5,))]


def test_the_numbers_are_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, [1.0, 4.0], 0.1)
    groups = [{"params": [theirs[0]], "lr": 0.01}, {"params": [theirs[1]], "lr": 0.04}]
    reference = torch.optim.AdamW(groups, weight_decay=0.1)
    for _ in range(5):
        for set_of in (ours, theirs):
            sum((p.square() * 1.5 - p).sum() for p in set_of).backward()
        mine.step(0.01)
        reference.step()
        reference.zero_grad()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert all(p.grad is None for p in ours)


def test_what_has_no_gradient_stays() -> None:
    first, second = parameters()
    before = second.detach().clone()
    mine = AdamW([first, second], [1.0, 1.0], 0.1)
    first.sum().backward()
    mine.step(0.01)
    assert torch.equal(second, before)


def test_the_trainer_never_loads_the_compiler_of_torch() -> None:
    program = (
        "import sys; import edgepd.adapt.worker; import tests.adapt.test_adamw as tests;"
        "tests.test_what_has_no_gradient_stays(); print([m for m in sys.modules if m.startswith('torch._dynamo')][:3])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
