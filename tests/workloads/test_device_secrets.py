"""What host and links see of a guest's work on its devices: nothing where it trusts them, and all of it otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from node import operations as op
from node.actor import Actor
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.counter_random import CounterRandom
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.host import Host, HostSpec
from node.physical_slots import PhysicalSlots
from node.platform import Platform, Protection
from node.product import PRODUCTS
from node.program import ProgramSpec
from psp.system_bus import LARGE_PAGE_BYTES
from tio.device_identity import CardKind
from tio.ide.link import Packet, Way
from workloads.block_outcome import UNTRUSTED
from workloads.keyed_content import KeyedContent
from workloads.library import PROGRAMS

SECOND = 10**9
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
ROUNDS, BLOCK_BYTES, PIECE_BYTES = 4, 4096, 16
DEVICES = CardKind.NVME, CardKind.GPU
CARDS = tuple([CardSlot(port, kind) for port, kind in enumerate(DEVICES, start=1)])
WORK = ProgramSpec(
    "device-work", (("block_bytes", BLOCK_BYTES), ("matrix_order", 12), ("pause_ms", 100), ("rounds_attached", 2))
)


@dataclass
class Seen:
    """What the host's own operations were answered, and what they said."""

    octets: list[bytes] = field(default_factory=list)

    def note(self, actor: Actor, batch: tuple, answers: tuple) -> None:
        if actor.role.name != "HYPERVISOR":
            return
        for one, answer in zip(batch, answers, strict=True):
            self.octets += [bytes(part) for part in (answer, getattr(one, "data", b"")) if isinstance(part, bytes)]


def secrets(count: int) -> list[bytes]:
    """Pieces of what the guest stores on its disk in so many rounds."""
    content = KeyedContent(CounterRandom(7).octets("vm/0", "device-work contents", 0, 32))
    words = np.arange(BLOCK_BYTES // 8, dtype=np.uint64)
    rounds = [content.words(words + np.uint64(one << 32)).tobytes() for one in range(count)]
    return [one[at : at + PIECE_BYTES] for one in rounds for at in range(0, BLOCK_BYTES, 1024)]


def octets(thing: Any) -> bytes:
    """All bytes in a packet, however deep."""
    if isinstance(thing, bytes | bytearray | memoryview):
        return bytes(thing)
    if isinstance(thing, tuple | list):
        return b"".join(map(octets, thing))
    return b"".join(octets(getattr(thing, one.name)) for one in fields(thing)) if is_dataclass(thing) else b""


def watched(
    generation: Generation,
    *disabled: Protection,
    devices: tuple[CardKind, ...] = DEVICES,
    work: ProgramSpec = WORK,
    cards: tuple[CardSlot, ...] = CARDS,
) -> tuple[list[bytes], bytes, bytes, bytes]:
    """The guest's secrets; what passed the host's hands, what crossed links; and what the host finds in its memory."""
    seen, crossed = Seen(), []
    platform = Platform(disabled=frozenset(disabled), cards=cards)
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=platform)
    host = Host(spec, PROGRAMS, {"auto": laboratory_image()}, COSTS, observer=seen.note)
    slots = PhysicalSlots(host.board.root_complex, host.board.slots)
    for card in CARDS:
        slots.tap(card.port, lambda _, packet: (crossed.append(packet), (packet,))[1])
    host.launch(GuestSpec("vm", generation, 1, 128 << 20, work, 7, devices=devices), lambda _: None, running=True)
    host.clock.env.run(until=SECOND)
    guest = host.guests["vm"]
    assert (guest.state, guest.vcpus[0].registers.r13 >= ROUNDS) == (GuestState.RUNNING, True)
    carried = b"".join(seen.octets)
    batch = tuple(
        op.HostRead(at, min(LARGE_PAGE_BYTES, spa + length - at))
        for spa, length in host.hypervisor.launched("vm").frames
        for at in range(spa, spa + length, LARGE_PAGE_BYTES)
    )
    looked = [one for one in host.board.execute_host(batch) if isinstance(one, bytes)]
    assert sum(map(len, looked)) >= 128 << 20
    looked = [one for one in looked if any(one)]
    stored = secrets(guest.vcpus[0].registers.r13 + 1)
    return stored, carried, octets(crossed), b"".join(looked)


@pytest.mark.parametrize(
    ("generation", "disabled", "on_links", "in_memory"),
    [
        (Generation.SEV_TIO, (), False, False),
        (Generation.SEV_TIO, (Protection.IDE,), True, False),
        (Generation.SEV_SNP, (), True, True),
        (Generation.PLAIN, (), True, True),
    ],
)
def test_work_in_private_memory_over_a_protected_link_is_nobodys_business(
    generation: Generation, disabled: tuple[Protection, ...], on_links: bool, in_memory: bool
) -> None:
    pieces, carried, crossed, held = watched(generation, *disabled)
    assert len(crossed) > 2 * ROUNDS * BLOCK_BYTES
    assert any(piece in crossed for piece in pieces) is on_links
    assert any(piece in held for piece in pieces) is in_memory
    assert not any(piece in carried for piece in pieces)


@pytest.mark.parametrize(("sealed", "seen"), [(False, True), (True, False)])
def test_a_card_without_tee_io_sees_private_memory_of_nobody_and_bounce_buffers_of_who_copies_there(
    sealed: bool, seen: bool
) -> None:
    cards = tuple([replace(one, tee_io=False) for one in CARDS])
    work = ProgramSpec("device-work", (*WORK.parameters, ("sealed", int(sealed))))
    pieces, _, crossed, held = watched(Generation.SEV_TIO, devices=(CardKind.GPU,), work=work, cards=cards)
    assert len(crossed) > ROUNDS * 1024
    assert [any(piece in found for piece in pieces) for found in (crossed, held)] == [seen, seen]


@pytest.mark.parametrize("sealed", [False, True])
def test_what_is_sealed_in_a_session_of_the_guests_own_is_nobodys_business_either(sealed: bool) -> None:
    work = ProgramSpec("device-work", (*WORK.parameters, ("sealed", int(sealed))))
    pieces, carried, crossed, held = watched(Generation.SEV_SNP, devices=(CardKind.GPU,), work=work)
    # Matrices and disk blocks of a round begin alike.
    assert len(crossed) > ROUNDS * 1024
    assert any(piece in crossed for piece in pieces) is not sealed
    assert any(piece in held for piece in pieces) is not sealed
    assert not any(piece in carried for piece in pieces)


@pytest.mark.parametrize("way", list(Way))
def test_sealed_work_that_is_altered_on_the_link_ends_and_is_never_believed(way: Way) -> None:
    work = ProgramSpec("device-work", (("matrix_order", 12), ("sealed", 1)))
    cards = (CardSlot(1, CardKind.GPU),)
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=Platform(cards=cards))
    host = Host(spec, PROGRAMS, {"auto": laboratory_image()}, COSTS)
    guest = GuestSpec("vm", Generation.SEV_SNP, 1, 128 << 20, work, 7, devices=(CardKind.GPU,))
    host.launch(guest, lambda _: None, running=True)
    host.clock.env.run(until=SECOND)
    done = host.guests["vm"].vcpus[0].registers.r13
    assert done >= 2

    def flipped(to: Way, packet: Packet) -> tuple[Packet]:
        """Data of a round are larger than anything else that crosses."""
        if to is way and len(packet.payload) >= 64:
            return (replace(packet, payload=bytes((packet.payload[0] ^ 1,)) + packet.payload[1:]),)
        return (packet,)

    PhysicalSlots(host.board.root_complex, host.board.slots).tap(1, flipped)
    host.clock.env.run(until=2 * SECOND)
    after = host.guests["vm"]
    assert (after.state, after.shutdown_code) == (GuestState.STOPPED, UNTRUSTED.code)
    assert after.vcpus[0].registers.r13 <= done + 1
