"""Γ_H and the critical Γ*: signal and noise with the curvature of the loss, as the next step of training meets it.

==================  ================================================================================================
`gamma.py`          `curvature_gamma`: from a model, a loss and a batch
`observer.py`       `CurvatureObserver`: the same now and then while a model trains
`stats.py`          `CurvatureStats`: what comes back, and its report
`moments.py`        unbiased products of means and of covariances over folds
`rows.py`           gradients of samples, kept or computed anew
==================  ================================================================================================
"""

from .gamma import curvature_gamma
from .observer import CurvatureObserver
from .stats import CurvatureStats

__all__ = ["CurvatureObserver", "CurvatureStats", "curvature_gamma"]
