"""Dropout between the layers of a recurrent network, whose numbers are drawn again for each sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

import sdsd
from tests.zoo.parts import N, any_loss, numbers
from tests.zoo.verdict import compare, float64_default

from .test_kinds_sequences import LONG, Net, lengths


def tied_layers():
    cells = nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cells, f"{name}_l1", getattr(cells, f"{name}_l0"))
    return cells


DROPPING = {
    "LSTM of three layers": lambda: nn.LSTM(8, 5, 3, dropout=0.4),
    "batch first, both ways": lambda: nn.LSTM(8, 5, 2, dropout=0.4, bidirectional=True, batch_first=True),
    "GRU": lambda: nn.GRU(8, 5, 2, dropout=0.5, batch_first=True),
    "projections": lambda: nn.LSTM(8, 5, 3, dropout=0.5, proj_size=3, batch_first=True),
    "without biases": lambda: nn.RNN(8, 5, 3, dropout=0.5, bias=False),
    "tied layers": tied_layers,
}


def padded(m, x, sizes):
    x = x if m.cells.batch_first else x.transpose(0, 1)
    out, state = m.cells(x)
    state = state[0] if isinstance(state, tuple) else state
    return (out if m.cells.batch_first else out.transpose(0, 1)).mean(1) + state[-1].repeat(
        1, out.shape[2] // state.shape[2]
    )


def packed(m, x, sizes):
    first = m.cells.batch_first
    x = x if first else x.transpose(0, 1)
    out = m.cells(rnn.pack_padded_sequence(x, sizes, batch_first=first, enforce_sorted=False))[0]
    return rnn.pad_packed_sequence(out, batch_first=True)[0].sum(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("compute", [padded, packed])
@pytest.mark.parametrize("name", DROPPING)
def test_dropout_between_layers(name, compute, dtype):
    """What a sample contributes with the entries that its batch dropped; as many random numbers are drawn."""
    for long in LONG.values():
        x, sizes = numbers(N, long, 8).to(dtype), lengths(long)
        torch.manual_seed(0)
        model = Net(compute, cells=DROPPING[name]()).to(dtype)

        def each(model=model, x=x, sizes=sizes):
            torch.manual_seed(5)
            return model(x, sizes).square().sum(1)

        each().mean().backward()
        plain, drawn = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
        model.zero_grad()
        monitor = sdsd.GammaMonitor(model)
        each().mean().backward()
        stats = monitor.step()
        assert torch.equal(torch.get_rng_state(), drawn)
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
        monitor.detach()
        rows = {name: [] for name, _ in model.named_parameters()}
        for i in range(N):
            model.zero_grad()
            each()[i].backward()
            for parameter_name, p in model.named_parameters():
                rows[parameter_name].append(p.grad.clone())
        verdict = compare(
            stats, {k: torch.stack(v) for k, v in rows.items()}, tolerance=1e-6 if dtype is torch.float64 else 1e-4
        )
        assert verdict.kind == "right", verdict.why


def test_dropout_that_cannot_be_repeated_is_named():
    """Somebody draws in between, in a way that no state of the generator tells."""
    with float64_default():
        torch.manual_seed(0)
        model = Net(lambda m, x: m.cells(x)[0], cells=nn.LSTM(8, 5, 2, dropout=0.5, batch_first=True)).double()
        monitor, x = sdsd.GammaMonitor(model), numbers(N, 4, 8).double()
        any_loss(model, x).backward()
        monitor.step()
        model.zero_grad()
        plain, torch.get_rng_state = torch.get_rng_state, lambda: torch.Generator().manual_seed(9).get_state()
        try:
            loss = any_loss(model, x)
        finally:
            torch.get_rng_state = plain
        loss.backward()
        with pytest.raises(ValueError, match=r"cells\.weight_ih_l0.*draws other numbers"):
            monitor.step()
