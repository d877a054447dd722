"""With one comparison of the RMP out of order exactly what it stops comes to pass, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from rmp_tables import GUEST_SPA, VMPLS, save_area, snp_board

from node import operations as op
from node.board import Board
from node.host_instructions import VMEXIT_INVALID
from node.platform import Platform, Protection
from node.rmp import RmpFault
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

SECRET = b"sixteen octets.." * 4
OTHER_SECRET = b"another sixteen." * 4
FRESH = 3 * PAGE_BYTES
"""Offset of a page that the guest was given and has not accepted."""
LARGE = LARGE_PAGE_BYTES
"""Offset of an accepted page of 2 MiB."""
OFF = {one: Platform(disabled=frozenset({one})) for one in Protection}


def host(board: Board, *batch: op.HypervisorOperation) -> tuple[op.Answer, ...]:
    return board.execute_host(batch)


def guest(board: Board, *batch: op.GuestOperation, vm: str = "one", vmpl: int = 0) -> tuple[op.Answer, ...]:
    return board.execute_guest(board.vmcb(vm, vmpl), batch)


def give(board: Board, offset: int, asid: int = 1, **fields: bool) -> None:
    entry = replace(RmpEntry(assigned=True, gpa=offset, asid=asid), **fields)
    assert host(board, op.RmpUpdate(GUEST_SPA + offset, LARGE if entry.large else PAGE_BYTES, entry)) == (0,)


def prepared(platform: Platform, *, looked: bool) -> Board:
    """Guest one owns pages 0 to 2, and 2 MiB; page 3 it has not accepted; page 4 is frozen, 5 guest two's."""
    board = snp_board(platform=platform)
    for page in range(3):
        give(board, page * PAGE_BYTES)
    give(board, LARGE, large=True)
    accepted = guest(board, op.PValidate(0, 3 * PAGE_BYTES, large=False), op.PValidate(LARGE, LARGE, large=True))
    assert accepted == (op.PValidateResult(0, unchanged=False),) * 2
    written = guest(board, op.Write(0, SECRET), op.Write(PAGE_BYTES, OTHER_SECRET), op.Write(LARGE, SECRET))
    assert written == (None,) * 3
    give(board, FRESH)
    give(board, 4 * PAGE_BYTES, immutable=True)
    give(board, 5 * PAGE_BYTES, asid=2)
    assert guest(board, op.PValidate(5 * PAGE_BYTES, PAGE_BYTES, large=False), vm="two")[0] == op.PValidateResult(
        0, unchanged=False
    )
    if looked:
        assert board.rmp is not None
        host(board, op.HostRead(board.rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES), 16 << 10))
    return board


def refused(answer: op.Answer) -> bool:
    return isinstance(answer, op.Fault) or (isinstance(answer, int) and answer != 0)


def remapped(board: Board, gpa: int, spa: int, length: int = PAGE_BYTES) -> None:
    host(board, op.NestedMap("one", gpa, GUEST_SPA + spa, length))


def junk(board: Board) -> bool:
    return refused(host(board, op.HostWrite(GUEST_SPA, b"junk"))[0])


def clear(board: Board) -> bool:
    return refused(host(board, op.HostClear(GUEST_SPA, PAGE_BYTES))[0])


def replay(board: Board) -> bool:
    (old,) = host(board, op.HostRead(GUEST_SPA, len(SECRET)))
    assert isinstance(old, bytes)
    guest(board, op.Write(0, OTHER_SECRET))
    if refused(host(board, op.HostWrite(GUEST_SPA, old))[0]):
        return True
    assert guest(board, op.Read(0, len(SECRET))) == (SECRET,)
    return False


def shared_write(board: Board) -> bool:
    return refused(guest(board, op.Write(0, b"x", private=False), vm="two")[0])


def two_pages_on_one(board: Board) -> bool:
    remapped(board, PAGE_BYTES, 0)
    wrote, read = guest(board, op.Write(PAGE_BYTES, OTHER_SECRET), op.Read(0, len(SECRET)))
    assert refused(wrote) is (read == SECRET)
    return refused(wrote)


def own_other_page(board: Board) -> bool:
    remapped(board, 0, PAGE_BYTES)
    (read,) = guest(board, op.Read(0, len(SECRET)))
    assert refused(read) or read == OTHER_SECRET
    return refused(read)


def own_other_large_page(board: Board) -> bool:
    remapped(board, 0, LARGE, LARGE)
    return refused(guest(board, op.Read(8 * PAGE_BYTES, 8))[0])


def adjusting_another_page(board: Board) -> bool:
    remapped(board, 0, PAGE_BYTES)
    return refused(guest(board, op.RmpAdjust(0, PAGE_BYTES, False, 1, 0xF))[0])


def accepting_another_page(board: Board) -> bool:
    remapped(board, 0, PAGE_BYTES)
    return refused(guest(board, op.PValidate(0, PAGE_BYTES, large=False, validate=False))[0])


def accepting_another_large_page(board: Board) -> bool:
    remapped(board, 2 * LARGE, LARGE, LARGE)
    return refused(guest(board, op.PValidate(2 * LARGE, LARGE, large=True, validate=False))[0])


def fresh_page(board: Board) -> bool:
    (answer,) = guest(board, op.Read(FRESH, 8))
    assert not refused(answer) or answer == op.Fault(op.FaultKind.PAGE_NOT_VALIDATED, FRESH)
    return refused(answer)


def adjusting_a_fresh_page(board: Board) -> bool:
    return refused(guest(board, op.RmpAdjust(FRESH, PAGE_BYTES, False, 1, 0xF))[0])


def entering_a_rescinded_save_area(board: Board) -> bool:
    guest(board, op.PValidate((16 << 20) + PAGE_BYTES, PAGE_BYTES, large=False, validate=False))
    return host(board, op.VmRun("one", 1)) == (VMEXIT_INVALID,)


def free_page(board: Board) -> bool:
    return refused(guest(board, op.Read(8 * PAGE_BYTES, 8))[0])


def frozen_page(board: Board) -> bool:
    return refused(guest(board, op.Read(4 * PAGE_BYTES, 8))[0])


def another_guests_page(board: Board) -> bool:
    return refused(guest(board, op.Read(5 * PAGE_BYTES, 8))[0])


def page_of_vmpl0(board: Board) -> bool:
    return refused(guest(board, op.Read(0, 8), vmpl=1)[0])


def device_write(board: Board) -> bool:
    assert board.rmp is not None
    try:
        board.rmp.check_dma(GUEST_SPA, 64, write=True)
    except RmpFault:
        return True
    return False


def taking_the_firmwares_page(board: Board) -> bool:
    return refused(host(board, op.RmpUpdate(GUEST_SPA + 4 * PAGE_BYTES, PAGE_BYTES, RmpEntry()))[0])


def entering_another_guests_save_area(board: Board) -> bool:
    area = save_area("two", 0)
    return host(board, op.VmcbWrite("x", 0, 1, "SEV_SNP", area), op.VmRun("x", 0))[1] == VMEXIT_INVALID


@dataclass(frozen=True)
class Attempt:
    act: Callable[[Board], bool]
    stopped_by: Protection | None


ATTEMPTS = {
    attempt.act.__name__: attempt
    for attempt in (
        Attempt(junk, Protection.RMP_WRITE_CHECK),
        Attempt(clear, Protection.RMP_WRITE_CHECK),
        Attempt(replay, Protection.RMP_WRITE_CHECK),
        Attempt(shared_write, Protection.RMP_WRITE_CHECK),
        Attempt(two_pages_on_one, Protection.GPA_MATCH),
        Attempt(own_other_page, Protection.GPA_MATCH),
        Attempt(own_other_large_page, Protection.GPA_MATCH),
        Attempt(adjusting_another_page, Protection.GPA_MATCH),
        Attempt(accepting_another_page, Protection.GPA_MATCH),
        Attempt(accepting_another_large_page, Protection.GPA_MATCH),
        Attempt(fresh_page, Protection.VALIDATED_BIT),
        Attempt(adjusting_a_fresh_page, Protection.VALIDATED_BIT),
        Attempt(entering_a_rescinded_save_area, Protection.VALIDATED_BIT),
        Attempt(free_page, None),
        Attempt(frozen_page, None),
        Attempt(another_guests_page, None),
        Attempt(page_of_vmpl0, None),
        Attempt(device_write, None),
        Attempt(taking_the_firmwares_page, None),
        Attempt(entering_another_guests_save_area, None),
    )
}


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_succeeds_without_what_stops_it_and_only_then(name: str, looked: bool) -> None:
    attempt = ATTEMPTS[name]
    assert attempt.act(prepared(Platform(), looked=looked))
    for protection in (Protection.RMP_WRITE_CHECK, Protection.GPA_MATCH, Protection.VALIDATED_BIT):
        board = prepared(OFF[protection], looked=looked)
        assert attempt.act(board) is (protection is not attempt.stopped_by), protection


@pytest.mark.parametrize("protection", Protection)
def test_guests_come_up_alike_on_a_chip_with_a_fault(protection: Protection) -> None:
    boards = [prepared(platform, looked=True) for platform in (Platform(), OFF[protection])]
    states = []
    for board in boards:
        assert board.rmp is not None
        at = board.rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES)
        states.append((host(board, op.HostRead(at, 16 << 10)), [board.vmcb("one", n).vmpl for n in range(VMPLS)]))
    assert states[0] == states[1]
