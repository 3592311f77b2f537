"""What becomes of a network when its neurons are merged or removed.

======================  ================================================================================================
`consumers.py`          which layers read a layer's neurons, and what stands in the way
`layers.py`             a layer by its name
`group.py`              the group that its neurons belong to
`merge.py`              pairs merged inside a `with` block
`merger.py`             what each rule of merging writes, and what it needs
`edits.py`              pairs, checked, and what is written where
`consolidate.py`        the same for good: a smaller network
`cutting.py`            neurons taken out of a copy
`norms.py`              norms over all neurons, where some were merged for good
`whole_model.py`        the same for all layers of a model, by a threshold or to a budget
`planning.py`           which of their neurons, heads and experts are to go; `rows.py`: which may
`plan.py`               that as a plan, to be read, kept and carried out; `layer_plan.py`: a row of it
`reports.py`            what was done, to a layer or to a model; `model_page.py`: as a page
`group_activations.py`  what the readers of a group get
`experts.py`            experts of a mixture: how alike they are, two of them made one
`expert_removal.py`     experts taken out, with their rows of the router
`config.py`             the configuration of a smaller Hugging Face model
`proof.py`              the smaller network beside the merged one
`biopsy.py`             what merging near, random and far pairs does to the loss
`pair_source.py`        where those pairs come from
`cost.py`               the weights that read a layer's neurons, for what a merge costs
`foretold.py`           what a merge will change, from these and products of activations
`measurements.py`       measurements that a later call resumes
`sensitivity.py`        the losses they are measured by
`plasticity.py`         whether a merged network learns on as well
`controls.py`           networks and data that an effect must not survive, and how they are trained
======================  ================================================================================================

One biopsy, in the order to read it::

    biopsy(model, …)    biopsy.biopsy
                        consumers.consumers                  which layers read the neurons
                        pair_source.PairSource.pairs         near, random and far pairs
                        biopsy._Measure.__call__             one merge: what it does to the loss
                        merger.Merger.edits, edits.applied   weights as they are when the pair is one, and back again
                        biopsy._ratio                        far over near, with its interval
"""

from .biopsy import COHORTS, Biopsy, Cohort, MassConsolidation, biopsy, mass_consolidation
from .config import ConfigFit, fit_config
from .consolidate import consolidate, remove_neurons
from .consumers import consumers
from .controls import Training, sgd_training, shuffled_pixels, trained, untrained, weight_cosine
from .cost import outgoing_weights
from .edits import tensor_of
from .expert_removal import remove_experts
from .experts import consolidate_experts, expert_cosine, merge_experts
from .group import Consumers
from .group_activations import group_activations
from .layer_plan import LayerPlan, PlannedPair
from .layers import dense_layer
from .measurements import Measurements, fingerprint
from .merge import merge
from .merger import How
from .norms import RepeatedNorm
from .plan import ConsolidationPlan
from .planning import plan_consolidation
from .plasticity import Plasticity, plasticity
from .reports import Consolidation, LayerReport, ModelConsolidation
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
