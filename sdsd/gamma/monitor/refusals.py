"""What a step is looked through for before it counts: gradients that are not, or not only, of its samples."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Container
from typing import TYPE_CHECKING

import torch

from ...models import clean
from ..layers import UnsupportedError
from ..uses import Pass
from .inputs import capturing
from .marks import local
from .parameters import Parameters, by_reason, listed
from .ranks import Ranks

if TYPE_CHECKING:
    from .session import Session


def refuse_uncounted(groups: list[list[Pass]], *, unfinished: bool, same_samples: bool, stale: str | None) -> None:
    """Raise where the samples of a step's passes, those of one backward pass together, cannot be counted."""
    if unfinished:
        raise UnsupportedError(
            "a backward pass ended in an exception, and what it had added to .grad is still there. Clear the "
            "gradients (optimizer.zero_grad()) after such an exception."
        )
    for group in groups:
        for ledger in group:
            if ledger.trouble == "repeated" or len(ledger.tasks) > 1:
                raise UnsupportedError(
                    "one forward pass was followed by several backward passes, and squares of their gradients do not "
                    "add. Add the losses and call backward once, or put the others into `with monitor.paused():`."
                )
        if len(group) > 1 and (not same_samples or len({ledger.n for ledger in group}) > 1):
            raise UnsupportedError(
                f"the model ran forward {len(group)} times before one backward pass, so its samples cannot be told "
                "apart. Where the passes are of the same samples (pairs, as in SimCLR), run them as one, "
                "monitor.forward(lambda a, b: (model(a), model(b)), a, b), or pass batch_size to the monitor; else "
                "call backward after each forward pass, or use mode='micro'."
            )
    if stale is not None:
        raise UnsupportedError(
            f"{stale}: its .grad still held the gradient of the step before when a new batch was added to it. "
            "Clear gradients after every step (optimizer.zero_grad(), of every optimizer of the model)."
        )


def refuse_foreign(session: Session, parameters: Parameters) -> None:
    """Raise where .grad holds what a pass inside `paused` added, or where the model holds parameters that it did not
    hold when the monitor was attached."""
    names = session.leftovers.names()
    if names:
        raise RuntimeError(
            f".grad holds what a backward pass inside paused() left, and not the batch's gradient alone: "
            f"{listed(names)}. Call step() before such a pass, or clear .grad or put it back after it (not through "
            ".data, which hides that it was changed)."
        )
    names = [clean(name) for name, p in parameters.root.named_parameters() if id(p) in session.strangers]
    if names:
        raise RuntimeError(
            f"{', '.join(names[:5])}: not the parameters that were there when the monitor was attached. Attach "
            "a new monitor after parameters or layers are replaced."
        )


def no_backward(session: Session, parameters: Parameters) -> RuntimeError:
    """The error of a step without a backward pass that counted."""
    if session.detached:
        return RuntimeError("step() after detach(): nothing is measured any more. Make a new monitor of the model.")
    trained = [name for name in parameters.covered if parameters.chosen[name].grad is not None]
    if any(name in session.within for name in trained):
        return _inside_a_function(session, trained)
    seen = ""
    if trained and session.last is not None and session.last.n and not session.last.inputs:
        seen = (
            f" {listed(trained)} have gradients, but the model was called without a tensor that carries samples: "
            "pass the batch, or the noise that samples are made from, as tensors; arrays and numbers are constants."
        )
    elif trained and session.repeated:
        seen = (
            f" {listed(trained)} have gradients, but the model ran inside the backward pass, as in a reentrant "
            "checkpoint round the whole of it: pass use_reentrant=False to torch.utils.checkpoint."
        )
    elif trained:
        seen = (
            f" {listed(trained)} have gradients, but not from a forward pass of this model that was seen: call "
            "the model as a whole, or what you call in its place by monitor.forward(function, *inputs), or clear old "
            "gradients. Nor is a forward pass seen that ran before the monitor was attached, or during a step that "
            "`every` leaves out. Gradients that autograd.grad returned and that were put into .grad by hand (PCGrad) "
            "came by no backward pass: call loss.backward(retain_graph=True) and step() first, clear, then put them "
            "there."
        )
    return RuntimeError(f"step() needs a backward pass since the last call. Call it after loss.backward().{seen}")


def refused_uses(ledgers: list[Pass], parameters: Parameters) -> dict[str, str]:
    """Parameters whose samples could not be told apart, with the reason; notes what measured the others."""
    refused: dict[str, str] = {}
    for ledger in ledgers:
        for name, reason in ledger.refused.items():
            if name in parameters.index and parameters.chosen[name].grad is not None:
                refused.setdefault(name, reason)
    if len(ledgers) != 1 or ledgers[0].kinds != parameters.kinds:
        parameters.note_kinds([ledger.kinds for ledger in ledgers])
    return refused


def cannot_be_told_apart(refused: dict[str, str]) -> UnsupportedError:
    """The error that names those parameters and says what to do."""
    by_chance = ""
    if any("along different dimensions" in reason for reason in refused.values()):
        by_chance = (
            "An input that has as many rows as the batch by chance (a mask, positions, query points) is a constant in "
            "monitor.forward(lambda x: model(x, constant), x). "
        )
    return UnsupportedError(
        f"no exact per-sample gradient for\n{by_reason(refused)}\n{by_chance}Use mode='micro', which takes whole "
        "micro-batches for samples; leave these parameters out with parameters=…; or strict=False, which leaves "
        "out what cannot be told apart and says so in coverage."
    )


def unmeasured(session: Session, parameters: Parameters, ledgers: list[Pass], probed: set[str]) -> list[str]:
    """Parameters with a gradient that nothing measured; raises where one was measured and has none."""
    measured, samples = set(probed), 0
    for ledger in ledgers:
        measured.update(ledger.squares)
        samples += ledger.n
    if ledgers and not samples:
        return []  # a rank without samples: what is in .grad came from the others
    coverage, gone, unseen = parameters.coverage, [], []
    for name, parameter in parameters.everything.items():
        if parameter.grad is None:
            if name in measured and name in parameters.index:
                gone.append(name)
        elif name in parameters.excluded or (name in coverage and coverage[name] is None):
            continue
        elif name not in coverage or (session.exact and name not in measured):
            unseen.append(name)
    if gone:
        raise _gone(gone)
    return _not_zero(unseen, parameters) if unseen and not capturing() else unseen


def _not_zero(names: list[str], parameters: Parameters) -> list[str]:
    """Those whose gradient is not zeros: a head that is not used, a layer that is frozen. A device is waited for."""
    gradients = [parameters.everything[name].grad for name in names]
    looks = [local(grad).any().to(parameters.device) for grad in gradients if grad is not None]
    return list(itertools.compress(names, torch.stack(looks).tolist()))


def _gone(names: list[str]) -> RuntimeError:
    return RuntimeError(
        f"{listed(names)}: measured, but .grad is None. Call step() before gradients are cleared; optimizers that step "
        "inside backward (DeepSpeed's ZeRO) are not supported."
    )


def _inside_a_function(session: Session, names: list[str]) -> RuntimeError:
    """The error of parameters that an autograd.Function of the user's gives gradients to."""
    inside = {name: session.within[name] for name in names if name in session.within}
    functions = ", ".join(dict.fromkeys(inside.values()))
    return RuntimeError(
        f"{listed(list(inside))}: read inside {functions}, an autograd.Function, whose backward adds samples up where "
        "nobody can see it. Leave out what it alone reads,\n"
        "  monitor = sdsd.GammaMonitor(model, parameters=[name for name, _ in model.named_parameters() "
        f"if name not in {sorted(inside)!r}])\n"
        "or take micro-batches for samples, sdsd.GammaMonitor(model, mode='micro'), or do in torch's own operations "
        "what it does."
    )


def of_unmeasured(session: Session, unseen: list[str], coverage: Container[str]) -> RuntimeError:
    """The error of parameters with a gradient that was not measured."""
    if unseen[0] in coverage and unseen[0] in session.within:
        return _inside_a_function(session, unseen)
    for name in unseen:
        if name not in coverage:
            return RuntimeError(
                f"{name} has a gradient but did not train when the monitor was attached. Attach a new monitor."
            )
    has = "has a gradient" if len(unseen) == 1 else "have gradients"
    return RuntimeError(
        f"{listed(unseen)} {has}, but no operation of samples in the model's forward pass was seen to give one: used "
        "outside of it (run the loss in it, too: monitor.forward(function, *inputs)), inside an autograd.Function or "
        "TorchScript, or an old .grad was not cleared. Clear gradients after each step, use mode='micro', leave it out "
        "with parameters=…, or have it left out with strict=False."
    )


def unproved(
    differences: dict[str, float], factor: float | None, *, differentiated: bool, ranks: Ranks
) -> UnsupportedError:
    """The error of a step whose gradients are not what its samples add up to, by these parts of them.

    factor: what every gradient is of what was measured, where that is one number. differentiated: an inner
    autograd.grad(create_graph=True) went through the forward pass. ranks: those that share the step.
    """
    shown = [
        f"{name} ({100 * difference:{'.2g' if difference < 1 else '.0f'}}% of it)" if difference < math.inf else name
        for name, difference in list(differences.items())[:8]
    ]
    more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
    if factor == 0:
        reason = "Every .grad is 0: call step() after loss.backward() and before gradients are cleared."
    elif factor is not None:
        reason = (
            f"Every gradient is {factor:.4g} times what its samples add up to: call step() before gradients are "
            "clipped or otherwise scaled; where a GradScaler scaled the loss, pass it to the monitor as scaler=…; "
            "divide losses by the number of micro-batches, not gradients (pipelines: scale_grads=False)."
        )
    elif differentiated:
        reason = (
            "An autograd.grad(create_graph=True) went through the forward pass, so that the loss holds derivatives of "
            "what the model gave. Where they are the loss (forces, equations of physics, score matching), use "
            "mode='micro' with two or more backward passes a step; compute a penalty under `with monitor.paused():` "
            "after step()."
        )
    else:
        reason = (
            "Likely reasons: the parameter is used outside the model's forward pass (in the loss, in a penalty, tied "
            "by hand), an inner autograd.grad(create_graph=True), a gradient that was not cleared, or changed by a "
            "hook or by clipping before step(). Compute penalties under `with monitor.paused():` after step(), clear "
            "gradients after every step, or leave the parameter out with parameters=…."
        )
    return UnsupportedError(
        "the step does not prove itself: what arrived in .grad is not what the measured samples add up to, for\n  "
        f"{', '.join(shown)}{more}.\n{reason}{ranks.why_not_proved(factor)}"
    )


def warn_of_too_few(n: int, exact: bool) -> None:
    """Say that a step held too little for a variance."""
    of_what = "sample" if exact else "micro-batch"
    if exact:
        what_to_do = "take micro-batches for samples, mode='micro' with two or more backward passes a step"
    else:
        what_to_do = "split its batch into two or more backward passes"
    warnings.warn(
        f"step skipped: it held {n} {of_what}{'' if n else 's'}, and a variance needs at least 2. Where every step is "
        f"like this one, {what_to_do}.",
        stacklevel=5,
    )


def warn_of_doubt(names: list[str], came: bool = False) -> None:
    """Say that a step is skipped whose gradients `came` otherwise, or were changed, and which cannot be proved."""
    if came and not names:
        what = "on some rank a gradient did not come as in the steps before, or an inner autograd.grad went through"
    elif came:
        what = f".grad of {listed(names)} did not come as in the steps before (a penalty, a hook, another use)"
    elif names:
        what = f".grad of {listed([*dict.fromkeys(names)])} was written to after a backward pass"
    else:
        what = "an inner autograd.grad(create_graph=True) went through the forward pass"
    warnings.warn(
        f"step skipped: {what}, and this step does not prove itself. Those that follow do, while that goes on. Call "
        "step() before gradients are clipped or otherwise changed, and compute penalties under "
        "`with monitor.paused():` after it.",
        stacklevel=5,
    )
