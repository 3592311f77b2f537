"""Numbers behind a `GammaStats`: on the device until somebody reads one, then rows on the host.

A source fetches a row a parameter and one of their total; the standard error of each is the jackknife of estimators.py.
"""

from __future__ import annotations

import abc
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdsd_kernels import GammaMoments, checks

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
