"""What the upper triangle of cosines holds, without storing it: histogram, row sums, pairs past a threshold.

README.md says what is in `op.py`, `disjoint.py`, `kernel.py`, `cpu.py`, `config.py`, `aot.py` and `reference.py`.
"""
