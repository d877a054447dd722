"""MMIO has RMP entries, and is no memory: firmware puts nothing there, and gives an entry back if asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from card_laboratory import CARDS, MMIO_GPA
from rmp_laboratory import COMMAND_PAGE, FIRMWARE, POLICY, Laboratory, gctx, laboratory, page_of

from node import operations as op
from node.card_slot import windows
from node.platform import Platform
from psp import command_buffers as buffers
from psp.commands import COMMANDS, SnpCommand
from psp.page_state import PageState, page_state
from psp.policy import SnpPolicy
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

_ENDS = {SnpCommand.SHUTDOWN, SnpCommand.SHUTDOWN_EX, SnpCommand.INIT, SnpCommand.INIT_EX}
STATES = {
    "the hypervisor's": RmpEntry(),
    "lent to firmware": FIRMWARE,
    "before launch": page_of(MMIO_GPA, immutable=True, asid=3),
    "a guest's": page_of(MMIO_GPA),
}


@pytest.fixture(scope="module")
def lab() -> Laboratory:
    return laboratory("Turin", Platform(cards=CARDS))


def pages(lab: Laboratory) -> dict[str, int]:
    """A page of MMIO in each state."""
    (first, _) = windows(lab.board.dram.size_bytes, CARDS)
    places = {name: first.base + number * PAGE_BYTES for number, name in enumerate(STATES)}
    for name, spa in places.items():
        if page_state(lab.board.bus.rmp_entry(spa)) is PageState.HYPERVISOR and STATES[name].assigned:
            assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, STATES[name])) == (0,)
    return places


@pytest.mark.parametrize(
    "command", [one for one in SnpCommand if one not in _ENDS and one in COMMANDS and COMMANDS[one].layout is not None]
)
def test_no_command_takes_a_page_of_mmio_for_memory(lab: Laboratory, command: SnpCommand) -> None:
    layout = COMMANDS[command].layout
    assert layout is not None
    size = layout.SIZE
    for name, spa in pages(lab).items():
        for word in range(0, size // 8 * 8, 8):
            for others in (bytes(8), gctx("three").to_bytes(8, "little"), spa.to_bytes(8, "little")):
                buffer = bytearray((others * -(-size // 8))[:size])
                buffer[word : word + 8] = spa.to_bytes(8, "little")
                before = lab.board.bus.rmp_entry(spa)
                (answer,) = lab.host(op.PspCommand(command, COMMAND_PAGE, bytes(buffer)))
                assert isinstance(answer, op.PspAnswer)
                if command is SnpCommand.PAGE_RECLAIM and not answer.status:
                    assert before.immutable
                else:
                    assert answer.status, (name, word, buffer.hex())
                    assert lab.board.bus.rmp_entry(spa) == before


@pytest.mark.parametrize("name", ["lent to firmware", "before launch"])
def test_an_entry_that_the_host_made_immutable_comes_back_by_reclaim(lab: Laboratory, name: str) -> None:
    spa = pages(lab)[name]
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, RmpEntry())) in ((2,), (0,))
    pages(lab)
    assert lab.firmware(SnpCommand.PAGE_RECLAIM, buffers.SnpPageReclaim(spa)) == Status.SUCCESS
    assert not lab.board.bus.rmp_entry(spa).immutable
    assert lab.host(op.RmpUpdate(spa, PAGE_BYTES, RmpEntry())) == (0,)


def test_a_table_s_last_segment_has_entries_beyond_the_window_that_are_nobody_s(lab: Laboratory) -> None:
    board = lab.board
    assert board.rmp is not None
    (first, second) = windows(board.dram.size_bytes, CARDS)
    assert board.rmp.covers(second.end)
    assert board.bus.rmp_covers(first.base, (second.end - first.base) // PAGE_BYTES)
    for spa, many in ((second.end, 1), (second.end - PAGE_BYTES, 2), (first.base - PAGE_BYTES, 1), (-PAGE_BYTES, 1)):
        assert not board.bus.rmp_covers(spa, many)
    assert replace(board.bus.rmp_entry(second.end)) == RmpEntry()


@pytest.mark.parametrize("command", [SnpCommand.DBG_DECRYPT, SnpCommand.DBG_ENCRYPT])
def test_a_guest_that_may_be_debugged_shows_no_mmio(command: SnpCommand) -> None:
    lab, context, asid, target = laboratory("Turin", Platform(cards=CARDS)), 5 << 20, 9, 4 << 20
    (first, _) = windows(lab.board.dram.size_bytes, CARDS)
    assert lab.host(op.RmpUpdate(context, PAGE_BYTES, FIRMWARE)) == (0,)
    for order, buffer in (
        (SnpCommand.GCTX_CREATE, buffers.GuestContextPage(context)),
        (SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(context, POLICY | SnpPolicy.DEBUG)),
        (SnpCommand.ACTIVATE, buffers.SnpActivate(context, asid)),
        (SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(context)),
    ):
        assert lab.firmware(order, buffer) == Status.SUCCESS
    owned = page_of(MMIO_GPA, asid=asid)
    assert lab.host(op.RmpUpdate(first.base, PAGE_BYTES, owned), op.RmpUpdate(target, PAGE_BYTES, FIRMWARE)) == (0, 0)
    ends = (first.base, target) if command is SnpCommand.DBG_DECRYPT else (target, first.base)
    assert lab.firmware(command, buffers.SnpDebug(context, *ends)) == Status.INVALID_ADDRESS
