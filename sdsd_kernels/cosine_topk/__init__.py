"""The k nearest or farthest neurons of each, the matrix of cosines never stored.

README.md says what is in `op.py`, `kernel.py`, `cpu.py`, `config.py`, `aot.py` and `reference.py`.
"""
