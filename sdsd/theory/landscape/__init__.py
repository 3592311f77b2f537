"""How much room a minimum has: four measures, each taken at the canonical representative.

===========================  =======================================================================================
`sharpness.py`               `sharpness`: the largest eigenvalue and the trace of the Hessian
`basin.py`                   `basin_volume`: the volume in which the loss stays low
`description.py`             `description_length`: how few bits of the parameters keep the loss
`learning_coefficient.py`    `local_learning_coefficient`: λ̂ by chains that sample the neighbourhood
`chains.py`                  what tells whether chains agree
`landscape.py`               `Landscape`: the loss on fixed data as a function of one vector
===========================  =======================================================================================
"""

from .basin import BasinVolume, basin_volume
from .description import DescriptionLength, description_length
from .learning_coefficient import LearningCoefficient, RefusedEstimateError, local_learning_coefficient
from .sharpness import Sharpness, sharpness

__all__ = [
    "BasinVolume",
    "DescriptionLength",
    "LearningCoefficient",
    "RefusedEstimateError",
    "Sharpness",
    "basin_volume",
    "description_length",
    "local_learning_coefficient",
    "sharpness",
]
