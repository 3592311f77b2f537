"""Networks as people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sdsd.gamma.following import Track

D, H = 8, 2


class SelfAttention(nn.Module):
    def __init__(self, fused: bool, causal: bool = True) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fused, self.causal = fused, causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, H, d // H).transpose(1, 2) for y in self.qkv(x).split(d, dim=2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = (q @ k.transpose(-2, -1)) * (d // H) ** -0.5
            if self.causal:
                mask = torch.tril(torch.ones(t, t)).view(1, 1, t, t)
                scores = scores.masked_fill(mask == 0, float("-inf"))
            y = F.dropout(F.softmax(scores, dim=-1), 0.1) @ v
        return self.out(y.transpose(1, 2).contiguous().view(b, t, d))


def modules(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


def given(spec: str, n: int, t: int) -> tuple[Tensor, Track]:
    if spec == "ids":
        return torch.randint(0, 5, (n, t)), Track(0)
    letters = spec.split()
    sizes = {"N": n, "T": t, "D": D}
    shape = [sizes[x] if x in sizes else int(x) for x in letters]
    return torch.randn(shape), Track(letters.index("N"))


SIZES = [(3, 5), (4, 4), (1, 4)]
