"""The k nearest or farthest neurons of each, the matrix of cosines never stored. Start at README.md or op.py."""
