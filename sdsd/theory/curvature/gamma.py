"""Γ with the curvature kept: will the next step lower the loss, what learning rate is too large, what batch too small.

"Symmetry-Driven Spatial Density" §4 takes Γ = ‖∇L‖² / Tr D and writes the drift of the loss as −‖∇L‖² + Tr D. Itô's
formula for dθ = −∇L dt + √(2D) dW puts the Hessian H beside D; Tr D alone belongs to ½‖θ − θ*‖². With μ = ∇L and Σ_B
the covariance of the step's batch gradient, D = (η/2)Σ_B:

    dE[L]/dt = −‖μ‖² + Tr(DH)                                Γ_H = ‖μ‖² / Tr(DH)
    E[ΔL]    = −η‖μ‖² + (η²/2)(μᵀHμ + Tr(HΣ_B))              Γ*  = (‖μ‖² − (η/2) μᵀHμ) / ((η/2) Tr(HΣ_B))

the second for one SGD step, to second order in η. Where the trace is positive the loss falls iff the ratio exceeds 1;
elsewhere the ratio means nothing, and only the difference of both terms decides. For a step −η P g with a diagonal
preconditioner P, ‖μ‖² becomes μᵀPμ, μᵀHμ becomes μᵀPHPμ and Σ_B becomes PΣ_BP.

H and the gradients have to come from samples apart from each other. Where a network fits its samples, those with large
gradients bend the loss most along just these gradients, so that a batch's own H gives too large a trace: 1.2 to 6 times
too large at n = 64 on small networks that learned digits, worst late in training.

From the same traces come the two noise scales of McCandlish et al. 2018 (arXiv:1812.06162), in samples, with Σ that of
single samples: B_simple = Tr Σ / ‖μ‖² and, with the curvature, B_noise = Tr(HΣ) / μᵀHμ.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ...gamma import precondition as preconditioning
from ...models import unwrap
from ..derivatives import (
    Hessian,
    LossFunction,
    check_uses_model,
    length_of,
    mixing_layers,
    part_of,
    reordered,
    trainable,
    undisturbed,
)
from .moments import Fold, Group, Moments
from .rows import GradientRows, row_dtype
from .stats import CurvatureStats

EXACT_UP_TO = 128
"""Gradients whose curvature is summed one by one; more take PROBES random combinations of them."""
PROBES = 32
GROUPS = 16
"""Groups of samples, half of them in either half of a batch, which the error leaves out one by one."""
BYTES_A_PARAMETER = 32
"""What the rows and sums of one parameter take at least."""
MOST_BYTES = 2**30


def curvature_gamma(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    learning_rate: float,
    batch_size: int,
    samples_per_gradient: int = 1,
    population: int | None = None,
    precondition: torch.optim.Optimizer | Mapping[str, Tensor] | None = None,
    curvature_batch: Any = None,
    probes: int | None = None,
    chunk_size: int | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
) -> CurvatureStats:
    """Whether an SGD step of `learning_rate` on `batch_size` samples is expected to lower the loss, and by what margin.

    From n gradients gᵢ with mean ḡ, dᵢ = gᵢ − ḡ, and Hessian-vector products, without H itself::

        Tr(HΣ) = Σ dᵢᵀHdᵢ / (n−1)       μᵀHμ ≈ ḡᵀHḡ − Tr(HΣ)/n       ‖μ‖² ≈ ‖ḡ‖² − Tr Σ/n

    The two with H are taken in each half of the batch with the H of the other half, and averaged; they are unbiased.
    Gradient i belongs to the half i mod 2 (for an odd n the first half has one more). Signal and noise, which need no
    H, come from all gradients. Where `batch` is the whole `population`, nothing has to be independent, and H is that of
    the batch; where it is a part of it, each half meets as much of its own H as the population would show it.

    All n products are taken up to 128 gradients; beyond that Tr(HΣ) is, in each half, the mean of zᵀHz over 32 random
    sums z = Σ ±dᵢ / √(n−1), with its standard error.

    Intervals of `expected_change` held the truth in 0.97 of the cases with 64 samples, on three networks that learned
    digits, after 1, 4 and 12 epochs. They need samples enough that no handful of them decides: where a network had
    fitted its training set to a loss of 0.2 and below, 48 samples held it in 0.47 to 1, 0.87 on average.

    Cost: n/2 + 1 products of the whole batch's Hessian with a vector (n + 1 where `batch` is the population or
    `curvature_batch` is given, p + 1 with p probes), each two to three times a forward and backward pass, and n
    gradients of single samples. Memory beyond the model: the gradients or, where they do not fit into `max_bytes`,
    blocks of them, computed twice; some six vectors of all parameters in float64; and the graph of a sixteenth of the
    batch, or of `chunk_size` samples if that is less.

    Args:
        model: in the mode it is to be measured in; parameters, .grad, buffers and random state stay as they are, and a
            GammaMonitor on it does not count these passes. Parameters that require no gradient are left out.
        loss_fn: (model, batch) → the batch's mean loss, as for `compute_gamma`.
        batch: tensors (in any nesting of tuples, lists and dicts) with a common first dimension, at least 4 gradients'
            worth of samples; 2 where it is the whole population, or with `curvature_batch`. Samples are taken to be
            independent of each other.
        learning_rate, batch_size: η and B of the step in question; B need not be the batch measured on.
        samples_per_gradient: 1 takes per-sample gradients; more, means over so many samples (needed for BatchNorm in
            train mode).
        population: N, where batches are drawn without replacement from N samples and `batch` is part of them (or all of
            them): variances and corrections are then of that finite population.
        precondition: an Adam, AdamW or RMSprop optimizer that has made a step, for P = 1 / (√v̂ + ε); or P itself, by
            parameter name. Momentum is not part of the step considered.
        curvature_batch: other samples, independent of `batch`, to take H from.
        probes: 0 to sum over all gradients however many, or a number of random probes, at least 2.
        chunk_size: samples whose graph is kept at a time for the products.
        max_bytes: bound on what gradients and probes take together; None: 1 GiB, or 32 bytes a parameter if that is
            more, which is the least.
        seed: of the probes' signs.

    Raises:
        TypeError: no model; a loss of torch.nn; `precondition` of another kind.
        ValueError: η or B not positive, too few gradients, samples that do not divide evenly or differ in number, a
            population smaller than what is drawn from it, a preconditioner of other shapes, a loss that is no number,
            gradients that are not finite, BatchNorm in train mode with single samples, too small a `max_bytes`, a
            complex parameter that trains, a loss that no parameter has a part in.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(line.weight)
        >>> half_square = lambda model, x: (model(x) ** 2 / 2).mean()
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> stats = curvature_gamma(line, half_square, x, learning_rate=0.1, batch_size=1, curvature_batch=x)
        >>> stats.n, stats.noise, stats.curvature_noise  # gradients 1 and 4, H = 2.5
        (2, 4.5, 11.25)
    """
    root = unwrap(model)
    learning_rate = checks.check_number(learning_rate, "learning_rate", "a positive, finite number", above=0)
    batch_size = checks.check_count(batch_size, "batch_size")
    samples_per_gradient = checks.check_count(samples_per_gradient, "samples_per_gradient")
    population = checks.check_count(population, "population", optional=True)
    chunk_size = checks.check_count(chunk_size, "chunk_size", optional=True)
    probes = _check_probes(probes)
    samples = length_of(batch)
    n = samples // samples_per_gradient
    crossed = curvature_batch is None and samples != population
    _check_samples(samples, samples_per_gradient, crossed)
    if population is not None and population < max(samples, batch_size):
        raise ValueError(
            f"population: expected at least the {max(samples, batch_size)} samples drawn from it, got {population}."
        )
    width = sum(parameter.numel() for parameter in trainable(root).values())
    scale = _diagonal(root, precondition)
    exact = probes == 0 or (probes is None and n <= EXACT_UP_TO)
    probes = 0 if exact else probes or PROBES
    most = _most_bytes(max_bytes, width)
    row = width * row_dtype(root).itemsize
    if samples_per_gradient > 1 and mixing_layers(root):
        chunk_size = samples_per_gradient  # as the gradients see the batch's statistics
    seen = 0.0 if population is None else samples_per_gradient / population
    with undisturbed(root):
        order, bounds = _groups_of(n)
        batch = reordered(batch, order, samples_per_gradient)
        at_once = max(1, most // (4 * row))
        rows = GradientRows(root, loss_fn, batch, samples_per_gradient, at_once, keep=n * row <= most // 2)
        groups = [
            _group(root, loss_fn, batch, each, samples_per_gradient, chunk_size)
            for each in ([] if curvature_batch is not None else bounds)
        ]
        if curvature_batch is not None:
            groups = _groups_apart(root, loss_fn, curvature_batch, chunk_size)
        folds = _folds(n, groups, seen, crossed)
        moments = Moments(
            rows,
            scale,
            folds,
            groups,
            probes=probes,
            probes_at_once=max(1, most // (BYTES_A_PARAMETER * width)),
            seed=checks.check_integer(seed, "seed"),
        )
        if not (moments.plain.mean or moments.plain.trace):
            check_uses_model(root, loss_fn, part_of(batch, 0, samples_per_gradient))
    curvature, trace, trace_error = moments.curvature(seen)
    share = samples_per_gradient * (1 / batch_size - (0.0 if population is None else 1 / population))
    error = moments.change_error(learning_rate, seen, share)
    return CurvatureStats(
        learning_rate=float(learning_rate),
        batch_size=batch_size,
        n=n,
        samples_per_gradient=samples_per_gradient,
        population=population,
        signal=moments.plain.mean - (1 / n - seen) * moments.plain.trace,
        noise=share * moments.squared_trace,
        curvature_signal=curvature,
        curvature_noise=share * trace,
        curvature_noise_error=share * trace_error,
        expected_change_error=None if error is None else error[0],
        degrees_of_freedom=None if error is None else error[1],
    )


def _groups_of(n: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The order of n gradients, group by group with those of the first half first, and where each group lies in it.

    Gradient i belongs to group i mod `GROUPS`, and group g to half g mod 2.
    """
    count = min(GROUPS, n - n % 2)
    numbers = [*range(0, count, 2), *range(1, count, 2)]
    order: list[int] = []
    bounds: list[tuple[int, int]] = []
    for group in numbers:
        start = len(order)
        order += range(group, n, count)
        bounds.append((start, len(order)))
    return order, bounds


def _group(
    model: nn.Module, loss_fn: LossFunction, batch: Any, bounds: tuple[int, int], size: int, chunk: int | None
) -> Group:
    """The gradients within `bounds`, of `size` samples each, as a group."""
    start, stop = bounds
    part = part_of(batch, start * size, stop * size)
    return Group(Hessian(model, loss_fn, part, chunk), (stop - start) * size, start, stop)


def _groups_apart(model: nn.Module, loss_fn: LossFunction, batch: Any, chunk: int | None) -> list[Group]:
    """Samples that H alone is taken from, as groups without gradients."""
    samples = length_of(batch, "curvature_batch")
    count = min(GROUPS, samples)
    edges = [samples * place // count for place in range(count + 1)]
    return [
        Group(Hessian(model, loss_fn, part_of(batch, start, stop), chunk), stop - start, 0, 0)
        for start, stop in pairwise(edges)
    ]


def _folds(n: int, groups: list[Group], seen: float, crossed: bool) -> list[Fold]:
    """Which gradients meet the Hessian of which groups; `seen`: a gradient's part of the population."""
    everything = tuple(range(len(groups)))
    if not crossed:
        return [Fold(0, n, ((1.0, everything),))]
    halves = everything[: len(groups) // 2], everything[len(groups) // 2 :]
    folds, start = [], 0
    for own, other in (halves, halves[::-1]):
        count = groups[own[-1]].stop - start
        inside = count * seen  # how often a sample of the population's H is also one of the gradients'
        parts = ((1.0 - inside, other), (inside, own)) if inside else ((1.0, other),)
        folds.append(Fold(start, start + count, parts))
        start += count
    return folds


def _most_bytes(max_bytes: int | None, width: int) -> int:
    least = BYTES_A_PARAMETER * width
    if max_bytes is None:
        return max(MOST_BYTES, least)
    if checks.check_count(max_bytes, "max_bytes") < least:
        raise ValueError(
            f"max_bytes: expected at least {least:,}, {BYTES_A_PARAMETER} bytes for each of {width:,} parameters, got "
            f"{max_bytes:,}."
        )
    return max_bytes


def _check_samples(samples: int, size: int, crossed: bool) -> None:
    least = 4 if crossed else 2
    if samples // size < least:
        hint = (
            " Two halves need two gradients each, for H must not come from the samples of the gradients. Give more, or "
            "curvature_batch, or population where these samples are all there are."
        )
        raise ValueError(
            f"batch: expected at least {least} gradients of {size} samples, got {samples} samples.{hint * crossed}"
        )
    if samples % size:
        raise ValueError(f"batch: its {samples} samples do not divide into gradients of {size}.")


def _diagonal(model: nn.Module, precondition: Any) -> Tensor | None:
    """P over all trainable parameters, flat; None for the identity."""
    if precondition is None:
        return None
    parameters = trainable(model)
    if isinstance(precondition, torch.optim.Optimizer):
        preconditioning.check_optimizer(precondition)
        groups = preconditioning.groups_of(precondition)
        strange = [name for name, parameter in parameters.items() if id(parameter) not in groups]
        if strange:
            raise ValueError(f"precondition: the optimizer does not hold {', '.join(strange[:5])}.")
        metric = {
            name: preconditioning.diagonal(precondition, parameter, groups[id(parameter)])
            for name, parameter in parameters.items()
        }
    elif isinstance(precondition, Mapping):
        metric = {name: precondition.get(name) for name in parameters}
    else:
        raise TypeError(
            "precondition: expected an optimizer or a mapping from parameter names to tensors, got "
            f"{type(precondition).__name__}."
        )
    for name, diagonal in metric.items():
        if diagonal is None:
            raise ValueError(f"precondition: nothing for {name}. An optimizer knows its scale after its first step.")
        if diagonal.shape != parameters[name].shape:
            raise ValueError(
                f"precondition: expected shape {tuple(parameters[name].shape)} for {name}, got {tuple(diagonal.shape)}."
            )
    return torch.cat([metric[name].detach().double().flatten() for name in parameters])  # type: ignore[union-attr]


def _check_probes(value: Any) -> int | None:
    probes = checks.check_count(value, "probes", least=0, optional=True)
    if probes == 1:
        raise ValueError(f"probes: expected 0 (sum over all gradients) or a number from 2 up, got {probes!r}.")
    return None if probes is None else int(probes)
