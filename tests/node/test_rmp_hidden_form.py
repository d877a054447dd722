"""A form of entries that nobody has published: they can be copied and put back, and not made up."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from rmp_tables import GUEST_SPA, snp_board

from node import operations as op
from node.board import Board
from node.physical_port import PhysicalPort
from node.platform import HostMode, Platform
from node.rmp_hidden_form import HiddenForm
from psp.system_bus import PAGE_BYTES, RmpEntry

SECRET = b"sixteen octets.." * 4


@pytest.fixture(params=[HostMode.NONE, HostMode.TSME])
def board(request: pytest.FixtureRequest) -> Board:
    board = snp_board(platform=Platform(mode=request.param), hidden_form=True)
    give(board, 0)
    give(board, 5)
    return board


def give(board: Board, page: int) -> None:
    entry = RmpEntry(assigned=True, gpa=page * PAGE_BYTES, asid=1)
    assert board.execute_host((op.RmpUpdate(GUEST_SPA + page * PAGE_BYTES, PAGE_BYTES, entry),)) == (0,)
    answers = guest(board, op.PValidate(page * PAGE_BYTES, PAGE_BYTES, False), op.Write(page * PAGE_BYTES, SECRET))
    assert answers == (op.PValidateResult(0, unchanged=False), None)


def guest(board: Board, *batch: op.GuestOperation) -> tuple[op.Answer, ...]:
    return board.execute_guest(board.vmcb("one", 0), batch)


def entry_at(board: Board, page: int) -> int:
    assert board.rmp is not None
    return board.rmp.layout.entry_spa(GUEST_SPA // PAGE_BYTES + page)


def test_the_instructions_show_what_the_bytes_do_not(board: Board) -> None:
    shown = op.RmpReadResult(0, bytes.fromhex("0050000000000000 01 02 00 00 01000000"))
    assert board.execute_host((op.RmpRead(GUEST_SPA + 5 * PAGE_BYTES),)) == (shown,)
    raw = PhysicalPort(board.dram).dump(entry_at(board, 5), 16)
    assert raw != struct.pack("<2Q", 1 | 0x5000 | 1 << 51 | 1 << 62, 0xF)
    assert board.execute_host((op.RmpRead(GUEST_SPA + 5 * PAGE_BYTES),)) == (shown,)


def test_a_made_up_entry_is_none_that_its_maker_chose(board: Board) -> None:
    port = PhysicalPort(board.dram)
    port.poke(entry_at(board, 5), struct.pack("<2Q", 1 | 0x5000 | 2 << 51 | 1 << 62, 0xF))
    assert board.bus.rmp_entry(GUEST_SPA + 5 * PAGE_BYTES).asid != 2
    assert isinstance(board.execute_guest(board.vmcb("two", 0), (op.Read(5 * PAGE_BYTES, 8),))[0], op.Fault)


def test_an_old_entry_put_back_counts_again(board: Board) -> None:
    port = PhysicalPort(board.dram)
    old = port.dump(entry_at(board, 5), 16)
    assert board.execute_host((op.RmpUpdate(GUEST_SPA + 5 * PAGE_BYTES, PAGE_BYTES, RmpEntry()),)) == (0,)
    assert isinstance(guest(board, op.Read(5 * PAGE_BYTES, 8))[0], op.Fault)
    port.poke(entry_at(board, 5), old)
    assert guest(board, op.Read(5 * PAGE_BYTES, len(SECRET))) == (SECRET,)


def test_two_entries_change_places_if_no_key_ties_them_to_theirs() -> None:
    """Exchanged pages of one guest: the attack needs copies alone."""
    for mode, works in ((HostMode.NONE, True), (HostMode.TSME, False)):
        board = snp_board(platform=Platform(mode=mode), hidden_form=True)
        give(board, 0)
        give(board, 5)
        port = PhysicalPort(board.dram)
        first, second = (port.dump(entry_at(board, page), 16) for page in (0, 5))
        port.poke(entry_at(board, 0), second)
        port.poke(entry_at(board, 5), first)
        guest(board, op.Write(0, b"first"))
        board.execute_host(
            (
                op.NestedMap("one", 0, GUEST_SPA + 5 * PAGE_BYTES, PAGE_BYTES),
                op.NestedMap("one", 5 * PAGE_BYTES, GUEST_SPA, PAGE_BYTES),
            )
        )
        assert (guest(board, op.Read(0, len(SECRET))) == (SECRET,)) is works


@pytest.mark.parametrize("seed", range(3))
def test_the_form_is_another_order_of_the_bits(seed: int) -> None:
    form = HiddenForm(np.random.default_rng(seed).bytes(HiddenForm.RANDOM_BYTES))
    seen = set()
    for bit in range(128):
        words = np.frombuffer((1 << bit).to_bytes(16, "little"), np.uint64)
        out, back = np.zeros(2, np.uint64), np.zeros(2, np.uint64)
        form.encrypt(words, 0, out)
        form.decrypt(out, 0, back)
        seen.add(out.tobytes())
        assert int.from_bytes(out.tobytes(), "little").bit_count() == 1
        assert (back == words).all()
    assert len(seen) == 128
    zeros = np.zeros(2, np.uint64)
    form.encrypt(zeros, 0, out)
    assert not out.any()


def test_a_flat_table_is_as_published() -> None:
    board = snp_board("Milan", hidden_form=True)
    give(board, 5)
    raw = PhysicalPort(board.dram).dump(entry_at(board, 5), 16)
    assert raw == struct.pack("<2Q", 1 | 0x5000 | 1 << 51 | 1 << 62, 0xF)
