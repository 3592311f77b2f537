"""The engine for pairs of neurons: operands prepared once, products by tiles or blocks. Start at README.md."""
