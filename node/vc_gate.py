"""The guest kernel's handler of #VC where it comes as an exception, through the gate of vector 29.

What hardware raises, a program meets as the answer to its operation (``node.vc_handler``). What comes through the
gate a hypervisor injected, and this is what a kernel makes of it that believes its error code, as those did that
WeSee broke (CVE-2024-25742): VMMCALL shows RAX and takes it back, a nested page fault is a store to a device. One that
``verifies`` holds the code against the instruction at RIP and the address against its own memory. Even that one lays
RAX down before it looks, as the attack's authors report of the repaired kernel; which order others have is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from node.event_delivery import Frame
from node.ghcb_msr import GhcbReason
from node.ghcb_page import GHCB_BYTES, SHARED_BUFFER, GhcbUntrusted, build_exit, parse_reply
from node.guest_events import LostFrame, back, frame_at
from node.guest_ghcb import page_exit, termination
from node.nae_event import EVENTS, NaeEvent
from node.operations import Answer, GuestOperation, Read, Shutdown, UpkeepRead, UpkeepWrite, VmgExit
from node.program import Block, Registers
from node.vc_handler import UNHANDLED
from node.vc_instructions import UnexpectedException
from node.vmexit import ExitCode

Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]
_WORD = (1 << 64) - 1
VMMCALL_OPCODE = bytes.fromhex("0f01d9")
MOVSQ_OPCODE = bytes.fromhex("48a5")
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class VcGate:
    """The handler of one vCPU. ``ghcb_gpa`` is shared and registered, ``memory_bytes`` what the guest has of RAM."""

    ghcb_gpa: int
    memory_bytes: int
    verifies: bool = False

    def handle(self, registers: Registers) -> Block:
        """The block at the gate; it ends the VM where it knows no better."""
        try:
            frame = yield from frame_at(registers.rsp, error=True)
            yield from self._handlers.get(frame.error or 0, _unknown)(registers, frame)
            yield from back(registers, error=True)
        except (GhcbUntrusted, LostFrame, UnexpectedException):
            yield (termination(0, GhcbReason.GENERAL),)
            return Shutdown(UNHANDLED)
        return None

    @property
    def _handlers(self) -> Mapping[int, Callable[[Registers, Frame], Steps]]:
        return {ExitCode.VMMCALL: self._vmmcall, ExitCode.NESTED_PAGE_FAULT: self._store}

    def _vmmcall(self, registers: Registers, frame: Frame) -> Steps:
        shown = build_exit(NaeEvent.VMMCALL, registers={"RAX": registers.rax, "CPL": 0})
        yield (UpkeepWrite(self.ghcb_gpa, shown, private=False, paid=True),)
        yield from self._expect(frame.rip, VMMCALL_OPCODE)
        value, page = yield (
            VmgExit(self.ghcb_gpa, instead=True),
            UpkeepRead(self.ghcb_gpa, GHCB_BYTES, private=False, paid=True),
        )
        if value != self.ghcb_gpa or not isinstance(page, bytes):
            raise GhcbUntrusted(f"VMGEXIT: {value!r}")
        registers.rax = parse_reply(page, EVENTS[NaeEvent.VMMCALL].outputs).registers["RAX"]

    def _store(self, registers: Registers, frame: Frame) -> Steps:
        """MOVS to a device, one word of it."""
        yield from self._expect(frame.rip, MOVSQ_OPCODE)
        if self.verifies and registers.rdi < self.memory_bytes:
            raise UnexpectedException(f"nested page fault at {registers.rdi:#x}, which is memory")
        (word,) = yield (Read(registers.rsi, _WORD_BYTES),)
        if not isinstance(word, bytes):
            raise UnexpectedException(f"MOVS: {word!r}")
        scratch = {"SW_SCRATCH": self.ghcb_gpa + SHARED_BUFFER}
        store = NaeEvent.MMIO_WRITE
        yield from page_exit(self.ghcb_gpa, store, registers.rdi, _WORD_BYTES, scratch, word, instead=True)
        registers.rsi = registers.rsi + _WORD_BYTES & _WORD
        registers.rdi = registers.rdi + _WORD_BYTES & _WORD

    def _expect(self, rip: int, opcode: bytes) -> Steps:
        """Decode what was interrupted."""
        if not self.verifies:
            return
        (code,) = yield (Read(rip, len(opcode)),)
        if code != opcode:
            raise UnexpectedException(f"#VC at {rip:#x}: {code!r} is not {opcode.hex()}")


def _unknown(_: Registers, frame: Frame) -> Steps:
    raise UnexpectedException(f"#VC {frame.error!r}")
    yield ()
