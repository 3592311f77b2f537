"""nn.Embedding: rows of the same token add up before they are squared.

Tokens of a sample are sorted, equal neighbours share a slot, output gradients are added into slots: static shapes,
O(N T d), and nothing of the size of the table. Positions at padding_idx are left out. An unbatched lookup, such as
a positional table read with arange(T), is expanded to the batch, so that its output gradient has samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .base import Contribution, Rule, UnsupportedError, Watcher, arrange, tap


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
                f"{watcher.name}: {n} token ids in one dimension may be one a sample or {n} positions shared by all "
                f"samples, as the model's input is {n} × {n}. Give the ids a batch dimension or change the batch size."
            )
        padding = module.padding_idx
        scale = watcher.scale("weight")
        plan = watcher.plan(ids, 0)

        def measure(b: Tensor, ids: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
            return {"weight": squares(arrange(b, plan, 1), arrange(ids, plan, 0), padding, scale)}

        def keep(b: Tensor, ids: Tensor, scale: Tensor | None) -> Contribution:
            tokens, gradients = arrange(ids, plan, 0), arrange(b, plan, 1)
            if padding is not None:
                gradients = gradients.masked_fill((tokens == padding).unsqueeze(-1), 0.0)

            def per_sample(start: int, stop: int) -> Iterator[tuple[str, Tensor]]:
                part = gradients[start:stop].float() if gradients.dtype != torch.float64 else gradients[start:stop]
                table = part.new_zeros(stop - start, module.num_embeddings, part.shape[-1])
                where = tokens[start:stop].unsqueeze(-1).expand_as(part)
                yield "weight", table.scatter_add_(1, where, part)

            return Contribution(tokens.shape[0], per_sample, {"weight": ("embedding", tokens, gradients)})

        return tap(watcher, y, measure, keep, ids, scale)


def squares(b: Tensor, tokens: Tensor, padding: int | None, scale: Tensor | None) -> Tensor:
    """Σ_n ‖per-sample gradient of the table‖², b (N, T, d), tokens (N, T); a 0-dim float64 tensor."""
    wide = b if b.dtype == torch.float64 else b.float()
    if padding is not None:
        wide = wide.masked_fill((tokens == padding).unsqueeze(-1), 0.0)
    if scale is not None:
        wide = wide * scale[tokens]
    if tokens.shape[1] > 1:
        ordered, order = tokens.sort(dim=1)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        # Slots count on through the samples, so that no two samples share one.
        slots = new.flatten().cumsum(0) - 1
        rows = wide.gather(1, order.unsqueeze(-1).expand_as(wide)).flatten(0, 1)
        wide = torch.zeros_like(rows).index_add(0, slots, rows)
    return torch.linalg.vector_norm(wide.flatten(0, -2), dim=1).double().square().sum()
