"""A guest's #VC handler: what it shows of an intercepted instruction, and what it believes of the answer.

It runs around a block: where the answer to an operation is #VC, the handler decodes
the operation, and the block gets what the instruction would have given. CPUID of an
SNP guest is answered from the page that firmware checked at launch; from the
hypervisor only where the guest has no such page, or the check is switched off.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from node.cpuid_page import CPUID_PAGE_BYTES, parse_cpuid_page
from node.ghcb_msr import GhcbReason
from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import page_exit, termination
from node.nae_event import NaeEvent
from node.operations import (
    Answer,
    Cpuid,
    CpuidResult,
    Fault,
    FaultKind,
    GuestOperation,
    Read,
    ReadDr7,
    Shutdown,
    WriteDr7,
)
from node.program import Block
from node.vmexit import ExitCode

UNHANDLED = 4
"""Shutdown code of a guest whose handler met what it does not know, or an answer that it does not believe."""

_Answering = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Answer]
_Exiting = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Mapping[str, int]]
_CODES: Mapping[type, ExitCode] = {
    Cpuid: ExitCode.CPUID, ReadDr7: ExitCode.DR7_READ, WriteDr7: ExitCode.DR7_WRITE,
}  # fmt: skip
"""The exit code of each instruction that the handler knows."""
_WORD = 0xFFFF_FFFF
_EXTENDED_STATE_LEAF = 0xD
_XCR0_AT_RESET = 1


@dataclass(frozen=True, slots=True)
class VcHandler:
    """The handler of one vCPU.

    ``ghcb_gpa`` is its GHCB page, shared already and registered where that is needed;
    ``cpuid_gpa`` the CPUID page, None where the hypervisor is asked.
    """

    ghcb_gpa: int
    cpuid_gpa: int | None

    def around(self, block: Block) -> Block:
        """The block with every #VC in it handled; it ends the VM where one cannot be."""
        try:
            batch = next(block)
            while True:
                answers = yield batch
                handled = []
                for one, answer in zip(batch, answers, strict=True):
                    if isinstance(answer, Fault) and answer.kind is FaultKind.VMM_COMMUNICATION:
                        handled.append((yield from self._handle(one, answer)))
                    else:
                        handled.append(answer)
                batch = block.send(tuple(handled))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except (GhcbUntrusted, UnexpectedException):
            yield (termination(0, GhcbReason.GENERAL),)
            return Shutdown(UNHANDLED)

    def _handle(self, one: GuestOperation, fault: Fault) -> _Answering:
        # The instruction is decoded, and the error code must be of it: a #VC that nothing raised is an attack.
        code = _CODES.get(type(one))
        if code is None or fault.error != code:
            raise UnexpectedException(f"#VC {fault.error:#x} at {type(one).__name__}")
        if isinstance(one, Cpuid):
            return (yield from self._cpuid(one))
        if isinstance(one, WriteDr7):
            yield from self._exit(NaeEvent.DR7_WRITE, {"RAX": one.value})
            return None
        return (yield from self._exit(NaeEvent.DR7_READ, {}))["RAX"]

    def _cpuid(self, one: Cpuid) -> _Answering:
        if self.cpuid_gpa is not None:
            return (yield from _by_page(self.cpuid_gpa, one))
        registers = {"RAX": one.function, "RCX": one.index}
        if one.function == _EXTENDED_STATE_LEAF:
            registers |= {"XCR0": _XCR0_AT_RESET, "XSS": 0}
        found = yield from self._exit(NaeEvent.CPUID, registers)
        return CpuidResult(*[found[name] & _WORD for name in ("RAX", "RBX", "RCX", "RDX")])

    def _exit(self, event: NaeEvent, registers: Mapping[str, int]) -> _Exiting:
        """One exit that may not end in an exception."""
        reply = yield from page_exit(self.ghcb_gpa, event, registers=registers)
        if reply.exception is not None:
            raise UnexpectedException(f"{event.name}: exception {reply.exception}")
        return reply.registers


class UnexpectedException(Exception):
    """#VC where nothing raises it, or an exception that the instruction cannot raise."""


def _by_page(gpa: int, one: Cpuid) -> _Answering:
    (page,) = yield (Read(gpa, CPUID_PAGE_BYTES),)
    if not isinstance(page, bytes):
        raise UnexpectedException(f"CPUID page: {page!r}")
    try:
        entries = parse_cpuid_page(page)
    except ValueError as error:
        raise UnexpectedException(str(error)) from error
    for entry in entries:
        if (entry.eax_in, entry.ecx_in) == (one.function, one.index):
            return CpuidResult(entry.eax, entry.ebx, entry.ecx, entry.edx)
    return CpuidResult(0, 0, 0, 0)
