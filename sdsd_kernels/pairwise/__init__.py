"""The engine for pairs of neurons: operands prepared once, products by tiles or blocks.

README.md says what is in `launch.py`, `prepare_kernel.py`, `tile_kernel.py`, `kernel.py`, `sums.py`, `sums_kernel.py`,
`config.py`, `aot.py`, and for torch `products.py`, `reading.py` and `blocks.py`.
"""
