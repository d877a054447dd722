"""The hypervisor's record of one VM: all it holds, and where its memory is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from node.ap_starts import ApStarts
from node.cpuid_page import CpuidEntry
from node.device_notice import DeviceNotice
from node.firmware_image import FirmwareImage
from node.generation import Generation
from node.guest_functions import GuestFunction
from node.guest_memory_map import Range
from node.hypervisor_port import Entered
from node.owned_launch import OwnedLaunch
from node.shared_pages import SharedPages
from node.vm_state import MOST_VCPUS, VmState
from node.vmpl_switch import VmplBook
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

VcpuNotes = tuple[tuple[int, int, int], ...]
VMPLS = 4
DOORBELLS = VMPLS * MOST_VCPUS
"""Notes of #HV doorbells follow those of all VMPLs."""


@dataclass(slots=True)
class LaunchedVm:
    """Frames, ASID, firmware context and RMP entries of one VM."""

    generation: Generation
    firmware: FirmwareImage
    leaves: tuple[CpuidEntry, ...] | None = None
    """What CPUID tells it; None for all that its host shows."""
    asid: int = 0
    ram: list[tuple[int, int, int]] = field(default_factory=list)
    """(GPA, SPA, length) of RAM and firmware."""
    small: list[int] = field(default_factory=list)
    """4 KiB frames: command page, guest context, save areas."""
    spare: list[int] = field(default_factory=list)
    """Those of them that its pages went out through, and are to come in again through if it stays."""
    tables: list[tuple[int, int]] = field(default_factory=list)
    """(SPA, length) of the pages of its nested page table."""
    save_areas: list[int] = field(default_factory=list)
    launched_gpas: tuple[int, ...] = ()
    lent: list[tuple[int, bool]] = field(default_factory=list)
    """(SPA, large) of pages that are the firmware's while it encrypts them."""
    firmware_pages: list[int] = field(default_factory=list)
    """Frames in Firmware or Context state, to be reclaimed at the end."""
    owner: OwnedLaunch | None = None
    """The talk with its owner, while a legacy launch has one."""
    gctx: int = 0
    handle: int = 0
    policy: int = 0
    """Of a SEV or SEV-ES guest."""
    sealed: bool = False
    """Its firmware was told to send it: between SEND_START and SEND_FINISH or SEND_CANCEL."""
    transfer: int = 0
    """The first of the frames that it is sent or received through, 0 for none yet."""
    shared: SharedPages = field(default_factory=SharedPages)
    assigned: list[tuple[int, int, bool]] = field(default_factory=list)
    """(SPA, length, large) that RMPUPDATE gave to the guest; it takes them back so, or smaller where smashed."""
    smashed: set[int] = field(default_factory=set)
    """SPAs of the 2 MiB blocks whose pages have entries of 4 KiB."""
    immutable: set[int] = field(default_factory=set)
    """SPAs in state Pre-Guest, which firmware has not launched yet."""

    ghcbs: dict[tuple[int, int], int] = field(default_factory=dict)
    """Frame number of the GHCB that each vCPU registered, at each VMPL."""
    dr7: dict[tuple[int, int], int] = field(default_factory=dict)
    """DR7 of each vCPU that told it through its GHCB, at each VMPL."""
    request_pages: tuple[int, int] | None = None
    """Frames that carry its messages to the firmware and back, once it sent one."""
    sev_features: int = 0
    """SEV_FEATURES of its first save areas."""
    doorbells: dict[int, int] = field(default_factory=dict)
    """GPA of the #HV doorbell page that each vCPU registered."""
    jump_table: int = 0
    """GPA of the AP jump table, 0 for none."""
    on_init: dict[int, int] = field(default_factory=dict)
    """SPA of the save area that each vCPU is to have after its next INIT."""
    created: dict[int, int] = field(default_factory=dict)
    """SPA of the save area that a vCPU runs with, where its guest made one for it."""
    out: VmState | None = None
    """What an agent took out of a guest that may have to go on here: a context no more, and no pages."""
    left: int = 0
    """Where its context lay, which an agent took away."""
    torn: str = ""
    """Why firmware would not take in again what it had let out of it, so that it cannot go on; "" where it can."""
    starts: ApStarts = field(default_factory=ApStarts)
    """vCPUs that wait for another to start them, and what came for those that do not wait yet."""
    vmpls: VmplBook | None = None
    """Where the guest may use several VMPLs."""
    functions: tuple[GuestFunction, ...] = ()
    """Devices that were given to it, as it is shown them."""
    notice: DeviceNotice = field(default_factory=DeviceNotice)
    """What it is told about them."""
    parked: bool = False
    """They are stopped, for it may be moved away."""
    handler: bool = False
    """Its SVSM has a migration handler."""
    agent: bool = False
    """A migration agent may move it: that of the host that it is on."""
    host_data: bytes = bytes(32)
    """What LAUNCH_FINISH is given for its reports."""
    handed_over: bool = False
    """Which was told to seal all of it for another, so that no VMRUN may enter it before the handler lets it go on."""
    svsm: FirmwareImage | None = None
    """The image below the firmware, where there is one."""

    def add_area(self, spa: int) -> None:
        """A page of its own is the next vCPU's save area."""
        self.small.append(spa)
        self.save_areas.append(spa)

    def entered(self) -> Entered:
        """What its launch came to."""
        cards = tuple([one.requester for one in self.functions])
        return Entered(self.asid, tuple(self.save_areas), self.launched_gpas, self.gctx, self.handle, cards)

    @property
    def images(self) -> tuple[FirmwareImage, ...]:
        """What lies in its flash, the uppermost first."""
        return (self.firmware,) if self.svsm is None else (self.firmware, self.svsm)

    @property
    def flash(self) -> Range:
        """Where its images lie, in whole pages, up to the end of the uppermost."""
        first = self.images[-1].gpa
        return Range(first, self.firmware.end - first)

    def told_by_vcpus(self) -> VcpuNotes:
        """What its vCPUs told, for the next hypervisor: (vCPU, frame number of its GHCB, DR7); then the jump table.

        Beside that stands how often its devices were others. Between them are doorbells, by their GPAs.
        """
        seats = sorted({*self.ghcbs, *self.dr7})
        notes = tuple([(vmpl * MOST_VCPUS + vcpu, self.ghcbs.get((vcpu, vmpl), 0), self.dr7.get((vcpu, vmpl), 0))
                       for vcpu, vmpl in seats])  # fmt: skip
        doorbells = tuple([(DOORBELLS + vcpu, gpa, 0) for vcpu, gpa in sorted(self.doorbells.items())])
        return (*notes, *doorbells, (-1, self.jump_table, self.notice.arrivals))

    def hear_of_vcpus(self, notes: VcpuNotes) -> None:
        """The other way."""
        for seat, ghcb, dr7 in notes:
            vmpl, vcpu = divmod(seat, MOST_VCPUS)
            if seat < 0:
                self.jump_table, self.notice.arrivals = ghcb, dr7
                continue
            if seat >= DOORBELLS:
                if not ghcb % PAGE_BYTES:  # As when a vCPU registers one: what is brought there stays in its page.
                    self.doorbells[vcpu] = ghcb
                continue
            if ghcb:
                self.ghcbs[vcpu, vmpl] = ghcb
            if dr7:
                self.dr7[vcpu, vmpl] = dr7

    def open_vmpls(self) -> None:
        """Let the guest use several VMPLs where it has an SVSM to use them."""
        self.vmpls = VmplBook.of(self.save_areas) if self.svsm else None

    def seat(self, vcpu: int) -> tuple[int, int]:
        """A vCPU and the VMPL at which it runs."""
        return vcpu, 0 if self.vmpls is None else self.vmpls.vmpl(vcpu)

    @property
    def frames(self) -> list[tuple[int, int]]:
        """(SPA, length) of RAM and firmware."""
        return [(spa, length) for _, spa, length in self.ram]

    @property
    def c_bit(self) -> bool:
        """Whether the host maps this VM's memory with C=1, in its own page tables and in the nested ones."""
        return self.generation is Generation.SME

    def backing(self, part: Range) -> list[tuple[int, int, int]]:
        """(GPA, SPA, length) of the frames behind a range of guest memory."""
        return self.behind(part.gpa, part.length)

    def behind(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """The same for a GPA and a length."""
        end = start + length
        for gpa, spa, size in self.ram:
            if gpa <= start < end <= gpa + size:
                return [(start, spa + start - gpa, length)]  # As most ranges lie: in one piece.
        return [
            (max(gpa, start), spa + max(0, start - gpa), min(gpa + size, end) - max(gpa, start))
            for gpa, spa, size in self.ram
            if start < gpa + size and gpa < end
        ]

    def shown(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """(GPA, SPA, length) of the parts of a range of system memory that the guest sees."""
        end = start + length
        return [
            (gpa + max(0, start - spa), max(spa, start), min(spa + size, end) - max(spa, start))
            for gpa, spa, size in self.ram
            if start < spa + size and spa < end
        ]

    def pieces(self, spa: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """A range cut by page size: runs of whole 2 MiB blocks with large entries, and the rest block by block."""
        end = spa + length
        run = spa
        while spa < end:
            block = spa // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
            stop = min(end, block + LARGE_PAGE_BYTES)
            if stop - spa == LARGE_PAGE_BYTES and block not in self.smashed:
                spa = stop
                continue
            if run < spa:
                yield run, spa - run, True
            yield spa, stop - spa, False
            run = spa = stop
        if run < end:
            yield run, end - run, True

    def shown_to_devices(self) -> list[tuple[int, int, int, bool]]:
        """(GPA, SPA, length, large) of all its memory, cut by the size of the RMP's entries."""
        return [
            (gpa + start - spa, start, size, large)
            for gpa, spa, length in self.ram
            for start, size, large in self.pieces(spa, length)
        ]

    def page_spa(self, gpa: int) -> int | None:
        """The frame behind a page of the guest; None where it has no memory."""
        pieces = list(self.backing(Range(gpa, PAGE_BYTES)))
        return pieces[0][1] if len(pieces) == 1 and pieces[0][2] == PAGE_BYTES else None

    def spas_of(self, gpas: Iterable[int]) -> list[int]:
        """The SPA behind each GPA; quick where one follows the other."""
        spas: list[int] = []
        first = end = spa = 0
        for gpa in gpas:
            if not first <= gpa < end:
                first, spa, length = next(one for one in self.ram if one[0] <= gpa < one[0] + one[2])
                end = first + length
            spas.append(spa + gpa - first)
        return spas

    def spa_of(self, gpa: int) -> int:
        """The SPA behind a GPA of the VM's memory."""
        return self.behind(gpa, 1)[0][1]


@lru_cache(maxsize=64)
def page_runs(gpas: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Runs of consecutive pages as (GPA, length), cut at 2 MiB so that each lies in one piece of backing."""
    return tuple(_page_runs(gpas))


def _page_runs(gpas: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    start = length = 0
    for gpa in sorted(set(gpas)):
        if length and gpa == start + length and gpa % LARGE_PAGE_BYTES:
            length += PAGE_BYTES
            continue
        if length:
            yield start, length
        start, length = gpa, PAGE_BYTES
    if length:
        yield start, length
