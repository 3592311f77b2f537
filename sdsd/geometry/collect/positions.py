"""Whether flattened rows of samples and positions have samples or positions first, told from what made them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy"}
REORDERS = {"index", "index_select", "gather", "take", "flip", "roll", "sort", "scatter", "scatter_add", "index_put"}


class Positions(TorchDispatchMode):
    """While it is on, notes of every tensor with a row for each position of each sample which of them come first.

    Args:
        samples, positions: of the batch, other numbers than each other.
    """

    def __init__(self, samples: int, positions: int) -> None:
        super().__init__()
        self.first = {samples: False, positions: True}  # size of a dimension in front → whether positions come first
        self.rows = samples * positions
        self.turned: Any = WeakIdKeyDictionary()  # tensor → whether positions come first

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, Tensor) and made.ndim <= 2 and self.rows in made.shape and made not in self.turned:
                turned = self._of(name, args)
                if turned is not None:
                    self.turned[made] = turned
        return result

    def _of(self, name: str, args: Any) -> bool | None:
        if name in REORDERS:
            return None
        given = [part for each in args for part in (each if isinstance(each, (tuple, list)) else (each,))]
        sources = [each for each in given if isinstance(each, Tensor)]
        if name in RESHAPES and sources[0] not in self.turned:
            return self.first.get(next((size for size in sources[0].shape if size != 1), 0))
        known = {self.turned[each] for each in sources if each in self.turned}
        return known.pop() if len(known) == 1 else None


def told_apart(kept: Tensor) -> bool:
    """Whether it matters for a mask (samples, positions) which come first."""
    return kept.ndim == 2 and not torch.equal(kept.flatten(), kept.T.flatten())
