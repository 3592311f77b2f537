"""Layers and models that people train: mixing of samples, parametrizations, recurrence, complex numbers, routing."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.zoo.parts import N, Net, any_loss, classes, numbers, parameter, tokens
from tests.zoo.programs.uses import Symmetric
from tests.zoo.verdict import Program

X, Y, IMAGES, SIGNALS = numbers(N, 8), classes(), numbers(N, 3, 7, 7), numbers(N, 3, 9)


def layers(*make, batch=X, measured=True, **options):
    return Program(lambda: nn.Sequential(*(m() for m in make)), (batch,), any_loss, measured=measured, **options)


def mixing(*make, batch=X):
    """Samples mixed in the forward pass."""
    return layers(*make, batch=batch, measured=False, hopeless=True)


class BatchNormByHand(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.weight, self.bias = parameter(d), parameter(d)

    def forward(self, x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 0.1).sqrt() * self.weight + self.bias


def net(compute, **parts):
    return lambda: Net(compute, **{name: part() for name, part in parts.items()})


def own_scale(compute):
    return net(compute, scale=lambda: parameter(8))


MIXED = {
    "BatchNorm1d in train mode": mixing(lambda: nn.Linear(8, 5), lambda: nn.BatchNorm1d(5), lambda: nn.Linear(5, 3)),
    "BatchNorm2d in train mode": mixing(lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4), batch=IMAGES),
    "BatchNorm without parameters": mixing(
        lambda: nn.Linear(8, 5), lambda: nn.BatchNorm1d(5, affine=False), lambda: nn.Linear(5, 3)
    ),
    "F.batch_norm": mixing(
        lambda: nn.Linear(8, 8),
        own_scale(lambda m, x: F.batch_norm(x, None, None, m.scale, training=True)),
        lambda: nn.Linear(8, 3),
    ),
    "batch norm by hand": mixing(lambda: nn.Linear(8, 5), lambda: BatchNormByHand(5), lambda: nn.Linear(5, 3)),
    "batch norm by hand at the input": mixing(lambda: BatchNormByHand(8), lambda: nn.Linear(8, 3)),
    "the batch's mean taken away": mixing(lambda: nn.Linear(8, 8), own_scale(lambda m, x: (x - x.mean(0)) * m.scale)),
    "the batch's largest value divided by": mixing(
        lambda: nn.Linear(8, 8), own_scale(lambda m, x: x / x.abs().amax() * m.scale)
    ),
    "softmax over the batch": mixing(lambda: nn.Linear(8, 8), own_scale(lambda m, x: x.softmax(0) * m.scale)),
    "attention over the batch": mixing(
        lambda: nn.Linear(8, 8), own_scale(lambda m, x: (x @ x.T).softmax(-1) @ (x * m.scale))
    ),
    "the next sample's features": mixing(lambda: nn.Linear(8, 8), own_scale(lambda m, x: x + x.roll(1, 0) * m.scale)),
    "the batch sorted": mixing(lambda: nn.Linear(8, 8), own_scale(lambda m, x: x.sort(0).values * m.scale)),
    "a graph convolution over the batch": mixing(
        lambda: nn.Linear(8, 8), own_scale(lambda m, x: (torch.ones(N, N).tril() @ x) * m.scale)
    ),
    "cumulative sums over the batch": mixing(lambda: nn.Linear(8, 8), own_scale(lambda m, x: x.cumsum(0) * m.scale)),
    "minibatch standard deviation": mixing(
        lambda: nn.Linear(8, 8),
        lambda: Net(lambda m, x: torch.cat([x, x.std(0).mean().expand(len(x), 1)], 1)),
        lambda: nn.Linear(9, 3),
    ),
}


def weight_normed_by_hooks():
    return nn.utils.weight_norm(nn.Linear(8, 5))


PARAMETRIZED = {
    "weight_norm on a linear layer": layers(lambda: parametrizations.weight_norm(nn.Linear(8, 5)), nn.Tanh),
    "weight_norm over all dimensions": layers(lambda: parametrizations.weight_norm(nn.Linear(8, 5), dim=None)),
    "weight_norm on a convolution": layers(
        lambda: parametrizations.weight_norm(nn.Conv1d(3, 4, 3), dim=2), nn.Tanh, batch=SIGNALS
    ),
    "weight_norm by hooks": layers(weight_normed_by_hooks, nn.Tanh, lambda: nn.Linear(5, 3)),
    "orthogonal": layers(lambda: parametrizations.orthogonal(nn.Linear(8, 5), orthogonal_map="cayley"), nn.Tanh),
    "spectral_norm in eval mode": layers(lambda: parametrizations.spectral_norm(nn.Linear(8, 5)).eval(), nn.Tanh),
    "spectral_norm by hooks in eval mode": layers(lambda: nn.utils.spectral_norm(nn.Linear(8, 5)).eval(), nn.Tanh),
    "two parametrizations in a row": layers(
        lambda: nn.utils.parametrize.register_parametrization(
            parametrizations.weight_norm(nn.Linear(8, 8)), "weight", Symmetric()
        ),
        nn.Tanh,
    ),
    "pruned by a mask": layers(lambda: pruned(), nn.Tanh, lambda: nn.Linear(5, 3)),
}


def pruned():
    return prune.l1_unstructured(nn.Linear(8, 5), "weight", 0.5)


def last_state(make):
    return net(lambda m, x: m.last(m.cells(x)[0][:, -1]), cells=make, last=lambda: nn.Linear(5, 3))


def all_states(make):
    return net(lambda m, x: m.last(m.cells(x)[0]), cells=make, last=lambda: nn.Linear(5, 3))


def unrolled_cell(m, x):
    h = x.new_zeros(len(x), 5)
    for each in x.unbind(1):
        h = m.cell(each, h)
    return h


def unrolled_memory(m, x):
    state = None
    for each in x.unbind(1):
        state = m.cell(each, state)
    return m.last(state[0] + state[1])


def along_rows(m, x):
    """Every row of an image by itself, as Sequencer reads them."""
    return m.cells(x.flatten(0, 1))[0].unflatten(0, x.shape[:2]).mean(1)


def along_columns(m, x):
    """Every column by itself, all samples' first columns before the second ones."""
    columns = x.permute(2, 0, 1, 3)
    return m.cells(columns.flatten(0, 1))[0].unflatten(0, columns.shape[:2]).mean(0)


SEQUENCES = numbers(N, 4, 8)
GRID = numbers(N, N, N, 8)
RECURRENT = {
    "an LSTM along the rows of an image": layers(
        net(along_rows, cells=lambda: nn.LSTM(8, 5, batch_first=True, bidirectional=True)), batch=GRID
    ),
    "a GRU along its columns": layers(net(along_columns, cells=lambda: nn.GRU(8, 5, batch_first=True)), batch=GRID),
    "LSTM": layers(last_state(lambda: nn.LSTM(8, 5, batch_first=True)), batch=SEQUENCES),
    "GRU, two layers": layers(all_states(lambda: nn.GRU(8, 5, 2, batch_first=True)), batch=SEQUENCES),
    "RNN, T = N": layers(last_state(lambda: nn.RNN(8, 5, batch_first=True)), batch=numbers(N, N, 8)),
    "bidirectional LSTM": layers(
        net(lambda m, x: m.cells(x)[0], cells=lambda: nn.LSTM(8, 5, batch_first=True, bidirectional=True)),
        batch=SEQUENCES,
    ),
    "LSTM, sequence first": layers(
        net(lambda m, x: m.cells(x.transpose(0, 1))[0].transpose(0, 1), cells=lambda: nn.LSTM(8, 5)),
        batch=SEQUENCES,
    ),
    "a GRU cell in a loop": layers(net(unrolled_cell, cell=lambda: nn.GRUCell(8, 5)), batch=SEQUENCES),
    "a plain cell in a loop": layers(net(unrolled_cell, cell=lambda: nn.RNNCell(8, 5, bias=False)), batch=SEQUENCES),
    "an LSTM cell in a loop": layers(
        net(unrolled_memory, cell=lambda: nn.LSTMCell(8, 5), last=lambda: nn.Linear(5, 3)),
        batch=SEQUENCES,
    ),
    "a learned first state": layers(
        net(
            lambda m, x: m.cells(x, m.state.expand(-1, len(x), -1).contiguous())[0],
            cells=lambda: nn.GRU(8, 5, batch_first=True),
            state=lambda: parameter(1, 1, 5),
        ),
        batch=SEQUENCES,
    ),
    "packed sequences": layers(
        net(
            lambda m, x: nn.utils.rnn.pad_packed_sequence(
                m.cells(nn.utils.rnn.pack_padded_sequence(x, [4] * len(x), batch_first=True))[0], batch_first=True
            )[0],
            cells=lambda: nn.LSTM(8, 5, batch_first=True),
        ),
        batch=SEQUENCES,
    ),
}


class Complex(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape, dtype=torch.complex128))


class Spectral(Complex):
    """The layer of a Fourier neural operator."""

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=8)


class ComplexScale(Complex):
    def forward(self, x):
        return torch.view_as_real(torch.view_as_complex(x.view(len(x), 4, 2)) * self.weight).flatten(1)


IDS, BAGS = tokens(N, 5), tokens(N, 4)
OTHER = {
    "complex weights between Fourier transforms": layers(
        lambda: Spectral(5, 5), lambda: nn.Linear(8, 3), measured=False, options={"mode": "exact"}
    ),
    "complex scales": layers(lambda: ComplexScale(4), lambda: nn.Linear(8, 3), measured=False),
    "EmbeddingBag": layers(lambda: nn.EmbeddingBag(11, 5), lambda: nn.Linear(5, 3), batch=BAGS),
    "EmbeddingBag with offsets": layers(
        net(
            lambda m, ids: m.bag(ids.flatten(), torch.arange(len(ids)) * ids.shape[1]),
            bag=lambda: nn.EmbeddingBag(11, 5, mode="sum"),
        ),
        batch=BAGS,
    ),
    "an embedding with sparse gradients": layers(
        lambda: nn.Embedding(11, 5, sparse=True), lambda: nn.Linear(5, 3), batch=IDS
    ),
    "an embedding with a largest norm": layers(
        lambda: nn.Embedding(11, 5, max_norm=1.0), lambda: nn.Linear(5, 3), batch=IDS, measured=False
    ),
    "an embedding scaled by frequency": layers(
        lambda: nn.Embedding(11, 5, scale_grad_by_freq=True),
        lambda: nn.Linear(5, 3),
        batch=IDS,
        measured=False,
        hopeless=True,
    ),
    "one-hot vectors times a table": layers(
        net(lambda m, ids: F.one_hot(ids, 11).double() @ m.table, table=lambda: parameter(11, 5)),
        lambda: nn.Linear(5, 3),
        batch=IDS,
    ),
    "one-hot vectors as wide as the batch says": layers(
        net(lambda m, ids: F.one_hot(ids).double() @ m.table[: int(ids.max()) + 1], table=lambda: parameter(11, 5)),
        lambda: nn.Linear(5, 3),
        batch=IDS,
        measured=False,
        situation="num_classes",
    ),
    "bilinear": layers(net(lambda m, x: m.pair(x[:, :4], x[:, 4:]), pair=lambda: nn.Bilinear(4, 4, 3))),
    "BatchNorm in eval mode": layers(
        lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(4).eval(), nn.ReLU, batch=IMAGES
    ),
    "transposed and grouped convolutions": layers(
        lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=1),
        nn.Tanh,
        lambda: nn.Conv2d(6, 6, 3, groups=6),
        batch=IMAGES,
    ),
    "convolutions with other paddings": layers(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Tanh,
        lambda: nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
        batch=IMAGES,
    ),
    "unfold and matmul": layers(
        net(lambda m, x: m.weight @ F.unfold(x, 3), weight=lambda: parameter(4, 27)), batch=IMAGES
    ),
    "squeeze and excitation": layers(
        lambda: nn.Conv2d(3, 4, 3),
        net(
            lambda m, x: x * torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3)))))).unflatten(1, (4, 1, 1)),
            down=lambda: nn.Linear(4, 2),
            up=lambda: nn.Linear(2, 4),
        ),
        batch=IMAGES,
    ),
    "layer scale": layers(lambda: nn.Linear(8, 8), own_scale(lambda m, x: x + m.scale * x.tanh())),
    "instance norm": layers(
        lambda: nn.Conv2d(3, 4, 3), lambda: nn.InstanceNorm2d(4, affine=True), nn.Tanh, batch=IMAGES
    ),
    "soft experts, all evaluated": layers(
        net(
            lambda m, x: torch.einsum("ne,ned->nd", m.gate(x).softmax(-1), torch.einsum("nd,edk->nek", x, m.experts)),
            gate=lambda: nn.Linear(8, 4),
            experts=lambda: parameter(4, 8, 5),
        )
    ),
    "experts chosen by their weights' index": layers(
        net(
            lambda m, x: torch.bmm(x.unsqueeze(1), m.experts[m.gate(x).argmax(1)]).squeeze(1),
            gate=lambda: nn.Linear(8, 4).requires_grad_(False),
            experts=lambda: parameter(4, 8, 5),
        )
    ),
    "experts in a loop, rows added back": layers(
        net(
            lambda m, x: in_a_loop(m, x),
            gate=lambda: nn.Linear(8, 3),
            experts=lambda: nn.ModuleList(nn.Linear(8, 8) for _ in range(3)),
        ),
    ),
    "a transformer with masks": layers(
        net(
            lambda m, x: m.layer(
                x, nn.Transformer.generate_square_subsequent_mask(x.shape[1]), src_key_padding_mask=x[..., 0] > 1
            ),
            layer=lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True),
        ),
        batch=SEQUENCES,
    ),
    "a lazy layer": layers(lambda: initialised(nn.LazyLinear(5)), lambda: nn.Linear(5, 3)),
    "a scripted layer": layers(lambda: torch.jit.script(nn.Linear(8, 5)), lambda: nn.Linear(5, 3), measured=False),
    "a scalar loss from a root with a parameter of its own": Program(
        net(
            lambda m, x, y: F.cross_entropy(m.net(x), y) * torch.exp(-m.log_var) + m.log_var,
            net=lambda: nn.Linear(8, 3),
            log_var=lambda: nn.Parameter(torch.zeros(())),
        ),
        (X, Y),
        lambda m, x, y: m(x, y),
    ),
    "a loss computed in the forward": Program(
        net(lambda m, x, y: {"loss": F.cross_entropy(m.net(x), y)}, net=lambda: nn.Linear(8, 3)),
        (X, Y),
        lambda m, x, y: m(x, y)["loss"],
        measured=True,
    ),
    "inputs by keyword and in dictionaries": Program(
        net(lambda m, *, batch, scale: m.net(batch["x"]) * scale, net=lambda: nn.Linear(8, 3)),
        (X, Y),
        lambda m, x, y: F.cross_entropy(m(batch={"x": x, "y": y}, scale=2.0), y),
        measured=True,
    ),
    "a loss over tokens, some ignored": Program(
        net(lambda m, ids: m.out(m.emb(ids)), emb=lambda: nn.Embedding(11, 8), out=lambda: nn.Linear(8, 11)),
        (IDS,),
        lambda m, ids: F.cross_entropy(m(ids).flatten(0, 1), ids.flatten().where(ids.flatten() > 2, -100)),
        contribution=lambda m, i: ignoring(m, IDS[i : i + 1]),
        measured=True,
    ),
    "a loss weighted by class": Program(
        lambda: nn.Linear(8, 3),
        (X, Y),
        lambda m, x, y: F.cross_entropy(m(x), y, weight=WEIGHTS),
        contribution=lambda m, i: (
            F.cross_entropy(m(X[i : i + 1]), Y[i : i + 1], weight=WEIGHTS, reduction="sum") / WEIGHTS[Y].sum()
        ),
        measured=True,
    ),
}
WEIGHTS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def ignoring(model, ids):
    targets = ids.flatten().where(ids.flatten() > 2, -100)
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets, reduction="sum")
    return loss / (IDS > 2).sum()


def in_a_loop(m, x):
    weights, chosen = m.gate(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for k, expert in enumerate(m.experts):
        rows = (chosen == k).nonzero().squeeze(1)
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, None])
    return out


def initialised(layer):
    layer(X.to(torch.get_default_dtype()))
    return layer


PROGRAMS = {
    "mixes samples": MIXED,
    "parametrized": PARAMETRIZED,
    "recurrent": RECURRENT,
    "layers": OTHER,
}
