"""The control block of a vCPU: what the core takes from it at VMRUN, never from an operation."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.generation import CAPABILITIES, Generation
from node.nested_page_table import NestedPageTable
from node.phase_cost import RMP_CHECKED

Known = tuple[int, object, int, int, bool, int, int]
"""``NestedPageTable.changes``, the RMP and its ``changes`` then; the page's SPA, mapping, key and ASID."""


@dataclass(frozen=True, slots=True)
class Vmcb:
    """ASID (offset 058), nested page table (0B0), save area (108) and what encryption is enabled (090).

    ``vmpl`` is the save area's, read from it at VMRUN; ``core`` is the hardware thread that executed VMRUN.
    """

    vm: str
    vcpu: int
    asid: int
    generation: Generation
    save_area_spa: int
    nested: NestedPageTable
    tlb_control: int = 0
    """What VMRUN flushes from the translation buffer (offset 05C)."""
    vmpl: int = 0
    core: int = 0
    consistent: bool = True
    """Whether ASID and save area are such as VMRUN accepts (``node.vmrun_checks``); without that nobody runs."""
    encrypted: bool = field(init=False)
    """SEV enabled in the nested control field."""
    rmp_checked: bool = field(init=False)
    """SNP active: private accesses are checked against the RMP."""
    known: dict[tuple[int, bool, int, int], Known] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )
    """Accesses that came through, by page of the guest, ``private``, ``access`` and ``needs``, each as long as nothing
    that it rests on has changed."""

    def __post_init__(self) -> None:
        # Every access asks, and to look a generation up costs as much as an RMP check.
        object.__setattr__(self, "encrypted", CAPABILITIES[self.generation].key_per_vm)
        object.__setattr__(self, "rmp_checked", self.generation in RMP_CHECKED)
