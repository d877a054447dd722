"""Hypervisors that tell their guests what they like, from the first instruction on.

Of encryption (rows 23, 48): of the CPUID page, which firmware checks, they try the same, and lay an honest one where
that is refused. And of where other vCPUs find out what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.laboratory.bad_hypervisor import BadHypervisor, Orders
from node.cpuid_page import ENCRYPTION_LEAF, CpuidEntry
from node.firmware_image import FirmwareImage
from node.ghcb_page import GHCB_BYTES, build_reply, parse_exit
from node.hypervisor_port import LaunchRefused, LaunchTask, Reply
from node.machine_spec import MachineSpec
from node.nae_event import JumpTable, NaeEvent
from node.operations import HostRead, HostWrite, NestedMap
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


class MisleadingHypervisor(BadHypervisor):
    """Tells a SEV-ES guest that its jump table is where its firmware's image begins, and starts no other vCPU."""

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Reply:
        """Serve an exit, but for the lie."""
        record = self.launched(vm)
        lies: Mapping[tuple[int, int], int] = {
            (NaeEvent.AP_JUMP_TABLE, JumpTable.GET): record.images[0].gpa,
            (NaeEvent.MSR, 1): 0,
        }
        at = record.page_spa(value) if not value % GHCB_BYTES else None
        if at is not None:
            (page,) = yield (HostRead(at, GHCB_BYTES),)
            assert isinstance(page, bytes)
            asked = parse_exit(page, value)
            lie = lies.get((asked.code, asked.info1))
            if lie is not None:
                yield (HostWrite(at, build_reply(0, lie)),)
                return value
        return (yield from super().vmgexit(vm, vcpu, value))
