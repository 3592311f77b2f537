"""What a step is looked through for before it counts: gradients that are not, or not only, of its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models import clean
from ..layers import UnsupportedError
from ..uses import Pass
from .parameters import Parameters, by_reason, listed

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
        if any(ledger.trouble == "repeated" for ledger in group) or any(len(ledger.tasks) > 1 for ledger in group):
            raise UnsupportedError(
                "one forward pass was followed by several backward passes, and squares of their gradients do not "
                "add. Add the losses and call backward once, put the others into `with monitor.paused():`, or use "
                "mode='micro'."
            )
        if len(group) > 1 and (not same_samples or len({ledger.n for ledger in group}) > 1):
            raise UnsupportedError(
                f"the model ran forward {len(group)} times before one backward pass, so its samples cannot be told "
                "apart. Where the passes are of the same samples (pairs, as in SimCLR), pass batch_size to the "
                "monitor; else call backward after each forward pass, or use mode='micro'."
            )
    if stale is not None:
        raise UnsupportedError(
            f"{stale}: its .grad still held the gradient of the step before when a new batch was added to it. "
            "Clear gradients after every step (optimizer.zero_grad())."
        )


def refuse_leftovers(session: Session) -> None:
    """Raise where .grad holds what a pass inside `paused` added."""
    names = session.leftovers.names()
    if names:
        raise RuntimeError(
            f".grad holds what a backward pass inside paused() left, and not the batch's gradient alone: "
            f"{listed(names)}. Call step() before such a pass, or clear .grad or put it back after it (not through "
            ".data, which hides that it was changed)."
        )


def refuse_strangers(session: Session, parameters: Parameters) -> None:
    """Raise where the model holds parameters that it did not hold when the monitor was attached."""
    names = [clean(name) for name, p in parameters.root.named_parameters() if id(p) in session.strangers]
    if names:
        raise RuntimeError(
            f"{', '.join(names[:5])}: not the parameters that were there when the monitor was attached. Attach "
            "a new monitor after parameters or layers are replaced."
        )


def no_backward(session: Session, parameters: Parameters) -> RuntimeError:
    """The error of a step without a backward pass that counted."""
    trained = [name for name in parameters.covered if parameters.chosen[name].grad is not None]
    seen = ""
    if trained and any(ledger.n and not ledger.inputs for ledger in session.passes):
        seen = (
            f" {listed(trained)} have gradients, but the model was called without a tensor that carries samples: "
            "pass the batch, or the noise that samples are made from, as tensors; arrays and numbers are constants."
        )
    elif trained:
        seen = (
            f" {listed(trained)} have gradients, but not from a forward pass of this model that was seen: call "
            "the model as a whole, or attach the monitor to the part that is called, or clear old gradients."
        )
    return RuntimeError(f"step() needs a backward pass since the last call. Call it after loss.backward().{seen}")


def refused_uses(ledgers: list[Pass], parameters: Parameters) -> dict[str, str]:
    """Parameters whose samples could not be told apart, with the reason; notes what measured the others."""
    refused: dict[str, str] = {}
    kinds: dict[str, set[str]] = {}
    for ledger in ledgers:
        for name, reason in ledger.refused.items():
            if name in parameters.index and parameters.chosen[name].grad is not None:
                refused.setdefault(name, reason)
        for name, seen in ledger.kinds.items():
            kinds.setdefault(name, set()).update(seen)
    for name, every in kinds.items():
        if parameters.coverage.get(name) is not None:
            parameters.coverage[name] = " + ".join(sorted(every))
    return refused


def cannot_be_told_apart(refused: dict[str, str]) -> UnsupportedError:
    """The error that names those parameters and says what to do."""
    return UnsupportedError(
        f"no exact per-sample gradient for\n{by_reason(refused)}\nUse mode='micro', which takes whole "
        "micro-batches for samples; leave these parameters out with parameters=…; or strict=False, which leaves "
        "out what cannot be told apart and says so in coverage."
    )


def refuse_unmeasured(session: Session, parameters: Parameters, ledgers: list[Pass]) -> None:
    """Raise where a parameter has a gradient that nothing measured, or was measured and has none."""
    if ledgers and not any(ledger.n for ledger in ledgers):
        return  # a rank without samples: what is in .grad came from the others
    measured = session.probed()
    for ledger in ledgers:
        measured.update(ledger.squares)
    gone = [name for name in parameters.covered if name in measured and parameters.chosen[name].grad is None]
    if gone:
        raise RuntimeError(
            f"{listed(gone)}: measured, but .grad is None. Call step() before gradients are cleared; optimizers that "
            "step inside backward (DeepSpeed's ZeRO) are not supported."
        )
    coverage = parameters.coverage
    for name, parameter in parameters.everything.items():
        if parameter.grad is None or name in parameters.excluded or (name in coverage and coverage[name] is None):
            continue
        if name not in coverage:
            raise RuntimeError(
                f"{name} has a gradient but did not train when the monitor was attached. Attach a new monitor."
            )
        if session.exact and name not in measured:
            raise RuntimeError(
                f"{name} has a gradient, but no operation of the model's forward pass was seen to give it one: the "
                "parameter is used outside the model's forward, inside an autograd.Function or TorchScript, or an "
                "old .grad was not cleared. Clear gradients after each step, use mode='micro', or leave it out "
                "with parameters=…."
            )
