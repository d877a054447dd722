"""Start-up code of a kernel that runs at VMPL 2 above an SVSM.

As ``guest_kernel`` has it, but that the SVSM accepts memory for it and makes save areas of its other vCPUs:
PVALIDATE is refused below VMPL0. Where the SVSM is, the secrets page says. RBP holds the calling area, RBX how
far a block is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

from node import operations as op
from node.generation import Generation
from node.ghcb_msr import (
    GhcbReason,
    LinuxReason,
    MsrPageState,
    PageStateRequest,
    PageStateResult,
    ReasonSet,
    RegisterGhcbRequest,
    SevInfoRequest,
)
from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import change_pages, is_registered, is_response, termination, versions_fit
from node.guest_kernel import BOOT_FAILED, CANARY_BYTES, CANARY_GPA
from node.guest_memory_map import GuestMemoryMap, Range
from node.guest_svsm import SVSM_FIELDS, SvsmAnswer, SvsmUntrusted, svsm_call
from node.kernel_settings import CAREFUL, KernelSettings
from node.page_acceptance import PageAcceptance
from node.page_state_list import PageOperation
from node.program import Block, Registers
from node.sev_status import expected_status
from node.svsm_call import BUFFER, ENTRY_BYTES, LIST_HEADER, CoreCall, PageEntry, Protocol, page_list
from node.svsm_memory import GUEST_VMPL, SVSM, SvsmGuest
from node.vc_handler import VcHandler
from node.vmsa import SevFeature, initial_vmsa
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

SHARE_RIP, ACCEPT_RIP, OTHERS_RIP = 0x1100, 0x1000, 0x1200
"""Kernel code lies below every program's entry."""
_ENTRIES_AT_ONCE = (PAGE_BYTES - BUFFER - LIST_HEADER.size) // ENTRY_BYTES

Calling = Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], SvsmAnswer]


@dataclass(frozen=True, slots=True)
class KernelAboveSvsm:
    """Start-up of one vCPU; as ``GuestKernel``, with the SVSM's place. It accepts all memory at boot.

    ``cpuid_gpa`` is where the SVSM puts the CPUID page that firmware checked.
    """

    place: SvsmGuest
    memory: GuestMemoryMap
    launched: tuple[int, ...]
    vcpu: int
    reset_rips: tuple[int, ...]
    program_entry: int
    settings: KernelSettings = CAREFUL
    cpuid_gpa: int | None = None
    canary: bytes = field(default=bytes(range(CANARY_BYTES)), repr=False)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        first = self._begin_another if self.vcpu else self._meet
        return {
            self.reset_rips[self.vcpu]: first,
            SHARE_RIP: self._share,
            ACCEPT_RIP: self._accept,
            OTHERS_RIP: self._start_others,
        }

    @property
    def handler(self) -> VcHandler | None:
        """What takes #VC of this vCPU; None where its program does."""
        if not self.settings.handles_vc:
            return None
        # It cannot accept a page itself, so one that is not validated any more ends the VM.
        books = replace(self.settings, lazy_validation=False, tracks_validation=True)
        acceptance = PageAcceptance(self.memory, self.launched, books)
        return VcHandler(self.ghcb, self.cpuid_gpa, self.settings, acceptance, Generation.SEV_SNP)

    @property
    def ghcb(self) -> int:
        """The boot processor's is the first page of the kernel's own; those of others lie in the pool."""
        return self.memory.ghcb_gpa(self.vcpu) if self.vcpu else self.place.heap_gpa

    def calling_area(self, vcpu: int) -> int:
        """Where the kernel puts the calling area of another vCPU, before its save area."""
        return self.place.heap_gpa + 2 * vcpu * PAGE_BYTES

    def entries(self, first: int, most: int) -> list[PageEntry]:
        """From the ``first`` on, what must be accepted: RAM but for the pool, the SVSM, and what it took for OVMF."""
        some: list[PageEntry] = []
        for part in self._parts():
            size = LARGE_PAGE_BYTES if part.large else PAGE_BYTES
            pages = range(part.gpa, part.gpa + part.length, size)[first : first + most - len(some)]
            some += [PageEntry(gpa, part.large, ignores_carry=not self.settings.checks_carry) for gpa in pages]
            first = max(0, first - part.length // size)
        return some

    def _parts(self) -> Iterator[Range]:
        for part in self.memory.private_ranges(self.launched):
            at, end = part.gpa, part.gpa + part.length
            for one in sorted((SVSM, self.place.early), key=lambda one: one.gpa):
                if at < one.gpa + one.length and one.gpa < end:
                    if at < one.gpa:
                        yield Range(at, one.gpa - at, part.large)
                    at = max(at, one.gpa + one.length)
            if at < end:
                yield Range(at, end - at, part.large)

    def _begin_another(self, registers: Registers) -> Block:
        """Another vCPU: the boot processor has shared the pool."""
        register = RegisterGhcbRequest(self.ghcb // PAGE_BYTES)
        (registered,) = yield (op.VmgExit(register.value),)
        if not is_registered(register, registered, self.settings):
            return (yield from _end(LinuxReason.REGISTER_GHCB, ReasonSet.LINUX))
        registers.reset(self.program_entry)
        return None

    def _meet(self, registers: Registers) -> Block:
        """Check what runs below: the processor's word, the protocol, and the SVSM that the secrets page names."""
        request = SevInfoRequest()
        status, info, secrets = yield (
            op.ReadSevStatus(),
            op.VmgExit(request.value),
            op.Read(self.place.secrets_gpa + SVSM_FIELDS, 0x20),
        )
        if self.settings.checks_sev_status and status != expected_status(Generation.SEV_SNP):
            return (yield from _end(GhcbReason.GENERAL))
        if not isinstance(secrets, bytes):
            return (yield from _end(GhcbReason.GENERAL))
        if self.settings.checks_protocol and not versions_fit(request, info, self.settings):
            return (yield from _end(GhcbReason.PROTOCOL_RANGE))
        base, size, caa = (int.from_bytes(secrets[at : at + 8], "little") for at in (0, 8, 16))
        if (base, size, secrets[0x1C]) != (SVSM.gpa, SVSM.length, GUEST_VMPL):
            return (yield from _end(LinuxReason.NOT_VMPL0, ReasonSet.LINUX))
        registers.rbp, registers.rbx = caa, 0
        answer = yield from self._call(registers, CoreCall.QUERY_PROTOCOL, 1)
        if answer is None or answer.rcx & 0xFFFF_FFFF != 1:
            return (yield from _end(LinuxReason.NOT_VMPL0, ReasonSet.LINUX))
        registers.rip = SHARE_RIP
        return None

    def _share(self, registers: Registers) -> Block:
        """Make a GHCB of an accepted page, and share the pool through it."""
        gfn = self.ghcb // PAGE_BYTES
        if not (yield from self._validate(registers, [PageEntry(self.ghcb, validate=False)])):
            return (yield from _end(LinuxReason.PVALIDATE, ReasonSet.LINUX))
        share, register = PageStateRequest(gfn, MsrPageState.SHARED), RegisterGhcbRequest(gfn)
        shared, registered = yield (op.VmgExit(share.value), op.VmgExit(register.value))
        if self.settings.checks_page_states and not is_response(share, shared, PageStateResult(0)):
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        if not is_registered(register, registered, self.settings):
            return (yield from _end(LinuxReason.REGISTER_GHCB, ReasonSet.LINUX))
        pool = self.memory.shared
        try:
            yield from change_pages(self.ghcb, pool.gpa, pool.length, PageOperation.SHARED, self.settings)
        except GhcbUntrusted:
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        registers.rip = ACCEPT_RIP
        return None

    def _accept(self, registers: Registers) -> Block:
        """Have a list of pages accepted."""
        some = self.entries(registers.rbx, _ENTRIES_AT_ONCE)
        if not some:
            return (yield from self._look(registers))
        if not (yield from self._validate(registers, some)):
            return (yield from _end(LinuxReason.PVALIDATE, ReasonSet.LINUX))
        registers.rbx += len(some)
        return None

    def _look(self, registers: Registers) -> Block:
        """Look whether the C-bit does what it should, now that there is memory to try it on."""
        answers = yield (
            op.Write(CANARY_GPA, self.canary),
            op.Read(CANARY_GPA, CANARY_BYTES, private=False),
            op.Read(CANARY_GPA, CANARY_BYTES),
        )
        wrote, without, own = answers
        holds = wrote is None and without != self.canary and own == self.canary
        if self.settings.checks_c_bit and not holds:
            return (yield from _end(GhcbReason.GENERAL))
        registers.rbx, registers.rip = 1, OTHERS_RIP
        return None

    def _start_others(self, registers: Registers) -> Block:
        """Have a save area made for the next vCPU; its VMPL0 runs it when the host starts the vCPU."""
        vcpu = registers.rbx
        if vcpu == len(self.reset_rips):
            registers.reset(self.program_entry)
            return None
        caa = self.calling_area(vcpu)
        area = caa + PAGE_BYTES
        start = initial_vmsa(self.reset_rips[vcpu], 0, SevFeature.SNP_ACTIVE, {"VMPL": GUEST_VMPL})
        yield (op.Write(area, start),)
        if (yield from self._call(registers, CoreCall.CREATE_VCPU, area, caa, vcpu)) is None:
            return (yield from _end(GhcbReason.GENERAL))
        registers.rbx += 1
        return None

    def _validate(
        self, registers: Registers, entries: list[PageEntry]
    ) -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], bool]:
        at = registers.rbp + BUFFER
        yield (op.Write(at, page_list(entries)),)
        return (yield from self._call(registers, CoreCall.PVALIDATE, at)) is not None

    def _call(
        self, registers: Registers, call: CoreCall, rcx: int, rdx: int = 0, r8: int = 0
    ) -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], SvsmAnswer | None]:
        try:
            answer = yield from svsm_call(registers, registers.rbp, Protocol.CORE, call, rcx, rdx, r8)
        except SvsmUntrusted:
            return None
        return None if answer.result else answer


def _end(reason: int, reason_set: ReasonSet = ReasonSet.GHCB) -> Block:
    """Ask for the VM's end; a hypervisor that goes on with it finds it powered off."""
    yield (termination(reason_set, reason),)
    return op.Shutdown(BOOT_FAILED)
