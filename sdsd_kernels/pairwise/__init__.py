"""The engine for pairs of neurons: operands prepared once, their products by tiles. Start at README.md or launch.py."""
