"""The victim of messages: it asks the security processor for reports, of two kinds in turn, and keeps what they bind.

A round asks for one, and notes the report data of the answer in the cell of its kind; then it rests. In an undisturbed
life a cell holds what was asked for, always. Where an answer is refused, its kernel gives the key up, and it goes on
without. A guest that has nobody to ask only rests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.guest_messages import GuestMessages, MessageRefused, MessagesBusy
from node.operations import Sleep, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from psp.guest_message import MessageType
from psp.report_messages import ReportRequest, ReportResponse
from psp.system_bus import PAGE_BYTES
from workloads.attacks.vault import INBOX, OUTBOX
from workloads.block_outcome import FAULTED, faulted

OPEN_RIP, ROUND_RIP = 0x40_0000, 0x40_1000
KINDS = 2
DATA_BYTES = 64
REST = Sleep(1_000_000_000)
_CELLS = 8
"""Page from the beginning of its private range."""
_REPORT_DATA = ReportResponse.SIZE + 0x50


@dataclass(frozen=True, slots=True)
class Petitioner:
    """R13 counts the rounds. Its request and its answer lie where other victims have their bounce buffers."""

    placement: Placement

    entry = OPEN_RIP
    demands: tuple[Demand, ...] = ()

    @classmethod
    def build(cls, _: ProgramSpec, placement: Placement) -> Petitioner:
        """The program of a specification."""
        return cls(placement)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {OPEN_RIP: self._open, ROUND_RIP: self._round}

    @property
    def promises(self) -> Mapping[int, bytes]:
        """What it stores, wherever it does, by GPA."""
        return {self._cell(kind): self._data(kind) for kind in range(KINDS)}

    def _cell(self, kind: int) -> int:
        return self.placement.base_gpa + _CELLS * PAGE_BYTES + kind * DATA_BYTES

    def _data(self, kind: int) -> bytes:
        name = f"{self.placement.seed} {self.placement.vm} asks {kind}"
        return hashlib.shake_128(name.encode()).digest(DATA_BYTES)

    def _open(self, registers: Registers) -> Block:
        registers.rip = ROUND_RIP
        return REST
        yield ()

    def _round(self, registers: Registers) -> Block:
        place, kind = self.placement, registers.r13 % KINDS
        registers.r13 += 1
        if place.messages is None:
            return REST
        request, response = (place.shared_gpa + page * PAGE_BYTES for page in (INBOX, OUTBOX))
        messages = GuestMessages(place.messages, request, response)
        try:
            answered = yield from messages.ask(MessageType.REPORT_REQ, ReportRequest(self._data(kind)).pack())
        except (MessageRefused, MessagesBusy):
            return REST
        bound = answered.payload[_REPORT_DATA : _REPORT_DATA + DATA_BYTES]
        return FAULTED if faulted((yield (Write(self._cell(kind), bound),))) else REST
