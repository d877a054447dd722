"""CPUID as a hypervisor would like it (rows 23, 48; Radev and Morbitzer 2020), and what it finds then.

The lie is told from the guest's first instruction on, by the hypervisor's own program.
Of the page that firmware checks it tries the same, and lays an honest one where that
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from node.cpuid_page import ENCRYPTION_LEAF, CpuidEntry
from node.firmware_image import FirmwareImage
from node.hypervisor import Hypervisor
from node.hypervisor_port import LaunchRefused, LaunchTask
from node.machine_spec import MachineSpec
from node.operations import HostRead, NestedMap, RmpUpdate
from node.product import Product
from psp.system_bus import RmpEntry
from workloads.attacks.nested_remap import smash
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES


class LyingHypervisor(Hypervisor):
    """Tells every guest what it likes of the leaf of encryption."""

    def __init__(
        self,
        product: Product,
        memory_bytes: int,
        min_sev_asid: int,
        images: Mapping[str, FirmwareImage],
        max_snp_asid: int = 0,
    ) -> None:
        super().__init__(product, memory_bytes, min_sev_asid, images, max_snp_asid)
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
        """What stands in the place of an honest leaf."""
        raise NotImplementedError


class DenyingHypervisor(LyingHypervisor):
    """Tells that nothing is encrypted."""

    def lie(self, leaf: CpuidEntry) -> CpuidEntry:
        """No bit of EAX, and no place of a C-bit."""
        return replace(leaf, eax=0, ebx=0)


FALSE_PLACE = 47
"""A bit that addresses have, and nested tables of four levels reach."""


class MisplacingHypervisor(LyingHypervisor):
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


def share_and_read(target: Target) -> Attack:
    """Rows 23, 48: take the page where the secret will be for shared memory, and read it when it is there.

    A guest that was deceived stores to it as to shared memory, which an RMP lets it do only there.
    """
    victim = target.victim
    if victim.gctx:
        yield smash(victim.secret)
        yield (RmpUpdate(victim.secret.spa, PAGE_BYTES, RmpEntry()),)
    yield LET_IT_RUN
    yield WRITE_BACK
    yield (HostRead(victim.secret.spa, PAGE_BYTES, encrypted=victim.c_bit),)
