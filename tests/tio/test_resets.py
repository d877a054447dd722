"""Conventional reset, and configuration requests that nobody on the link looks at."""

from __future__ import annotations

from random import Random

import pytest
from slot import BARS, CARD, SESSION, STREAM, Slot, running

from tio.ide import Failure, StreamState
from tio.pci import Command, Register
from tio.tdisp import TdiState

BRIDGE_CONTROL, BUS_RESET = 0x3E, 1 << 6


@pytest.mark.parametrize("width", [2, 4])
def test_secondary_bus_reset_leaves_no_keys_no_lock_and_no_addresses(width: int) -> None:
    slot = running()
    slot.card.function.msix.store(12, 0, 4)
    at = BRIDGE_CONTROL & -width
    slot.root.configuration_write(slot.root.requester_id, at, BUS_RESET << 8 * (BRIDGE_CONTROL - at), width)
    root = slot.root.port.streams[STREAM]
    assert (root.state, root.failure) == (StreamState.INSECURE, Failure.RESET)
    fresh = slot.card.port.streams[STREAM]
    assert not fresh.enabled
    assert not fresh.has_any_key()
    assert slot.card.tdi.state is TdiState.CONFIG_UNLOCKED
    assert Command.MEMORY_SPACE not in slot.card.space.command
    assert [slot.card.space.bar_address(index) for index in BARS] == [0, 0, 0]
    assert slot.card.function.msix.load(12, 4) == 1
    assert not slot.gpu.memory.any()
    # The bit reads zero; what else is written there does nothing.
    assert slot.root.configuration_read(slot.root.requester_id, BRIDGE_CONTROL, 2) == 0


def test_other_bits_of_the_bridge_s_control_reset_nothing() -> None:
    slot = running()
    for offset, value, width in ((0x3E, 0xFFBF, 2), (0x3C, 0xFFBF_FFFF, 4), (0x3F, 0xFF, 1), (0x3D, 0xFF, 1)):
        slot.root.configuration_write(slot.root.requester_id, offset, value, width)
    assert slot.card.tdi.state is TdiState.RUN
    assert slot.card.port.streams[STREAM].state is StreamState.SECURE


def test_a_card_that_was_reset_is_as_new() -> None:
    slot = running()
    for way in (Slot().card.reset, slot.card.reset):
        way()
    new = Slot()
    new.card.reset()
    assert dumped(slot) == dumped(new)


def dumped(slot: Slot) -> list[tuple[int, int]]:
    return [(at, slot.card.space.read(at)) for at in range(0, 0x400, 4)]


def test_the_end_of_a_session_whose_stream_the_host_took_away_harms_nobody() -> None:
    slot = running()
    slot.card.ide.reset()
    slot.card.dsm.end_session(SESSION)
    assert slot.card.tdi.state is not TdiState.RUN


def test_with_and_without_somebody_on_the_link_configuration_requests_find_and_do_the_same() -> None:
    bare, watched = Slot(), Slot()
    watched.watch()
    random = Random(5)
    for _ in range(300):
        requester = random.choice((CARD, CARD, CARD, CARD + 1, CARD | 0x300, watched.root.requester_id))
        offset, width = random.randrange(-4, 0x220), random.choice((1, 2, 4, 4, 8))
        value = random.choice((0, 6, 0xFFFF_FFFF, random.getrandbits(32)))
        if random.random() < 0.5:
            for slot in (bare, watched):
                slot.root.configuration_write(requester, offset, value, width)
        found = [slot.root.configuration_read(requester, offset, width) for slot in (bare, watched)]
        assert found[0] == found[1]
    assert dumped(bare) == dumped(watched)
    assert watched.seen
    assert bare.card.space.bus == watched.card.space.bus
    assert bare.card.space.read(Register.VENDOR_ID, 2) == 0x1AF4
