"""A sum over samples, as a loss is: what it stays one under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .table import called

_LINEAR = (
    "view reshape flatten unflatten ravel view_as reshape_as _unsafe_view mul multiply div divide true_divide add sub "
    "subtract rsub neg negative sum mean unsqueeze squeeze stack cat concat __getitem__ select to float double half "
    "bfloat16 type type_as clone contiguous detach expand real data __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ "
    "__truediv__ __div__ __neg__ __pos__ __iadd__ __isub__ __imul__ __itruediv__ __idiv__"
)
LINEAR = frozenset(_LINEAR.split())
QUOTIENTS = frozenset(["div", "divide", "true_divide", "__truediv__", "__itruediv__", "__div__", "__idiv__"])
PRODUCTS = QUOTIENTS | frozenset(["mul", "multiply", "__mul__", "__rmul__", "__imul__"])


def linear_in(func: Any, args: Sequence[Any], sums: Sequence[Tensor]) -> bool:
    """Whether a call is linear in sums over samples: of several factors one may train, and no divisor.

    Sums that do not train, as the number of valid tokens, are numbers of the batch whatever is done to them.
    """
    trained = [x for x in sums if x.requires_grad]
    if not trained and torch.is_grad_enabled():
        return True
    name = called(func)
    if name not in LINEAR:
        return False
    if name not in PRODUCTS:
        return True
    if len(trained) > 1:
        return False
    return name not in QUOTIENTS or not trained or (bool(args) and trained[0] is args[0])
