"""Titles of the source documents, as verdicts name them."""

from __future__ import annotations

SDSD = "Symmetry-Driven Spatial Density (SDSD) Framework"
EXPLANATION = f"{SDSD}, introduction and §4"
"""Where it says that it explains phenomena of training."""
MOVES = "What Moves When Nothing Threatens"
FUNCTIONAL_GEOMETRY = "Functional Geometry in Deep Neural Networks"
