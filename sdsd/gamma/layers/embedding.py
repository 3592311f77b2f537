"""nn.Embedding: rows of the same token add up before they are squared.

Tokens of a sample are sorted, equal neighbours share a slot, output gradients are added into slots: static shapes,
O(N T d), and nothing of the size of the table. Positions at padding_idx are left out. An unbatched lookup, such as
a positional table read with arange(T), is expanded to the batch, so that its output gradient has samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..uses import lookup_squares
from .base import NO_SAMPLE, WHAT_TO_DO, Measures, Rule, UnsupportedError, Watcher, arrange, tap, waves
from .tied import lead


class EmbeddingRule(Rule):
    name = "embedding"

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        ids = args[0] if args else kwargs["input"]
        y = plain(*args, **kwargs)
        if not module.weight.requires_grad:
            return y
        n = watcher.session.batch
        samples, reason = watcher.lying(ids)
        if samples is None and reason == NO_SAMPLE and (ids.ndim == 1 or (ids.ndim == 2 and ids.shape[0] == 1)):
            # Positions, the same for all samples.
            ids = ids.reshape(1, -1).expand(n, -1)
            y = y.reshape(1, *y.shape[-2:]).expand(n, -1, -1)
            samples = watcher.expanded()
        elif samples is None and reason == NO_SAMPLE and ids.ndim == 2 and ids.shape[0] == n:
            # Constants, expanded already; that each row meets its own sample is looked at when the model has run.
            samples = watcher.expanded()
        elif samples is None:
            raise UnsupportedError(f"{watcher.name}: {reason}. {WHAT_TO_DO}")
        padding = module.padding_idx
        scale = watcher.scale("weight")

        def measure(b: Tensor, ids: Tensor, scale: Tensor | None) -> Measures:
            tokens, gradients = arrange(ids, samples, 0), arrange(b, samples, 1)
            if padding is not None:
                gradients = gradients.masked_fill((tokens == padding).unsqueeze(-1), 0.0)
            wide = gradients if gradients.dtype == torch.float64 else gradients.float()
            columns = waves(torch.arange(wide.shape[-1], device=wide.device)).to(wide.dtype)
            sums = ((wide * columns).sum(-1) * waves(tokens).to(wide.dtype)).sum()
            return {"weight": (lookup_squares(gradients, tokens, scale), sums)}

        if watcher.partner is None:
            return tap(watcher, y, measure, ids, scale)
        return lead(watcher, y, measure, ids, scale, padding)
