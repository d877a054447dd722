"""What a host knows of its hypervisor, wherever that lives.

A host reaches it only through tasks: a task yields batches of operations, gets
their answers, and comes to a result or is refused. So it may live in the host's
process or in one of its own, and what it is told can be seen from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from node.asid_pool import AsidPool
from node.firmware_image import FirmwareImage
from node.frame_allocator import FrameAllocator
from node.generation import Generation
from node.machine_spec import MachineSpec
from node.operations import Answer, CpuidResult, HypervisorOperation, PageStateChange
from node.platform import NO_FLOOR
from node.port_window import PortWindow
from node.product import Product
from node.vm_state import VmState

Batch = tuple[HypervisorOperation, ...]
Answers = tuple[Answer, ...]
Task = Generator[Batch, Answers, None]
LaunchTask = Generator[Batch, Answers, "Entered"]
Reply = Generator[Batch, Answers, int]
CpuidReply = Generator[Batch, Answers, CpuidResult]
ExportTask = Generator[Batch, Answers, VmState]
ReceiveTask = Generator[Batch, Answers, bytes]
FillTask = Generator[Batch, Answers, tuple["Entered", bytes]]


class LaunchRefused(Exception):
    """A launch that the host or its firmware refused; everything taken for it was given back."""


class NoAnswer(LaunchRefused):
    """Who was to take part in a move, an agent or a handler, does not answer: its code is not where it was."""


class Entered(NamedTuple):
    """What a launch came to: where the VM's ASID, save areas and firmware context are, 0 for none."""

    asid: int
    save_areas: tuple[int, ...]
    launched_gpas: tuple[int, ...]
    gctx: int
    handle: int
    cards: tuple[int, ...] = ()
    """Requester ids of functions that it was given, in the order in which it knows them."""


@dataclass(frozen=True, slots=True)
class HypervisorFigures:
    """The hypervisor's books: memory that guests hold, and ASIDs of both kinds."""

    memory_bytes: int
    memory_peak_bytes: int
    rmp_bytes: int
    asids_in_use: int
    asids_sev: int
    asids_sev_peak: int
    asids_es_snp: int
    asids_es_snp_peak: int

    @classmethod
    def of(cls, frames: FrameAllocator, rmp_bytes: int, asids: AsidPool) -> HypervisorFigures:
        """The figures of two pools, and of the RMP."""
        return cls(
            memory_bytes=frames.used_bytes,
            memory_peak_bytes=frames.peak_bytes,
            rmp_bytes=rmp_bytes,
            asids_in_use=asids.in_use(Generation.SEV) + asids.in_use(Generation.SEV_SNP),
            asids_sev=asids.capacity(Generation.SEV),
            asids_sev_peak=asids.peak(Generation.SEV),
            asids_es_snp=asids.capacity(Generation.SEV_SNP),
            asids_es_snp_peak=asids.peak(Generation.SEV_SNP),
        )


class HypervisorPort(Protocol):
    """One host's hypervisor. Every generator yields batches and receives answers."""

    def figures(self) -> HypervisorFigures:
        """The books as they stand."""

    def bring_up(self) -> Task:
        """Initialise the firmware."""

    def launch_agent(self, floor: bytes = NO_FLOOR) -> Task:
        """Launch the host's own migration agent, with this HOST_DATA."""

    def restart_agent(self, floor: bytes = NO_FLOOR) -> Task:
        """The same after the host was switched off and on."""

    def launch(self, spec: MachineSpec) -> LaunchTask:
        """Launch a VM up to the entry of its boot processor. Raises LaunchRefused."""

    def destroy(self, vm: str) -> Task:
        """Take a VM apart and give every resource back."""

    def page_state_change(self, vm: str, change: PageStateChange) -> Reply:
        """Answer a guest's page state change. Returns 0, or 1 if refused."""

    def vmgexit(self, vm: str, vcpu: int, value: int) -> Reply:
        """Answer VMGEXIT: the GHCB MSR's new value, or a negative number that holds the vCPU or ends the VM."""

    def cpuid(self, vm: str, vcpu: int, function: int, index: int) -> CpuidReply:
        """Answer CPUID of a guest whose registers are not encrypted."""

    def mmio(self, vm: str, vcpu: int, gpa: int, length: int, value: int | None) -> Reply:
        """Answer a load, or with ``value`` a store, to a device by a guest whose registers are not encrypted."""

    def update_firmware(self, image: bytes, commit: bool) -> Reply:
        """Bring other firmware to the security processor; its status, or a negative number if it was not asked."""

    def commit_firmware(self) -> Reply:
        """Commit what runs; the status."""

    def roll_card_keys(self) -> Reply:
        """Give links of trusted cards in use fresh keys; how many got them."""

    def release_cards(self) -> Reply:
        """Disconnect trusted cards that no VM has; how many."""

    def ask_devices(self, vm: str, wanted: bool) -> Task:
        """Say to a guest that its devices are wanted, or that they are not any more."""

    def export(self, vm: str, started: tuple[bool, ...], reset_rips: tuple[int, ...]) -> ExportTask:
        """Read a stopped VM whole. Raises LaunchRefused where its firmware does not send it."""

    def receive(self, spec: MachineSpec) -> ReceiveTask:
        """Take everything that a VM which is to come will need; certificates for its sender. Raises LaunchRefused."""

    def fill(self, spec: MachineSpec, state: VmState) -> FillTask:
        """Lay down a VM that came; its record, and its pages as they can be read back. Raises LaunchRefused."""

    def seal(self, vm: str, platform: bytes) -> ReceiveTask:
        """Have firmware agree on keys with another, whose certificates these are; for it. Raises LaunchRefused."""

    def unseal(self, vm: str) -> Task:
        """The VM stays."""

    def open_session(self, spec: MachineSpec, session: bytes) -> Task:
        """Have firmware take what the other one has sealed. Raises LaunchRefused."""

    def set_clock(self, vm: str, vcpus: int, offset: int) -> Task:
        """What is added from now on to the counter that a VM which came reads, modulo 2^64, on each of its vCPUs."""

    def depart(self, vm: str) -> Task:
        """The VM lives elsewhere: take it apart as firmware wants it then."""


HypervisorFactory = Callable[
    [Product, int, int, Mapping[str, FirmwareImage], int, tuple[PortWindow, ...]], HypervisorPort
]
"""Makes the hypervisor of a product with so many bytes of memory, a least SEV ASID, firmware images by key, a last ASID
for SNP, 0 where ciphertext is not to be hidden, and the root ports that boot firmware found."""
