"""SDSD: is this gradient signal or noise, and which neurons do the same job?

==========================  ================================================================================
`gamma_stats`               Γ, the gradient noise scale and error bars from per-sample or batch gradients
`GammaMonitor`              the same for every parameter inside an ordinary training loop
`GammaHistory`              what its measured steps gave: rows, a file that grows, a table, a picture
`compute_gamma`             the same over batches of a data loader, as the first source document proposed it
`recommend_batch`           the batch worth having, how far yours is from it, and None where the data cannot tell
`neuron_cosine_matrix`      cosine similarity of every pair of neurons, from their activations
`neuron_neighbors`          the k nearest or farthest neurons of each, without that matrix
`neuron_pairs`              all pairs of neurons past a threshold, without that matrix
`disjoint_pairs`            pairs that share no neuron, nearest, farthest or random: what a merge needs
`cosine_histogram`          how the cosines of all pairs of neurons are distributed
`row_sums`                  sums of cosines or distances to all other neurons: what filter pruning needs
`cosine_between`            cosine similarity of the neurons of two layers, or of two models
`match_neurons`             neurons of two layers or two models, one to one; a model in another's order
`loss_barrier`              the loss along the straight line between two models
`GramAccumulator`           the cosine matrix when activations come in batches, or lie on several machines
`sharded_cosine`            the same when neurons are spread over several ranks
`merge`                     pairs of neurons merged inside a `with` block, restored bit for bit
`consolidate`               the same for good: fewer neurons in a layer, fewer columns in its readers
`consumers`                 which layers read a layer's neurons
`biopsy`                    what merging near, random and far pairs does to the loss, pair by pair
`mass_consolidation`        the same for many pairs at once
`plasticity`                whether a merged network learns on as well
`collect_activations`       what the neurons of a model's layers answer, by layer name or pattern, summed or kept
`NeuronMap`                 a layer's neurons as points in space, in clusters; saved, drawn, exported
`validate`                  compare every backend on this machine with the definitions
==========================  ================================================================================

====================  ======================================================================================
inside                what is there
====================  ======================================================================================
`gamma/`              gradient signal and noise: statistics, the monitor, histories
`geometry/`           neurons by their cosines: pairs, sums over batches, maps, merges
`graphs/`             a model's operations, followed while it runs
`models/`             attaching to models, restoring them, naming their parts
`theory/`             what the source documents prove, as functions
`report/`             pages and figures
`studies/`            experiments, each with its rule fixed beforehand, and the claims they judge
`integrations/`       training loops of other libraries
`cli/`                the `sdsd` command; `__main__.py` is its process
`_extras.py`          optional packages
`_progress.py`        how far a long call is
`_tensor_files.py`    tensors from files
`_student_t.py`       quantiles of Student's t
`_drafts.py`           files that are whole or not there
`_drawing.py`         figures without a display
`_terminal.py`        output that is not Unicode
`_interrupts.py`      Ctrl-C, which always ends a command
====================  ======================================================================================
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdsd_kernels import validate

    from . import gamma as gamma
    from . import geometry as geometry
    from . import integrations as integrations
    from . import report as report
    from . import studies as studies
    from . import theory as theory
    from .gamma import (
        BatchRecommendation,
        GammaHistory,
        GammaMonitor,
        GammaStats,
        compute_gamma,
        gamma_stats,
        recommend_batch,
    )
    from .geometry import (
        CosineHistogram,
        GramAccumulator,
        NeuronMap,
        biopsy,
        collect_activations,
        consolidate,
        consumers,
        cosine_between,
        cosine_histogram,
        disjoint_pairs,
        loss_barrier,
        mass_consolidation,
        merge,
        neuron_cosine_matrix,
        neuron_neighbors,
        neuron_pairs,
        plasticity,
        row_sums,
        sharded_cosine,
    )
    from .theory import match_neurons

__version__ = "0.2.0"

# Events go to whoever listens, and nobody is told who does not (docs/faq.md).
logging.getLogger("sdsd").addHandler(logging.NullHandler())

_NAMES = {
    "sdsd_kernels": ("validate",),
    "sdsd.gamma": (
        "BatchRecommendation",
        "GammaHistory",
        "GammaMonitor",
        "GammaStats",
        "compute_gamma",
        "gamma_stats",
        "recommend_batch",
    ),
    "sdsd.geometry": (
        "CosineHistogram",
        "GramAccumulator",
        "NeuronMap",
        "biopsy",
        "collect_activations",
        "consolidate",
        "consumers",
        "cosine_between",
        "cosine_histogram",
        "disjoint_pairs",
        "loss_barrier",
        "mass_consolidation",
        "merge",
        "neuron_cosine_matrix",
        "neuron_neighbors",
        "neuron_pairs",
        "plasticity",
        "row_sums",
        "sharded_cosine",
    ),
    "sdsd.theory": ("match_neurons",),
}
_PACKAGES = ("gamma", "geometry", "integrations", "report", "studies", "theory")

__all__ = [
    "BatchRecommendation",
    "CosineHistogram",
    "GammaHistory",
    "GammaMonitor",
    "GammaStats",
    "GramAccumulator",
    "NeuronMap",
    "biopsy",
    "collect_activations",
    "compute_gamma",
    "consolidate",
    "consumers",
    "cosine_between",
    "cosine_histogram",
    "disjoint_pairs",
    "gamma_stats",
    "loss_barrier",
    "mass_consolidation",
    "match_neurons",
    "merge",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "neuron_pairs",
    "plasticity",
    "recommend_batch",
    "row_sums",
    "sharded_cosine",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `sdsd --help` would otherwise wait seconds for torch."""
    if name in _PACKAGES:
        return importlib.import_module(f"sdsd.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'sdsd' has no attribute {name!r}")
    for module, names in _NAMES.items():
        loaded = importlib.import_module(module)
        globals().update({each: getattr(loaded, each) for each in names})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
