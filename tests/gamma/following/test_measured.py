"""Through the monitor: what samples go through unseen is refused by name, and nothing stays on tensors."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdsd

N = 4


class Centred(torch.autograd.Function):
    """x − mean over the samples, out of sight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return (x - x.mean(0)).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad - grad.mean(0)


class Product(torch.autograd.Function):
    """x @ w out of sight, as a kernel of one's own would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        with torch._C.DisableTorchFunction():
            return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad @ w.T, x.T @ grad


class Net(nn.Module):
    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def centred_by_vmap(h: Tensor) -> Tensor:
    return torch.vmap(lambda column: column - column.mean(), in_dims=1, out_dims=1)(h)


def written_through_a_view(h: Tensor) -> Tensor:
    buffer = h.new_zeros(h.shape)
    buffer[:2].copy_(h[1:3])
    return h + buffer


def centred_through_a_view(h: Tensor) -> Tensor:
    y = h * 1
    seen = y[:, :2]
    y.sub_(y.mean(0, keepdim=True))
    return torch.cat([seen, seen], 1)


def centred_in_memory(h: Tensor) -> Tensor:
    buffer = h.new_zeros(2, *h.shape)
    buffer[0].copy_(h - h.mean(0))
    return buffer.sum(0)


def measured(model: nn.Module, x: Tensor) -> Any:
    with sdsd.GammaMonitor(model) as monitor:
        model(x).square().sum().backward()
        return monitor.step()


@pytest.mark.parametrize(
    "between",
    [
        lambda h: Centred.apply(h),
        lambda h: Centred.apply(h) + h,
        lambda h: h + Centred.apply(h.detach().requires_grad_()),
        centred_by_vmap,
        written_through_a_view,
        centred_through_a_view,
        centred_in_memory,
    ],
    ids=["unseen", "unseen and joined", "unseen aside", "vmap", "view", "centred view", "memory"],
)
def test_samples_that_meet_are_refused_by_name(between: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"first\.weight"):
        measured(Net(between), torch.randn(N, 3))


def test_an_unseen_function_of_the_input_is_refused() -> None:
    class Unseen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Product.apply(x, self.weight).tanh())

    with pytest.raises(ValueError, match="weight"):
        measured(Unseen(), torch.randn(N, 3))


def test_a_weight_quantised_out_of_sight_is_measured() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ Rounded.apply(self.weight)

    class Rounded(Centred):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return (x * 8).round() / 8

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    model, x = Quantised(), torch.randn(N, 3, dtype=torch.float64)
    stats = measured(model, x)
    rows = torch.stack([2 * torch.outer(row, row @ ((model.weight * 8).round() / 8)) for row in x]).detach()
    total = (N * rows).sub(N * rows.mean(0)).square().sum() / (N - 1)
    assert stats.parameters["weight"].noise == pytest.approx(float(total), rel=1e-9)


def test_nothing_stays_on_outputs_buffers_and_what_a_model_keeps() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("state", torch.zeros(N, 3))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layer(x) + self.state
            self.state.copy_(hidden.detach())
            self.kept = hidden.detach()
            return hidden

    model, x = Keeping(), torch.randn(N, 3)
    with sdsd.GammaMonitor(model) as monitor:
        for _ in range(2):
            model.zero_grad()
            out = model(x)
            out.square().sum().backward()
            monitor.step()
        assert not any(vars(t) for t in (x, out, model.kept, model.state))
        torch.save(out.detach(), stream := io.BytesIO())
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=True), out.detach())
