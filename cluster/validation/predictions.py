"""Which prediction belongs to which case."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.validation import boot_cases as boot
from cluster.validation import io_cases as io
from cluster.validation import memory_cases as memory
from cluster.validation import migration_cases as migration
from cluster.validation.case import Case

Prediction = Callable[[Case, Mapping[str, float]], Mapping[str, float]]
"""What the model says of each point of a case, by name, in its unit, under a cost table."""

PREDICTIONS: Mapping[str, Prediction] = {
    "MC-5": memory.read_latency, "MC-10": memory.enclave_switches,
    "EX-1": memory.exits,
    "IO-6": io.forced_bounce,
    "BL-1": boot.launch_update, "BL-2": boot.qemu_storm, "BL-3": boot.microvm_storm, "BL-5": boot.boots,
    "BL-5-p99": boot.boot_spread,
    "BL-11": boot.ovmf_phases, "BL-12": boot.acceptance,
    "AT-1": boot.attestation, "AT-2": boot.report_storm,
    "MG-2": migration.never_ready, "MG-3": migration.downtime_parts, "MG-6": migration.idle_node,
    "MG-11": migration.fixed_parts,
    "MG-15": migration.sev_pass, "MG-16": migration.sev_rate,
    "CT-6": boot.keys, "CT-7": memory.store_checks, "CT-8": memory.snp_neighbours,
    "TI-4": io.native_over_bounce, "TI-5": io.link_share,
}  # fmt: skip
