"""A minimal SVSM: it boots first, at VMPL0, on every vCPU, and serves the kernel above it.

A program like any other: it yields operations and keeps everything in its registers and in guest
memory. On the boot processor it takes the memory that OVMF needs early, hands on its secrets page without
VMPCK0, makes a save area for VMPL 2 and runs it. The other processors wait for a save
area from CREATE_VCPU. From then on each vCPU's VMPL0 runs when its kernel calls: it reads the call
from the kernel's save area, whose registers the exit stored, serves it, and runs the kernel again.

A block that asks for another VMPL has set RIP before: whenever VMPL0 runs again, it goes on there.
R13 counts calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from node import operations as op
from node.generation import Generation
from node.ghcb_msr import (
    Features,
    FeaturesRequest,
    GhcbMsrError,
    GhcbReason,
    HypervisorFeature,
    LinuxReason,
    MsrMessage,
    MsrPageState,
    PageStateRequest,
    PageStateResult,
    ReasonSet,
    RegisteredGhcb,
    RegisterGhcbRequest,
    RunVmplRequest,
    SevInfoRequest,
)
from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import page_exit, response_to, termination, versions_fit
from node.guest_memory_map import GuestMemoryMap, Range
from node.nae_event import ApCreationKind, NaeEvent
from node.ovmf import FOUR_GIB, FirmwareImageError, SectionType, parse_ovmf
from node.program import Block, Registers
from node.sev_status import expected_status
from node.svsm_call import CALL_PENDING, CallRefused, SvsmResult
from node.svsm_memory import (
    BOOK_RECORD,
    CPUID_GPA,
    GUEST_VMPL,
    LOCKS_GPA,
    SECRETS_GPA,
    SEED_GPA,
    SVSM,
    SvsmGuest,
    book_gpa,
    ghcb_gpa,
    lock_gpa,
    save_area_gpa,
)
from node.svsm_request import AREA_REGISTERS, Request, read_request, write_answer
from node.tpm import SEED_BYTES
from node.vmsa import BSP_RESET_EIP, SevFeature, initial_vmsa
from psp.system_bus import PAGE_BYTES

GIVE_RIP, ENTER_RIP, SERVE_RIP = 0x100_0000, 0x100_1000, 0x100_2000
BOOT_FAILED = 4
"""Shutdown code of an SVSM that cannot go on and whose hypervisor goes on with it."""
ALL_RIGHTS = 0xF
"""Read, write and both kinds of execute."""
_TABLE_BYTES = 4 * PAGE_BYTES
"""The end of OVMF's image, where its tables are."""
_WAIT = op.Sleep(100_000_000)

_VMPCK0 = slice(0x20, 0x40)
_SVSM_FIELDS = slice(0x140, 0x160)
MOST_VERSION = 1


class SvsmCheck(StrEnum):
    """What an SVSM may leave out, so that it is seen what it is good for."""

    ZERO_ON_VALIDATE = "zero on validate"
    """That a page is cleared before a lower VMPL gets rights to it (COCONUT-SVSM pull request 45)."""


Service = Callable[["Svsm", int, Request], Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], None]]
"""Serves a call of one protocol, by its number; raises CallRefused."""


@dataclass(frozen=True, slots=True)
class Svsm:
    """VMPL0 of one vCPU. ``seed`` is the scenario's and ``vm`` names the machine: from both follow its secrets."""

    place: SvsmGuest
    memory: GuestMemoryMap
    vcpu: int
    vm: str
    seed: int
    services: Mapping[int, Service]
    """By protocol."""
    skipped: frozenset[SvsmCheck] = frozenset()

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        boot = self.place.boot_rips[self.vcpu]
        return {boot: self._boot, GIVE_RIP: self._give, ENTER_RIP: self._enter, SERVE_RIP: self._serve}

    @property
    def ghcb(self) -> int:
        """Its GHCB page."""
        return ghcb_gpa(self.vcpu)

    def holds(self, gpa: int, length: int) -> bool:
        """Whether a range is memory that is the guest's to speak of: RAM, and nothing of the SVSM's own."""
        end = gpa + length
        inside = any(ram.gpa <= gpa and end <= ram.gpa + ram.length for ram in self.memory.ram)
        return inside and (end <= SVSM.gpa or SVSM.gpa + SVSM.length <= gpa)

    def cleared(self, gpa: int, length: int) -> tuple[op.Clear, ...]:
        """What comes between the validation of a range and rights to it."""
        return () if SvsmCheck.ZERO_ON_VALIDATE in self.skipped else (op.Clear(gpa, length),)

    # Boot.

    def _boot(self, registers: Registers) -> Block:
        """Settle with the hypervisor how to speak. RDX holds the processor's signature, as after a reset."""
        info_request, features_request = SevInfoRequest(), FeaturesRequest()
        status, info, features = yield (
            op.ReadSevStatus(), op.VmgExit(info_request.value), op.VmgExit(features_request.value)
        )  # fmt: skip
        if status != expected_status(Generation.SEV_SNP):
            return (yield from _end(GhcbReason.GENERAL))
        if not versions_fit(info_request, info):
            return (yield from _end(GhcbReason.PROTOCOL_RANGE))
        wanted = HypervisorFeature.SNP | HypervisorFeature.AP_CREATION | HypervisorFeature.MULTI_VMPL
        found = _response(features_request, features)
        if not isinstance(found, Features) or found.bitmap & wanted != wanted:
            return (yield from _end(GhcbReason.SNP_FEATURES))
        gfn = self.ghcb // PAGE_BYTES
        share, register = PageStateRequest(gfn, MsrPageState.SHARED), RegisterGhcbRequest(gfn)
        shared, registered = yield (op.VmgExit(share.value), op.VmgExit(register.value))
        if _response(share, shared) != PageStateResult(0):
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        if _response(register, registered) != RegisteredGhcb(gfn):
            return (yield from _end(LinuxReason.REGISTER_GHCB, ReasonSet.LINUX))
        registers.rbx = registers.rdx
        registers.rip = ENTER_RIP if self.vcpu else GIVE_RIP
        return None

    def _give(self, registers: Registers) -> Block:
        """Accept OVMF's early memory and give it to the guest, with its image and what firmware made for it."""
        early, firmware = self.place.early, Range(self.place.firmware_gpa, FOUR_GIB - self.place.firmware_gpa)
        # The hypervisor smashes the entry of 2 MiB for the sake of one page.
        request = PageStateRequest(early.gpa // PAGE_BYTES, MsrPageState.PRIVATE)
        answer, validated = yield (
            op.VmgExit(request.value), op.PValidate(early.gpa, early.length, large=False)
        )  # fmt: skip
        if _response(request, answer) != PageStateResult(0):
            return (yield from _end(LinuxReason.PAGE_STATE_CHANGE, ReasonSet.LINUX))
        if validated != op.PValidateResult(0, unchanged=False):
            return (yield from _end(LinuxReason.PVALIDATE, ReasonSet.LINUX))
        *answers, tail, secrets, cpuid = yield (
            *self.cleared(early.gpa, early.length),
            grant(early.gpa, early.length),
            grant(firmware.gpa, firmware.length),
            op.Read(FOUR_GIB - _TABLE_BYTES, _TABLE_BYTES),
            op.Read(SECRETS_GPA, PAGE_BYTES),
            op.Read(CPUID_GPA, PAGE_BYTES),
        )
        if any(answers) or not (isinstance(tail, bytes) and isinstance(secrets, bytes) and isinstance(cpuid, bytes)):
            return (yield from _end(GhcbReason.GENERAL))
        try:
            sections = {one.section_type: one.gpa for one in parse_ovmf(tail).sections}
            caa = sections[SectionType.SVSM_CAA]
            contents = {SectionType.SECRETS: _handed_on(secrets, caa), SectionType.CPUID: cpuid}
            writes = [op.Write(sections[kind], page) for kind, page in contents.items()]
        except (FirmwareImageError, KeyError):
            return (yield from _end(GhcbReason.GENERAL))
        area = save_area_gpa(self.vcpu)
        start = initial_vmsa(BSP_RESET_EIP, registers.rbx, SevFeature.SNP_ACTIVE, {"VMPL": GUEST_VMPL})
        done = yield (
            *writes,
            op.PValidate(area, PAGE_BYTES, large=False),
            op.Write(area, start),
            op.RmpAdjust(area, PAGE_BYTES, large=False, target=1, permissions=0, vmsa=True),
            op.Write(book_gpa(self.vcpu), BOOK_RECORD.pack(caa, area)),
            op.Write(SEED_GPA, vtpm_seed(self.vm, self.seed)),
        )
        if done != (None, None, op.PValidateResult(0, unchanged=False), None, 0, None, None):
            return (yield from _end(GhcbReason.GENERAL))
        if not (yield from self.announce(self.vcpu, area, ApCreationKind.CREATE)):
            return (yield from _end(GhcbReason.GENERAL))
        registers.rip = ENTER_RIP
        return None

    def _enter(self, registers: Registers) -> Block:
        """Run the guest's kernel on this vCPU, once there is a save area for it."""
        (record,) = yield (op.Read(book_gpa(self.vcpu), BOOK_RECORD.size),)
        if not isinstance(record, bytes):
            return (yield from _end(GhcbReason.GENERAL))
        if not BOOK_RECORD.unpack(record)[1]:
            return _WAIT
        registers.rip = SERVE_RIP
        yield from run_guest()
        return (yield from _end(GhcbReason.GENERAL))

    # Calls.

    def _serve(self, registers: Registers) -> Block:
        """Serve the call that the kernel left in its save area, if it left one, and run it again."""
        (record,) = yield (op.Read(book_gpa(self.vcpu), BOOK_RECORD.size),)
        if not isinstance(record, bytes):
            return (yield from _end(GhcbReason.GENERAL))
        caa, area = BOOK_RECORD.unpack(record)
        stored = [op.Read(area + at, size) for at, size in AREA_REGISTERS]
        pending, *found = yield (op.Read(caa + CALL_PENDING, 1), *stored)
        if not area:
            registers.rip = ENTER_RIP
            return None
        request = read_request(found)
        if pending == b"\1" and request is not None:
            registers.r13 += 1
            result = yield from self._result(request)
            answers = yield (op.Write(caa + CALL_PENDING, b"\0"), *write_answer(area, result, request))
            if any(answers):
                return (yield from _end(GhcbReason.GENERAL))
        # A calling area that cannot be read, or holds no call, is the guest's own affair.
        yield from run_guest()
        return (yield from _end(GhcbReason.GENERAL))

    def _result(self, request: Request) -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], int]:
        service = self.services.get(request.protocol)
        if service is None:
            return SvsmResult.UNSUPPORTED_PROTOCOL
        # One batch is one instant: of two vCPUs the later one sees the other's lock. There is one for all calls, for
        # what one looked up in the books must hold until it has written there: a page could become a save area.
        lock, vcpus = lock_gpa(self.vcpu), len(self.place.boot_rips)
        _, locks = yield (op.Write(lock, b"\1"), op.Read(LOCKS_GPA, vcpus))
        alone = isinstance(locks, bytes) and locks.count(0) == vcpus - 1
        result: int = SvsmResult.SUCCESS if alone else SvsmResult.BUSY
        if alone:
            try:
                yield from service(self, request.call, request)
            except CallRefused as refused:
                result = refused.result
        yield (op.Write(lock, b"\0"),)
        return result

    def announce(
        self, vcpu: int, area: int, kind: ApCreationKind
    ) -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], bool]:
        """Tell the hypervisor of a save area of the guest's VMPL, or that it is gone; whether it took that."""
        features = {} if kind is ApCreationKind.DESTROY else {"RAX": int(SevFeature.SNP_ACTIVE)}
        info1 = kind | GUEST_VMPL << 16 | vcpu << 32
        try:
            yield from page_exit(self.ghcb, NaeEvent.AP_CREATION, info1, area, features)
        except GhcbUntrusted:
            return False
        return True


def grant(gpa: int, length: int, large: bool = False, rights: int = ALL_RIGHTS) -> op.RmpAdjust:
    """Give the guest's VMPL rights to a range, or take them."""
    return op.RmpAdjust(gpa, length, large, GUEST_VMPL, rights)


def vtpm_seed(vm: str, seed: int) -> bytes:
    """What its vTPM's random numbers follow from: declared, for the machine's name and the scenario's seed decide."""
    return hashlib.shake_256(f"{seed} {vm} vTPM".encode()).digest(SEED_BYTES)


def run_guest() -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], None]:
    """The last exit of a block. Whoever is answered was not switched away."""
    yield (op.VmgExit(RunVmplRequest(GUEST_VMPL).value),)


def _handed_on(secrets: bytes, caa: int) -> bytes:
    """The secrets page for the guest: without VMPCK0, and with where its SVSM is."""
    page = bytearray(secrets)
    page[_VMPCK0] = bytes(_VMPCK0.stop - _VMPCK0.start)
    fields = ((SVSM.gpa, 8), (SVSM.length, 8), (caa, 8), (MOST_VERSION, 4), (GUEST_VMPL, 1), (0, 3))
    page[_SVSM_FIELDS] = b"".join(value.to_bytes(width, "little") for value, width in fields)
    return bytes(page)


def _response(request: MsrMessage, answer: op.Answer) -> MsrMessage | None:
    try:
        return response_to(request, answer)
    except GhcbMsrError:
        return None


def _end(reason: int, reason_set: ReasonSet = ReasonSet.GHCB) -> Block:
    yield (termination(reason_set, reason),)
    return op.Shutdown(BOOT_FAILED)
