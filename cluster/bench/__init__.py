"""Benchmarks: one module each, with ``run()`` that yields figures."""

BENCHMARKS = ("memory", "sync", "kernel", "migrations", "recovery")
"""Names of the benchmarks, in the order in which all of them run."""
