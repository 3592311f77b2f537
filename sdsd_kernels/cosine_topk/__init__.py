"""The k nearest or farthest neurons of each, the matrix of cosines never stored. Start at README.md or op.py.

================  ===============================================================================
`op.py`           `cosine_topk`: checks, choice of backend, the operator and its fake
`kernel.py`       tiles of cosines that never leave the chip, a list a row that does; its launch
`cpu.py`          blocks of cosines, each offered to the best so far of its rows and columns
`config.py`       launch configurations
`aot.py`          what is compiled ahead of time, and what must show in the machine code
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ===============================================================================
"""
