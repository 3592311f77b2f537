"""What the upper triangle of cosines holds, without storing it: histogram, row sums, pairs past a threshold.

================  ============================================================================================
`op.py`           `cosine_histogram`, `cosine_row_sums`, `cosine_pairs`: checks, choice of backend, operators
`kernel.py`       passes over the triangle in Triton
`cpu.py`          the same passes in torch, block by block
`disjoint.py`     `disjoint_pairs`: pairs that share no neuron, greedily or by lot
`budget.py`       how many pairs fit into memory, and what is raised where they do not
`config.py`       launch configurations, and what they take of memory
`aot.py`          what is compiled ahead of time, and what must show in the machine code
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ============================================================================================
"""
