"""The attacker's other host, with today's firmware, on which a guest was launched: its context is still there (A-05).

That an agent moved the guest and left the context behind is put in place by hand: the firmware here has no
migration agents. From then on both contexts live their own lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from node import operations as op
from node.board import Board
from node.operations import Answer
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.elsewhere import Elsewhere, LeftBehind, OtherHostOperation

_FIRMWARE, _HYPERVISOR = RmpEntry(assigned=True, immutable=True), RmpEntry()


@dataclass(slots=True)
class OtherHost:
    """Made when somebody needs it. ``frames`` are four free ones there: commands, context, request, response."""

    here: Board
    make: Callable[[], tuple[Board, tuple[int, ...]]] = field(repr=False)
    _there: tuple[Board, tuple[int, ...]] | None = field(default=None, init=False, repr=False)

    def act(self, batch: tuple[OtherHostOperation, ...]) -> tuple[Answer, ...]:
        """Answer each."""
        return tuple([self._leave_behind(one) if isinstance(one, LeftBehind) else self._answer(one) for one in batch])

    @property
    def is_there(self) -> bool:
        """Whether anybody has needed it."""
        return self._there is not None

    @property
    def board(self) -> Board:
        """Its board."""
        return self._host()[0]

    def _leave_behind(self, one: LeftBehind) -> Answer:
        """The context of a guest of this host, on the other."""
        board, (commands, context, *_) = self._host()
        board.execute_host((
            op.RmpUpdate(context, PAGE_BYTES, _FIRMWARE),
            op.PspCommand(SnpCommand.GCTX_CREATE, commands, buffers.GuestContextPage(context).pack()),
        ))  # fmt: skip
        record = self.here.psp.snp.guests.pages.read(one.context)
        launched = replace(record, launch_tcb=board.psp.firmware.launch_tcb)
        board.psp.snp.guests.pages.write(context, launched)
        return context

    def _answer(self, one: Elsewhere) -> Answer:
        """SNP_GUEST_REQUEST over there."""
        board, (commands, _, request, response) = self._host()
        asked = buffers.SnpGuestRequest(one.context, request, response)
        *_, page = board.execute_host((
            op.HostWrite(request, one.request),
            op.RmpUpdate(response, PAGE_BYTES, _FIRMWARE),
            op.PspCommand(SnpCommand.GUEST_REQUEST, commands, asked.pack()),
            op.PspCommand(SnpCommand.PAGE_RECLAIM, commands, buffers.SnpPageReclaim(response).pack()),
            op.RmpUpdate(response, PAGE_BYTES, _HYPERVISOR),
            op.HostRead(response, PAGE_BYTES),
        ))  # fmt: skip
        return page

    def _host(self) -> tuple[Board, tuple[int, ...]]:
        if self._there is None:
            self._there = self.make()
        return self._there
