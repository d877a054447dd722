"""The guest's own start-up code: it shares the device pool, accepts its memory and enters the program.

A vCPU comes out of reset at the RIP of its save area. Blocks are named by RIP
like a program's, so a pause in the middle of start-up loses nothing. RBX counts
the ranges done so far.

A kernel with encrypted registers speaks with its hypervisor through the GHCB, and
takes its word for nothing: it checks SEV_STATUS, the protocol's versions and that
its own memory does not read as it wrote it through a mapping without the C-bit.
Where a check fails it ends the VM, with the reason that the protocol has for it.
Each check is a switch of ``KernelSettings``, so that what it is good for can be seen.

When the program runs, what is left of the kernel is ``handler``, which takes #VC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.ap_start import ApStart
from node.ap_wake import jump_target, lay_jump_table, starts_others_by_sipi, wait_by_message, wake
from node.boot_phases import BOOT_PHASES
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
from node.guest_ghcb import change_pages, is_registered, is_response, response_to, termination, versions_fit
from node.guest_memory_map import GuestMemoryMap, Range
from node.guest_messages import GuestMessages, MessageRefused, MessagesBusy
from node.kernel_settings import CAREFUL, KernelSettings
from node.message_place import MessagePlace
from node.operations import (
    Answer,
    GuestOperation,
    GuestWork,
    PageStateChange,
    PValidate,
    ReadSevStatus,
    Shutdown,
    UpkeepRead,
    UpkeepWrite,
    VmgExit,
)
from node.page_acceptance import PageAcceptance
from node.page_state_list import PageOperation
from node.phase_cost import RMP_CHECKED
from node.program import Block, Registers
from node.sev_status import expected_status
from node.vc_handler import VcHandler
from node.vmsa import SevFeature
from psp.guest_message import MessageType
from psp.secure_tsc import TSC_INFO_BYTES, TscInfo
from psp.system_bus import PAGE_BYTES

BOOT_FAILED = 3
"""Shutdown code of a guest that cannot go on and has no GHCB to say so."""

ACCEPT_RIP = 0x1000
"""Kernel code lies below every program's entry."""

START_RIP, AP_RIP = 0x1400, 0x1800
"""Where the boot processor starts the others, and where they begin."""

CLOCK_RIP = 0x1200
"""Where it asks for its clock, in a guest with Secure TSC."""

RANGES_AT_ONCE = 8

CANARY_GPA, CANARY_BYTES = 0x2000, 16
"""Written with the C-bit and read without it, in the kernel's own memory."""


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """The kernel on one vCPU, rebuilt whole from the VM's specification.

    ``reset_rip`` is the RIP in the vCPU's initial save area; ``launched`` the
    GPAs that firmware measured at launch and thereby validated, ``cpuid_gpa`` that of
    the CPUID page; ``canary`` random bytes that nobody else can foresee.
    """

    generation: Generation
    memory: GuestMemoryMap
    launched: tuple[int, ...]
    vcpu: int
    reset_rip: int
    program_entry: int
    settings: KernelSettings = CAREFUL
    cpuid_gpa: int | None = None
    canary: bytes = field(default=bytes(range(CANARY_BYTES)), repr=False)
    sev_features: int = 0
    """SEV_FEATURES that it was built for, beyond SNP."""
    messages: MessagePlace | None = None
    """How it reaches the security processor, which knows its clock."""

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        first: Callable[[Registers], Block] = self._enter_program
        if self.vcpu == 0 and CAPABILITIES[self.generation].key_per_vm:
            first = self._begin
            if CAPABILITIES[self.generation].encrypted_registers:
                first = self._share_pool if self.generation in RMP_CHECKED else self._begin_with_ghcb
        another = self._begin_another if self.generation in RMP_CHECKED else self._enter_program
        if self.vcpu and starts_others_by_sipi(self.generation):
            first = self._wait_for_start
        if not self.vcpu and BOOT_PHASES[self.settings.boot]:
            first = self._booted(first)
        return {
            self.reset_rip: first, ACCEPT_RIP: self._accept, CLOCK_RIP: self._ask_clock,
            START_RIP: self._start_others, AP_RIP: another,
        }  # fmt: skip

    @property
    def handler(self) -> VcHandler | None:
        """What takes #VC of this vCPU; None in a guest whose processor raises none, and where its program does."""
        if not CAPABILITIES[self.generation].encrypted_registers or not self.settings.handles_vc:
            return None
        page = self.cpuid_gpa if self.cpuid_gpa in self.launched else None
        acceptance = self.acceptance if self.generation in RMP_CHECKED else None
        return VcHandler(self.ghcb_gpa, page, self.settings, acceptance, self.generation)

    @property
    def acceptance(self) -> PageAcceptance:
        """How this guest's memory is accepted."""
        return PageAcceptance(self.memory, (*self.launched, self._boot_ghcb_gpa), self.settings)

    @property
    def ghcb_gpa(self) -> int:
        """The page that this vCPU exits with; the boot processor's has to be there before the pool is shared."""
        return self.memory.ghcb_gpa(self.vcpu) if self.vcpu else self._boot_ghcb_gpa

    @property
    def _boot_ghcb_gpa(self) -> int:
        return self.memory.boot_ghcb_gpa(self.launched)

    def _booted(self, first: Callable[[Registers], Block]) -> Callable[[Registers], Block]:
        """Firmware and kernel before anything else, one phase after another."""

        def block(registers: Registers) -> Block:
            for phase in BOOT_PHASES[self.settings.boot]:
                yield (GuestWork(phase),)
            return (yield from first(registers))

        return block

    def _enter_program(self, registers: Registers) -> Block:
        yield ()
        registers.reset(self.program_entry)
        return None

    def _begin_another(self, registers: Registers) -> Block:
        """Another vCPU of an SNP guest: its GHCB lies in the pool, which is shared already."""
        register = RegisterGhcbRequest(self.ghcb_gpa // PAGE_BYTES)
        (registered,) = yield (VmgExit(register.value),)
        if not is_registered(register, registered, self.settings):
            return (yield from _end(LinuxReason.REGISTER_GHCB, ReasonSet.LINUX))
        registers.reset(self.program_entry)
        return None

    def _wait_for_start(self, registers: Registers) -> Block:
        """Another vCPU of an SEV-ES guest: its registers are nobody's but its own to set."""
        try:
            yield from wait_by_message(self.settings)
        except GhcbMsrError:
            return (yield from _end(GhcbReason.GENERAL))
        registers.rip = yield from jump_target()
        return None

    def _begin(self, registers: Registers) -> Block:
        """Without an RMP there is nothing to accept; what is shared is told, so that the VM can be migrated."""
        status, _, *found = yield (ReadSevStatus(), self._pool_is_shared, *self._canary_steps())
        if not self._status_holds(status) or not self._canary_holds(found):
            return Shutdown(BOOT_FAILED)
        registers.reset(self.program_entry)
        return None

    def _begin_with_ghcb(self, registers: Registers) -> Block:
        request = SevInfoRequest()
        status, info, _, _, *found = yield (
            ReadSevStatus(), VmgExit(request.value), self._pool_is_shared,
            PageStateChange(self.ghcb_gpa, PAGE_BYTES, shared=True), *self._canary_steps(),
        )  # fmt: skip
        if not self._status_holds(status) or not self._canary_holds(found):
            return (yield from _end(GhcbReason.GENERAL))
        if self.settings.checks_protocol and not versions_fit(request, info, self.settings):
            return (yield from _end(GhcbReason.PROTOCOL_RANGE))
        registers.reset(START_RIP if self.memory.vcpus > 1 else self.program_entry)
        return None

    def _share_pool(self, registers: Registers) -> Block:
        """Settle with the hypervisor how to speak, and share the GHCB page and the pool through it."""
        info_request, features_request = SevInfoRequest(), FeaturesRequest()
        status, info, features = yield (
            ReadSevStatus(), VmgExit(info_request.value), VmgExit(features_request.value)
        )  # fmt: skip
        if not self._status_holds(status):
            return (yield from _end(GhcbReason.GENERAL))
        if self.settings.checks_protocol and not versions_fit(info_request, info, self.settings):
            return (yield from _end(GhcbReason.PROTOCOL_RANGE))
        if self.settings.checks_features and not self._is_offered(features_request, features):
            return (yield from _end(GhcbReason.SNP_FEATURES))
        gpa = self.ghcb_gpa
        share = PageStateRequest(gpa // PAGE_BYTES, MsrPageState.SHARED)
        register = RegisterGhcbRequest(gpa // PAGE_BYTES)
        shared, registered = yield (VmgExit(share.value), VmgExit(register.value))
        if self.settings.checks_page_states and not is_response(share, shared, PageStateResult(0)):
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        if not is_registered(register, registered, self.settings):
            return (yield from _end(LinuxReason.REGISTER_GHCB, ReasonSet.LINUX))
        pool = self.memory.shared
        try:
            yield from change_pages(gpa, pool.gpa, pool.length, PageOperation.SHARED, self.settings)
        except GhcbUntrusted:
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        registers.rbx = 0
        registers.rip = ACCEPT_RIP
        return None

    def _accept(self, registers: Registers) -> Block:
        acceptance = self.acceptance
        ranges: tuple[Range, ...] = tuple(acceptance.at_boot())
        some = ranges[registers.rbx : registers.rbx + RANGES_AT_ONCE]
        accept = tuple([PValidate(part.gpa, part.length, part.large) for part in some])
        last = registers.rbx + len(some) == len(ranges)
        answers = yield (*accept, *acceptance.open_book(), *self._canary_steps()) if last else accept
        if not all(acceptance.holds(answer) for answer in answers[: len(some)]):
            return (yield from _end(LinuxReason.PVALIDATE, ReasonSet.LINUX))
        registers.rbx += len(some)
        if last:
            if not self._canary_holds(answers[-3:]) or any(answers[len(some) : -3]):
                return (yield from _end(GhcbReason.GENERAL))
            registers.reset(CLOCK_RIP if self.sev_features & SevFeature.SECURE_TSC else self._after_boot)
        return None

    @property
    def _pool_is_shared(self) -> PageStateChange:
        return PageStateChange(self.memory.shared.gpa, self.memory.shared.length, shared=True)

    @property
    def _after_boot(self) -> int:
        return START_RIP if self.memory.vcpus > 1 else self.program_entry

    def _ask_clock(self, registers: Registers) -> Block:
        """Secure TSC: have firmware say how the clock was set; R8 and R9 hold that for the save areas of others."""
        pool = self.memory.placement("", 0, 0).shared_gpa
        try:
            if self.messages is None:
                return (yield from _end(LinuxReason.SECURE_TSC, ReasonSet.LINUX))
            asking = GuestMessages(self.messages, pool, pool + PAGE_BYTES)
            answered = yield from asking.ask(MessageType.TSC_INFO_REQ, bytes(TSC_INFO_BYTES))
        except (MessageRefused, MessagesBusy):
            return (yield from _end(LinuxReason.SECURE_TSC, ReasonSet.LINUX))
        info = TscInfo.parse(answered.payload)
        if info.status:
            return (yield from _end(LinuxReason.SECURE_TSC, ReasonSet.LINUX))
        registers.reset(self._after_boot)
        if registers.rip == START_RIP:
            registers.r8, registers.r9 = info.scale, info.offset
        return None

    def _start_others(self, registers: Registers) -> Block:
        """One a block; RBX counts them."""
        registers.rbx += 1
        features = SevFeature.SNP_ACTIVE | self.sev_features
        try:
            if starts_others_by_sipi(self.generation):
                if registers.rbx == 1:
                    yield from lay_jump_table(self.ghcb_gpa, AP_RIP, self.settings)
                yield from wake(self.ghcb_gpa, registers.rbx, self.settings)
            else:
                clock = registers.r8, registers.r9
                start = ApStart(self.memory, self.launched, self.ghcb_gpa, AP_RIP, features, clock, self.settings)
                yield from start.start(registers.rbx)
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

    def _is_offered(self, request: FeaturesRequest, answer: Answer) -> bool:
        try:
            offered = response_to(request, answer)
        except GhcbMsrError:
            return False
        # Version 1 knows of no features.
        bitmap = offered.bitmap if isinstance(offered, Features) and self.settings.ghcb_version > 1 else 0
        return not self._needs & ~bitmap

    def _status_holds(self, status: Answer) -> bool:
        expected = expected_status(self.generation, self.sev_features)
        return not self.settings.checks_sev_status or status == expected

    def _canary_steps(self) -> tuple[GuestOperation, ...]:
        return (
            UpkeepWrite(CANARY_GPA, self.canary),
            UpkeepRead(CANARY_GPA, CANARY_BYTES, private=False),
            UpkeepRead(CANARY_GPA, CANARY_BYTES),
        )

    def _canary_holds(self, answers: Sequence[Answer]) -> bool:
        wrote, without, own = answers
        return not self.settings.checks_c_bit or (wrote is None and without != self.canary and own == self.canary)


def _end(reason: int, reason_set: ReasonSet = ReasonSet.GHCB) -> Block:
    """Ask for the VM's end; a hypervisor that goes on with it finds it powered off."""
    yield (termination(reason_set, reason),)
    return Shutdown(BOOT_FAILED)
