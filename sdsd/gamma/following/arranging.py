"""A tensor arranged by sample."""

from __future__ import annotations

from torch import Tensor

from .tracks import Track


def arrange(x: Tensor, track: Track, n: int, features: int) -> Tensor:
    """`x` as (N, T, *last `features` dims): row n holds every entry of sample n. A view where possible.

    Of samples without positions (sequences of length zero) it is one position of zeros, which adds nothing to any sum.
    With the sample dimension among the last `features` ones there is no such arrangement: ValueError.
    """
    leading = x.dim() - features
    if not 0 <= track.axis < leading:
        raise ValueError(
            f"expected the samples of a tensor of shape {tuple(x.shape)} before its last {features} dimensions, "
            f"got them along dimension {track.axis}; such a use cannot be arranged by sample"
        )
    tail = x.shape[leading:]
    if 0 in x.shape[:leading] and n:
        return x.new_zeros(n, 1, *tail)
    if leading <= 2 and track == (0, 1, 1):
        return x if leading == 2 else x.unsqueeze(1)
    if track.outer == track.inner == 1:
        x = x.movedim(track.axis, 0)
    else:
        x = x.unflatten(track.axis, (track.outer, n, track.inner)).movedim(track.axis + 1, 0)
    return x.reshape(n, x.shape[1 : x.dim() - features].numel(), *tail)
