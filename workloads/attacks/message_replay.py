"""The hypervisor sends a guest's messages to the firmware again, or serves the guest an answer from before (row 62)."""

from __future__ import annotations

from node.operations import HostRead, HostWrite, PspCommand, RmpUpdate
from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.system_bus import PAGE_BYTES, RmpEntry
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_FIRMWARE, _HYPERVISOR = RmpEntry(assigned=True, immutable=True), RmpEntry()


def send_again(target: Target) -> Attack:
    """Have the firmware answer a message that it has answered, at once and when others have come in between."""
    request, response, *_ = target.spare
    yield LET_IT_RUN
    (message,) = yield (HostRead(target.victim.inbox.spa, PAGE_BYTES),)
    assert isinstance(message, bytes)
    ask = buffers.SnpGuestRequest(target.victim.gctx, request, response).pack()
    reclaim = buffers.SnpPageReclaim(response).pack()
    for _ in range(2):
        yield (
            HostWrite(request, message),
            RmpUpdate(response, PAGE_BYTES, _FIRMWARE),
            PspCommand(SnpCommand.GUEST_REQUEST, target.command_page, ask),
            PspCommand(SnpCommand.PAGE_RECLAIM, target.command_page, reclaim),
            RmpUpdate(response, PAGE_BYTES, _HYPERVISOR),
        )
        yield LET_IT_RUN


def serve_old_answer(target: Target) -> Attack:
    """Back the page that the guest awaits its answer in with one that holds an older answer."""
    victim, mine = target.victim, target.spare[0]
    yield LET_IT_RUN
    (answer,) = yield (HostRead(victim.outbox.spa, PAGE_BYTES),)
    assert isinstance(answer, bytes)
    yield smash(victim.outbox)
    yield (HostWrite(mine, answer), point(victim, victim.outbox, mine))
    yield LET_IT_RUN
