"""Experiments that run from the command line. Nothing but the command line imports them.

=================  ==================================================================================================
`engine/`          what a study is, and how one is run: seeds, results, verdicts, pages, progress
`theory/`          studies of Γ, curvature, symmetries, dynamics, selection and rank
`geometry/`        studies of neurons that do the same job; `sdsd geometry`
`phenomena/`       grokking, neural collapse, lottery tickets, double descent, the edge of stability
`demo/`            `sdsd demo`
`catalogue.py`     all studies by name and group
`claims.py`        every claim beside what the studies found: `sdsd claims`
`digits.py`        scikit-learn's digits, loaded and split
`documents.py`     titles of the source documents
`train_file.py`    `sdsd gamma FILE.py`: train what a user's file defines
`map.py`           `sdsd map`: the neurons of saved activations
=================  ==================================================================================================

docs/studies.md builds a study.
"""
