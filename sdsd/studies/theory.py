"""`sdsd theory`: the seed documents' theory, one experiment a claim."""

from __future__ import annotations

from . import theory_dynamics, theory_functional, theory_quotient, theory_selection
from .registry import Study

THEORY: dict[str, Study] = {
    study.name: study
    for module in (theory_functional, theory_quotient, theory_dynamics, theory_selection)
    for study in module.STUDIES
}
