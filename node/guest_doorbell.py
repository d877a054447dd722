"""A guest kernel's side of the #HV doorbell: it takes what waits there when it is ready, not when it is told.

#HV comes whatever RFLAGS.IF says. Its handler looks at the flags of what it interrupted, and leaves an interrupt
where it is while those mask it; who lets interrupts in again looks there by itself.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from node.control_registers import RFLAGS_IF
from node.event_injection import NMI_VECTOR
from node.ghcb_page import GhcbUntrusted
from node.guest_events import LostFrame, back, frame_at
from node.guest_ghcb import page_exit
from node.hv_doorbell import FLAGS, PENDING_BYTES, Doorbell, DoorbellAction
from node.nae_event import NaeEvent
from node.operations import Answer, GuestOperation, Read, SoftwareInterrupt, Write, WriteFlags
from node.program import Registers
from psp.system_bus import PAGE_BYTES

Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], None]
Looking = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], Doorbell]


@dataclass(frozen=True, slots=True)
class GuestDoorbell:
    """One vCPU's doorbell page, which is shared already, and its GHCB. ``handlers`` are RIPs by vector."""

    ghcb_gpa: int
    page_gpa: int
    handlers: Mapping[int, int]

    def register(self) -> Steps:
        """Tell the hypervisor where the page is. Raises GhcbUntrusted."""
        yield (Write(self.page_gpa, bytes(PAGE_BYTES), private=False),)
        yield from page_exit(self.ghcb_gpa, NaeEvent.HV_DOORBELL_PAGE, DoorbellAction.SET, self.page_gpa)
        reply = yield from page_exit(self.ghcb_gpa, NaeEvent.HV_DOORBELL_PAGE, DoorbellAction.QUERY)
        if reply.info2 != self.page_gpa:
            raise GhcbUntrusted(f"#HV doorbell: registered {self.page_gpa:#x}, found {reply.info2:#x}")

    def rung(self, registers: Registers) -> Steps:
        """The handler of #HV. Raises LostFrame."""
        frame = yield from frame_at(registers.rsp)
        found = yield from self._look(masked=not frame.rflags & RFLAGS_IF)
        handler = self._handler(found)
        if handler is None:
            yield from back(registers)
        else:
            registers.rip = handler  # The frame of #HV is the frame that the interrupt would have made.

    def open_up(self) -> Steps:
        """STI, and take what waited meanwhile; the last that a block does. Raises LostFrame."""
        yield (WriteFlags(RFLAGS_IF),)
        found = yield from self._look(masked=False)
        if self._handler(found) is None:
            return
        yield (SoftwareInterrupt(NMI_VECTOR if found.nmi else found.vector),)

    def _look(self, *, masked: bool) -> Looking:
        # One exchange each: what the hypervisor adds meanwhile is seen now or rings again.
        if masked:
            found, _ = yield (
                Read(self.page_gpa, PENDING_BYTES, private=False),
                Write(self.page_gpa + FLAGS, bytes(1), private=False),
            )
        else:
            found, _ = yield (
                Read(self.page_gpa, PENDING_BYTES, private=False),
                Write(self.page_gpa, bytes(FLAGS + 1), private=False),
            )
        if not isinstance(found, bytes):
            raise LostFrame(f"#HV doorbell: {found!r}")
        pending = Doorbell.of(found)
        return Doorbell(0, pending.flags) if masked else pending

    def _handler(self, found: Doorbell) -> int | None:
        """Of both an NMI goes first, and the interrupt is lost: no hypervisor that is honest sends both at once."""
        vector = NMI_VECTOR if found.nmi else found.vector
        return self.handlers.get(vector) if vector else None
