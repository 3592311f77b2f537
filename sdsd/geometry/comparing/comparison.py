"""`LayerComparison`: how alike two layers are as a whole, from sums over batches of any size, in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..arithmetic import plain_arithmetic
from ..arrays import as_tensor, neurons_first
from ..gram import GramAccumulator, samples_together
from .layer_sums import DOUBLE, PAIRS, Facts, Lengths
from .matching import NeuronMatching, match_by_cosine

if TYPE_CHECKING:
    import numpy as np


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
    result is made; and a copy of a batch.

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
            self.n + self.m,
            center=True,
            dtype=dtype,
            device=device,
            max_bytes=max_bytes,
            backend=backend,
            nonfinite="raise",
        )
        self._lengths: Lengths | None = None
        self._largest = 0

    @classmethod
    def of(cls, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, neuron_dim: int | None = None) -> LayerComparison:
        """A comparison that has seen `x` and `y`, in float64 where they are.

        Args:
            x, y, neuron_dim: as in `update`.

        Returns:
            `LayerComparison`.

        Raises:
            TypeError, ValueError: as `update`.
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
        peak = torch.stack([torch.stack(part.aminmax()).abs().amax() for part in (rows[: self.n], rows[self.n :])])
        if not bool(peak.isfinite().all()):
            bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
            raise ValueError(
                f"x, y: expected finite values, got a NaN or an infinity in {sum(i < self.n for i in bad)} neurons of "
                f"x and {sum(i >= self.n for i in bad)} of y. Leave out the samples that hold them."
            )
        with plain_arithmetic(rows.device):
            lengths = self._lengths or Lengths.about(rows, self.n, peak)
            lengths = lengths.with_samples(rows, self.n, peak)
        self._gram.update(rows, neuron_dim=0)
        self._lengths = lengths
        self._largest = max(self._largest, samples[0])

    def cka(self, *, debiased: bool = False) -> Similarity:
        """Linear centred kernel alignment: 1 for layers that agree up to a rotation and a factor, 0 for unrelated ones.

            ‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)

        With few samples for so many neurons it is too large: unrelated layers of n and m neurons come to about
        √(n m / ((S + n) (S + m))) rather than 0. `debiased` takes unbiased estimates of the three terms instead, which
        do not count a sample's product with itself; their ratio may be a little below 0.

        Args:
            debiased: whether to take unbiased estimates.

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

        Returns:
            `Similarity`.

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

        Returns:
            `Similarity`.

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
        """Cosine of every neuron of the first layer with every one of the second, as `cosine_between` promises it.

        Args:
            center: take correlations instead.

        Returns:
            (n, m), in the dtype of products.

        Raises:
            ValueError: no samples.
        """
        return self._gram.cosine_matrix(center=center)[: self.n, self.n :].clone()

    def match(self, *, center: bool = True) -> NeuronMatching:
        """Neurons of both layers one to one, with the largest sum of correlations, or cosines.

        Args:
            center: match correlations rather than cosines.

        Returns:
            `NeuronMatching`.

        Raises:
            ValueError: no samples.
            MissingExtraError: scipy is not installed.
        """
        return match_by_cosine(self.cosine(center=center))

    def _facts(self, least: int) -> Facts:
        if self.samples < least:
            raise ValueError(f"LayerComparison: expected at least {least} samples, got {self.samples}. Call update.")
        assert self._lengths is not None
        together = min(self.samples, max(self._largest, samples_together(self.n + self.m)))
        unit = torch.finfo(self._gram.dtype).eps / 2
        gram = self._gram._gram(True, self._lengths.exponents(self.n))
        return Facts.of(gram, self._lengths, self.n, (2 * math.sqrt(together) + 16) * unit)

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
