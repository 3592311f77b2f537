"""nn.Embedding: rows of the same token add up before they are squared.

Tokens of a sample are sorted, equal neighbours share a slot, output gradients are added into slots: static shapes,
O(N T d), and nothing of the size of the table. Positions at padding_idx are left out. An unbatched lookup, such as
a positional table read with arange(T), is expanded to the batch, so that its output gradient has samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..uses import lookup_squares
from .base import Rule, UnsupportedError, Watcher, arrange, tap
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
        unbatched = watcher.session.batch_dim == 0 and n is not None and ids.ndim <= 2 and ids.shape[:1] != (n,)
        if unbatched and (ids.ndim == 1 or ids.shape[0] == 1) and not watcher.session.rows_allowed:
            ids = ids.reshape(1, -1).expand(n, -1)
            y = y.reshape(1, *y.shape[-2:]).expand(n, -1, -1)
        elif ids.ndim == 1 and watcher.session.square:
            raise UnsupportedError(
                f"{watcher.name}: {n} ids in one dimension may be one a sample or {n} positions shared by all samples, "
                f"as an input of the model is {n} long along another dimension, too. Give the ids a batch dimension "
                "(positions (1, T)), change the batch size, or leave this layer uncompiled."
            )
        padding = module.padding_idx
        scale = watcher.scale("weight")
        plan = watcher.plan(ids, 0)

        def measure(b: Tensor, ids: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
            tokens, gradients = arrange(ids, plan, 0), arrange(b, plan, 1)
            if padding is not None:
                gradients = gradients.masked_fill((tokens == padding).unsqueeze(-1), 0.0)
            return {"weight": lookup_squares(gradients, tokens, scale)}

        if watcher.partner is None:
            return tap(watcher, y, measure, ids, scale)
        return lead(watcher, y, measure, ids, scale, padding)
