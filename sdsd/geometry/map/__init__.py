"""A layer's neurons as points in space.

=================  =================================================================================================
`neuron_map.py`    `NeuronMap`: of a model, activations or cosines
`placing.py`       pairs, clusters, points and notes of a cosine matrix
`embedding.py`     multidimensional scaling, UMAP, clusters, silhouette, effective rank
`files.py`         saved, and read again
`export.py`        pictures, PLY and a page to turn
=================  =================================================================================================
"""

from .embedding import cluster
from .export import HINT, MAP_STYLE, OFFLINE_POLICY, plot, plot_library, save_ply, save_png, summary_of
from .neuron_map import NeuronMap

__all__ = [
    "HINT",
    "MAP_STYLE",
    "OFFLINE_POLICY",
    "NeuronMap",
    "cluster",
    "plot",
    "plot_library",
    "save_ply",
    "save_png",
    "summary_of",
]
