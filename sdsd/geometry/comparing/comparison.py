"""`LayerComparison`: how alike two layers are as a whole, from sums over batches of any size, in any order.

With X (S × n) and Y (S × m) the centred activations of both layers on the same S samples, K = XXᵀ and L = YYᵀ their
S × S products, which are never made, and k, l the diagonals of these, the squared lengths of samples:

    Σ_st K_st L_st = ‖XᵀY‖_F²                a block of T = [X Y]ᵀ[X Y], which a `GramAccumulator` of n + m neurons sums
    Σ_s k_s l_s,  Σ_s k_s²,  Σ_s l_s²        what is to be left out where the diagonals of K and L do not count

Means are known at the end only. Squared lengths are therefore summed about the mean of the first batch, together with
the vectors Σ_s k_s z_s and Σ_s l_s z_s, z = (x, y), that carry them over to the mean of all; in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..arithmetic import plain_arithmetic
from ..arrays import as_tensor, neurons_first
from ..gram import GramAccumulator, samples_together
from .matching import NeuronMatching, match_by_cosine

if TYPE_CHECKING:
    import numpy as np

SUMMED = 2**22
"""Values of both layers that are converted to float64 together (32 MiB), unless one sample has more."""


@dataclass(frozen=True)
class Similarity:
    """One number for two layers; float() gives its value.

    Attributes:
        measure: what it is, "linear CKA" for example.
        value: 1 for layers that are the same up to what the measure does not see.
        rounding: how far rounding may have moved the value: six standard deviations of errors that do not conspire. It
            does not say how far other samples would have moved it.
        samples: how many both layers answered.
    """

    measure: str
    value: float
    rounding: float
    samples: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.measure} {self.value:.4f} (rounding below {self.rounding:.0e}, {self.samples:,} samples)"


class LayerComparison:
    """Two layers, of one model or of two, on the same samples: CKA, Procrustes, RSA, cosines, matching.

    Samples come in batches of any size; how they are cut and ordered changes nothing beyond rounding. All results are
    of centred activations unless they say otherwise: a neuron's mean is no part of how it answers.

    Memory: that of a `GramAccumulator` of n + m neurons, 16 (n + m)² bytes while samples come and twice as much while a
    result is made.

    Args:
        n: neurons of the first layer.
        m: neurons of the second.
        dtype: torch.float32 | torch.float64, of products and of sums within a batch, as in `GramAccumulator`; sums over
            batches are float64 with either.
        device: where activations come from; None: the CPU.
        max_bytes, backend: as in `GramAccumulator`.

    Raises:
        TypeError, ValueError: as `GramAccumulator`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(100, 8)
        >>> turned = x @ torch.linalg.qr(torch.randn(8, 8)).Q
        >>> comparison = LayerComparison(8, 8)
        >>> for ours, theirs in zip(x.split(30), turned.split(30)):
        ...     comparison.update(ours, theirs)
        >>> round(float(comparison.cka()), 5), round(float(comparison.procrustes()), 5)
        (1.0, 1.0)
    """

    def __init__(
        self,
        n: int,
        m: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        max_bytes: int | None = None,
        backend: str | None = None,
    ) -> None:
        self.n = checks.check_integer(n, "n", least=1, why="neuron")
        self.m = checks.check_integer(m, "m", least=1, why="neuron")
        self._gram = GramAccumulator(
            self.n + self.m, center=True, dtype=dtype, device=device, max_bytes=max_bytes, backend=backend,
            nonfinite="raise",
        )  # fmt: skip
        self._lengths: _Lengths | None = None
        self._largest = 0

    @classmethod
    def of(cls, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, neuron_dim: int | None = None) -> LayerComparison:
        """A comparison that has seen `x` and `y`, in float64 where they are; arguments and errors as in `update`.

        Args:
            x, y, neuron_dim: as in `update`.

        Returns:
            `LayerComparison`.
        """
        one, other = (neurons_first(each, neuron_dim) for each in (x, y))
        dtype = torch.float64 if one.dtype == torch.float64 else torch.float32
        comparison = cls(len(one), len(other), dtype=dtype, device=one.device)
        comparison.update(x, y, neuron_dim=neuron_dim)
        return comparison

    def __repr__(self) -> str:
        return f"LayerComparison({self.n} and {self.m} neurons, {self.samples} samples)"

    @property
    def samples(self) -> int:
        """How many samples have been seen."""
        return self._gram.samples

    def update(self, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, neuron_dim: int | None = None) -> None:
        """Add a batch: what both layers answer to the same samples, in the same order.

        Args:
            x: of the first layer, in any layout `neuron_cosine_matrix` takes.
            y: of the second, in the same dtype, on the same device.
            neuron_dim: the dimension that counts neurons in both; all others are samples. None: for each, the last of
                two or three dimensions, 1 from four up.

        Raises:
            TypeError: no tensor or array of a dtype this comparison takes.
            ValueError: another number of neurons; other samples, dtype or device in `y`; a NaN or an infinity. Nothing
                of the batch is added then.
        """
        one, other = (neurons_first(as_tensor(each, name), neuron_dim) for each, name in ((x, "x"), (y, "y")))
        for name, rows, wanted in (("x", one, self.n), ("y", other, self.m)):
            if len(rows) != wanted:
                raise ValueError(
                    f"{name}: expected {wanted} neurons, as the comparison was made for, got {len(rows)}. Check that "
                    "neuron_dim names the dimension that counts neurons."
                )
        samples = [math.prod(rows.shape[1:]) for rows in (one, other)]
        if samples[0] != samples[1] or one.dtype != other.dtype or one.device != other.device:
            raise ValueError(
                f"y: expected {samples[0]} samples in {one.dtype} on {one.device} like x, got {samples[1]} in "
                f"{other.dtype} on {other.device}."
            )
        if not samples[0]:
            return
        rows = torch.cat((one.flatten(1), other.flatten(1)))
        if not bool(rows.isfinite().all()):
            bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
            raise ValueError(
                f"x, y: expected finite values, got a NaN or an infinity in {sum(i < self.n for i in bad)} neurons of "
                f"x and {sum(i >= self.n for i in bad)} of y. Leave out the samples that hold them."
            )
        with plain_arithmetic(rows.device):
            lengths = (self._lengths or _Lengths.about(rows, self.n)).with_samples(rows, self.n)
        self._gram.update(rows, neuron_dim=0)
        self._lengths = lengths
        self._largest = max(self._largest, samples[0])

    def cka(self, *, debiased: bool = False) -> Similarity:
        """Linear centred kernel alignment: 1 for layers that agree up to a rotation and a factor, 0 for unrelated ones.

            ‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)

        With few samples for so many neurons it is too large: unrelated layers of n and m neurons come to about
        √(n m / ((S + n) (S + m))) rather than 0. `debiased` takes unbiased estimates of the three terms instead, which
        do not count a sample's product with itself; their ratio may be a little below 0.

        Returns:
            `Similarity`.

        Raises:
            ValueError: fewer than two samples, four where debiased; a layer that does not vary, or, debiased, whose
                samples are too few to tell that it does.

        Source:
            Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"; for the unbiased estimate
            Song et al. 2012, "Feature Selection via Dependence Maximization", and Nguyen et al. 2021, "Do Wide and Deep
            Networks Learn the Same Things?".
        """
        facts = self._facts(4 if debiased else 2)
        if not debiased:
            terms = {pair: (facts.square[pair], facts.square_error[pair]) for pair in PAIRS}
            return self._ratio("linear CKA", terms)
        count = self.samples
        terms = {}
        for pair in PAIRS:
            off_diagonal = facts.square[pair] - facts.lengths[pair]
            sums = facts.trace[pair[0]] * facts.trace[pair[1]] / ((count - 1) * (count - 2))
            value = off_diagonal + sums - 2 * facts.lengths[pair] / (count - 2)
            terms[pair] = (value, facts.square_error[pair] + 2 * facts.length_error[pair])
        return self._ratio("debiased linear CKA", terms)

    def rsa(self) -> Similarity:
        """Representational similarity: the correlation of the distances between samples in both layers.

            Pearson's correlation, over all pairs of samples s < t, of ‖x_s − x_t‖² with ‖y_s − y_t‖²

        Squared Euclidean distances and Pearson's correlation, for these need no S × S matrix: with rank correlations or
        other distances the number is another.

        Raises:
            ValueError: fewer than three samples; a layer in which all samples are equally far apart.

        Source:
            Kriegeskorte, Mur and Bandettini 2008, "Representational similarity analysis".
        """
        facts, count = self._facts(3), self.samples
        terms = {}
        for pair in PAIRS:
            traces = facts.trace[pair[0]] * facts.trace[pair[1]]
            products = 2 * count * facts.lengths[pair] + 2 * traces + 4 * facts.square[pair]
            error = 2 * count * facts.length_error[pair] + 4 * facts.square_error[pair]
            # Differences of sums of this size lose what float64 rounds of them.
            terms[pair] = (products - 4 * count * traces / (count - 1), error + 8 * DOUBLE * products)
        return self._ratio("RSA (squared distances, Pearson)", terms)

    def procrustes(self) -> Similarity:
        """How well one layer turns into the other: 1 where a rotation, reflection and factor take one into the other.

            ‖XᵀY‖_* / (‖X‖_F ‖Y‖_F)          ‖·‖_* the sum of singular values

        With both layers scaled to ‖·‖_F = 1, the squared distance after the best rotation is 2 − 2 × value, the angle
        arccos(value).

        Raises:
            ValueError: fewer than two samples; a layer that does not vary.

        Source:
            Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem"; Williams et al. 2021,
            "Generalized Shape Metrics on Neural Representations".
        """
        facts = self._facts(2)
        self._require_varying("Procrustes", {pair: (facts.square[pair], facts.square_error[pair]) for pair in PAIRS})
        size = math.sqrt(facts.trace["x"] * facts.trace["y"])
        nuclear = torch.linalg.svdvals(facts.cross).sum().item()
        rounding = facts.product_error * math.sqrt(min(self.n, self.m)) + 16 * DOUBLE
        return Similarity("Procrustes", nuclear / size, rounding, self.samples)

    def rotation(self) -> Tensor:
        """The Q of `procrustes`: orthonormal rows or columns, X Q nearest to Y among such.  # shape: (n, m), float64

        Q = U Vᵀ with XᵀY = U S Vᵀ. Errors as in `procrustes`.
        """
        left, _, right = torch.linalg.svd(self._facts(2).cross, full_matrices=False)
        return left @ right

    def cosine(self, *, center: bool = False) -> Tensor:
        """Cosine of every neuron of the first layer with every one of the second, as `cosine_between`.  # shape: (n, m)

        Raises:
            ValueError: no samples.
        """
        return self._gram.cosine_matrix(center=center)[: self.n, self.n :].clone()

    def match(self, *, center: bool = False) -> NeuronMatching:
        """Neurons of both layers one to one, with the largest sum of cosines; `center` takes correlations instead.

        Returns:
            `NeuronMatching`.

        Raises:
            ValueError: no samples.
            MissingExtraError: scipy is not installed.
        """
        return match_by_cosine(self.cosine(center=center))

    def _facts(self, least: int) -> _Facts:
        if self.samples < least:
            raise ValueError(f"LayerComparison: expected at least {least} samples, got {self.samples}. Call update.")
        assert self._lengths is not None
        together = min(self.samples, max(self._largest, samples_together(self.n + self.m)))
        unit = torch.finfo(self._gram.dtype).eps / 2
        gram = self._gram.gram(center=True)
        return _Facts.of(gram, self._lengths, self.n, (2 * math.sqrt(together) + 16) * unit)

    def _ratio(self, measure: str, terms: dict[str, tuple[float, float]]) -> Similarity:
        """terms["xy"] / √(terms["xx"] terms["yy"]), from values and what they may be off by."""
        self._require_varying(measure, terms)
        size = math.sqrt(terms["xx"][0] * terms["yy"][0])
        value = terms["xy"][0] / size
        relative = sum(terms[pair][1] / terms[pair][0] for pair in ("xx", "yy"))
        return Similarity(measure, value, terms["xy"][1] / size + abs(value) * relative / 2, self.samples)

    def _require_varying(self, measure: str, terms: dict[str, tuple[float, float]]) -> None:
        for pair, name in (("xx", "first"), ("yy", "second")):
            value, error = terms[pair]
            if not value > error:
                raise ValueError(
                    f"{measure}: the {name} layer does not vary beyond rounding over {self.samples} samples. Add "
                    "samples on which it does."
                )


PAIRS = ("xx", "yy", "xy")
DOUBLE = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Lengths:
    """Sums over samples of squared lengths k (of x) and l (of y), about a point near the mean; float64.

    Attributes:
        point: what values are taken about.  # shape: (n + m,)
        count: samples.
        total: Σ z.  # shape: (n + m,)
        first: Σ k and Σ l.  # shape: (2,)
        second: Σ k k, Σ k l and Σ l l as a matrix.  # shape: (2, 2)
        weighted: Σ k z and Σ l z.  # shape: (2, n + m)
    """

    point: Tensor
    count: int
    total: Tensor
    first: Tensor
    second: Tensor
    weighted: Tensor

    @staticmethod
    def about(rows: Tensor, n: int) -> _Lengths:
        """Nothing summed yet, about the mean of `rows` (n + m, samples)."""
        point = rows.mean(1, dtype=torch.float64)
        zeros = point.new_zeros
        return _Lengths(point, 0, zeros(len(point)), zeros(2), zeros(2, 2), zeros(2, len(point)))

    def with_samples(self, rows: Tensor, n: int) -> _Lengths:
        new = self
        for part in rows.split(max(1, SUMMED // len(rows)), 1):
            z = part.double() - self.point[:, None]
            lengths = torch.stack([z[:n].square().sum(0), z[n:].square().sum(0)])
            new = replace(
                new,
                count=new.count + part.shape[1],
                total=new.total + z.sum(1),
                first=new.first + lengths.sum(1),
                second=new.second + lengths @ lengths.T,
                weighted=new.weighted + lengths @ z.T,
            )
        return new


@dataclass(frozen=True)
class _Facts:
    """What measures are made of, about the mean of all samples, by layer ("x", "y") or pair of layers ("xy").

    Attributes:
        cross: XᵀY.  # shape: (n, m)
        trace: Σ k = ‖X‖_F² and Σ l.
        square: ‖XᵀY‖_F², ‖XᵀX‖_F², ‖YᵀY‖_F².
        lengths: Σ k l, Σ k², Σ l².
        product_error: what an entry (i, j) of XᵀY may be off by, as a share of ‖x_i‖‖y_j‖.
        square_error, length_error: what `square` and `lengths` may be off by.
    """

    cross: Tensor
    trace: dict[str, float]
    square: dict[str, float]
    lengths: dict[str, float]
    product_error: float
    square_error: dict[str, float]
    length_error: dict[str, float]

    @staticmethod
    def of(gram: Tensor, sums: _Lengths, n: int, product_error: float) -> _Facts:
        parts = {"x": slice(0, n), "y": slice(n, len(gram))}
        number = {"x": 0, "y": 1}
        shift = sums.total / sums.count
        moved = {name: shift[part].square().sum().item() for name, part in parts.items()}
        about = {name: sums.first[number[name]].item() for name in parts}
        trace = {name: about[name] - sums.count * moved[name] for name in parts}
        square, lengths, square_error, length_error = {}, {}, {}, {}
        for one, other in (("x", "x"), ("y", "y"), ("x", "y")):
            block = gram[parts[one], parts[other]]
            size = product_error * math.sqrt(trace[one] * trace[other])
            square[one + other] = block.square().sum().item()
            square_error[one + other] = 2 * math.sqrt(square[one + other]) * size + size * size
            weighted = [
                2 * (shift[parts[b]] @ sums.weighted[number[a], parts[b]]).item()
                for a, b in ((one, other), (other, one))
            ]
            crossed = (shift[parts[one]] @ block @ shift[parts[other]]).item()
            # Σ (k − 2 x·d + ‖d‖²)(l − 2 y·e + ‖e‖²) with (d, e) = shift, Σ x = S d and Σ x yᵀ = XᵀY + S d eᵀ.
            raw = sums.second[number[one], number[other]].item()
            further = moved[other] * about[one] + moved[one] * about[other] + 4 * crossed
            lengths[one + other] = raw - sum(weighted) + further + sums.count * moved[one] * moved[other]
            length_error[one + other] = 4 * size * math.sqrt(moved[one] * moved[other]) + 64 * DOUBLE * (
                raw + abs(further)
            )
        return _Facts(gram[parts["x"], parts["y"]], trace, square, lengths, product_error, square_error, length_error)
