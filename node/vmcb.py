"""The control block of a vCPU: what the core takes from it at VMRUN, never from an operation."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.generation import CAPABILITIES, Generation
from node.nested_page_table import NestedPageTable
from node.phase_cost import RMP_CHECKED


@dataclass(frozen=True, slots=True)
class Vmcb:
    """ASID (offset 058), nested page table (0B0), save area (108) and what encryption is enabled (090).

    ``key_asid`` is the ASID whose key private accesses use, 0 for a VM that
    runs unencrypted. ``vmpl`` is the save area's, read from it at VMRUN.
    """

    vm: str
    vcpu: int
    asid: int
    generation: Generation
    save_area_spa: int
    nested: NestedPageTable
    vmpl: int = 0
    encrypted: bool = field(init=False)
    """SEV enabled in the nested control field."""
    rmp_checked: bool = field(init=False)
    """SNP active: private accesses are checked against the RMP."""

    def __post_init__(self) -> None:
        # Every access asks, and to look a generation up costs as much as an RMP check.
        object.__setattr__(self, "encrypted", CAPABILITIES[self.generation].key_per_vm)
        object.__setattr__(self, "rmp_checked", self.generation in RMP_CHECKED)
