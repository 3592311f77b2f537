"""The claims of "Functional Geometry in Deep Neural Networks", on any network and on some that others trained.

==================  ====================================================================================================
`subject.py`        `Subject`: a network whose neurons are examined; those that learn digits; controls
`file.py`           `subject_from_file`: a network that a user's Python file defines
`arc.py`            `Examination`: map, biopsy, consolidation, controls, plasticity, each step kept
`run.py`            `examine`: `sdsd geometry` for some subjects, and what it writes
`report.py`         its page
`verdicts.py`       what examinations say to the document's claims
`studies.py`        the studies, one a network
`after_merging.py`  a network with room to learn, merged and trained on
`removal.py`        the first biopsy, which failed: single neurons taken out
`redundancy.py`     what foretells the cost of merging a random pair
`merge_cost.py`     the cost of a merge foretold, beside cosines and pruning
`networks.py`       what they examine: a CNN for MNIST, EfficientNet-Lite0, MiniLM, ResNet18
`pretrained.py`     networks and data that come in Python packages
`resnet.py`         ResNet18 for small images, and CIFAR-10 from a folder
==================  ====================================================================================================
"""

from . import merge_cost, removal
from .arc import ArcConfig, Examination
from .file import subject_from_file
from .run import examine
from .studies import STUDIES as EXAMINATIONS
from .subject import BUILT_IN_SUBJECTS, Subject
from .verdicts import judge_network

STUDIES = (*EXAMINATIONS, *merge_cost.STUDIES, *removal.STUDIES)

__all__ = [
    "BUILT_IN_SUBJECTS",
    "STUDIES",
    "ArcConfig",
    "Examination",
    "Subject",
    "examine",
    "judge_network",
    "subject_from_file",
]
