"""What layers call: norms, pools, resampling, recurrent layers, losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reductions import along
from .shapes import last_dimensions
from .table import FUNCTIONAL, RULES, SECOND_ALLOWED, TORCH, Call, aligned, register
from .tracks import Mixed, Track, Verdict, set_written, track_of


def layer_norm(call: Call, input: Tensor, normalized_shape: Sequence[int], *weights: Any, **named: Any) -> Verdict:
    if any(isinstance(w, Tensor) and track_of(w) is not None for w in (*weights, *named.values())):
        return call.mixed("with a weight that depends on samples")
    verdict: Verdict = last_dimensions(len(normalized_shape))(call, input)
    return verdict


def per_sample_norm(call: Call, input: Tensor, *others: Any, **named: Any) -> Verdict:
    """group_norm, instance_norm, local_response_norm: statistics over channels or space of one row of (N, C, …)."""
    if any(isinstance(w, Tensor) and track_of(w) is not None for w in (*others, *named.values())):
        return call.mixed("with a weight that depends on samples")
    track = track_of(input)
    if isinstance(track, Track) and track.axis != 0:
        return call.over(input)
    return track


def _batch_norm(call: Call, input: Tensor, others: Sequence[Any], training: bool) -> Verdict:
    track = track_of(input)
    if isinstance(track, Mixed):
        return track
    if training:
        for x in others[:2]:
            if isinstance(x, Tensor):
                set_written(x, track_of(x), Mixed("statistics that BatchNorm in train mode wrote"))
        return Mixed(f"BatchNorm in train mode, which mixes the samples, over an input of shape {tuple(input.shape)}")
    if any(isinstance(x, Tensor) and track_of(x) is not None for x in others):
        return call.mixed("with statistics or a weight that depend on samples")
    return track


def batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> Verdict:
    return _batch_norm(call, input, (running_mean, running_var, weight, bias), training or running_mean is None)


def torch_batch_norm(
    call: Call, input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any, **__: Any
) -> Verdict:
    return _batch_norm(call, input, (mean, var, weight, bias), training or mean is None)


def bounded_embedding_norm(call: Call, *_: Any, **__: Any) -> Verdict:
    return call.mixed("which rewrites the table")


def interpolate(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    verdict: Verdict = last_dimensions(max(1, input.dim() - 2))(call, input)
    return verdict


def channel_shuffle(call: Call, input: Tensor, groups: int) -> Verdict:
    track = track_of(input)
    return call.over(input) if isinstance(track, Track) and track.axis == 1 else track


def batch_first(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    """Functions of (N, …) whose output is (N, …): only dimension 0 is apart."""
    track = track_of(input)
    return call.over(input) if isinstance(track, Track) and track.axis != 0 else track


def image_columns(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    """unfold and fold, of (N, C, H, W) and (N, C·k, L); an input without a batch has one dimension less."""
    if input.dim() != (4 if call.func.__name__ in ("unfold", "im2col") else 3):
        return call.over(input) if isinstance(track_of(input), Track) else track_of(input)
    return batch_first(call, input)


def sampled_grid(call: Call, input: Tensor, grid: Tensor, *_: Any, **__: Any) -> Verdict:
    """Points (N, H, W, 2) of images (N, C, …); the samples may be the points themselves, of one image that has none."""
    points = track_of(grid)
    if isinstance(points, Track) and 0 < points.axis < grid.dim() - 1 and track_of(input) is None:
        return points._replace(axis=points.axis + 1)
    return call.agreed([batch_first(call, input), batch_first(call, grid)])


def unpooled(count: int) -> Any:
    """max_unpool: positions within the last `count` dimensions."""

    def rule(call: Call, input: Tensor, indices: Tensor, *_: Any, **__: Any) -> Verdict:
        return call.agreed([last_dimensions(count)(call, input), last_dimensions(count)(call, indices)])

    return rule


def one_hot(call: Call, input: Tensor, num_classes: int = -1) -> Verdict:
    if num_classes == -1:
        return call.mixed("without num_classes, as wide as the largest value of the batch says: pass num_classes")
    return track_of(input)


def recurrent(call: Call, input: Tensor, hx: Any, params: Any, *settings: Any, **named: Any) -> Any:
    """lstm, gru, rnn: (input, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first)."""
    if isinstance(params, Tensor) or not isinstance(params, (tuple, list)):
        return call.mixed("of packed sequences")
    batch = 0 if (settings[5] if len(settings) > 5 else named.get("batch_first", False)) else 1
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    track = track_of(input)
    if input.dim() != 3 or (isinstance(track, Track) and track.axis != batch):
        return call.over(input) if isinstance(track, Track) else call.mixed("of one sequence")
    given = [track_of(h) for h in states]
    if any(track_of(p) is not None for p in params):
        return call.mixed("with weights that depend on samples")
    moved = track._replace(axis=1) if isinstance(track, Track) else track
    state = call.agreed([moved, *given])
    if not isinstance(state, Track) or state.axis != 1:
        return state if isinstance(state, Mixed) else call.mixed("with states that carry the samples elsewhere")
    return [state._replace(axis=batch), *[state] * len(states)]


def cell(call: Call, input: Tensor, hx: Any, *weights: Any) -> Verdict:
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    if any(isinstance(w, Tensor) and track_of(w) is not None for w in weights):
        return call.mixed("with weights that depend on samples")
    return call.agreed(along(call, x, -1) for x in (input, *states))


def over_all(call: Call, input: Tensor, verdict: Verdict) -> Verdict:
    """The verdict of a loss from that without its reduction: a mean or sum of what each sample gives."""
    reduced = call.out.dim() == 0 and input.dim() > 0
    return call.summed(input) if reduced and isinstance(verdict, Track) else verdict


def pairwise_loss(call: Call, input: Tensor, target: Tensor, *args: Any, **named: Any) -> Verdict:
    """Losses of (input, target), entry by entry, then averaged unless reduction is 'none'."""
    tensors = [x for x in (input, target, *args, *named.values()) if isinstance(x, Tensor)]
    widest = max(tensors, key=Tensor.dim)
    return over_all(call, input, call.agreed(aligned(x, widest) for x in tensors))


def class_loss(call: Call, input: Tensor, target: Tensor, weight: Any = None, *args: Any, **named: Any) -> Verdict:
    """cross_entropy, nll_loss: classes in dimension 1, or 0 of a vector; the loss has every other dimension."""
    if isinstance(weight, Tensor) and track_of(weight) is not None:
        return call.mixed("with class weights that depend on samples")
    classes = 1 if input.dim() > 1 else 0
    verdicts: list[Verdict] = []
    for x in (input, target):
        where = track_of(x)
        if isinstance(where, Track) and x.dim() == input.dim():
            if where.axis == classes:
                return call.over(x)
            where = where._replace(axis=where.axis - (where.axis > classes))
        verdicts.append(where)
    return over_all(call, input, call.agreed(verdicts))


def row_loss(call: Call, input: Tensor, *others: Any, **named: Any) -> Verdict:
    """Losses of rows (N, …): with reduction 'none' one value a row."""
    tensors = [x for x in (input, *others, *named.values()) if isinstance(x, Tensor)]
    if any(x.shape[:1] != input.shape[:1] for x in tensors) or call.out.dim() > 1 or input.dim() < 2:
        return call.over(input)
    return over_all(call, input, call.agreed(batch_first(call, x) for x in tensors))


def ctc_loss(call: Call, input: Tensor, target: Tensor, *lengths: Any, **named: Any) -> Verdict:
    """ctc_loss of (T, N, C) and targets (N, S)."""
    if input.dim() != 3 or target.dim() != 2:
        return call.mixed("of targets one after another; give them as a matrix")
    track = track_of(input)
    given = [x for x in (target, *lengths, *named.values()) if isinstance(x, Tensor)]
    if isinstance(track, Track):
        track = call.over(input) if track.axis != 1 else track._replace(axis=0)
    return over_all(call, input, call.agreed([track, *(batch_first(call, x) for x in given)]))


register("layer_norm rms_norm", layer_norm)
register("group_norm instance_norm local_response_norm", per_sample_norm)
RULES[torch.group_norm] = per_sample_norm
register("batch_norm", batch_norm, FUNCTIONAL)
register("batch_norm native_batch_norm", torch_batch_norm, TORCH)
for count in (1, 2, 3):
    register(
        f"max_pool{count}d avg_pool{count}d adaptive_avg_pool{count}d adaptive_max_pool{count}d "
        f"lp_pool{count}d max_pool{count}d_with_indices adaptive_max_pool{count}d_with_indices "
        f"fractional_max_pool{count}d_with_indices",
        last_dimensions(count),
    )
for count in (2, 3):
    register(f"max_unpool{count}d", unpooled(count), FUNCTIONAL)
register("max_unpool1d", unpooled(1), FUNCTIONAL)
register("interpolate upsample upsample_nearest upsample_bilinear", interpolate, FUNCTIONAL)
register(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d",
    interpolate,
    FUNCTIONAL,
)
register("channel_shuffle native_channel_shuffle", channel_shuffle)
register("unfold fold im2col col2im", image_columns, FUNCTIONAL)
register("grid_sample grid_sampler grid_sampler_2d grid_sampler_3d", sampled_grid)
register("affine_grid affine_grid_generator", batch_first)
register("one_hot", one_hot)
register("lstm gru rnn_tanh rnn_relu", recurrent, TORCH)
SECOND_ALLOWED[recurrent] = (1, "hx")  # states of as many layers as there are samples
register("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", cell, TORCH)
register(
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div "
    "poisson_nll_loss soft_margin_loss gaussian_nll_loss",
    pairwise_loss,
)
register("cross_entropy cross_entropy_loss nll_loss nll_loss_nd nll_loss2d", class_loss)
register("hinge_embedding_loss margin_ranking_loss", pairwise_loss)
register("multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss", row_loss)
register("cosine_embedding_loss triplet_margin_loss triplet_margin_with_distance_loss", row_loss, FUNCTIONAL)
register("ctc_loss", ctc_loss, FUNCTIONAL)
