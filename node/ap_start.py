"""How the boot processor of an SNP guest starts the others: each gets a save area that the guest itself makes.

The page is written as memory, turned into a save area by RMPADJUST, which VMPL0 alone may do, and named to the
hypervisor by AP creation. It lies in a block that firmware broke at launch, where pages are validated in 4 KiB, and not
at the beginning of it: processors have an erratum about those, and hypervisors refuse them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import Steps, page_exit
from node.guest_memory_map import GuestMemoryMap
from node.kernel_settings import CAREFUL, KernelSettings
from node.nae_event import ApCreationKind, NaeEvent
from node.operations import RmpAdjust, UpkeepWrite
from node.vmsa import initial_vmsa
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

_TARGET = 1
"""RMPADJUST names a VMPL below the own; it gets no permission."""


@dataclass(frozen=True, slots=True)
class ApStart:
    """``rip`` is where the vCPUs begin, ``sev_features`` what all save areas of the guest must have."""

    memory: GuestMemoryMap
    launched: tuple[int, ...]
    ghcb_gpa: int
    rip: int
    sev_features: int
    clock: tuple[int, int] = (0, 0)
    """GUEST_TSC_SCALE and GUEST_TSC_OFFSET, where they have Secure TSC."""
    settings: KernelSettings = CAREFUL

    def start(self, vcpu: int) -> Steps:
        """Start one. Raises GhcbUntrusted where the page cannot be had, or the hypervisor does not run it."""
        gpa = self.save_area_gpa(vcpu)
        scale, offset = self.clock
        fields = {"GUEST_TSC_SCALE": scale, "GUEST_TSC_OFFSET": offset}
        page = initial_vmsa(self.rip, 0, self.sev_features, fields)
        answers = yield (
            UpkeepWrite(gpa, page),
            RmpAdjust(gpa, PAGE_BYTES, large=False, target=_TARGET, permissions=0, vmsa=True),
        )
        if answers != (None, 0):
            raise GhcbUntrusted(f"save area of vCPU {vcpu}: {answers!r}")
        info = ApCreationKind.CREATE | vcpu << 32
        shown = {"RAX": self.sev_features}
        yield from page_exit(self.ghcb_gpa, NaeEvent.AP_CREATION, info, gpa, shown, settings=self.settings)

    def save_area_gpa(self, vcpu: int) -> int:
        """The page for a vCPU. Raises GhcbUntrusted if there are too few."""
        for number, gpa in enumerate(self._pages(), 1):
            if number == vcpu:
                return gpa
        raise GhcbUntrusted(f"save area of vCPU {vcpu}: no page of 4 KiB is left")

    def _pages(self) -> Iterator[int]:
        for part in self.memory.private_ranges(self.launched):
            if part.large:
                continue
            for gpa in range(part.gpa, part.gpa + part.length, PAGE_BYTES):
                if gpa % LARGE_PAGE_BYTES and gpa != self.ghcb_gpa:
                    yield gpa
