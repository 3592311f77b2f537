"""How people write models: adapters, routing, functions of their own, writes in place, batches in several parts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.parts import N, Net, any_loss, class_loss, classes, numbers, parameter, perceptron, tokens
from tests.zoo.verdict import Program

X, Y, IDS, SEQUENCES, IMAGES = numbers(N, 8), classes(), tokens(N, 5), numbers(N, 4, 8), numbers(N, 3, 8, 8)
SQUARE = numbers(N, N, 8)


def of(compute, batch=X, measured=True, loss=any_loss, **parts):
    inputs = batch if isinstance(batch, tuple) else (batch,)
    return Program(lambda: Net(compute, **{k: make() for k, make in parts.items()}), inputs, loss, measured=measured)


def linear(inputs=8, outputs=8, **options):
    return lambda: nn.Linear(inputs, outputs, **options)


# ---- adapters and frozen parts ---------------------------------------------------------------------------------------


class LoRA(nn.Module):
    def __init__(self, base, rank=2, scale=0.5):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.A, self.B = parameter(rank, base.in_features), parameter(base.out_features, rank)

    def forward(self, x):
        return self.base(x) + (x @ self.A.T @ self.B.T) * self.scale


class MergedLoRA(LoRA):
    """The update added to the weight before the product."""

    def forward(self, x):
        return F.linear(x, self.base.weight + self.scale * self.B @ self.A, self.base.bias)


class ConvLoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Conv2d(3, 4, 3).requires_grad_(False)
        self.down, self.up = nn.Conv2d(3, 2, 3, bias=False), nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Scaled(nn.Module):
    """IA3: learned scales in a dictionary, by the name of the adapter in use."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 3).requires_grad_(False)
        self.scales = nn.ParameterDict({"a": parameter(8), "b": parameter(1, 8), "idle": parameter(8)})

    def forward(self, x):
        return self.last(torch.tanh(self.first(x * self.scales["a"])) * self.scales["b"].flatten())


def bitfit():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    for name, p in model.named_parameters():
        p.requires_grad_("bias" in name)
    return model


def half_frozen(m, x):
    """The first part without a graph."""
    with torch.no_grad():
        h = m.first(x)
    return m.last(torch.tanh(h))


def some_rows_frozen(m, ids):
    """New tokens behind a frozen table."""
    table = torch.cat([m.old.detach(), m.new])
    return m.head(F.embedding(ids, table).mean(1))


def dora(m, x):
    weight = m.base.weight + m.up @ m.down
    return F.linear(x, m.magnitude * weight / weight.norm(dim=1, keepdim=True))


ADAPTERS = {
    "LoRA": Program(lambda: nn.Sequential(LoRA(nn.Linear(8, 6)), nn.Tanh(), LoRA(nn.Linear(6, 3))), (X,), any_loss,
                    measured=True),
    "LoRA on sequences": Program(lambda: nn.Sequential(LoRA(nn.Linear(8, 6)), nn.Tanh(), LoRA(nn.Linear(6, 3))),
                                 (SEQUENCES,), any_loss, measured=True),
    "LoRA, merged": Program(lambda: nn.Sequential(MergedLoRA(nn.Linear(8, 6)), nn.Tanh(), nn.Linear(6, 3)),
                            (SEQUENCES,), any_loss, measured=True),
    "LoRA of a convolution": Program(lambda: ConvLoRA(), (IMAGES,), any_loss, measured=True),
    "scales in a dictionary": Program(Scaled, (X,), any_loss, measured=True),
    "biases alone": Program(bitfit, (X, Y), class_loss, measured=True),
    "a frozen part without a graph": of(half_frozen, first=linear(), last=linear(8, 3)),
    "new rows behind a frozen table": of(
        some_rows_frozen, IDS, old=lambda: parameter(6, 8).requires_grad_(False), new=lambda: parameter(5, 8),
        head=linear(8, 3),
    ),
    "weight decomposed into size and direction": of(
        dora, base=lambda: nn.Linear(8, 5, bias=False).requires_grad_(False), up=lambda: parameter(5, 2),
        down=lambda: parameter(2, 8), magnitude=lambda: parameter(5, 1),
    ),
    "soft prompts, a network of them": of(
        lambda m, ids: m.head(
            torch.cat([m.mlp(m.prompt).unsqueeze(0).expand(len(ids), -1, -1), m.emb(ids)], 1).cumsum(1).tanh().mean(1)
        ),
        IDS, mlp=linear(), prompt=lambda: parameter(3, 8), emb=lambda: nn.Embedding(11, 8), head=linear(8, 3),
    ),
    "an adapter in a hook": Program(lambda: hooked_adapter(), (X, Y), class_loss, measured=True),
    "the layer's weight as a product of Kronecker factors": of(
        lambda m, x: F.linear(x, torch.kron(m.a, m.b)), a=lambda: parameter(2, 4), b=lambda: parameter(3, 2)
    ),
    "an elementwise product of low-rank matrices": of(
        lambda m, x: F.linear(x, (m.a @ m.b) * (m.c @ m.d)), SEQUENCES,
        a=lambda: parameter(5, 2), b=lambda: parameter(2, 8), c=lambda: parameter(5, 2), d=lambda: parameter(2, 8),
    ),
}  # fmt: skip


def hooked_adapter():
    model = perceptron()
    model[0].requires_grad_(False)
    model.adapter = nn.Linear(8, 5, bias=False)
    model[0].register_forward_hook(lambda module, inputs, out: out + model.adapter(inputs[0]))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    return model


# ---- functions of one's own ------------------------------------------------------------------------------------------


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return 2 * w

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class LowRank(torch.autograd.Function):
    """A product of parameters alone, with buffers that carry no gradient beside them (as peft's LoHa)."""

    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b, scale)
        return a @ b * scale

    @staticmethod
    def backward(ctx, gradient):
        a, b, scale = ctx.saved_tensors
        gradient = gradient * scale
        return gradient @ b.T, a.T @ gradient, None


class RoundThrough(torch.autograd.Function):
    """The straight-through estimator of quantisation-aware training."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None


class OwnLinear(torch.autograd.Function):
    """Samples and a parameter of their own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ w, gradient.T @ x


class OwnSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


class Binary(torch.autograd.Function):
    """The gradient of the weight clipped where the weight is large; a mask without gradient goes in."""

    @staticmethod
    def forward(ctx, w, mask):
        ctx.save_for_backward(w, mask)
        return w.sign() * mask

    @staticmethod
    def backward(ctx, gradient):
        w, mask = ctx.saved_tensors
        return gradient * mask * (w.abs() < 1), None


class Centred(torch.autograd.Function):
    """Mixes the samples, unseen."""

    @staticmethod
    def forward(ctx, x):
        return x - x.mean(0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient - gradient.mean(0)


def smuggled(m, x):
    """Samples that carry no gradient, and a parameter, in one function."""
    return m.last(F.linear(x, LowRank.apply(m.a, m.b, x.mean())))


FUNCTIONS = {
    "a function of a weight": of(lambda m, x: F.linear(x, Double.apply(m.w)), w=lambda: parameter(3, 8)),
    "a function of parameters and a buffer": Program(
        lambda: with_buffer(lambda m, x: F.linear(x, LowRank.apply(m.a, m.b, m.factor)), factor=torch.tensor(0.7)),
        (SEQUENCES,), any_loss, measured=True,
    ),
    "a function of a parameter and a mask": Program(
        lambda: with_buffer(lambda m, x: m.last(F.linear(x, Binary.apply(m.c, m.mask))), mask=torch.ones(8, 8).tril()),
        (X,), any_loss, measured=True,
    ),
    "a function of a parameter and a fresh constant": of(
        lambda m, x: F.linear(x, LowRank.apply(m.a, m.b, torch.tensor(0.7).to(x))),
        a=lambda: parameter(3, 2), b=lambda: parameter(2, 8),
    ),
    "weights rounded, straight through": of(
        lambda m, x: F.linear(x, RoundThrough.apply(3 * m.w) / 3), w=lambda: parameter(3, 8)
    ),
    "weights rounded by detach": of(
        lambda m, x: F.linear(x, m.w + (m.w.round() - m.w).detach()), w=lambda: parameter(3, 8)
    ),
    "activations rounded, straight through": of(
        lambda m, x: m.last(RoundThrough.apply(4 * m.first(x))), first=linear(), last=linear(8, 3)
    ),
    "a gradient reversed": of(
        lambda m, x: m.last(Reversal.apply(m.first(x), 0.3)), first=linear(), last=linear(8, 3)
    ),
    "an activation of one's own": of(
        lambda m, x: m.last(OwnSwish.apply(m.first(x))), SEQUENCES, first=linear(), last=linear(8, 3)
    ),
    "a linear layer of one's own": of(
        lambda m, x: m.last(OwnLinear.apply(x, m.weight)), measured=False, weight=lambda: parameter(8, 8),
        last=linear(8, 3),
    ),
    "a function that mixes samples": Program(
        lambda: Net(lambda m, x: m.last(Centred.apply(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 3)),
        (X,), any_loss, hopeless=True,
    ),
    "a script that mixes samples": Program(
        lambda: Net(lambda m, x: m.last((h := m.first(x)) + centred_by_script(h)), first=nn.Linear(8, 8),
                    last=nn.Linear(8, 3)),
        (X,), any_loss, hopeless=True,
    ),
    "samples without gradient beside parameters in a function": Program(
        lambda: Net(smuggled, a=parameter(8, 2), b=parameter(2, 8), last=nn.Linear(8, 3)), (X,), any_loss, hopeless=True
    ),
}  # fmt: skip


@torch.jit.script
def centred_by_script(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x - x.mean(0))


def with_buffer(compute, **buffers):
    model = Net(compute, a=parameter(3, 2), b=parameter(2, 8), c=parameter(8, 8), last=nn.Linear(8, 3))
    for name, value in buffers.items():
        model.register_buffer(name, value)
    return model


# ---- in place --------------------------------------------------------------------------------------------------------


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


def recurrent(compute, batch=SEQUENCES):
    return of(compute, batch, key=linear(), decay=lambda: parameter(8), last=linear(8, 3))


IN_PLACE = {
    "states written into slices": recurrent(state_in_slices),
    "states written into slices, T = N": recurrent(state_in_slices, SQUARE),
    "states copied into slices": recurrent(state_in_zeros),
    "states copied into slices, T = N": recurrent(state_in_zeros, SQUARE),
    "states in a list": recurrent(list_then_stack),
    "halves written side by side": of(
        halves_written, SEQUENCES, first=linear(), second=linear(), last=linear(16, 3)
    ),
    "slices added to in place": of(
        added_in_place, SEQUENCES, first=linear(), second=linear(), gain=lambda: parameter(8), last=linear(8, 3),
    ),
    "written through a view": of(
        through_a_view, SEQUENCES, first=linear(), gain=lambda: parameter(8), last=linear(8, 3),
    ),
    "masked and clamped in place": of(masked_in_place, first=linear(), last=linear(8, 3)),
    "channels shifted in time": of(shifted_in_place, SEQUENCES, first=linear(), last=linear(8, 3)),
    "a learned vector in the place of a position": of(
        token_replaced, SEQUENCES, first=linear(), token=lambda: parameter(8), last=linear(8, 3)
    ),
    "a learned vector by a mask": of(
        token_by_mask, SEQUENCES, first=linear(), token=lambda: parameter(8), last=linear(8, 3)
    ),
    "keys copied into a buffer": of(cache_written, SEQUENCES, key=linear(), first=linear(), last=linear(8, 3)),
}  # fmt: skip


# ---- routing ---------------------------------------------------------------------------------------------------------


def top_two(m, x):
    """Every token by its two best experts: each expert runs on the rows that chose it (Mixtral before version 5)."""
    shape = x.shape
    x = x.reshape(-1, shape[-1])
    weights, chosen = m.gate(x).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for k, expert in enumerate(m.experts):
        rows, which = torch.where(chosen == k)
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, which, None])
    return m.last(out.view(shape))


def dense_top_two(m, x):
    """The same with every expert on every row, weights zero where not chosen."""
    weights = m.gate(x).softmax(-1)
    kept = weights.topk(2, -1).indices
    gates = torch.zeros_like(weights).scatter(-1, kept, weights.gather(-1, kept))
    return m.last((torch.stack([expert(x) for expert in m.experts], -1) * gates.unsqueeze(-2)).sum(-1))


def switch(m, x):
    """One expert a token, rows put back by assignment."""
    weights, chosen = m.gate(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for k, expert in enumerate(m.experts):
        mask = chosen == k
        out[mask] = expert(x[mask])
    return m.last(out * weights.unsqueeze(-1))


def grouped(m, x):
    """Tokens sorted by expert, stacked weights, sorted back."""
    rows = x.reshape(-1, 8)
    weights, chosen = m.gate(rows).softmax(-1).max(-1)
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=3).tolist()
    parts = [part @ w for part, w in zip(rows[order].split(counts), m.stacked, strict=True)]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return m.last((torch.cat(parts)[back] * weights.unsqueeze(-1)).view(x.shape))


def experts():
    return nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)) for _ in range(3))


def moe(compute, batch=SEQUENCES):
    return of(compute, batch, gate=linear(8, 3), experts=experts, last=linear(8, 3))


def misplaced(m, x):
    """Rows put back in another order: to places of other samples."""
    rows = (x[:, 0] > 0).nonzero().squeeze(1)
    return m.last(torch.zeros_like(x).index_add(0, rows.flip(0), torch.tanh(m.first(x[rows]))))


def of_rows(change):
    """What is done to the rows of the batch together."""

    def compute(m, x):
        rows = (x[:, 0] > 0).nonzero().squeeze(1)
        return m.last(torch.zeros_like(x).index_add(0, rows, change(m.first(x[rows]))))

    return mixed_rows(compute)


def mixed_rows(compute):
    return Program(
        lambda: Net(compute, gate=nn.Linear(8, 3).requires_grad_(False), first=nn.Linear(8, 8), last=nn.Linear(8, 3)),
        (X,), any_loss, hopeless=True,
    )  # fmt: skip


def with_capacity(m, x):
    """An expert takes the first two tokens of the batch that chose it."""
    rows = (x[:, 0] > 0).nonzero().squeeze(1)[:2]
    return m.last(torch.zeros_like(x).index_add(0, rows, torch.tanh(m.first(x[rows]))))


def of_two_choices(m, x):
    """As many rows in both, not of the same samples."""
    h = m.first(x)
    one, other = (x[:, k] > 0 for k in PAIR)
    out = torch.zeros_like(h)
    out[one] = torch.tanh(h[one]) * h[other]
    return m.last(out)


def to_another_choice(m, x):
    h = m.first(x)
    one, other = (x[:, k] > 0 for k in PAIR)
    out = torch.zeros_like(h)
    out[other] = torch.tanh(h[one])
    return m.last(out)


def choice_made_again(m, x):
    """The mask is computed anew each time."""
    h = m.first(x)
    out = torch.zeros_like(h)
    out[x[:, 0] > 0] = torch.tanh(h[x[:, 0] > 0]) * x[x[:, 0] > 0]
    return m.last(out + h)


PAIR = next(
    (i, j)
    for i in range(8)
    for j in range(8)
    if (X[:, i] > 0).sum() == (X[:, j] > 0).sum() != N and not torch.equal(X[:, i] > 0, X[:, j] > 0)
)


def chosen_by_the_batch(m, x):
    h = m.first(x)
    mask = h[:, 0] > h[:, 0].mean()
    return m.last(torch.zeros_like(h).masked_scatter(mask[:, None].expand_as(h), torch.tanh(h[mask])))


def best_tokens(m, x):
    """Expert choice: an expert takes the tokens of the batch that want it most."""
    weights, rows = m.gate(x).softmax(-1)[:, 0].topk(3)
    return m.last(torch.zeros_like(x).index_add(0, rows, torch.tanh(m.first(x[rows])) * weights[:, None]))


def masked_words(m, ids):
    """Classes of the masked positions alone: as many rows as there are in the batch."""
    return m.last(torch.tanh(m.first(m.emb(ids)[ids > 4])))


def words_loss(m, ids):
    return F.cross_entropy(m(ids), ids[ids > 4])


def in_experts_of_sequences(m, x):
    """Whole sequences chosen, and a layer that sees their positions."""
    mask = m.gate(x.mean(1)).argmax(-1) == 0
    h = torch.tanh(m.first(x))
    out = h.clone()
    out[mask] = m.norm(m.experts[0](h[mask]).cumsum(1) + m.position)
    return m.last(out * m.scale)


def windows_chosen(m, x):
    """Windows of each sequence, some of them through a layer that sees their positions."""
    windows = x.unflatten(1, (2, 2))
    mask = windows[..., 0].sum(-1) > -0.5
    out = torch.zeros_like(windows)
    out[mask] = torch.tanh(m.first(windows[mask]))
    return m.last(out.flatten(1, 2))


def looked_up_rows(m, ids):
    h = m.emb(ids)
    out = torch.zeros_like(h)
    for k, table in enumerate(m.tables):
        sample, place = torch.where(ids % 2 == k)
        rows = table(ids[sample, place]) * m.scale + m.first(h[sample, place])
        out[sample, place] = rows.clamp_(min=-1)
    return m.last(out.sum(1))


ROUTING = {
    "rows in place of other samples'": mixed_rows(misplaced),
    "rows normalised together": of_rows(lambda h: h - h.mean(0)),
    "softmax over the rows": of_rows(lambda h: h.softmax(0)),
    "the next row's features": of_rows(lambda h: h + h.roll(1, 0)),
    "rows sorted": of_rows(lambda h: h.sort(0).values),
    "an expert with a capacity": mixed_rows(with_capacity),
    "rows of two choices multiplied": mixed_rows(of_two_choices),
    "rows in the place of another choice": mixed_rows(to_another_choice),
    "a choice made again": of(choice_made_again, first=linear(), last=linear(8, 3)),
    "rows chosen by the batch's mean": mixed_rows(chosen_by_the_batch),
    "tokens that an expert chooses": mixed_rows(best_tokens),
    "masked words alone": Program(
        lambda: Net(masked_words, emb=nn.Embedding(11, 8), first=nn.Linear(8, 8), last=nn.Linear(8, 11)),
        (IDS,), words_loss, contribution=lambda m, i: F.cross_entropy(
            m(IDS[i : i + 1]), IDS[i][IDS[i] > 4], reduction="sum") / (IDS > 4).sum(),
        measured=True,
    ),
    "whole sequences chosen": of(
        in_experts_of_sequences, SEQUENCES, gate=linear(8, 2), first=linear(), experts=experts,
        norm=lambda: nn.LayerNorm(8), position=lambda: parameter(4, 8), scale=lambda: parameter(8), last=linear(8, 3),
    ),
    "windows chosen": of(windows_chosen, SEQUENCES, first=linear(), last=linear(8, 3)),
    "rows looked up, two indices": of(
        looked_up_rows, IDS, emb=lambda: nn.Embedding(11, 8), first=linear(), last=linear(8, 3),
        tables=lambda: nn.ModuleList(nn.Embedding(11, 8) for _ in range(2)), scale=lambda: parameter(8),
    ),
    "two experts a token, rows added back": moe(top_two),
    "two experts a token, T = N": moe(top_two, SQUARE),
    "two experts a token, all evaluated": moe(dense_top_two),
    "one expert a token, rows assigned": moe(switch),
    "tokens sorted by expert": of(
        grouped, SEQUENCES, False, gate=linear(8, 3), stacked=lambda: parameter(3, 8, 8), last=linear(8, 3)
    ),
    "a branch taken by each sample": of(
        lambda m, x: m.last(torch.stack([(m.one if row[0] > 0 else m.two)(row) for row in x])), X, False,
        one=linear(), two=linear(), last=linear(8, 3),
    ),
    "valid tokens alone": Program(
        lambda: Net(lambda m, ids: valid_alone(m, ids), emb=nn.Embedding(11, 8), first=nn.Linear(8, 8),
                    last=nn.Linear(8, 3)),
        (IDS,), any_loss, measured=True,
    ),
}  # fmt: skip


def valid_alone(m, ids):
    h = m.emb(ids)
    mask = ids > 2
    out = torch.zeros_like(h)
    out[mask] = torch.tanh(m.first(h[mask]))
    return m.last(out.sum(1))


# ---- inputs and batches ----------------------------------------------------------------------------------------------


def two_towers(m, batch):
    text = m.text(m.emb(batch["ids"]).mean(1))
    image = m.image(batch["pixels"].flatten(2).mean(-1))
    return F.cosine_similarity(text, image, dim=-1)[:, None] * m.scale.exp()


def video(m, x):
    """(N, C, T, H, W)."""
    h = torch.relu(m.conv(x))
    return m.last(h.mean((3, 4)).transpose(1, 2)).mean(1)


def frame_by_frame(m, x):
    n, c, t, h, w = x.shape
    frames = x.transpose(1, 2).reshape(n * t, c, h, w)
    each = m.conv(frames).mean((2, 3)).view(n, t, -1)
    return m.last(m.time(each.transpose(1, 2)).transpose(1, 2).mean(1))


def points(m, x):
    """PointNet: shared layers on every point, the largest over points."""
    return m.last(torch.relu(m.first(x.transpose(1, 2))).amax(-1))


def in_two_halves(m, x):
    """As data-parallel replicas would: each half by itself, joined again."""
    return torch.cat([m.last(torch.tanh(m.first(half))) for half in x.chunk(2)])


def sample_by_sample(m, x):
    return torch.cat([m.last(torch.tanh(m.first(row))) for row in x.split(1)])


def unpadded(m, x):
    return torch.stack([m.last(m.first(row)) for row in x])


def checkpointed(m, x):
    return m.last(checkpoint(lambda h: torch.tanh(m.first(h)) * m.gain, x, use_reentrant=False))


def siamese(m, a, b):
    one, two = m.body(a), m.body(b)
    return m.head((one - two).abs())


def scaled_loss(model):
    (1024.0 * class_loss(model, X, Y)).backward()
    for p in model.parameters():
        p.grad.div_(1024.0)


def functional_head(m, x):
    """A function that the user reuses on two parameters."""

    def block(h, weight, bias):
        return torch.tanh(torch.nn.functional.linear(h, weight, bias))

    return block(block(x, m.first.weight, m.first.bias), m.first.weight, m.second.bias)


def sequence_first(m, ids):
    """(T, N) token ids, as torch's language models take them."""
    h = m.emb(ids) + m.pos[: len(ids)].unsqueeze(1)
    return m.last(m.layer(h, torch.full((len(ids), len(ids)), -torch.inf).triu(1))).transpose(0, 1)


def einsum_attention(m, x):
    q, k, v = (torch.einsum("ntd,dhe->nhte", x, w) for w in (m.q, m.k, m.v))
    return torch.einsum("nhte,hed->ntd", (q @ k.mT / math.sqrt(4)).softmax(-1) @ v, m.o)


def mixture_of_logistics(m, x):
    return torch.logsumexp(m.first(x).log_softmax(-1) - (x.mean(-1, keepdim=True) - m.centres).square(), -1)[:, None]


def rbf(m, x):
    return m.last(torch.exp(-torch.cdist(x, m.centres).square() * m.width.exp()))


def quantised(m, x):
    """VQ: the nearest code of every position, straight through, and the commitment in the output."""
    z = m.first(x)
    nearest = (z.unsqueeze(-2) - m.codes).square().sum(-1).argmin(-1)
    q = m.codes[nearest]
    return torch.cat([m.last(z + (q - z).detach()), (q - z.detach()).square(), (z - q.detach()).square()], -1)


def reparameterised(m, x):
    mean, log_var = m.encode(x).chunk(2, -1)
    z = mean + (0.5 * log_var).exp() * 0.3
    return torch.cat([m.decode(z), 0.5 * (mean.square() + log_var.exp() - log_var - 1)], -1)


def unet(m, x):
    a = torch.relu(m.down(x))
    b = torch.relu(m.middle(F.max_pool2d(a, 2)))
    return m.up(torch.cat([F.interpolate(b, scale_factor=2), a], 1))


def film(m, x, c):
    scale, shift = m.condition(c).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
    return m.last(m.conv(x) * (1 + scale) + shift)


def timestep(m, x, t):
    angles = t.to(x)[:, None] * torch.exp(-torch.arange(4).to(x))
    e = m.time(torch.cat([angles.sin(), angles.cos()], -1))
    return m.last(torch.tanh(m.first(x) + e))


def gated(m, x):
    a, b = m.up(x).chunk(2, -1)
    return m.down(F.silu(a) * b)


def rms(m, x):
    return m.last(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + m.weight))


def deep_equilibrium(m, x):
    z = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(5):
            z = torch.tanh(m.first(z) * 0.3 + x)
    return m.last(torch.tanh(m.first(z) * 0.3 + x))


def gradients_summed(model):
    """Accumulated over batches of two and four, each weighted by its part."""
    for part in (slice(0, 2), slice(2, 6)):
        (class_loss(model, X[part], Y[part]) * (part.stop - part.start) / N).backward()


BATCHES = {
    "dictionaries of several modalities": Program(
        lambda: Net(two_towers, emb=nn.Embedding(11, 8), text=nn.Linear(8, 4), image=nn.Linear(3, 4),
                    scale=nn.Parameter(torch.zeros(()))),
        ({"ids": IDS, "pixels": IMAGES},), any_loss, measured=True,
    ),
    "video by a convolution in three dimensions": of(
        video, numbers(N, 2, 4, 5, 5), conv=lambda: nn.Conv3d(2, 4, 3, padding=1), last=linear(4, 3)
    ),
    "video by frames, T = N": of(
        frame_by_frame, numbers(N, 2, N, 5, 5), conv=lambda: nn.Conv2d(2, 4, 3), time=lambda: nn.Conv1d(4, 4, 3),
        last=linear(4, 3),
    ),
    "sets of points": of(points, SEQUENCES, first=lambda: nn.Conv1d(8, 6, 1), last=linear(6, 3)),
    "the batch in two halves": of(in_two_halves, measured=False, first=linear(), last=linear(8, 3)),
    "sample by sample, joined": of(sample_by_sample, SEQUENCES, measured=False, first=linear(), last=linear(8, 3)),
    "sample by sample, stacked": of(unpadded, SEQUENCES, first=linear(), last=linear(8, 3), measured=False),
    "a checkpoint round parameters": of(checkpointed, first=linear(), gain=lambda: parameter(8), last=linear(8, 3)),
    "two inputs through one encoder": of(siamese, (X, X.flip(0)), body=linear(), head=linear(8, 3)),
    "a loss scaled up and gradients scaled down": Program(
        perceptron, (X, Y), class_loss, step=scaled_loss, situation="grad"
    ),
    "one function for several layers": of(functional_head, first=linear(), second=linear()),
    "token ids, sequence first": Program(
        lambda: Net(sequence_first, emb=nn.Embedding(11, 8), pos=parameter(7, 8),
                    layer=nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0), last=nn.Linear(8, 3)),
        (IDS,), lambda m, ids: any_loss(m, ids.T), options={"batch_dim": 1}, measured=True,
    ),
    "token ids, sequence first, T = N": Program(
        lambda: Net(sequence_first, emb=nn.Embedding(11, 8), pos=parameter(7, 8),
                    layer=nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0), last=nn.Linear(8, 3)),
        (tokens(N, N),), lambda m, ids: any_loss(m, ids.T), options={"batch_dim": 1}, measured=True,
    ),
    "attention by einsum": of(
        einsum_attention, SEQUENCES, q=lambda: parameter(8, 2, 4), k=lambda: parameter(8, 2, 4),
        v=lambda: parameter(8, 2, 4), o=lambda: parameter(2, 4, 8),
    ),
    "attention by einsum, T = N": of(
        einsum_attention, SQUARE, q=lambda: parameter(8, 2, 4), k=lambda: parameter(8, 2, 4),
        v=lambda: parameter(8, 2, 4), o=lambda: parameter(2, 4, 8),
    ),
    "a mixture density": of(mixture_of_logistics, first=linear(8, 4), centres=lambda: parameter(4)),
    "radial basis functions": of(
        rbf, centres=lambda: parameter(N, 8), width=lambda: nn.Parameter(torch.zeros(())), last=linear(N, 3)
    ),
    "a code book": of(quantised, SEQUENCES, first=linear(), codes=lambda: parameter(7, 8), last=linear(8, 3)),
    "a variational autoencoder": of(reparameterised, encode=linear(8, 8), decode=linear(4, 8)),
    "a U-Net": of(
        unet, IMAGES, down=lambda: nn.Conv2d(3, 4, 3, padding=1), middle=lambda: nn.Conv2d(4, 6, 3, padding=1),
        up=lambda: nn.Conv2d(10, 3, 3, padding=1),
    ),
    "features modulated by a condition": of(
        film, (IMAGES, X), conv=lambda: nn.Conv2d(3, 4, 3), condition=linear(8, 8), last=lambda: nn.Conv2d(4, 2, 3)
    ),
    "a time step beside the input": of(
        timestep, (X, torch.arange(N)), first=linear(), time=linear(), last=linear(8, 3)
    ),
    "one looked-up row for all positions": of(
        lambda m, ids: m.last(torch.tanh(m.emb(ids) + m.pos(torch.full((len(ids), 1), 3)))).mean(1), IDS,
        emb=lambda: nn.Embedding(11, 8), pos=lambda: nn.Embedding(7, 8), last=linear(8, 3),
    ),
    "gated units": of(gated, SEQUENCES, up=linear(8, 12), down=linear(6, 8)),
    "a norm with one plus its weight": of(rms, SEQUENCES, weight=lambda: parameter(8), last=linear(8, 3)),
    "a fixed point, the last step with a graph": of(deep_equilibrium, first=linear(), last=linear(8, 3)),
    "accumulated, weighted by size": Program(
        perceptron, (X, Y), class_loss, step=gradients_summed, options={"mode": "exact"}, measured=True
    ),
}  # fmt: skip

PROGRAMS = {
    "adapters": ADAPTERS, "own functions": FUNCTIONS, "in place": IN_PLACE, "routing": ROUTING, "written so": BATCHES,
}  # fmt: skip
