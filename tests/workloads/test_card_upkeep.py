"""A host's upkeep of its trusted cards: guests work on under fresh keys, and cards that nobody uses are let go."""

from __future__ import annotations

from node.card_operator import CardAction, CardEntry
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.guest_functions import guest_device_id
from node.host import Host, HostSpec
from node.physical_slots import PhysicalSlots
from node.platform import Platform
from node.product import PRODUCTS
from node.program import ProgramSpec
from tio.device_identity import CardKind
from workloads.library import PROGRAMS

SECOND = 10**9
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
"""Devices are attached sooner than the table has it, so that tests need not wait."""
CARDS = tuple([CardSlot(port, (CardKind.GPU, CardKind.NVME)[port % 2], f"000{port}") for port in range(1, 5)])
WORK = ProgramSpec("device-work", (("block_bytes", 4096), ("matrix_order", 12), ("rounds_attached", 2)))


def host_of(refresh_ns: int = 0) -> Host:
    platform = Platform(cards=CARDS, key_refresh_ns=refresh_ns)
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=platform)
    return Host(spec, PROGRAMS, {"auto": laboratory_image()}, COSTS)


def launched(host: Host, name: str = "vm") -> None:
    devices = CardKind.NVME, CardKind.GPU
    spec = GuestSpec(name, Generation.SEV_TIO, 1, 128 << 20, WORK, 7, devices=devices)
    host.launch(spec, lambda _: None, running=True)


def key_sets(host: Host) -> list[int]:
    """With which key set each card in use sends posted writes."""
    sets = []
    for card in host.hypervisor.tio.cards:
        if card.context:
            stream = host.board.slots.by_port[card.physical.port.port].root_port.port.streams[card.stream_id]
            sets.append(stream.sending_key(0)[0])
    return sets


def test_guests_work_on_under_fresh_keys_and_none_is_broken_by_too_many() -> None:
    host = host_of()
    launched(host)
    host.clock.env.run(until=SECOND // 2)
    guest = host.guests["vm"]
    before = key_sets(host)
    assert host.cards.roll_keys() == 2
    assert [1 - one for one in key_sets(host)] == before
    # Nothing was sent meanwhile: the keys of before are awaited still.
    assert host.cards.roll_keys() == 0
    assert host.cards.entries == [CardEntry(CardAction.ROLL_KEYS, host.now_ns, cards) for cards in (2, 0)]
    done = guest.vcpus[0].registers.r13
    host.clock.env.run(until=SECOND)
    assert (guest.state, guest.vcpus[0].registers.r13 >= done + 3) == (GuestState.RUNNING, True)


def test_a_platform_may_refresh_keys_by_itself() -> None:
    host = host_of(refresh_ns=SECOND // 8)
    launched(host)
    host.clock.env.run(until=SECOND)
    guest = host.guests["vm"]
    assert (guest.state, guest.vcpus[0].registers.r13 >= 6) == (GuestState.RUNNING, True)
    rolled = [one.cards for one in host.cards.entries]
    assert len(rolled) == 7
    assert sum(rolled) >= 4


def test_cards_that_nobody_uses_are_let_go_and_leave_nothing() -> None:
    host = host_of()
    launched(host)
    host.clock.env.run(until=SECOND // 2)
    assert host.cards.release() == 0
    host.destroy("vm")
    host.clock.env.run(until=SECOND)
    held = host.hypervisor.figures().memory_bytes
    ports = [card.physical.port.port for card in host.hypervisor.tio.cards if card.context]
    cards = [host.board.slots.by_port[port].card for port in ports]
    streams = [next(iter(card.port.streams.values())) for card in cards]
    assert all(stream.has_any_key() for stream in streams)
    assert host.cards.release() == 2
    assert not any(stream.has_any_key() for stream in streams)
    assert host.hypervisor.figures().memory_bytes < held
    assert host.cards.release() == 0
    launched(host, "next")
    host.clock.env.run(until=2 * SECOND)
    assert host.guests["next"].vcpus[0].registers.r13 >= 4


def test_of_a_card_that_was_taken_out_nothing_is_kept_once_its_guest_has_gone() -> None:
    host = host_of()
    launched(host)
    host.clock.env.run(until=SECOND // 2)
    given = host.hypervisor.tio.given("vm", guest_device_id(1))
    PhysicalSlots(host.board.root_complex, host.board.slots).pull(given.function.port.port)
    host.destroy("vm")
    host.clock.env.run(until=SECOND)
    assert not given.card.context
    assert host.cards.release() == 1  # The other one, which is still there.


def test_a_silent_card_is_let_go_by_force() -> None:
    host = host_of()
    launched(host)
    host.clock.env.run(until=SECOND // 2)
    host.destroy("vm")
    host.clock.env.run(until=SECOND)
    slots = PhysicalSlots(host.board.root_complex, host.board.slots)
    for card in host.hypervisor.tio.cards:
        slots.pull(card.physical.port.port)
    assert host.cards.release() == 2
    assert not any(card.context for card in host.hypervisor.tio.cards)
