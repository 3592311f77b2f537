"""Writes in place, and buffers that are written to."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from tests.zoo.parts import parameter
from tests.zoo.programs.common import SEQUENCES, SQUARE, linear, of


def state_in_slices(m, x):
    """RWKV: the outputs of a recurrence written into slices of fresh memory."""
    k, out = m.key(x), torch.empty_like(x)
    state = torch.zeros_like(k[:, 0])
    for t in range(x.shape[1]):
        state = torch.sigmoid(m.decay) * state + k[:, t]
        out[:, t] = state
    return m.last(out)


def state_in_zeros(m, x):
    """RecurrentGemma: the same with memory of zeros, and an initial state set apart."""
    h, out = m.key(x), torch.zeros_like(x)
    state = torch.zeros(x.shape[0], x.shape[2]).to(x)
    for t in range(x.shape[1]):
        state = torch.tanh(state * m.decay + h[:, t])
        out[:, t].copy_(state)
    return m.last(out)


def halves_written(m, x):
    out = x.new_zeros(*x.shape[:-1], 16)
    out[..., :8] = m.first(x)
    out[..., 8:] = m.second(x)
    return m.last(out)


def added_in_place(m, x):
    h = m.first(x)
    h[:, 1:] += m.second(x)[:, :-1]
    h[:, 0] *= m.gain
    return m.last(h)


def through_a_view(m, x):
    h = m.first(x)
    view = h.view(len(x), -1)
    view.mul_(2)
    view[:, :8].add_(m.gain)
    return m.last(h)


def masked_in_place(m, x):
    h = m.first(x)
    h.masked_fill_(x > 1, 0.0)
    h[h < -1] = -1.0
    return m.last(h.clamp_(max=2.0))


def list_then_stack(m, x):
    states, h = [], x.new_zeros(len(x), 8)
    for each in x.unbind(1):
        h = torch.tanh(m.key(each) + h * m.decay)
        states.append(h)
    return m.last(torch.stack(states, 1))


def shifted_in_place(m, x):
    """Temporal shift: channels moved along time in zeros_like."""
    h = m.first(x)
    out = torch.zeros_like(h)
    out[:, :-1, :3] = h[:, 1:, :3]
    out[:, 1:, 3:6] = h[:, :-1, 3:6]
    out[:, :, 6:] = h[:, :, 6:]
    return m.last(out)


def token_replaced(m, x):
    """Masked modelling: a learned vector in the place of some positions, the same of every sample or by a mask."""
    h = m.first(x).clone()
    h[:, 2] = m.token
    return m.last(h)


def token_by_mask(m, x):
    h = m.first(x)
    return m.last(torch.where((x[..., :1] > 0.3), m.token, h))


def cache_written(m, x):
    """Keys of all steps in one buffer made for the batch."""
    k = x.new_empty(len(x), x.shape[1], 8)
    k.copy_(m.key(x))
    return m.last(F.scaled_dot_product_attention(m.first(x), k, x))


def scaled_in_place(m, x):
    """Funnel: what einsum gives is a view, through which no gradient comes once it is written into."""
    scores = torch.einsum("ntd,dhe->nhte", x, m.query)
    scores *= 0.5
    return m.last(scores.flatten(1))


def heads_in_place(m, x):
    h = torch.einsum("ntd,dhe->nthe", x, m.query).reshape(*x.shape[:2], -1)
    h[:, 1:] *= 0.5
    part = h[:, :2]
    part += 1
    return m.last(h.flatten(1))


def mixed_then_scaled(m, x):
    h = m.first(x).unsqueeze(0)
    products = torch.einsum("and,amd->nma", h, h)
    products *= 0.5
    return products


def one_sample_looked_at(m, x):
    h = m.first(x)
    m.shown = h[0].detach().norm(), h[0, 0].item(), h[0].numel()
    return m.last(h / h[0].numel())


def through_a_view_of_turned(m, x):
    """Memory that lies in another order than the dimensions, and a view of it that is gone after the write."""
    h = m.first(x).transpose(1, 2).clone()
    h[:, :2].mul_(m.one)
    h.select(2, 0).add_(m.gain)
    return m.last(h.tanh().mean(2))


def recurrent(compute, batch=SEQUENCES):
    return of(compute, batch, key=linear(), decay=lambda: parameter(8), last=linear(8, 3))


def query():
    return parameter(8, 2, 4)


IN_PLACE = {
    "states written into slices": recurrent(state_in_slices),
    "states written into slices, T = N": recurrent(state_in_slices, SQUARE),
    "states copied into slices": recurrent(state_in_zeros),
    "states copied into slices, T = N": recurrent(state_in_zeros, SQUARE),
    "states in a list": recurrent(list_then_stack),
    "halves written side by side": of(halves_written, SEQUENCES, first=linear(), second=linear(), last=linear(16, 3)),
    "slices added to in place": of(
        added_in_place,
        SEQUENCES,
        first=linear(),
        second=linear(),
        gain=lambda: parameter(8),
        last=linear(8, 3),
    ),
    "written through a view": of(
        through_a_view,
        SEQUENCES,
        first=linear(),
        gain=lambda: parameter(8),
        last=linear(8, 3),
    ),
    "written through a view, in memory of another order": of(
        through_a_view_of_turned,
        SEQUENCES,
        first=linear(),
        one=lambda: parameter(1),
        gain=lambda: parameter(8),
        last=linear(8, 3),
    ),
    "masked and clamped in place": of(masked_in_place, first=linear(), last=linear(8, 3)),
    "channels shifted in time": of(shifted_in_place, SEQUENCES, first=linear(), last=linear(8, 3)),
    "a learned vector in the place of a position": of(
        token_replaced, SEQUENCES, first=linear(), token=lambda: parameter(8), last=linear(8, 3)
    ),
    "a learned vector by a mask": of(
        token_by_mask, SEQUENCES, first=linear(), token=lambda: parameter(8), last=linear(8, 3)
    ),
    "what einsum gives, scaled": of(scaled_in_place, SEQUENCES, query=query, last=linear(32, 3)),
    "parts of what einsum gives": of(heads_in_place, SEQUENCES, query=query, last=linear(32, 3)),
    "samples mixed by einsum, then scaled": of(mixed_then_scaled, measured=False, first=linear()),
    "a look at the first sample": of(one_sample_looked_at, first=linear(), last=linear(8, 3)),
    "keys copied into a buffer": of(cache_written, SEQUENCES, key=linear(), first=linear(), last=linear(8, 3)),
}

PROGRAMS = {"in place": IN_PLACE}
