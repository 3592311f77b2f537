"""Experts of a mixture: how alike they answer to the same tokens, and two of them made one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..._progress import Progress, reporter
from ...models import copy_of, plainly, running, unwritten
from ..arithmetic import widened
from ..collect import Forward, batches_of, caller, check_loader
from ..gram import GramAccumulator
from .edits import Edit, Merging, Pairs, apply, checked_pairs


def expert_cosine(
    model: nn.Module,
    experts: str,
    loader: Iterable[Any],
    *,
    max_batches: int | None = None,
    forward: Forward | None = None,
    progress: Progress = False,
) -> Tensor:
    """Cosine between the outputs of every pair of experts, all of them run on the same tokens.  # shape: (E, E)

    The tokens are those that the model sends to any of the experts, whichever it chose for them; entry for entry,
    an expert's outputs on all tokens are one vector.

    Args:
        model: any module; it runs in eval mode, and is left as it was.
        experts: name of an nn.ModuleList of experts, each called on tokens (…, features); or of a module that holds
            all experts in parameters of three axes, the first counting them, called with tokens (T, features), chosen
            experts (T, k) and their weights (T, k), as in transformers.
        loader, max_batches, forward, progress: as in `collect_activations`.

    Raises:
        TypeError: no such module, or one that holds its experts in another way.
        ValueError: experts that no batch reaches.
    """
    holder = holder_of(model, experts)
    max_batches = check_loader(loader, max_batches)
    run, report = caller(model, forward), reporter(progress, f"experts of {experts}")
    sums: GramAccumulator | None = None
    with plainly(model), running(model):
        for batch in batches_of(loader, max_batches, report):
            tokens = _tokens(model, holder, run, batch)
            if tokens is not None:
                answers = torch.stack([_answer(holder, k, tokens).flatten() for k in range(count_of(holder))])
                if sums is None:
                    dtype = torch.float64 if answers.dtype == torch.float64 else torch.float32
                    sums = GramAccumulator(len(answers), dtype=dtype, device=answers.device)
                sums.update(answers, neuron_dim=0)
    if sums is None:
        raise ValueError(f"experts: {experts!r} did not run in these batches. Pass others, or another name.")
    return sums.cosine_matrix()


def merge_experts(model: nn.Module, experts: str, pairs: Pairs) -> AbstractContextManager[nn.Module]:
    """Both experts of a pair become their mean inside a `with` block; afterwards the model is as it was.

    The router still chooses between them, so that together they are one expert with the weight of both. None is taken
    out: no single row of a router gives the sum of two probabilities.

    Args:
        model, experts: as in `expert_cosine`.
        pairs: as in `merge`.

    Returns:
        A context manager that gives the model.

    Raises:
        TypeError, ValueError: as `expert_cosine` and `merge`; experts of different shapes.
    """
    checked = torch.stack(checked_pairs(pairs, count_of(holder_of(model, experts))), 1)
    _edits(model, experts, checked)  # what cannot be merged is refused now
    return Merging(model, lambda: _edits(model, experts, checked))


def consolidate_experts(model: nn.Module, experts: str, pairs: Pairs, *, inplace: bool = False) -> nn.Module:
    """The same for good, in a copy unless `inplace`; the number of experts stays what it is.

    Args:
        model, experts, pairs: as in `merge_experts`.
        inplace: change the model itself.

    Returns:
        The merged model.
    """
    changed = model if inplace else copy_of(model)
    apply(_edits(changed, experts, pairs))
    return changed


def _edits(model: nn.Module, experts: str, pairs: Pairs) -> list[Edit]:
    holder = holder_of(model, experts)
    checked = checked_pairs(pairs, count_of(holder))
    both = torch.cat(checked)
    edits = []
    if isinstance(holder, nn.ModuleList):
        for i, j in torch.stack(checked, 1).tolist():
            one, other = dict(holder[i].named_parameters()), dict(holder[j].named_parameters())
            if {name: each.shape for name, each in one.items()} != {name: each.shape for name, each in other.items()}:
                raise ValueError(f"pairs: experts {i} and {j} of {experts!r} have parameters of different shapes.")
            for name, tensor in one.items():
                mean = ((widened(tensor.detach()) + widened(other[name].detach())) / 2).to(tensor.dtype)
                edits += [_whole(each, mean) for each in (tensor, other[name])]
        return edits
    for tensor in holder.parameters(recurse=False):
        if not tensor.ndim or len(tensor) != count_of(holder):
            continue  # shared by all experts, as a gain of the features that they read
        first, second = (widened(tensor.detach()[which.to(tensor.device)]) for which in checked)
        mean = ((first + second) / 2).to(tensor.dtype)
        edits.append(Edit(tensor, 0, both.to(tensor.device), torch.cat((mean, mean))))
    return edits


def _whole(tensor: Tensor, values: Tensor) -> Edit:
    return Edit(tensor, 0, torch.arange(len(tensor) if tensor.ndim else 1, device=tensor.device), values)


def holder_of(model: nn.Module, experts: str) -> nn.Module:
    """The module that holds the experts; TypeError for any other."""
    modules = dict(model.named_modules(remove_duplicate=False))
    holder = modules.get(experts)
    stacked = holder is not None and any(each.ndim == 3 for each in holder.parameters(recurse=False))
    if holder is None or not (isinstance(holder, nn.ModuleList) or stacked):
        able = [name for name, module in modules.items() if any(p.ndim == 3 for p in module.parameters(recurse=False))]
        got = "no module" if holder is None else type(holder).__name__
        raise TypeError(
            f"experts: expected the name of an nn.ModuleList, or of a module that holds experts in parameters of three "
            f"axes, got {experts!r}, {got}. Such modules here: {', '.join(able[:6]) or 'none'}."
        )
    if stacked and len(inspect.signature(holder.forward).parameters) < 3:
        raise TypeError(
            f"experts: {experts!r} ({type(holder).__name__}) is not called with tokens, chosen experts and weights, so "
            "its experts cannot be run one by one."
        )
    return holder


def count_of(holder: nn.Module) -> int:
    """How many experts it holds."""
    if isinstance(holder, nn.ModuleList):
        return len(holder)
    return next(len(each) for each in holder.parameters(recurse=False) if each.ndim == 3)


def _tokens(model: nn.Module, holder: nn.Module, run: Forward, batch: Any) -> Tensor | None:
    """What the model gives to its experts.  # shape: (tokens, features)"""
    seen: list[Tensor] = []
    watched = list(holder) if isinstance(holder, nn.ModuleList) else [holder]

    def take(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = inputs[0] if inputs else named.get("hidden_states")
        if isinstance(tokens, Tensor) and tokens.numel():
            seen.append(tokens.detach().flatten(0, -2))

    hooks = [module.register_forward_pre_hook(take, with_kwargs=True) for module in watched]
    try:
        with unwritten(batch):
            run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(seen) if seen else None


def _answer(holder: nn.Module, expert: int, tokens: Tensor) -> Tensor:
    if isinstance(holder, nn.ModuleList):
        return holder[expert](tokens)  # type: ignore[no-any-return]
    chosen = torch.full((len(tokens), 1), expert, device=tokens.device)
    return holder(tokens, chosen, tokens.new_ones(len(tokens), 1))  # type: ignore[no-any-return]
