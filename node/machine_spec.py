"""A VM as a hypervisor knows it."""

from __future__ import annotations

from dataclasses import dataclass

from node.generation import Generation
from node.guest_memory_map import GuestMemoryMap, memory_map
from tio.device_identity import CardKind


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What is ordered of a hypervisor: nothing of what runs in the VM, nor the seed that its secrets follow from."""

    name: str
    generation: Generation
    vcpus: int
    memory_bytes: int
    firmware: str
    """Key of the firmware image among those the hypervisor was given."""
    sev_features: int = 0
    """SEV_FEATURES that an SNP guest asks for beyond SNP itself."""
    svsm: bool = False
    """With an SVSM below that image, at VMPL0."""
    owned: bool = False
    """Its owner is asked for a session before a SEV or SEV-ES launch, and sends its secret for the measurement."""
    sev_policy: int = 0
    """Bits of a SEV or SEV-ES policy beyond the hypervisor's own."""
    devices: tuple[CardKind, ...] = ()
    """Cards of its host's that it is given, in the order in which it knows them."""
    migration_agent: bool = False
    """It is launched with its host's migration agent, by which an SNP guest may be moved."""
    migration_handler: bool = False
    """Its SVSM has a migration handler, by which it may be moved."""
    cpu_model: str = ""
    """The processor that it is shown, of ``node.cpu_model``; empty for the one of the host that launched it."""
    launched_on: str = ""
    """What that host shows (``shown_by``), for one that may be elsewhere by now; empty for the host that it is on."""
    small_monitor: bool = False
    """A small monitor starts it in place of QEMU."""

    @property
    def by_agents(self) -> bool:
        """Its hosts' agents move all of it, stopped; where a handler does they hand over its identity alone."""
        return self.migration_agent and not self.migration_handler

    @property
    def memory(self) -> GuestMemoryMap:
        """The guest's memory layout; raises ValueError for impossible sizes."""
        return memory_map(self.memory_bytes, self.vcpus)
