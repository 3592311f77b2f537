"""Benchmarks.

cases.py holds the only shapes, harness.py takes time, memory and environment, tables.py shows them;
one bench_<op>.py an op.
"""
