"""Uses whose gradients and squares come out of one kernel: no piece is formed, squares go into a tensor of the pass.

A kernel that finds the gradient of a weight finds the squares of the samples' gradients beside it. It writes them into
the parameter's row of `Pass.norms`, and `GammaMonitor.step` adds up all rows at once, so a use costs no launch but the
kernel's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdsd_kernels import default_backend

from .operand import executes
from .use import Use

SERVED = (torch.float32, torch.float16, torch.bfloat16)


def served(x: Tensor) -> bool:
    """Whether kernels take tensors such as `x`."""
    return x.dtype in SERVED and default_backend(x.device) == "triton"


def rows_of(use: Use) -> list[int] | None:
    """The row of each operand's squares; None where they have to wait for other uses, or for a preconditioner."""
    ledger = use.mode.ledger
    rows = []
    for operand in use.operands:
        leaves = operand.leaves
        if len(leaves) != 1 or ledger.shared(leaves[0]) or not executes(leaves[0].node):
            return None
        name = leaves[0].name
        if ledger.scale(name) is not None:
            return None
        rows.append(ledger.rows[name])
    return rows
