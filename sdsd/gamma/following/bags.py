"""Bags of embeddings: indices one after another, cut into bags by the offsets where these begin.

A bag is of one sample where all of its indices are, which their places say; where the indices are constants, as those
of a model that is called with the offsets first, it is of the sample that its offset is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .places import samples_along, sequence
from .table import FUNCTIONAL, Call, register
from .tracks import Mixed, Rows, Track, Verdict, is_second, set_track, track_of


class Bags(NamedTuple):
    """The arguments of F.embedding_bag."""

    input: Tensor
    weight: Tensor
    offsets: Tensor | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    mode: str = "mean"
    sparse: bool = False
    per_sample_weights: Tensor | None = None
    include_last_offset: bool = False
    padding_idx: int | None = None

    def starts(self) -> Tensor:
        """Where each bag begins; shape: (bags,)."""
        if self.offsets is None:
            bags, size = self.input.shape
            return torch.arange(bags, device=self.input.device) * size
        return self.offsets.detach()[: len(self.offsets) - self.include_last_offset]

    def of_each(self) -> Tensor:
        """The bag of each index; shape: (indices,)."""
        places = torch.arange(self.input.numel(), device=self.input.device)
        return torch.searchsorted(self.starts().to(places.dtype).contiguous(), places, right=True) - 1


def with_offsets(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bags | None:
    """The arguments of F.embedding_bag with offsets; None of any other call."""
    if func is not functional.embedding_bag:
        return None
    bags = Bags(*args, **kwargs)
    return bags if bags.input.dim() == 1 and isinstance(bags.offsets, Tensor) else None


def cut(bags: Bags, n: int) -> Verdict:
    """Where the output (bags, d) of a call with offsets carries the samples."""
    own, offsets, weights = track_of(bags.input), bags.offsets, bags.per_sample_weights
    assert offsets is not None
    if offsets.is_cuda and torch.cuda.is_current_stream_capturing():
        return Mixed("F.embedding_bag with offsets, which are not read while a graph is captured")
    of_weights = None if weights is None else track_of(weights)
    if isinstance(own, (Track, Rows)) and of_weights in (None, own):
        run = _whose(bags, own, n)
        if run is not None:
            return run
    if isinstance(track_of(offsets), Track):
        # Further inputs that happen to have as many entries as there are samples.
        for each in (bags.input, weights):
            if each is not None and is_second(each) and each.grad_fn is None:
                set_track(each, None)
        own, of_weights = track_of(bags.input), None if weights is None else track_of(weights)
    if own is None and of_weights is None:
        return track_of(offsets)
    if own is None or of_weights not in (None, own):
        return Mixed("F.embedding_bag with weights that carry the samples elsewhere")
    if not isinstance(own, (Track, Rows)):
        return own
    return Mixed(
        f"F.embedding_bag whose bags hold indices of several samples, or none in order: the model's first tensor says "
        f"that it has {n}. Where each bag is a sample, call the model with the offsets first "
        "(def forward(self, offsets, indices)), for its first tensor says how many samples there are"
    )


def _whose(bags: Bags, own: Track | Rows, n: int) -> Track | None:
    """Where the bags lie, if each holds indices of one sample alone, in order."""
    samples = samples_along(own, len(bags.input), n, bags.input.device)
    of_each, count = bags.of_each(), len(bags.starts())
    whose = torch.full((count,), -1, device=samples.device).index_put_((of_each,), samples)
    if not bool((whose[of_each] == samples).all()):
        return None
    if count == n and bool(((whose == torch.arange(n, device=whose.device)) | (whose < 0)).all()):
        return Track(0)
    run = sequence(whose.tolist(), n)
    return None if run is None else Track(0, *run)


def bag(call: Call, *args: Any, **kwargs: Any) -> Verdict:
    """A row of indices a bag; with offsets, bags of any length in one dimension."""
    bags = Bags(*args, **kwargs)
    if track_of(bags.weight) is not None:
        return call.mixed("into a table that depends on samples")
    if bags.input.dim() == 1:
        for each in (bags.offsets, bags.per_sample_weights):
            if each is not None:
                track_of(each)
        return cut(bags, call.n)
    track = track_of(bags.input)
    if isinstance(track, Track) and track.axis == 1:
        return call.over(bags.input)
    return call.agreed([track, None if bags.per_sample_weights is None else track_of(bags.per_sample_weights)])


register("embedding_bag", bag, FUNCTIONAL)
