"""`GammaStats`: signal, noise and what follows from them, read off a source when somebody asks.

The estimators and their errors are written down in estimators.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any, Literal

import torch

from .._student_t import student_t_quantile
from .sources import HostSource, Row, Source, Table, independent_count

Phase = Literal["drift", "critical", "diffusion"]
"""What rules a batch: `GammaStats.phase`."""

MIN_EFFECTIVE_DIMENSION = 10.0
"""Below this many effective directions of noise the interval's coverage is too low for a verdict (phase None)."""


class ReadOnly(Mapping[str, "GammaStats"]):
    """A dictionary to look into, as types.MappingProxyType is; unlike that it copies and pickles."""

    def __init__(self, values: dict[str, GammaStats]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> GammaStats:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class GammaStats:
    """Signal, noise, Γ and the noise scale of one set of gradients; immutable, and lazy.

    Attributes and properties are Python numbers in float64. What comes from the gradients is fetched from their
    device when it is first read, all at once; creating or passing on a `GammaStats` costs no synchronisation.
    Squared norms carry the square of the gradient's unit.
    """

    __slots__ = (
        "_independent",
        "_row",
        "_smoothed",
        "_source",
        "batch_size",
        "confidence",
        "n",
        "population",
        "samples_per_gradient",
    )

    _source: Source
    _row: int | None
    _independent: float
    _smoothed: GammaStats | Callable[[], GammaStats] | None
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
        smoothed: GammaStats | Callable[[], GammaStats] | None = None,
    ) -> None:
        independent = n if population is None else independent_count(n, samples_per_gradient, population)
        for name, value in (
            ("_source", source),
            ("_row", row),
            ("_independent", independent),
            ("n", n),
            ("samples_per_gradient", samples_per_gradient),
            ("batch_size", batch_size),
            ("confidence", confidence),
            ("population", population),
            ("_smoothed", smoothed),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"GammaStats is immutable: cannot set {name!r}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"GammaStats is immutable: cannot delete {name!r}.")

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {**self._settings(), "row": self._row, "smoothed": self.smoothed}
        return _rebuild, (self._source.names, self._source.table(), settings)

    def _settings(self) -> dict[str, Any]:
        """What the statistics of every parameter have in common."""
        names = ("n", "samples_per_gradient", "batch_size", "confidence", "population")
        return {name: getattr(self, name) for name in names}

    def _values(self) -> Row:
        table = self._source.table()
        return table.total if self._row is None else table.rows[self._row]

    @property
    def smoothed(self) -> GammaStats | None:
        """The same from running averages over steps, with an interval of its own; None but in a training loop."""
        if callable(self._smoothed):  # made when it is first asked for
            object.__setattr__(self, "_smoothed", self._smoothed())
        return self._smoothed  # type: ignore[return-value]

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
        """The published Γ = C_α = signal / noise; too high by about 1/n. Infinite without noise, NaN without both."""
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
            return ReadOnly({})
        settings = self._settings()
        smoothed = self.smoothed.parameters if self.smoothed is not None else {}
        return ReadOnly(
            {
                name: GammaStats(self._source, **settings, row=row, smoothed=smoothed.get(name))
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
        rows = [f"<tr><th>parameter</th>{''.join(f'<th>{escape(name)}</th>' for name in header[1:])}</tr>"]
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
            head += f"; intervals at {100 * self.confidence:g}%; phase of a batch of {self.batch_size}"
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
    "n",
    "samples_per_gradient",
    "batch_size",
    "population",
    "signal",
    "noise",
    "signal_unbiased",
    "gamma",
    "gamma_unbiased",
    "noise_scale",
    "noise_scale_raw",
    "confidence",
    "interval",
    "noise_scale_interval",
    "effective_dimension",
    "phase",
)


def _ratio(numerator: float, denominator: float) -> float:
    if denominator != 0:
        return numerator / denominator
    return math.nan if numerator == 0 or math.isnan(numerator) else math.copysign(math.inf, numerator)


def _rebuild(names: tuple[str, ...], table: Table, settings: dict[str, Any]) -> GammaStats:
    return GammaStats(HostSource(names, table), **settings)


torch.serialization.add_safe_globals([_rebuild, Row, Table])  # so that torch.load reads what torch.save wrote
