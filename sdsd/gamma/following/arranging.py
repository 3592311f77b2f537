"""A tensor arranged by sample."""

from __future__ import annotations

from torch import Tensor

from .tracks import Track


def arrange(x: Tensor, track: Track, n: int, features: int) -> Tensor:
    """`x` as (N, T, *last `features` dims): row n holds every entry of sample n. A view where possible.

    With the sample dimension among the last `features` ones there is no such arrangement: ValueError.
    """
    leading = x.dim() - features
    if not 0 <= track.axis < leading:
        raise ValueError(
            f"expected the samples of a tensor of shape {tuple(x.shape)} before its last {features} dimensions, "
            f"got them along dimension {track.axis}; such a use cannot be arranged by sample"
        )
    if leading <= 2 and track == (0, 1, 1):
        return x if leading == 2 else x.unsqueeze(1)
    tail = x.shape[leading:]
    if track.outer == track.inner == 1:
        x = x.movedim(track.axis, 0)
    else:
        x = x.unflatten(track.axis, (track.outer, n, track.inner)).movedim(track.axis + 1, 0)
    return x.reshape(n, x.shape[1 : x.dim() - features].numel(), *tail)
