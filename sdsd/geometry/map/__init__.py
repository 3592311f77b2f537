"""A layer's neurons as points in space.

=================  =================================================================================================
`neuron_map.py`    `NeuronMap`: collected, placed, clustered, saved
`embedding.py`     multidimensional scaling, clusters, silhouette, effective rank
`export.py`        PLY, PNG and a page to turn
=================  =================================================================================================
"""

from .embedding import cluster
from .export import OFFLINE_POLICY, plot, plot_library, save_ply, save_png, summary_of
from .neuron_map import NeuronMap

__all__ = [
    "OFFLINE_POLICY",
    "NeuronMap",
    "cluster",
    "plot",
    "plot_library",
    "save_ply",
    "save_png",
    "summary_of",
]
