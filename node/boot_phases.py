"""What a guest spends between its reset and its first program, as rows of the cost table, by how it boots.

Firmware and kernel are not run here: their phases are published times of one machine, charged to the
boot processor one after another. What sevfleet's own kernel does (acceptance, GHCBs, the other vCPUs) comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class BootPath(StrEnum):
    """How a guest gets from reset to its first program."""

    NONE = "none"
    """At once: neither firmware nor kernel take time."""
    OVMF = "ovmf"
    """OVMF's phases, then a distribution's kernel, as QEMU starts them; QEMU's own start comes with them."""
    DIRECT = "direct"
    """A small monitor starts a verifier, which checks, decompresses and starts a small kernel, as SEVeriFast does."""


BOOT_PHASES: Mapping[str, tuple[str, ...]] = {
    BootPath.NONE: (),
    BootPath.OVMF: (
        "boot.qemu_ns", "boot.ovmf_sec_ns", "boot.ovmf_pei_ns", "boot.ovmf_dxe_ns", "boot.ovmf_bds_ns",
        "boot.bzimage_ns", "boot.linux_ns",
    ),
    BootPath.DIRECT: ("boot.firecracker_ns", "boot.verifier_ns", "boot.decompress_ns", "boot.linux_lupine_ns"),
}  # fmt: skip
"""Rows of the cost table in the order in which they pass."""
BOOT_WORK = frozenset(row for rows in BOOT_PHASES.values() for row in rows)
