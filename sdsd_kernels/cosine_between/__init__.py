"""Cosine similarity of the neurons of one layer with those of another. Start at README.md or op.py."""
