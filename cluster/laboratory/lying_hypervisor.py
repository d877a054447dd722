"""Hypervisors that tell their guests, from the first instruction on, what they like of encryption (rows 23, 48).

Of the CPUID page, which firmware checks, they try the same, and lay an honest one where that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.laboratory.bad_hypervisor import BadHypervisor, Orders
from node.cpuid_page import ENCRYPTION_LEAF, CpuidEntry
from node.firmware_image import FirmwareImage
from node.hypervisor_port import LaunchRefused, LaunchTask
from node.machine_spec import MachineSpec
from node.operations import NestedMap
from node.port_window import PortWindow
from node.product import Product

FALSE_PLACE = 47
"""A bit that addresses have, and nested tables of four levels reach."""


class DenyingHypervisor(BadHypervisor):
    """Tells that nothing is encrypted."""

    def __init__(
        self,
        orders: Orders,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        images: Mapping[str, FirmwareImage],
        max_snp_asid: int = 0,
        ports: tuple[PortWindow, ...] = (),
    ) -> None:
        super().__init__(orders, product, memory_bytes, min_sev_asid, images, max_snp_asid, ports)
        self._honest = dict(self._ghcb.leaves)
        self._lies = {
            generation: tuple(self.lie(one) if one.eax_in == ENCRYPTION_LEAF else one for one in leaves)
            for generation, leaves in self._honest.items()
        }

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """Launch with a false CPUID page, or with a true one where firmware looks; exits get lies in any case."""
        self._ghcb.leaves.update(self._lies)
        try:
            return (yield from super().launch(spec))
        except LaunchRefused:
            self._ghcb.leaves.update(self._honest)
            return (yield from super().launch(spec))
        finally:
            self._ghcb.leaves.update(self._lies)

    def lie(self, leaf: CpuidEntry) -> CpuidEntry:
        """No bit of EAX, and no place of a C-bit."""
        return replace(leaf, eax=0, ebx=0)


class MisplacingHypervisor(DenyingHypervisor):
    """Tells a false place of the C-bit, and maps each guest's memory once more where it leads then."""

    def lie(self, leaf: CpuidEntry) -> CpuidEntry:
        """Another place in EBX bits 5:0."""
        return replace(leaf, ebx=leaf.ebx & ~0x3F | FALSE_PLACE)

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """Launch, and map."""
        entered = yield from super().launch(spec)
        ram = self.launched(spec.name).ram
        yield tuple(NestedMap(spec.name, gpa | 1 << FALSE_PLACE, spa, length) for gpa, spa, length in ram)
        return entered
