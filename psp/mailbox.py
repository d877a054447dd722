"""The mailbox: three 32-bit registers (SEV API, section 4.2; SEV-SNP firmware ABI, chapter 7)."""

from __future__ import annotations

from collections.abc import Callable

from psp.ring_buffer import ACTIVE, RingBuffers
from psp.status import Status

RESPONSE = 1 << 31
"""Set in CmdResp when the command is done; bits 15:0 then hold the status."""
_COMMAND_SHIFT = 16
_COMMAND_MASK = 0x7FFF


class Mailbox:
    """CmdBufAddr_Lo, CmdBufAddr_Hi and CmdResp. A write to CmdResp runs the command."""

    def __init__(self, execute: Callable[[int, int], Status]) -> None:
        self.address_low = 0
        self.address_high = 0
        self.response = RESPONSE
        self.ring: RingBuffers | None = None
        """The queues that commands come from, where RING_BUFFER has named them."""
        self._execute = execute

    def write_address(self, low: int, high: int) -> None:
        """Write both address registers, 32 bits each."""
        self.address_low, self.address_high = low & 0xFFFF_FFFF, high & 0xFFFF_FFFF

    def write_response(self, value: int) -> None:
        """Write CmdResp: the command in bits 30:16. Bit 0 asks for an interrupt, which nobody models.

        With queues, bit 30 has firmware go on with them; anything else ends that mode.
        """
        if self.ring is not None:
            if value & ACTIVE:
                self.address_low = self.ring.run(self.address_low, self.address_high)
                self.response = RESPONSE
            else:
                self.ring = None
                self.response = RESPONSE | Status.RB_MODE_EXITED
            return
        command = value >> _COMMAND_SHIFT & _COMMAND_MASK
        self.response = RESPONSE | self._execute(command, self.address_high << 32 | self.address_low)

    def served(self, spa: int) -> None:
        """The registers as a command with a buffer at ``spa`` leaves them that succeeded."""
        self.write_address(spa & 0xFFFF_FFFF, spa >> 32)
        self.response = RESPONSE

    def submit(self, command: int, spa: int) -> Status:
        """What a driver does: address, command, status. What the registers cannot carry is refused, never cut short."""
        if not 0 <= command <= _COMMAND_MASK:
            return Status.INVALID_COMMAND
        if not 0 <= spa < 1 << 64:
            return Status.INVALID_ADDRESS
        self.write_address(spa & 0xFFFF_FFFF, spa >> 32)
        if self.ring is not None:
            self.write_response(command << _COMMAND_SHIFT)
            return Status(self.response & 0xFFFF)
        status = self._execute(command, spa)
        self.response = RESPONSE | status
        return status
