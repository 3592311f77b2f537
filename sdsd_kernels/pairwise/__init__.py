"""The engine for pairs of neurons: operands prepared once, products by tiles or blocks. Start at README.md.

=====================  ==============================================================================
`launch.py`            one look-up from neurons to launches: the matrix, cosines of two layers
`prepare_kernel.py`    norms in one pass, and neurons rewritten as halves
`tile_kernel.py`       which tile a program takes, its products, and storing them
`kernel.py`            products of all pairs, tile by tile
`sums.py`              running sums: one launch a batch, and one for the matrix at the end
`sums_kernel.py`       running means, and the matrix from a triangle of sums
`config.py`            launch configurations by kind of GPU and number of neurons
`aot.py`               what is compiled ahead of time, and what must show in the machine code
`products.py`          half of the products by recursion, in torch
`blocks.py`            blocks of cosines in torch, one by one, for calls that never hold all of them
`reading.py`           neurons as torch reads them: slices, copies, means, norms
=====================  ==============================================================================
"""
