"""Tiny random configurations of what people train, one file a library or a kind."""
