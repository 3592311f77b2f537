"""What becomes of a network when its neurons are merged or removed.

======================  ================================================================================================
`consumers.py`          which layers read a layer's neurons, and what stands in the way
`merge.py`              pairs merged inside a `with` block
`consolidate.py`        the same for good: a smaller network
`norms.py`              norms over all neurons, where some were merged for good
`whole_model.py`        the same for all layers of a model, by a threshold or to a budget
`planning.py`           which of their neurons, heads and experts are to go
`plan.py`               that as a plan, to be read, kept and carried out
`model_report.py`       what was done, a row a layer; `model_page.py`: as a page
`group_activations.py`  what the readers of a group get
`experts.py`            experts of a mixture: how alike they are, two of them made one
`expert_removal.py`     experts taken out, with their rows of the router
`config.py`             the configuration of a smaller Hugging Face model
`proof.py`              the smaller network beside the merged one
`biopsy.py`             what merging near, random and far pairs does to the loss
`pair_source.py`        where those pairs come from
`cost.py`               the weights that read a layer's neurons, for what a merge costs
`measurements.py`       measurements that a later call resumes
`sensitivity.py`        the losses they are measured by
`plasticity.py`         whether a merged network learns on as well
`controls.py`           networks and data that an effect must not survive
======================  ================================================================================================

One biopsy, in the order to read it::

    biopsy(model, …)    biopsy.biopsy
                        consumers.consumers                  which layers read the neurons
                        pair_source.PairSource.pairs         near, random and far pairs
                        biopsy._Measure.__call__             one merge: what it does to the loss
                        merge.Merger.edits, merge.applied    weights as they are when the pair is one, and back again
                        biopsy._ratio                        far over near, with its interval
"""

from .biopsy import COHORTS, Biopsy, Cohort, MassConsolidation, biopsy, mass_consolidation
from .config import ConfigFit, fit_config
from .consolidate import Consolidation, consolidate, remove_neurons
from .consumers import Consumers, consumers, dense_layer
from .controls import Training, shuffled_pixels, trained, untrained, weight_cosine
from .cost import outgoing_weights
from .expert_removal import remove_experts
from .experts import consolidate_experts, expert_cosine, merge_experts
from .group_activations import group_activations
from .measurements import Measurements, fingerprint
from .merge import How, merge, tensor_of
from .model_report import LayerReport, ModelConsolidation
from .norms import RepeatedNorm
from .plan import ConsolidationPlan, LayerPlan, PlannedPair
from .planning import plan_consolidation
from .plasticity import Plasticity, plasticity, sgd_training
from .sensitivity import (
    LossFunction,
    Sensitivity,
    as_sensitivity,
    cosine_to_untouched,
    kl_to_untouched,
    mean_loss,
    single_number,
)
from .whole_model import consolidate_model

__all__ = [
    "COHORTS",
    "Biopsy",
    "Cohort",
    "ConfigFit",
    "Consolidation",
    "ConsolidationPlan",
    "Consumers",
    "How",
    "LayerPlan",
    "LayerReport",
    "LossFunction",
    "MassConsolidation",
    "Measurements",
    "ModelConsolidation",
    "PlannedPair",
    "Plasticity",
    "RepeatedNorm",
    "Sensitivity",
    "Training",
    "as_sensitivity",
    "biopsy",
    "consolidate",
    "consolidate_experts",
    "consolidate_model",
    "consumers",
    "cosine_to_untouched",
    "dense_layer",
    "expert_cosine",
    "fingerprint",
    "fit_config",
    "group_activations",
    "kl_to_untouched",
    "mass_consolidation",
    "mean_loss",
    "merge",
    "merge_experts",
    "outgoing_weights",
    "plan_consolidation",
    "plasticity",
    "remove_experts",
    "remove_neurons",
    "sgd_training",
    "shuffled_pixels",
    "single_number",
    "tensor_of",
    "trained",
    "untrained",
    "weight_cosine",
]
