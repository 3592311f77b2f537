"""`gamma_stats`: is this gradient signal or noise? Γ, the gradient noise scale, and how far to trust them.

For n gradients g_i, each the mean over b samples (b = 1 for per-sample gradients), ḡ their mean:

    signal           m = ‖ḡ‖²                       E[m] = ‖μ‖² + Tr Σ / n
    noise            v = Σ‖g_i − ḡ‖² / (n − 1)      E[v] = Tr Σ
    gamma            Γ = m / v                      the seed's ratio; biased by about 1 / n
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

import abc
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdsd_kernels import GammaMoments, checks, gamma_moments

from .student import student_t_quantile

Phase = Literal["drift", "critical", "diffusion"]
"""What rules a batch: `GammaStats.phase`."""

MIN_EFFECTIVE_DIMENSION = 10.0
"""Below this many effective directions of noise the interval's coverage is too low for a verdict (phase None)."""


MIN_PRODUCTS = 4
"""Fewest products that Tr Σ² is estimated from; n // 4 are at hand."""


@dataclass(frozen=True)
class Row:
    """One row of host values: a parameter's, or the total over parameters."""

    signal: float
    noise: float
    standard_error: float | None
    effective_dimension: float | None


@dataclass(frozen=True)
class Table:
    """Host values of all parameters and the total, and what they have in common."""

    total: Row
    rows: tuple[Row, ...]
    degrees: float
    """Degrees of freedom of the intervals."""


def independent_count(n: int, samples_per_gradient: float, population: int | None) -> float:
    """As many independent gradients would have a mean as exact as these n: n / (1 − nb/N); infinite where nb = N.

    Raises:
        ValueError: the n · b samples are more than the population.
    """
    if population is None:
        return n
    samples = round(n * samples_per_gradient)
    if samples > population:
        raise ValueError(
            f"population: expected at least the {samples} samples seen ({n} gradients of {samples_per_gradient:g}), "
            f"got {population}. Give the number of samples that batches are drawn from without replacement, or None "
            "where a sample can come twice."
        )
    return n / (1 - samples / population) if samples < population else math.inf


def check_population(population: Any) -> int | None:
    """Return it as an int, or None; raise unless it is None or a whole number, at least 1."""
    return checks.check_count(population, "population", of="samples that batches are drawn from", optional=True)


def standard_error(signal: float, noise: float, a: np.ndarray, q: np.ndarray, c: np.ndarray) -> float:
    """Standard error of Γ_U from a_i, q_i, c_j of n gradients (module docstring); NaN where it is not defined."""
    n = len(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        m = signal - 2 * q / (n - 1) + a / (n - 1) ** 2
        v = ((n - 1) * noise - n * a / (n - 1)) / (n - 2)
        left_out = m / v - 1 / (n - 1)
        variance = (n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)
        if len(c) >= MIN_PRODUCTS:
            variance = np.maximum(variance, 2 * np.mean(c**2) / (n * (n - 1) * noise**2))
    return float(np.sqrt(variance))


class Source(abc.ABC):
    """Where a `GammaStats` gets its numbers: device tensors until somebody reads one, host values after."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._table: Table | None = None

    @abc.abstractmethod
    def _fetch(self) -> Table:
        """Copy the numbers over; called once."""

    def table(self) -> Table:
        if self._table is None:
            self._table = self._fetch()
            self._warn(self._table.rows)
        return self._table

    def _warn(self, rows: tuple[Row, ...]) -> None:
        wrong = [
            name
            for name, row in zip(self.names or ("gradients",), rows, strict=False)
            if not math.isfinite(row.signal + row.noise)
        ]
        if wrong:
            shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            warnings.warn(
                f"gradients hold NaN or infinity in: {shown}. Their statistics, and the total, are NaN.",
                RuntimeWarning,
                stacklevel=4,
            )


class HostSource(Source):
    """Numbers that are on the host already: what a pickled `GammaStats` comes back with."""

    def __init__(self, names: tuple[str, ...], table: Table) -> None:
        super().__init__(names)
        self._table = table

    def _fetch(self) -> Table:
        raise AssertionError("a table is there from the start")


class MomentsSource(Source):
    """Numbers from `gamma_moments`."""

    def __init__(self, names: tuple[str, ...], moments: GammaMoments, n: int, independent: float) -> None:
        super().__init__(names)
        self._moments = moments
        self._n = n
        self._unseen = n / independent

    def _fetch(self) -> Table:
        columns = [field.reshape(field.shape[0], -1) for field in self._moments if field is not None]
        # One transfer, whatever the number of fields.
        joined = torch.cat(columns, 1).cpu().numpy()
        parts = np.split(joined, np.cumsum([column.shape[1] for column in columns])[:-1], axis=1)
        rows = tuple(self._row(*(part[index] for part in parts)) for index in range(joined.shape[0]))
        return Table(self._row(*(part.sum(0) for part in parts)), rows, degrees=self._n - 1)

    def _row(self, signal: np.ndarray, squares: np.ndarray, *samples: np.ndarray) -> Row:
        m, v = float(signal[0]), float(squares[0]) / (self._n - 1)
        if not samples:
            return Row(m, v, None, None)
        products = samples[2]
        trace_of_square = float(np.mean(products**2)) if len(products) >= MIN_PRODUCTS else math.nan
        dimension = v * v / trace_of_square if trace_of_square > 0 else math.nan
        return Row(m, v, standard_error(m, v, *samples) * math.sqrt(self._unseen), dimension)


class GammaStats:
    """Signal, noise, Γ and the noise scale of one set of gradients; immutable, and lazy.

    Attributes and properties are Python numbers in float64. What comes from the gradients is fetched from their
    device when it is first read, all at once; creating or passing on a `GammaStats` costs no synchronisation.
    Squared norms carry the square of the gradient's unit.
    """

    __slots__ = (
        "_independent", "_row", "_source", "batch_size", "confidence", "n", "population", "samples_per_gradient",
        "smoothed",
    )  # fmt: skip

    _source: Source
    _row: int | None
    _independent: float
    n: int
    """How many gradients."""
    samples_per_gradient: float
    """Over how many samples each gradient is a mean: b; the mean size where micro-batches are unequal."""
    batch_size: int
    """The batch whose phase is asked for, in samples; n × b unless given."""
    confidence: float | None
    """Level of the intervals, or None where none were asked for."""
    population: int | None
    """How many samples batches are drawn from without replacement, N; None for unlimited ones, or with replacement.

    It bears on `signal_unbiased`, on what follows from it and on intervals. Γ, B_simple and `phase` go on comparing the
    signal with the noise of independent samples; that of a batch of B drawn without replacement is 1 − B/N of it.
    """
    smoothed: GammaStats | None
    """The same from running averages over steps, with an interval of its own; None but in a training loop."""

    def __init__(
        self,
        source: Source,
        *,
        n: int,
        samples_per_gradient: float,
        batch_size: int,
        confidence: float | None,
        population: int | None = None,
        row: int | None = None,
        smoothed: GammaStats | None = None,
    ) -> None:
        for name, value in (
            ("_source", source),
            ("_row", row),
            ("_independent", independent_count(n, samples_per_gradient, population)),
            ("n", n),
            ("samples_per_gradient", samples_per_gradient),
            ("batch_size", batch_size),
            ("confidence", confidence),
            ("population", population),
            ("smoothed", smoothed),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"GammaStats is immutable: cannot set {name!r}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"GammaStats is immutable: cannot delete {name!r}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._source.table(), self._source.names, self._row, *self._settings(), self.smoothed)

    def _settings(self) -> tuple[int, float, int, float | None, int | None]:
        return self.n, self.samples_per_gradient, self.batch_size, self.confidence, self.population

    def _values(self) -> Row:
        table = self._source.table()
        return table.total if self._row is None else table.rows[self._row]

    @property
    def signal(self) -> float:
        """‖mean gradient‖²."""
        return self._values().signal

    @property
    def noise(self) -> float:
        """Tr Var of a gradient, with n − 1; of a population's samples over b, with N − 1."""
        return self._values().noise

    @property
    def signal_unbiased(self) -> float:
        """‖mean‖² − Tr Var / n, an unbiased estimate of ‖E[g]‖²; negative where noise hides the signal.

        With a population ‖mean‖² − (1/n − b/N) Tr Var: nothing is taken away once all N samples are seen.
        """
        return self.signal - self.noise / self._independent

    @property
    def gamma(self) -> float:
        """The seed's Γ = C_α = signal / noise; too high by about 1/n. Infinite without noise, NaN without both."""
        return _ratio(self.signal, self.noise)

    @property
    def gamma_unbiased(self) -> float:
        """Γ_U = signal_unbiased / noise, of a gradient over `samples_per_gradient` samples. Never clipped."""
        return _ratio(self.signal_unbiased, self.noise)

    @property
    def noise_scale(self) -> float:
        """B_simple = b · noise / signal_unbiased, in samples; 0 without noise, inf where the signal is ≤ 0."""
        if self.noise == 0:
            return 0.0
        if self.signal_unbiased <= 0:
            return math.inf
        return self.noise_scale_raw

    @property
    def noise_scale_raw(self) -> float:
        """The same ratio without the two conventions; negative where the unbiased signal is."""
        return self.samples_per_gradient * _ratio(self.noise, self.signal_unbiased)

    @property
    def effective_dimension(self) -> float | None:
        """(Tr Σ)² / Tr Σ², how many directions carry the noise; NaN for n < 16; None where it was not asked for."""
        return self._values().effective_dimension

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of `gamma_unbiased`; None where none was asked for or none is defined.

        Of zero width where a whole population was seen, for then nothing is left to chance.
        """
        error = self._values().standard_error
        if self.confidence is None or error is None or not math.isfinite(error + self.gamma_unbiased):
            return None
        half = student_t_quantile((1 + self.confidence) / 2, self._source.table().degrees) * error
        return self.gamma_unbiased - half, self.gamma_unbiased + half

    @property
    def noise_scale_interval(self) -> tuple[float, float] | None:
        """[b / Γ_high, b / Γ_low], open above (inf) where Γ_low ≤ 0; None where Γ_high ≤ 0 or without an interval."""
        if self.interval is None or self.interval[1] <= 0:
            return None
        low, high = self.interval
        return self.samples_per_gradient / high, (self.samples_per_gradient / low if low > 0 else math.inf)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the intervals: gradients, or steps the running averages are worth, less one; or NaN."""
        return self._source.table().degrees

    @property
    def phase(self) -> Phase | None:
        """What rules a batch of `batch_size`: "drift", "diffusion", or "critical" where the interval holds Γ_B = 1.

        Γ grows in proportion to the batch: Γ_B = Γ_U · batch_size / samples_per_gradient. None without an interval or
        where fewer than 10 directions carry the noise, for then the interval covers too seldom to decide by.
        """
        dimension = self.effective_dimension
        if self.interval is None or (dimension is not None and not dimension >= MIN_EFFECTIVE_DIMENSION):
            return None
        low, high = (bound * self.batch_size / self.samples_per_gradient for bound in self.interval)
        return "drift" if low > 1 else "diffusion" if high < 1 else "critical"

    @property
    def finite(self) -> bool:
        """Whether signal and noise are finite; a gradient with NaN or infinity makes them NaN."""
        return math.isfinite(self.signal + self.noise)

    @property
    def parameters(self) -> Mapping[str, GammaStats]:
        """Statistics of each parameter by name; empty for a single tensor."""
        if self._row is not None:
            return MappingProxyType({})
        n, b, batch, confidence, population = self._settings()
        smoothed = self.smoothed.parameters if self.smoothed is not None else {}
        return MappingProxyType(
            {
                name: GammaStats(
                    self._source,
                    n=n,
                    samples_per_gradient=b,
                    batch_size=batch,
                    confidence=confidence,
                    population=population,
                    row=row,
                    smoothed=smoothed.get(name),
                )
                for row, name in enumerate(self._source.names)
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dictionaries, ready for a logger; infinities and NaN are left as they are."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        if self.smoothed is not None:
            values["smoothed"] = self.smoothed.to_dict()
        if self._row is None:
            values["parameters"] = {name: stats.to_dict() for name, stats in self.parameters.items()}
        return values

    def plot(self, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw the noise scale of every parameter (the noisiest of more than 40) and in total, beside the batch size.

        Args:
            axes: matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from .plots import plot_stats

        return plot_stats(self, axes)

    def _repr_html_(self) -> str:
        """The table that notebooks show."""
        header, *lines = self._lines()
        rows = [f"<tr><th></th>{''.join(f'<th>{escape(name)}</th>' for name in header[1:])}</tr>"]
        rows += [
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
            for name, *values in lines
        ]
        return f"<table><caption>{escape(self._head())}</caption>{''.join(rows)}</table>"

    def __repr__(self) -> str:
        text = (
            f"GammaStats(n={self.n}, samples_per_gradient={self.samples_per_gradient}, "
            f"{'' if self.population is None else f'population={self.population}, '}"
            f"gamma_unbiased={self.gamma_unbiased:.4g}, noise_scale={self.noise_scale:.4g}"
        )
        if self.interval:
            text += f", interval=({self.interval[0]:.4g}, {self.interval[1]:.4g}), phase={self.phase!r}"
        return text + ")"

    def __str__(self) -> str:
        lines = list(self._lines())
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        rows = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
        return "\n".join([self._head(), *(row.rstrip() for row in rows)])

    def _head(self) -> str:
        head = f"{self.n} gradients of {self.samples_per_gradient:g} sample{'s'[: self.samples_per_gradient > 1]} each"
        if self.population is not None:
            head += f", of a population of {self.population}"
        if self.confidence is not None:
            head += f"; intervals at {self.confidence:.0%}; phase of a batch of {self.batch_size}"
        return head

    def _lines(self) -> Iterator[list[str]]:
        intervals = self.confidence is not None
        yield ["", "signal", "noise", "gamma", "gamma_unbiased", "noise_scale"] + ["interval", "phase"] * intervals
        for name, stats in [*self.parameters.items(), ("total", self)]:
            values = (stats.signal, stats.noise, stats.gamma, stats.gamma_unbiased, stats.noise_scale)
            line = [name, *(f"{value:.4g}" for value in values)]
            if intervals:
                bounds = "–" if stats.interval is None else f"[{stats.interval[0]:.3g}, {stats.interval[1]:.3g}]"
                line += [bounds, stats.phase or "–"]
            yield line


_FIELDS = (
    "n", "samples_per_gradient", "batch_size", "population", "signal", "noise", "signal_unbiased", "gamma",
    "gamma_unbiased", "noise_scale", "noise_scale_raw", "confidence", "interval", "noise_scale_interval",
    "effective_dimension", "phase",
)  # fmt: skip


def _ratio(numerator: float, denominator: float) -> float:
    if denominator != 0:
        return numerator / denominator
    return math.nan if numerator == 0 or math.isnan(numerator) else math.copysign(math.inf, numerator)


def _rebuild(
    table: Table,
    names: tuple[str, ...],
    row: int | None,
    n: int,
    samples_per_gradient: float,
    batch_size: int,
    confidence: float | None,
    population: int | None,
    smoothed: GammaStats | None,
) -> GammaStats:
    return GammaStats(
        HostSource(names, table),
        n=n,
        samples_per_gradient=samples_per_gradient,
        batch_size=batch_size,
        confidence=confidence,
        population=population,
        row=row,
        smoothed=smoothed,
    )


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

    Drop-in for the seed's ``(grads.mean(0) ** 2).sum() / (grads.var(0).sum() + 1e-10)``: that is `gamma`, without the
    epsilon, which turned 0.26 into 0.005 where gradients were small. Formulas: sdsd/gamma/stats.py.

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
