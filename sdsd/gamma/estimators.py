"""`gamma_stats`: is this gradient signal or noise? Γ, the gradient noise scale, and how far to trust them.

For n gradients g_i, each the mean over b samples (b = 1 for per-sample gradients), ḡ their mean:

    signal           m = ‖ḡ‖²                       E[m] = ‖μ‖² + Tr Σ / n
    noise            v = Σ‖g_i − ḡ‖² / (n − 1)      E[v] = Tr Σ
    gamma            Γ = m / v                      the published ratio; biased by about 1 / n
    signal_unbiased  m − v / n                      E = ‖μ‖²; may be negative
    gamma_unbiased   Γ_U = (m − v/n) / v            numerator and denominator unbiased, their ratio is not
    noise_scale      b / Γ_U                        B_simple of McCandlish et al. 2018, arXiv:1812.06162

The confidence interval of Γ_U is a leave-one-out jackknife over the gradients, t-quantile with n − 1 degrees of
freedom. With a_i = ‖g_i − ḡ‖² and q_i = (g_i − ḡ)·ḡ leaving gradient i out gives

    m₋ᵢ = m − 2 q_i / (n−1) + a_i / (n−1)²      v₋ᵢ = [(n−1) v − n a_i / (n−1)] / (n−2)

so no n × n matrix is needed. Near Γ = 0 the jackknife is too sure of itself where few directions carry the noise;
the standard error is therefore at least that of m − v/n without signal, 2 Tr Σ² / (n (n−1) v²), with Tr Σ² estimated
from products of differences of gradients.

Where the n · b samples are drawn without replacement from a population of N, μ is the mean gradient of those N and Tr Σ
their variance with N − 1, over b. Then E[m] = ‖μ‖² + (1 − nb/N) Tr Σ / n (Cochran, Sampling Techniques, 1977, eq.
2.20), and E[v] = Tr Σ also for means over disjoint parts of the samples. So n is replaced by n / (1 − nb/N) where v/n
is taken away, nothing once all are seen; and standard errors are multiplied by √(1 − nb/N).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdsd_kernels import checks, gamma_moments

from .sources import MomentsSource, check_population, independent_count
from .stats import GammaStats


def gamma_stats(
    grads: Tensor | np.ndarray | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    samples_per_gradient: int = 1,
    batch_size: int | None = None,
    population: int | None = None,
    confidence: float | None = None,
    backend: str | None = None,
) -> GammaStats:
    """Γ = ‖E[g]‖² / Tr Var[g], unbiased estimates, the gradient noise scale and, on request, error bars.

    Drop-in for the published ``(grads.mean(0) ** 2).sum() / (grads.var(0).sum() + 1e-10)``: that is `gamma`, without
    the epsilon, which turned 0.26 into 0.005 where gradients were small. Formulas: sdsd/gamma/estimators.py.

    Args:
        grads: n ≥ 2 gradients. A tensor or NumPy array of shape (n, P), or of any shape (n, ...); or a list, tuple or
            mapping of tensors (n, *parameter shape), exactly as ``torch.func.vmap(torch.func.grad(f))`` returns them,
            which also gives statistics by parameter. float64, float32, float16 or bfloat16; any strides; CPU or GPU.
        samples_per_gradient: over how many samples each gradient is a mean; 1 for per-sample gradients.
        batch_size: the training batch in samples, for `phase`; n × samples_per_gradient where None.
        population: N, where the samples are drawn without replacement from N, as in an epoch of a training set: then
            the mean of all N gradients is what there is to estimate, and the unbiased signal ‖ḡ‖² − (1/n − b/N) Tr Var.
            Where b > 1 the gradients are of disjoint samples.
        confidence: level of the intervals, for example 0.95; needs n ≥ 3. None skips them, and half of the work.
            For Gaussian noise in 34 or more directions and Γ ≥ .2 a 95% interval was seen to cover 93–98%.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        `GammaStats`. Nothing waits for the device until a value is read.

    Raises:
        TypeError: not floating-point, complex, sparse or quantised input, or not a tensor at all.
        ValueError: n < 2 (3 with confidence), empty input, entries that differ in n or device, an argument out of
            range, a population smaller than the n · b samples, a backend that cannot serve.

    Example:
        >>> grads = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
        >>> stats = gamma_stats(grads)
        >>> stats.signal, stats.noise, stats.gamma, stats.noise_scale
        (5.0, 4.0, 1.25, 1.3333333333333333)
    """
    samples_per_gradient = checks.check_count(samples_per_gradient, "samples_per_gradient", of="samples")
    batch_size = checks.check_count(batch_size, "batch_size", of="samples", optional=True)
    population = check_population(population)
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a level between 0 and 1, for example 0.95, got {confidence!r}.")
    names: tuple[str, ...] = ()
    tensors: Tensor | list[Tensor] | dict[str, Tensor]
    if isinstance(grads, (Tensor, np.ndarray)):
        tensors = as_tensor(grads, "grads")
    elif isinstance(grads, (list, tuple)):
        tensors = [
            entry if isinstance(entry, Tensor) else as_tensor(entry, f"grads[{index}]")
            for index, entry in enumerate(grads)
        ]
        names = tuple(map(str, range(len(tensors))))
    elif isinstance(grads, Mapping):
        tensors = {
            str(name): entry if isinstance(entry, Tensor) else as_tensor(entry, f"grads[{name!r}]")
            for name, entry in grads.items()
        }
        names = tuple(tensors)
    else:
        raise TypeError(
            f"grads: expected a tensor, a NumPy array, or a list, tuple or mapping of them, got {type(grads).__name__}."
        )
    moments = gamma_moments(tensors, per_sample=confidence is not None, backend=backend)
    first = (
        tensors
        if isinstance(tensors, Tensor)
        else next(iter(tensors.values() if isinstance(tensors, dict) else tensors))
    )
    n = first.shape[0]
    if confidence is not None and n < 3:
        raise ValueError(f"confidence: an interval needs at least 3 gradients, got {n}. Leave confidence out.")
    return GammaStats(
        MomentsSource(names, moments, n, independent_count(n, samples_per_gradient, population)),
        n=n,
        samples_per_gradient=samples_per_gradient,
        batch_size=batch_size or n * samples_per_gradient,
        confidence=confidence,
        population=population,
    )


def as_tensor(value: Any, name: str) -> Any:
    """A NumPy array as a tensor that shares its memory where it can; anything else unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        raise TypeError(
            f"{name}: expected an array of float64, float32 or float16, got dtype {value.dtype}. "
            f"Convert it, for example with {name}.astype('float32')."
        )
    if not value.flags.writeable or not value.dtype.isnative or any(stride < 0 for stride in value.strides):
        value = np.array(value, dtype=value.dtype.newbyteorder("="))
    return torch.from_numpy(value)
