"""The guest's own start-up code: it shares the device pool, accepts its memory and enters the program.

A vCPU comes out of reset at the RIP of its save area. Blocks are named by RIP
like a program's, so a pause in the middle of start-up loses nothing. RBX counts
the ranges done so far.

A kernel with encrypted registers speaks with its hypervisor through the GHCB, and
takes its word for nothing: it checks SEV_STATUS, the protocol's versions and that
its own memory does not read as it wrote it through a mapping without the C-bit.
Where a check fails it ends the VM, with the reason that the protocol has for it.
Each check is a switch, so that what it is good for can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from node.ap_start import ApStart
from node.generation import CAPABILITIES, Generation
from node.ghcb_msr import (
    Features,
    FeaturesRequest,
    GhcbMsrError,
    GhcbReason,
    HypervisorFeature,
    LinuxReason,
    MsrPageState,
    PageStateRequest,
    PageStateResult,
    ReasonSet,
    RegisterGhcbRequest,
    SevInfoRequest,
)
from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import change_pages, response_to, termination, versions_fit
from node.guest_memory_map import GuestMemoryMap, Range
from node.operations import (
    Answer,
    PValidate,
    PValidateResult,
    Read,
    ReadSevStatus,
    Shutdown,
    VmgExit,
    Write,
)
from node.page_state_list import PageOperation
from node.phase_cost import RMP_CHECKED
from node.program import Block, Registers
from node.sev_status import expected_status
from node.vmsa import SevFeature
from psp.system_bus import PAGE_BYTES

BOOT_FAILED = 3
"""Shutdown code of a guest that cannot go on and has no GHCB to say so."""

ACCEPT_RIP = 0x1000
"""Kernel code lies below every program's entry."""

START_RIP, AP_RIP = 0x1400, 0x1800
"""Where the boot processor starts the others, and where they begin."""

RANGES_AT_ONCE = 8

CANARY_GPA, CANARY = 0x2000, bytes.fromhex("a5c3e1f0875a3c1e9b6d2478f0e1d2c3")
"""Written with the C-bit and read without it, in the kernel's own memory."""

_CANARY_STEPS = (
    Write(CANARY_GPA, CANARY),
    Read(CANARY_GPA, len(CANARY), private=False),
    Read(CANARY_GPA, len(CANARY)),
)


class KernelCheck(StrEnum):
    """What a kernel checks at start-up."""

    SEV_STATUS = "SEV_STATUS"
    """That the processor says of the guest what it was built for, and nothing that it does not know."""
    C_BIT = "C-bit"
    """That memory written with the C-bit is something else without it."""
    CARRY = "carry"
    """That no page was valid before the guest said so: CF of PVALIDATE."""


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """Start-up of one vCPU, rebuilt whole from the VM's specification.

    ``reset_rip`` is the RIP in the vCPU's initial save area; ``launched`` the
    GPAs that firmware measured at launch and thereby validated.
    """

    generation: Generation
    memory: GuestMemoryMap
    launched: tuple[int, ...]
    vcpu: int
    reset_rip: int
    program_entry: int
    skipped: frozenset[KernelCheck] = frozenset()
    """Checks that are left out."""
    sev_features: int = 0
    """SEV_FEATURES that it was built for, beyond SNP."""

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        first = self._enter_program
        if self.vcpu == 0 and CAPABILITIES[self.generation].key_per_vm:
            first = self._begin
            if CAPABILITIES[self.generation].encrypted_registers:
                first = self._share_pool if self.generation in RMP_CHECKED else self._begin_with_ghcb
        return {
            self.reset_rip: first, ACCEPT_RIP: self._accept, START_RIP: self._start_others, AP_RIP: self._enter_program
        }  # fmt: skip

    @property
    def ghcb_gpa(self) -> int:
        """The page for the GHCB: the first that firmware left alone in a block that it broke, as OVMF has it."""
        broken = (part.gpa for part in self.memory.private_ranges(self.launched) if not part.large)
        return next(broken, PAGE_BYTES)

    def _enter_program(self, registers: Registers) -> Block:
        yield ()
        registers.reset(self.program_entry)
        return None

    def _begin(self, registers: Registers) -> Block:
        """Without an RMP there is nothing to share or accept."""
        status, *found = yield (ReadSevStatus(), *_CANARY_STEPS)
        if not self._status_holds(status) or not self._canary_holds(found):
            return Shutdown(BOOT_FAILED)
        registers.reset(self.program_entry)
        return None

    def _begin_with_ghcb(self, registers: Registers) -> Block:
        request = SevInfoRequest()
        status, info, *found = yield (ReadSevStatus(), VmgExit(request.value), *_CANARY_STEPS)
        if not self._status_holds(status) or not self._canary_holds(found):
            return (yield from _end(GhcbReason.GENERAL))
        if not versions_fit(request, info):
            return (yield from _end(GhcbReason.PROTOCOL_RANGE))
        registers.reset(self.program_entry)
        return None

    def _share_pool(self, registers: Registers) -> Block:
        """Settle with the hypervisor how to speak, and share the GHCB page and the pool through it."""
        info_request, features_request = SevInfoRequest(), FeaturesRequest()
        status, info, features = yield (
            ReadSevStatus(), VmgExit(info_request.value), VmgExit(features_request.value)
        )  # fmt: skip
        if not self._status_holds(status):
            return (yield from _end(GhcbReason.GENERAL))
        if not versions_fit(info_request, info):
            return (yield from _end(GhcbReason.PROTOCOL_RANGE))
        try:
            offered = response_to(features_request, features)
        except GhcbMsrError:
            offered = Features(0)
        if not isinstance(offered, Features) or self._needs & ~offered.bitmap:
            return (yield from _end(GhcbReason.SNP_FEATURES))
        gpa = self.ghcb_gpa
        share = PageStateRequest(gpa // PAGE_BYTES, MsrPageState.SHARED)
        register = RegisterGhcbRequest(gpa // PAGE_BYTES)
        shared, registered = yield (VmgExit(share.value), VmgExit(register.value))
        try:
            if response_to(share, shared) != PageStateResult(0):
                return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
            response_to(register, registered)
        except GhcbMsrError:
            return (yield from _end(LinuxReason.REGISTER_GHCB, ReasonSet.LINUX))
        pool = self.memory.shared
        try:
            yield from change_pages(gpa, pool.gpa, pool.length, PageOperation.SHARED)
        except GhcbUntrusted:
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        registers.rbx = 0
        registers.rip = ACCEPT_RIP
        return None

    def _accept(self, registers: Registers) -> Block:
        ranges: tuple[Range, ...] = tuple(self.memory.private_ranges((*self.launched, self.ghcb_gpa)))
        some = ranges[registers.rbx : registers.rbx + RANGES_AT_ONCE]
        accept = tuple([PValidate(part.gpa, part.length, part.large) for part in some])
        last = registers.rbx + len(some) == len(ranges)
        answers = yield (*accept, *_CANARY_STEPS) if last else accept
        if not all(self._accepted(answer) for answer in answers[: len(some)]):
            return (yield from _end(LinuxReason.PVALIDATE, ReasonSet.LINUX))
        registers.rbx += len(some)
        if last:
            if not self._canary_holds(answers[len(some) :]):
                return (yield from _end(GhcbReason.GENERAL))
            registers.reset(START_RIP if self.memory.vcpus > 1 else self.program_entry)
        return None

    def _start_others(self, registers: Registers) -> Block:
        """One a block; RBX counts them."""
        registers.rbx += 1
        features = SevFeature.SNP_ACTIVE | self.sev_features
        try:
            yield from ApStart(self.memory, self.launched, self.ghcb_gpa, AP_RIP, features).start(registers.rbx)
        except GhcbUntrusted:
            return (yield from _end(GhcbReason.GENERAL))
        if registers.rbx == self.memory.vcpus - 1:
            registers.reset(self.program_entry)
        return None

    @property
    def _needs(self) -> int:
        """What the hypervisor must offer."""
        restricted = self.sev_features & SevFeature.RESTRICTED_INJECTION
        needs = HypervisorFeature.SNP | (HypervisorFeature.RESTRICTED_INJECTION if restricted else 0)
        return needs | (HypervisorFeature.AP_CREATION if self.memory.vcpus > 1 else 0)

    def _status_holds(self, status: Answer) -> bool:
        return KernelCheck.SEV_STATUS in self.skipped or status == expected_status(self.generation, self.sev_features)

    def _canary_holds(self, answers: Sequence[Answer]) -> bool:
        wrote, without, own = answers
        return KernelCheck.C_BIT in self.skipped or (wrote is None and without != CANARY and own == CANARY)

    def _accepted(self, answer: Answer) -> bool:
        if not isinstance(answer, PValidateResult) or answer.code:
            return False
        # A page that was valid before the guest asked is the mark of a replay.
        return not answer.unchanged or KernelCheck.CARRY in self.skipped


def _end(reason: int, reason_set: ReasonSet = ReasonSet.GHCB) -> Block:
    """Ask for the VM's end; a hypervisor that goes on with it finds it powered off."""
    yield (termination(reason_set, reason),)
    return Shutdown(BOOT_FAILED)
