"""A guest's #VC handler: what it shows of an intercepted instruction, and what it believes of the answer.

Where the answer to an operation of a block is #VC, the handler takes the block over:
it decodes the operation, and the block gets what the instruction would have given.
CPUID of an SNP guest is answered from the page that firmware checked at launch; from
the hypervisor only where the guest has no such page, or the check is switched off.
A page that is not validated is accepted, if the kernel accepts lazily and has not
accepted it before. Where neither can be, the VM ends with the protocol's reason.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node.generation import Generation
from node.ghcb_msr import GhcbReason, LinuxReason, ReasonSet
from node.ghcb_page import GhcbUntrusted
from node.guest_ghcb import termination
from node.kernel_settings import CAREFUL, KernelSettings
from node.operations import (
    Answer,
    Clflush,
    Copy,
    Fault,
    FaultKind,
    Fetch,
    GuestOperation,
    Read,
    Shutdown,
    TimedRead,
    UpkeepRead,
    UpkeepWrite,
    VirtualRead,
    VirtualWrite,
    Write,
)
from node.page_acceptance import PageAcceptance, ValidationRefused
from node.program import Block
from node.vc_instructions import Answering, KernelPanic, UnexpectedException, VcInstructions
from psp.system_bus import LARGE_PAGE_BYTES

UNHANDLED = 4
"""Shutdown code of a guest whose handler met what it does not know, or an answer that it does not believe."""

_Answers = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], tuple[Answer, ...]]
_REPEATED = frozenset({
    Read, Write, UpkeepRead, UpkeepWrite, Copy, VirtualRead, VirtualWrite, Fetch, Clflush, TimedRead,
})  # fmt: skip
"""Accesses that come out the same if they are made again."""
_MOST_TRIES = 1 << 12
"""Of one batch: a hypervisor could take the page away again each time, and a guest without books would go on."""


@dataclass(frozen=True, slots=True)
class VcHandler:
    """The handler of one vCPU.

    ``ghcb_gpa`` is its GHCB page, shared already and registered where that is needed;
    ``cpuid_gpa`` the CPUID page, None where the hypervisor is asked; without ``acceptance``
    a page that is not validated is a fault like any other.
    """

    ghcb_gpa: int
    cpuid_gpa: int | None
    settings: KernelSettings = CAREFUL
    acceptance: PageAcceptance | None = None
    generation: Generation = Generation.SEV_ES

    def around(self, block: Block) -> Block:
        """A block with every #VC in it handled."""
        try:
            batch = next(block)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        return (yield from self.take_over(block, batch, (yield batch)))

    def take_over(self, block: Block, batch: tuple[GuestOperation, ...], answers: tuple[Answer, ...]) -> Block:
        """Go on with a block that waits for the answers of a batch, #VC among them; ends the VM where it cannot."""
        try:
            while True:
                if Fault in map(type, answers):
                    answers = yield from self._handle(batch, answers)
                batch = block.send(answers)
                answers = yield batch
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except KernelPanic as panic:
            reason = panic.reason
        except ValidationRefused:
            reason = ReasonSet.LINUX, LinuxReason.PVALIDATE
        except GhcbUntrusted:
            reason = ReasonSet.GHCB, GhcbReason.GENERAL
        yield (termination(*reason),)
        return Shutdown(UNHANDLED)

    def _handle(self, batch: tuple[GuestOperation, ...], answers: tuple[Answer, ...]) -> _Answers:
        out, touched = list(answers), set[int]()
        index = 0
        for _ in range(_MOST_TRIES):
            answer = out[index]
            if not isinstance(answer, Fault):
                index += 1
            elif answer.kind is FaultKind.VMM_COMMUNICATION:
                out[index] = yield from self._emulate(batch[index], answer)
                index += 1
            elif answer.kind is FaultKind.PAGE_NOT_VALIDATED and self.acceptance is not None:
                chunk = answer.address // LARGE_PAGE_BYTES
                yield from self.acceptance.touched(answer.address, again=chunk in touched)
                touched.add(chunk)
                # What followed it in the batch was to come after it.
                rest = [at for at in range(index, len(batch)) if at == index or type(batch[at]) in _REPEATED]
                fresh = yield tuple([_again(batch[at]) for at in rest])
                for at, one in zip(rest, fresh, strict=True):
                    out[at] = one
            else:
                index += 1
            if index == len(out):
                break
        return tuple(out)

    def _emulate(self, one: GuestOperation, fault: Fault) -> Answering:
        # The instruction is decoded, and the error code must be of it: a #VC that nothing raised is an attack.
        known = VcInstructions(self.ghcb_gpa, self.cpuid_gpa, self.settings, self.generation)
        row = known.table.get(type(one))
        if row is not None and fault.error == row[0]:
            return (yield from row[1](one))
        if not self.settings.checks_exit_code:
            return (yield from known.as_told(one, fault.error))
        raise UnexpectedException(f"#VC {fault.error:#x} at {type(one).__name__}")


def _again(one: GuestOperation) -> GuestOperation:
    """What the hardware goes on with: a load or store that faulted is paid already."""
    if type(one) is Read:
        return UpkeepRead(one.gpa, one.length, one.private, paid=True)
    if type(one) is Write:
        return UpkeepWrite(one.gpa, one.data, one.private, paid=True)
    return one
