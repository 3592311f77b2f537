"""Squares of what several uses of one parameter add up to, which are not those of the uses."""

from __future__ import annotations

import torch
from torch import Tensor

from sdsd_kernels import weight_grad_stats

from .pieces import PART_BYTES, SAFE, Piece, Squared, chunks, lookup_squares, sum_of_squares, wide


def combine(pieces: list[Piece], scale: Tensor | None, max_bytes: int) -> Squared:
    """Σ_n ‖Σ_uses g_n‖²: squares of the sum over uses, which do not add."""
    if len(pieces) == 1:
        return pieces[0].squares(scale, max_bytes)
    combined = _from_factors(pieces, max_bytes) if scale is None else None
    if combined is not None:
        return combined
    total: Tensor | None = None
    for start, stop in chunks(pieces[0].n, max(piece.bytes_each for piece in pieces), max_bytes):
        together = pieces[0].each(start, stop)
        for piece in pieces[1:]:
            together = together + piece.each(start, stop)
        part = sum_of_squares(together, scale)
        total = part if total is None else total + part
    assert total is not None
    return total


def _from_factors(pieces: list[Piece], max_bytes: int) -> Tensor | None:
    """Squares of sums of outer products, without forming them; None where some use is not one."""
    factors = [piece.factors for piece in pieces if piece.factors is not None]
    if len(factors) < len(pieces):
        return None
    linear = [(a, b) for kind, a, b in factors if kind == "linear"]
    lookups = [(tokens, g) for kind, tokens, g in factors if kind == "embedding"]
    total: Tensor = torch.zeros((), dtype=torch.float64, device=factors[0][2].device)
    alone = [piece.alone for piece in pieces if piece.alone is not None]
    if len(linear) == 1 and alone:
        ((a, b),) = linear
        total = total + alone[0]
    elif linear:
        if len({x.dtype for pair in linear for x in pair}) > 1:
            return None
        a, b = map(_side_by_side, zip(*linear, strict=True))
        if a.shape[1]:
            total = total + weight_grad_stats(a, b, weight_grad=False).square_norm
    if lookups:
        tokens, g = map(_side_by_side, zip(*lookups, strict=True))
        total = total + lookup_squares(g, tokens, None)
    if linear and lookups:
        # ⟨Σ_t b_t a_tᵀ, Σ_s e_token(s) g_sᵀ⟩ = Σ_s Σ_t (g_s·a_t) b_t[token(s)]
        each = a.shape[1] * tokens.shape[1] * 8 * 2
        tiny_or_huge = a.is_cpu and not SAFE[0] < total.item() < SAFE[1]
        for start, stop in chunks(a.shape[0], each, min(max_bytes, PART_BYTES) if a.is_cpu else max_bytes):
            left, right = wide(g[start:stop]), wide(a[start:stop])
            left = left.double() if tiny_or_huge else left
            products = torch.bmm(left, right.to(left.dtype).transpose(1, 2))
            columns = tokens[start:stop].unsqueeze(1).expand(-1, b.shape[1], -1)
            picked = wide(b[start:stop].gather(2, columns)).transpose(1, 2)
            total = total + 2 * (products * picked).sum(dtype=torch.float64)
    return total


def _side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    """Positions (N, T, …) of several uses; one use's as they are, not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
