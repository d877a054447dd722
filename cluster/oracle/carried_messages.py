"""Guest messages as they reached the firmware: whether it answered one more often than its guest sent it."""

from __future__ import annotations

from node.operations import Answer, HostWrite, PspAnswer, PspCommand
from psp.command_buffers import SnpGuestRequest
from psp.commands import SnpCommand
from psp.guest_message import HEADER_BYTES, MessageHeader
from psp.system_bus import PAGE_BYTES


class CarriedMessages:
    """Followed through what hypervisors did. A guest sends no number twice: a message that comes again is not its own.

    What lies in a page is what was written there in one piece.
    """

    def __init__(self) -> None:
        self._laid: dict[int, bytes] = {}
        self._answered: set[bytes] = set()

    def follow(self, one: object, answer: Answer) -> str:
        """What is wrong with the operation; empty for nothing."""
        if isinstance(one, HostWrite):
            if answer is None and not one.spa % PAGE_BYTES and len(one.data) >= HEADER_BYTES:
                self._laid[one.spa] = one.data
        elif isinstance(one, PspCommand) and one.command == SnpCommand.GUEST_REQUEST and len(one.buffer) > 0:
            return self._carry(SnpGuestRequest.parse(one.buffer), answer)
        return ""

    def _carry(self, asked: SnpGuestRequest, answer: Answer) -> str:
        page = self._laid.get(asked.request)
        if page is None or not isinstance(answer, PspAnswer) or answer.status:
            return ""
        message = page[: HEADER_BYTES + MessageHeader.parse(page).payload_bytes]
        if message in self._answered:
            return f"firmware answered message {MessageHeader.parse(page).sequence} of a guest twice"
        self._answered.add(message)
        return ""
