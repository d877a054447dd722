"""Benchmarks: one module each, with ``run()`` that yields figures."""

BENCHMARKS = (
    "memory", "rmp", "sync", "kernel", "scale", "migrations", "recovery", "psp", "attestation", "tio", "faults",
    "materialised", "fleet", "placement", "idle", "peers",
)  # fmt: skip
"""Names of the benchmarks, in the order in which all of them run."""
