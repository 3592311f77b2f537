"""Experiments that run from the command line. Nothing but the command line imports them.

=================  ==================================================================================================
`engine/`          what a study is, and how one is run: seeds, results, verdicts, pages, progress
`theory/`          studies of Γ, curvature, symmetries, dynamics, selection and rank
`geometry/`        studies of neurons that do the same job; `sdsd geometry`
`phenomena/`       grokking, neural collapse, lottery tickets, double descent, the edge of stability
`demo/`            `sdsd demo`
`catalogue.py`     all studies by name and group
`claims.py`        every claim beside what the studies found, networks pooled: `sdsd claims`
`claims_page.py`   its tables and pages
`digits.py`        scikit-learn's digits, loaded and split
`rules.py`         the rules that decide verdicts, since when, and what they replaced
`documents.py`     titles of the source documents
`user_file.py`     a user's file: run, and what it defines checked
`script.py`        `sdsd gamma FILE.py`: train what it defines
`own.py`            `sdsd study NAME --model FILE.py`: what a study measures, on a network of one's own
`map.py`           `sdsd map`: the neurons of saved activations
`pairs.py`         pairs of neurons that serve as examples
=================  ==================================================================================================

One study, in the order to read it: `engine/run.run_study` runs what `engine/study.Study` describes,
`engine/seeds.measure_seed` one seed of it; then its own `measure`, `judge` and `draw`, such as
`theory/selection.measure`. docs/studies.md builds a study.
"""

from .catalogue import CATALOGUE, GROUPS, choose_studies, list_lines
from .claims import read_claims
from .claims_page import write_claims
from .demo import DemoConfig, run_demo, summary_lines
from .engine import Runner, choose_progress, plain, prepare_output
from .geometry import BUILT_IN_SUBJECTS, ArcConfig, examine, subject_from_file
from .map import run_map
from .own import OWN, check_own, run_own
from .pairs import farthest_examples
from .script import train_file
from .user_file import UserCodeError

__all__ = [
    "BUILT_IN_SUBJECTS",
    "CATALOGUE",
    "GROUPS",
    "OWN",
    "ArcConfig",
    "DemoConfig",
    "Runner",
    "UserCodeError",
    "check_own",
    "choose_progress",
    "choose_studies",
    "examine",
    "farthest_examples",
    "list_lines",
    "plain",
    "prepare_output",
    "read_claims",
    "run_demo",
    "run_map",
    "run_own",
    "subject_from_file",
    "summary_lines",
    "train_file",
    "write_claims",
]
