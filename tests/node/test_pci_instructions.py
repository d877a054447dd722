"""Configuration accesses and registers by address: which slot they reach, and what answers where none is."""

from __future__ import annotations

import pytest
from card_laboratory import CARDS, port_of, with_noting_ports
from rmp_laboratory import Laboratory

from node import operations as op
from node.card_slot import windows
from psp.system_bus import PAGE_BYTES

GPU, NVME = CARDS
GP, MC = op.FaultKind.GENERAL_PROTECTION, op.FaultKind.MACHINE_CHECK


@pytest.fixture(scope="module")
def made() -> Laboratory:
    return with_noting_ports()


@pytest.fixture
def lab(made: Laboratory) -> Laboratory:
    for one in CARDS:
        port_of(made, one.port).seen.clear()
        port_of(made, one.port).registers.clear()
    return made


@pytest.mark.parametrize("slot", CARDS)
def test_a_request_goes_to_the_port_that_has_the_bus_or_is_the_function(lab: Laboratory, slot: object) -> None:
    assert slot in CARDS
    one, other = (GPU, NVME) if slot is GPU else (NVME, GPU)
    for requester in (one.root_port, one.requester, one.requester | 0x21):
        assert lab.host(op.ConfigWrite(requester, 4, 6, 2), op.ConfigRead(requester, 4, 2)) == (None, 6)
    assert len(port_of(lab, one.port).seen) == 3
    assert port_of(lab, other.port).seen == []


@pytest.mark.parametrize("requester", [0, 1, 0x09, 0x50, 0x300, 0x1FFF, 0x1_0200, -1])
def test_where_no_function_is_loads_read_ones_and_stores_are_lost(lab: Laboratory, requester: int) -> None:
    found = lab.host(
        op.ConfigRead(requester, 0), op.ConfigRead(requester, 0, 1), op.ConfigWrite(requester, 0, 5),
        op.ConfigIn(requester, 0, 2), op.ConfigOut(requester, 0, bytes(8)),
    )  # fmt: skip
    assert found == (0xFFFF_FFFF, 0xFF, None, b"\xff" * 8, None)


def test_runs_store_and_load_one_register_word_after_word(lab: Laboratory) -> None:
    port, place = port_of(lab), GPU.requester << 12 | 0x110
    words = []
    port.configuration_write = lambda requester, offset, value, width: words.append((requester, offset, value, width))  # type: ignore[method-assign]
    lab.host(op.ConfigOut(GPU.requester, 0x110, b"\1\0\0\0\2\0\0\0"))
    assert words == [(GPU.requester, 0x110, 1, 4), (GPU.requester, 0x110, 2, 4)]
    port.registers[place] = 0x0403_0201
    words.clear()
    assert lab.host(op.ConfigIn(GPU.requester, 0x110, 2)) == (bytes((1, 2, 3, 4)) * 2,)
    assert words == [(GPU.requester, 0x110, 0, 4)] * 2
    del port.configuration_write  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "one",
    [
        op.ConfigRead(0, 0, 3), op.ConfigRead(0, 0, 8), op.ConfigWrite(0, 0, 1 << 16, 2), op.ConfigWrite(0, 0, -1),
        op.ConfigIn(0, 0, -1), op.ConfigIn(0, 0, op.MOST_WORDS + 1), op.ConfigOut(0, 0, b"abc"),
        op.ConfigOut(0, 0, bytes(4 * op.MOST_WORDS + 4)),
    ],
)  # fmt: skip
def test_what_is_no_configuration_access_is_gp(lab: Laboratory, one: op.HypervisorOperation) -> None:
    assert lab.host(one) == (op.Fault(GP, 0),)


def test_addresses_of_a_window_lead_to_its_port_and_none_beside_it(lab: Laboratory) -> None:
    first, second = windows(lab.board.dram.size_bytes, CARDS)
    for window in (first, second):
        last = window.end - 8
        assert lab.host(op.MmioWrite(last, 1 << 63 | 5), op.MmioRead(last), op.MmioRead(last, 1)) == (
            None, 1 << 63 | 5, 5
        )  # fmt: skip
    assert first.end == second.base
    for address in (first.base - 8, second.end, second.end - 4 if second.end % 8 else second.end + PAGE_BYTES):
        nothing = op.Fault(MC, address)
        assert lab.host(op.MmioRead(address), op.MmioWrite(address, 1)) == (nothing, nothing)


@pytest.mark.parametrize(("offset", "length"), [(2, 4), (4, 8), (0, 3), (0, 16), (0, 0), (0, -1)])
def test_only_whole_registers_are_reached(lab: Laboratory, offset: int, length: int) -> None:
    address = port_of(lab).window.base + offset
    nothing = op.Fault(MC, address)
    assert lab.host(op.MmioRead(address, length), op.MmioWrite(address, 1, length)) == (nothing, nothing)
    assert port_of(lab).seen == []


def test_slots_that_nobody_reaches_for_are_not_made() -> None:
    lab = with_noting_ports()
    slots = lab.board.root_complex
    assert slots is not None
    assert slots.made == ()
    lab.host(op.ConfigRead(NVME.requester, 0))
    assert slots.made == (NVME.port,)
