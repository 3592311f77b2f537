"""Training loops round a drawn program, and what every sample contributes to the .grad that they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Any, nn.Module, int], None]


def _parts(draft: Any, model: nn.Module, k: int) -> list[Tensor]:
    return list(draft.parts(model, draft.batch(k)))


@dataclass(frozen=True)
class Loop:
    """run(draft, model, k) is the k-th step; contributions(draft, model, k) what samples have of its .grad.

    uneven: whether steps of one run may differ in their verdict. hopeless: whether .grad is no sum over samples.
    """

    run: Run
    contributions: Callable[[Any, nn.Module, int], list[Tensor]] = _parts
    options: Callable[[Any], dict[str, Any]] = lambda draft: {}
    tolerance: float = 2e-5  # some programs go through float32 on their way
    uneven: bool = False
    hopeless: bool = False


LOOPS: dict[str, Loop] = {}


def _plain(draft: Any, model: nn.Module, k: int) -> None:
    draft.loss(model, draft.batch(k)).backward()


LOOPS["plain"] = Loop(_plain)
LOOPS["not strict"] = Loop(_plain, options=lambda draft: {"strict": False}, uneven=True)


def _accumulated(draft: Any, model: nn.Module, k: int) -> None:
    for j in range(2):
        (draft.loss(model, draft.batch(k + 10 * j)) / 2).backward()


def _accumulated_parts(draft: Any, model: nn.Module, k: int) -> list[Tensor]:
    return [part / 2 for j in range(2) for part in draft.parts(model, draft.batch(k + 10 * j))]


LOOPS["accumulated"] = Loop(_accumulated, _accumulated_parts)


def _micro_parts(draft: Any, model: nn.Module, k: int) -> list[Tensor]:
    return [draft.loss(model, draft.batch(k + 10 * j)) / 2 for j in range(2)]


def _looked_between(draft: Any, model: nn.Module, k: int) -> None:
    with torch.no_grad():
        draft.call(model, draft.batch(k + 20))
    loss = draft.loss(model, draft.batch(k))
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        draft.call(model, draft.batch(k + 30))
    for module, was in training.items():
        module.training = was
    draft.loss(model, draft.batch(k + 40))
    loss.backward()


def _cleared(draft: Any, model: nn.Module, k: int) -> None:
    draft.loss(model, draft.batch(k + 20)).backward()
    model.zero_grad(set_to_none=k % 2 == 0)
    draft.loss(model, draft.batch(k)).backward()


def _looked_by_grad(draft: Any, model: nn.Module, k: int) -> None:
    loss = draft.loss(model, draft.batch(k))
    torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], retain_graph=True, allow_unused=True)
    loss.backward()


def _hooked(draft: Any, model: nn.Module, k: int) -> None:
    loss = draft.loss(model, draft.batch(k))
    loss.register_hook(lambda g: 2 * g)
    loss.backward()


def _failed_first(draft: Any, model: nn.Module, k: int) -> None:
    def fail(g: Tensor) -> None:
        raise ArithmeticError("on purpose")

    loss = draft.loss(model, draft.batch(k + 20))
    loss.register_hook(fail)
    try:
        loss.backward()
    except ArithmeticError:
        model.zero_grad()
    draft.loss(model, draft.batch(k)).backward()


def _closure(draft: Any, model: nn.Module, k: int) -> None:
    def closure() -> Tensor:
        model.zero_grad(set_to_none=False)
        loss = draft.loss(model, draft.batch(k))
        loss.backward()
        return loss

    closure()
    closure()


def _penalised(draft: Any, model: nn.Module, k: int) -> None:
    p = [p for p in model.parameters() if p.requires_grad][k % 2 - 1]
    (draft.loss(model, draft.batch(k)) + 0.1 * (p + 1).square().sum()).backward()


def _twice_through(draft: Any, model: nn.Module, k: int) -> None:
    loss = draft.loss(model, draft.batch(k))
    loss.backward(retain_graph=True)
    loss.backward()


def _pairs(draft: Any, model: nn.Module, k: int) -> None:
    (draft.loss(model, draft.batch(k)) + 0.5 * draft.loss(model, draft.batch(k + 10))).backward()


def _pair_parts(draft: Any, model: nn.Module, k: int) -> list[Tensor]:
    return list(draft.parts(model, draft.batch(k)) + 0.5 * draft.parts(model, draft.batch(k + 10)))


def _both_forward(draft: Any, model: nn.Module, k: int) -> None:
    (0.5 * draft.loss(model, draft.batch(k)) + 0.5 * draft.loss(model, draft.batch(k + 10))).backward()


def _apart(draft: Any, model: nn.Module, k: int) -> None:
    first, second = draft.loss(model, draft.batch(k)), draft.loss(model, draft.batch(k + 10))
    (second / 2).backward()
    (first / 2).backward()


def _frozen(draft: Any, model: nn.Module, k: int) -> None:
    parameters = list(model.parameters())
    parameters[0].requires_grad_(k != 1 or len(parameters) == 1)
    draft.loss(model, draft.batch(k)).backward()


def _gradient_first(draft: Any, model: nn.Module, k: int) -> None:
    """Of the input, as saliency maps and adversarial examples take it."""
    batch = draft.batch(k)
    if batch[0].is_floating_point():
        x = batch[0].clone().requires_grad_()
        torch.autograd.grad(draft.loss(model, (x, *batch[1:])), x, allow_unused=True)
        batch = (x.detach(), *batch[1:])
    draft.loss(model, batch).backward()


def _input_with_gradient(draft: Any, model: nn.Module, k: int) -> None:
    batch = draft.batch(k)
    if batch[0].is_floating_point():
        batch = (batch[0].clone().requires_grad_(), *batch[1:])
    draft.loss(model, batch).backward()


def _updated(draft: Any, model: nn.Module, k: int) -> None:
    draft.loss(model, draft.batch(k + 20)).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-3)
    model.zero_grad()
    draft.loss(model, draft.batch(k)).backward()


LOOPS["micro"] = Loop(_accumulated, _micro_parts, lambda draft: {"mode": "micro"})
LOOPS["other forwards between"] = Loop(_looked_between)
LOOPS["cleared in between"] = Loop(_cleared)
LOOPS["looked at by autograd.grad"] = Loop(_looked_by_grad)
LOOPS["a hook on the loss"] = Loop(_hooked, lambda d, m, k: [2 * part for part in _parts(d, m, k)])
LOOPS["a backward pass that fails"] = Loop(_failed_first)
LOOPS["closures"] = Loop(_closure)
LOOPS["a penalty"] = Loop(_penalised, hopeless=True, uneven=True)
LOOPS["twice through"] = Loop(_twice_through, lambda d, m, k: [2 * part for part in _parts(d, m, k)])
LOOPS["pairs"] = Loop(_pairs, _pair_parts, lambda draft: {"batch_size": draft.n})
LOOPS["two forwards, one backward"] = Loop(_both_forward, _accumulated_parts)
LOOPS["two forwards, then two backwards"] = Loop(_apart, _accumulated_parts)
LOOPS["frozen for a step"] = Loop(_frozen, uneven=True)
LOOPS["a gradient of the input first"] = Loop(_gradient_first)
LOOPS["an input with a gradient"] = Loop(_input_with_gradient)
LOOPS["updated between"] = Loop(_updated)


def _autocast(draft: Any, model: nn.Module, k: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = draft.loss(model, draft.batch(k))
    loss.backward()


def _autocast_parts(draft: Any, model: nn.Module, k: int) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return _parts(draft, model, k)


def _with_hidden(draft: Any, model: nn.Module, k: int) -> None:
    """Two forwards of one batch, of which one is thrown away, and gradients into buffers that are kept."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    draft.loss(model, draft.batch(k))
    draft.loss(model, draft.batch(k)).backward()


LOOPS["a smaller batch at last"] = Loop(_plain, uneven=True)
LOOPS["other lengths"] = Loop(_plain, uneven=True)
LOOPS["autocast"] = Loop(_autocast, _autocast_parts, tolerance=0.1, uneven=True)
LOOPS["added to zeros"] = Loop(_with_hidden)
