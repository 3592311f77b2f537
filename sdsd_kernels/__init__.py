"""Kernels on tensors, each with a Triton and a torch implementation of one definition.

=====================  =========================================  ================================================
function               reads                                      gives
=====================  =========================================  ================================================
`gamma_moments`        per-sample gradients, (N, P) or a list     ‖mean‖², Σ‖g_i − mean‖², two numbers a sample
`cosine_matrix`        activations, one neuron an index of a dim  cosine of every pair of neurons, (n, n)
`cosine_topk`          activations                                the k nearest or farthest of every neuron, (n, k)
`cosine_between`       activations of two layers or models        cosines of the neurons of both, (n, m)
`gram_accumulate`      activations, and a sum (n, n) of products  the sum, with theirs added, in place
`cosine_pairs`         activations                                pairs past a threshold, counted, then filled
`cosine_histogram`     activations                                counts over all pairs of neurons, (bins,)
`cosine_row_sums`      activations                                sums over all other neurons, (n,)
`disjoint_pairs`       activations, or a cosine matrix            pairs that share no neuron: nearest, farthest …
`weight_grad_stats`    a linear layer's inputs, output gradients  weight gradient, Σ‖per-sample gradient‖²
`conv_…`               the same of a convolution                  the same
`weight_grad_into`     of either, and a tensor for the norms      gradients of weight and bias, norms in its rows
`lookup_squares_into`  tokens, output gradients                   norm of an embedding's in a row of that tensor
`scale_shift_grads`    a norm's inputs, output gradients          gradients of scale and shift, norms in such rows
=====================  =========================================  ================================================

Each lives in a folder of its own: `op.py` is what a call meets first (checks, choice of backend, torch.library),
`kernel.py` the Triton kernel, `cpu.py` the torch path, `reference.py` the definition they are both checked against.
None imports from another's; what several need is in one of the two engines below. A call runs Triton on a GPU and torch
elsewhere; `backend=` or the environment variable SDSD_BACKEND overrides it.

One call, from its door to the launch; these functions, in this order, are the way::

    cosine_matrix(x)    cosine_matrix/op.cosine_matrix       checks, the choice of backend, then the operator
                        cosine_matrix/op._compute            torch.ops.sdsd.cosine_matrix, which _register.py made
      on a GPU          pairwise/launch.launch_cosine_matrix   the plan of this shape and layout, by one look-up
                                                             norms, and unit rows as halves; then the triangle of
                                                             products, each tile stored twice
      elsewhere         cosine_matrix/cpu.cosine_matrix_torch  half of the products, scaled and stored twice
    gamma_moments(g)    gamma_moments/op.gamma_moments, gamma_moments/op._compute
      on a GPU          gamma_moments/launch.launch_gamma_moments   then kernel.py: a pass over the rows, one that adds
      elsewhere         gamma_moments/cpu.gamma_moments      a thread for each range of columns
                        gamma_moments/cpu.Blocks.sums_of_pieces, gamma_moments/cpu.Blocks._sums

What all share: `_checks.py` and `_rows.py` on arguments, `_backend.py` and `_device.py` on who computes, `_register.py`
for operators, `_launch.py` for launches, `_workers.py` for threads of a CPU, `_precision.py` on what torch may round,
`_progress.py`; `_validate.py` compares backends with definitions, `_aot.py` says what is compiled ahead of time,
`_interpreter_config.py` mends Triton's interpreter of old.

Two engines belong to no function. `pairwise/`: matrix, neighbours, pairs, histogram, sums and the accumulator differ in
what they do with a tile. `per_sample/`: gradients of weights, biases and norms with the norms of the samples' own.
`checks` holds the checks on arguments that `sdsd` makes too, `gram_strips` the sums that its accumulator keeps.
"""

from . import _checks as checks
from ._backend import BACKENDS, available_backends, default_backend
from ._launch import NORMS_WIDTH
from ._precision import exact_convolutions, exact_float32
from ._validate import ValidationReport, validate
from .cosine_between.op import cosine_between
from .cosine_matrix.op import cosine_matrix
from .cosine_pairs.disjoint import disjoint_pairs
from .cosine_pairs.op import CosineHistogram, CosinePairs, cosine_histogram, cosine_pairs, cosine_row_sums
from .cosine_topk.op import cosine_topk
from .gamma_moments.op import GammaMoments, gamma_moments
from .gram_accumulate.op import gram_accumulate
from .lookup_squares_into.op import lookup_squares_into
from .pairwise import sums as gram_strips
from .scale_shift_grads.op import ScaleShiftGrads, scale_shift_grads
from .weight_grad_into.op import LayerGrads, conv_weight_grad_into, weight_grad_into
from .weight_grad_stats.op import WeightGradStats, conv_weight_grad_stats, weight_grad_stats

__all__ = [
    "BACKENDS",
    "NORMS_WIDTH",
    "CosineHistogram",
    "CosinePairs",
    "GammaMoments",
    "LayerGrads",
    "ScaleShiftGrads",
    "ValidationReport",
    "WeightGradStats",
    "available_backends",
    "checks",
    "conv_weight_grad_into",
    "conv_weight_grad_stats",
    "cosine_between",
    "cosine_histogram",
    "cosine_matrix",
    "cosine_pairs",
    "cosine_row_sums",
    "cosine_topk",
    "default_backend",
    "disjoint_pairs",
    "exact_convolutions",
    "exact_float32",
    "gamma_moments",
    "gram_accumulate",
    "gram_strips",
    "lookup_squares_into",
    "scale_shift_grads",
    "validate",
    "weight_grad_into",
    "weight_grad_stats",
]
