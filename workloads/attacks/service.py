"""The victim of events: a service whose kernel has gates, whatever comes through them.

It goes round in stages and rests after each, so that whoever watches knows where it is: it asks whether somebody may
log in, and is told no in RAX; it notes that, and a figure in RBX; it changes a record in two halves, with interrupts
masked; it takes a secret into its registers to copy it; it steps through a piece of code, counts the
steps, and looks whether its breakpoint is still set. In an
undisturbed life it stores the same at each of ``PROMISES``, always.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.control_registers import RFLAGS_IF, RFLAGS_TF
from node.event_injection import ExceptionVector
from node.ghcb_msr import RegisterGhcbRequest
from node.ghcb_page import GhcbUntrusted
from node.guest_doorbell import GuestDoorbell, Steps
from node.guest_events import LostFrame, back, lay_gates
from node.operations import Read, ReadDr7, Sleep, VmgExit, Write, WriteDr7, WriteFlags
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from node.vc_gate import MOVSQ_OPCODE, VcGate
from node.vc_handler import VcHandler
from psp.system_bus import PAGE_BYTES
from workloads.attacks.vault import OUTBOX, SECRET
from workloads.block_outcome import FAULTED, faulted

CONTENT_BYTES = 64
COPY, CELLS, GATES, STACK = 8, 9, 10, 11
"""Pages from the beginning of the placement's private range, beside the secret; the stack grows down into its page."""
DOORBELL = OUTBOX + 1
"""Page of its shared range; the GHCB is where others keep their outbox."""

DENIED, GRANTED, FIGURE = 1, 0, 7
"""What a login came to, as a system call's number and as its result; and what the service worked out."""
WHOLE, TORN = b"whole   ", b"torn    "
DECISION_AT, FIGURE_AT, FIRST_AT, SECOND_AT, WATCH_AT, STEPS_AT, COUNT_AT, WATCHED_AT = range(0, 8 * 64, 64)
"""Cells in their page."""
STEPS = 2
BREAKPOINTS = 0x401
"""What it sets DR7 to: the first breakpoint, and the bit that is always one."""

SYSTEM_CALL, TICK, DIVIDE, OVERFLOW = 0x80, 0x20, ExceptionVector.DE, ExceptionVector.OF
_RUNG = (SYSTEM_CALL, TICK, DIVIDE, OVERFLOW)

OPEN_RIP, ASKED_RIP, TOLD_RIP, HALF_RIP, LOAD_RIP, COPY_RIP = range(0x40_0000, 0x40_6000, 0x1000)
STEP_RIP, STEPPED_RIP, DONE_RIP = range(0x40_6000, 0x40_9000, 0x1000)
CALL_RIP, SIGNAL_RIP, TICK_RIP, DEBUG_RIP, DOORBELL_RIP, VC_RIP, STRAY_RIP = range(0x41_0000, 0x41_7000, 0x1000)
REST = Sleep(1_000_000_000)

ASKED, MASKED, LOADED, BEFORE_STEPS = 1, 2, 3, 4
"""Rests after its first: until it holds the answer, until it is half through, holds the secret, begins to step."""
RESTS = 5
"""Of a round."""
HAS_GHCB, REGISTERS_GHCB, RESTRICTED, NO_IA32, VERIFIES = (
    "has_ghcb", "registers_ghcb", "restricted", "disables_ia32", "verifies"
)  # fmt: skip
"""Parameters, 0 or 1."""


@dataclass(frozen=True, slots=True)
class Service:
    """R13 counts the rounds."""

    placement: Placement
    settings: frozenset[str] = frozenset()

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> Service:
        """The program of a specification."""
        return cls(placement, frozenset(name for name, value in spec.parameters if value))

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {
            OPEN_RIP: self._handled(self._open), ASKED_RIP: self._asked, TOLD_RIP: self._told, HALF_RIP: self._half,
            LOAD_RIP: self._load, COPY_RIP: self._copy, STEP_RIP: self._step, STEPPED_RIP: self._stepped,
            DONE_RIP: self._handled(self._done),
            CALL_RIP: self._call, SIGNAL_RIP: self._signal, TICK_RIP: self._tick, DEBUG_RIP: self._debug,
            DOORBELL_RIP: self._rung, VC_RIP: self._vc.handle, STRAY_RIP: self._stray,
        }  # fmt: skip

    @property
    def promises(self) -> Mapping[int, bytes]:
        """What it stores, wherever it does, by GPA."""
        return {
            self.cell(DECISION_AT): DENIED.to_bytes(8, "little"),
            self.cell(FIGURE_AT): FIGURE.to_bytes(8, "little"),
            self.cell(WATCH_AT): WHOLE,
            self.cell(STEPS_AT): STEPS.to_bytes(8, "little"),
            self.cell(WATCHED_AT): BREAKPOINTS.to_bytes(8, "little"),
        }

    @property
    def round_cell(self) -> int:
        """GPA at which it stores the number of each round, once."""
        return self.cell(FIRST_AT)

    def private(self, page: int) -> int:
        """GPA of a private page."""
        return self.placement.base_gpa + page * PAGE_BYTES

    def shared(self, page: int) -> int:
        """GPA of a shared page."""
        return self.placement.shared_gpa + page * PAGE_BYTES

    def cell(self, at: int) -> int:
        """GPA of a cell."""
        return self.private(CELLS) + at

    @property
    def secret(self) -> bytes:
        """What nobody else may hold."""
        return hashlib.shake_128(f"{self.placement.seed} {self.placement.vm} secret".encode()).digest(CONTENT_BYTES)

    @property
    def _vc(self) -> VcGate:
        return VcGate(self.shared(OUTBOX), self.placement.base_gpa + self.placement.length, VERIFIES in self.settings)

    @property
    def _doorbell(self) -> GuestDoorbell:
        # What has no error code; the kernel takes whatever of that somebody says is an interrupt.
        rung = {vector: rip for vector, rip in self._handlers.items() if vector in _RUNG}
        return GuestDoorbell(self.shared(OUTBOX), self.shared(DOORBELL), rung)

    @property
    def _handlers(self) -> Mapping[int, int]:
        """RIP of the handler of each vector."""
        handlers = {DIVIDE: SIGNAL_RIP, OVERFLOW: SIGNAL_RIP, TICK: TICK_RIP, SYSTEM_CALL: CALL_RIP}
        handlers |= {ExceptionVector.DB: DEBUG_RIP, ExceptionVector.GP: STRAY_RIP}
        if HAS_GHCB in self.settings:
            handlers[ExceptionVector.VC] = VC_RIP
        if RESTRICTED in self.settings:
            handlers[ExceptionVector.HV] = DOORBELL_RIP
        if NO_IA32 in self.settings:
            del handlers[SYSTEM_CALL]
        return handlers

    def _handled(self, block: Callable[[Registers], Block]) -> Callable[[Registers], Block]:
        """A block whose instructions may raise #VC."""
        if HAS_GHCB not in self.settings:
            return block
        return lambda registers: VcHandler(self.shared(OUTBOX), None).around(block(registers))

    # Its stages.

    def _open(self, registers: Registers) -> Block:
        registers.rsp = self.private(STACK + 1)
        answers = yield (
            *lay_gates(self.private(GATES), self._handlers), WriteFlags(RFLAGS_IF),
            Write(self.private(SECRET), self.secret), Write(self.cell(COUNT_AT), bytes(8)),
            Write(COPY_RIP, MOVSQ_OPCODE),
        )  # fmt: skip
        if faulted(answers):
            return FAULTED
        if REGISTERS_GHCB in self.settings:
            yield (VmgExit(RegisterGhcbRequest(self.shared(OUTBOX) // PAGE_BYTES).value),)
        if faulted((yield (WriteDr7(BREAKPOINTS),))):
            return FAULTED
        if RESTRICTED in self.settings:
            try:
                yield from self._doorbell.register()
            except GhcbUntrusted:
                return FAULTED
        registers.rip = ASKED_RIP
        return REST

    def _asked(self, registers: Registers) -> Block:
        registers.rax, registers.rbx = DENIED, FIGURE
        registers.rip = TOLD_RIP
        return REST
        yield ()

    def _told(self, registers: Registers) -> Block:
        half = (registers.r13 + 1).to_bytes(8, "little")
        answers = yield (
            Write(self.cell(DECISION_AT), _word(registers.rax)), Write(self.cell(FIGURE_AT), _word(registers.rbx)),
            WriteFlags(0), Write(self.cell(FIRST_AT), half),
        )  # fmt: skip
        registers.rip = HALF_RIP
        return FAULTED if faulted(answers) else REST

    def _half(self, registers: Registers) -> Block:
        registers.rip = LOAD_RIP
        answers = yield (Write(self.cell(SECOND_AT), (registers.r13 + 1).to_bytes(8, "little")),)
        if faulted(answers):
            return FAULTED
        if RESTRICTED in self.settings:
            return (yield from _or_faulted(self._doorbell.open_up()))
        yield (WriteFlags(RFLAGS_IF),)
        return None

    def _load(self, registers: Registers) -> Block:
        (words,) = yield (Read(self.private(SECRET), 16),)
        if not isinstance(words, bytes):
            return FAULTED
        registers.rax, registers.rdx = (int.from_bytes(words[at : at + 8], "little") for at in (0, 8))
        registers.rsi, registers.rdi = self.private(SECRET), self.private(COPY)
        registers.rip = COPY_RIP
        return REST

    def _copy(self, registers: Registers) -> Block:
        (octets,) = yield (Read(self.private(SECRET), CONTENT_BYTES),)
        if not isinstance(octets, bytes) or faulted((yield (Write(self.private(COPY), octets),))):
            return FAULTED
        registers.rip = STEP_RIP
        return REST

    def _step(self, registers: Registers) -> Block:
        registers.r12 = 0
        registers.rip = STEPPED_RIP
        answers = yield (Write(self.cell(COUNT_AT), bytes(8)), WriteFlags(RFLAGS_IF | RFLAGS_TF))
        return FAULTED if faulted(answers) else None

    def _stepped(self, registers: Registers) -> Block:
        registers.r12 += 1
        if registers.r12 == STEPS:
            registers.rip = DONE_RIP
        answers = yield (Read(self.private(SECRET), 8),)
        return FAULTED if faulted(answers) else None

    def _done(self, registers: Registers) -> Block:
        _, count, watched = yield (WriteFlags(RFLAGS_IF), Read(self.cell(COUNT_AT), 8), ReadDr7())
        if not isinstance(count, bytes) or not isinstance(watched, int):
            return FAULTED
        cells = Write(self.cell(STEPS_AT), count), Write(self.cell(WATCHED_AT), _word(watched))
        if faulted((yield cells)):
            return FAULTED
        registers.r13 += 1
        registers.rip = ASKED_RIP
        return REST

    # Handlers of its kernel.

    def _call(self, registers: Registers) -> Block:
        """System call of 32-bit programs: a number comes in RAX, and a result goes back there."""
        registers.rax = GRANTED
        return (yield from _or_faulted(back(registers)))

    def _signal(self, registers: Registers) -> Block:
        """A signal to the application, whose own handler gives the figure up."""
        registers.rbx = 0
        return (yield from _or_faulted(back(registers)))

    def _tick(self, registers: Registers) -> Block:
        first, second = yield (Read(self.cell(FIRST_AT), 8), Read(self.cell(SECOND_AT), 8))
        if faulted((yield (Write(self.cell(WATCH_AT), WHOLE if first == second else TORN),))):
            return FAULTED
        return (yield from _or_faulted(back(registers)))

    def _debug(self, registers: Registers) -> Block:
        (count,) = yield (Read(self.cell(COUNT_AT), 8),)
        if not isinstance(count, bytes):
            return FAULTED
        if faulted((yield (Write(self.cell(COUNT_AT), _word(int.from_bytes(count, "little") + 1)),))):
            return FAULTED
        return (yield from _or_faulted(back(registers)))

    def _rung(self, registers: Registers) -> Block:
        return (yield from _or_faulted(self._doorbell.rung(registers)))

    def _stray(self, registers: Registers) -> Block:
        """#GP that no instruction raised: an event without a gate."""
        return (yield from _or_faulted(back(registers, error=True)))


def _or_faulted(steps: Steps) -> Block:
    try:
        yield from steps
    except LostFrame:
        return FAULTED
    return None


def _word(number: int) -> bytes:
    return number.to_bytes(8, "little")
