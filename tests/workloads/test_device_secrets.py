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
from node.guest import Guest, GuestSpec, GuestState
from node.host import Host, HostSpec
from node.physical_slots import PhysicalSlots
from node.platform import Platform, Protection
from node.product import PRODUCTS
from node.program import ProgramSpec
from psp.system_bus import LARGE_PAGE_BYTES
from tio.device_identity import CardKind
from tio.ide.link import Packet, Way
from workloads.attacks.overheard_keys import keys_in, opened
from workloads.block_outcome import UNTRUSTED
from workloads.device_work import NOT_TRUSTED
from workloads.keyed_content import KeyedContent
from workloads.library import PROGRAMS

SECOND = 10**9
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
ROUNDS, PEERS_ROUNDS = 6, 4
BLOCK_BYTES, ORDER, FRAME_BYTES, PIECE_BYTES = 4096, 12, 1024, 16
DEVICES = CardKind.NVME, CardKind.NIC, CardKind.GPU
CARDS = tuple([CardSlot(port, kind) for port, kind in enumerate(DEVICES, start=1)])
PEERS_CARD = CardSlot(4, CardKind.NIC, "0009")
WORK = ProgramSpec(
    "device-work",
    (("block_bytes", BLOCK_BYTES), ("frame_bytes", FRAME_BYTES), ("matrix_order", ORDER), ("pause_ms", 50)),
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


def pieces_of(vm: str, rounds: int) -> dict[CardKind, list[bytes]]:
    """Pieces of what a machine gives each of its devices in so many rounds, and of what its GPU makes of it."""
    content = KeyedContent(CounterRandom(7).octets(f"{vm}/0", "device-work contents", 0, 32))
    words = np.arange(BLOCK_BYTES // 8, dtype=np.uint64)
    blocks = [content.words(words + np.uint64(one << 32)).tobytes() for one in range(rounds)]
    matrices = [np.frombuffer(one, "<i4")[: 2 * ORDER * ORDER].reshape(2, ORDER, ORDER) for one in blocks]
    given = [one.tobytes() for one in matrices] + [(one @ other).tobytes() for one, other in matrices]
    wholes = {CardKind.NVME: blocks, CardKind.NIC: [one[:FRAME_BYTES] for one in blocks], CardKind.GPU: given}
    return {
        kind: [one[at : at + PIECE_BYTES] for one in data for at in range(0, len(one), PIECE_BYTES)]
        for kind, data in wholes.items()
    }


def octets(thing: Any) -> bytes:
    """All bytes in a packet, however deep."""
    if isinstance(thing, bytes | bytearray | memoryview):
        return bytes(thing)
    if isinstance(thing, tuple | list):
        return b"".join(map(octets, thing))
    return b"".join(octets(getattr(thing, one.name)) for one in fields(thing)) if is_dataclass(thing) else b""


@dataclass(frozen=True)
class Watched:
    """A machine's secrets by device, and its peer's; what passed the host's hands, crossed each link, and lies in
    both machines' memory as the host reads it; which devices are trusted in the end, and how the machine ended."""

    pieces: dict[CardKind, list[bytes]]
    peers: list[bytes]
    carried: bytes
    packets: dict[int, list[tuple[Way, Packet]]]
    held: bytes
    trusted: int
    ended: int

    @property
    def crossed(self) -> dict[int, bytes]:
        return {port: octets(packets) for port, packets in self.packets.items()}

    @property
    def links(self) -> bytes:
        return b"".join(self.crossed.values())


def found(pieces: list[bytes], where: bytes) -> int:
    """How many pieces lie there, anywhere: candidates by their first two bytes, then compared whole."""
    begins = np.zeros(1 << 16, bool)
    begins[np.frombuffer(b"".join(one[:2] for one in pieces), "<u2")] = True
    views = [np.frombuffer(where, "<u2", (len(where) - odd) // 2, odd) for odd in (0, 1)]
    places = [2 * at + odd for odd, view in enumerate(views) for at in np.flatnonzero(begins[view]).tolist()]
    return len(frozenset(pieces) & {where[at : at + PIECE_BYTES] for at in places})


def watched(
    generation: Generation,
    *disabled: Protection,
    devices: tuple[CardKind, ...] = DEVICES,
    rounds_attached: int = 4,
    sealed: bool = False,
    cards: tuple[CardSlot, ...] = CARDS,
    peer: bool = False,
) -> Watched:
    """Watch a machine work for some rounds: the host's own operations, every link, and its memory thereafter."""
    seen = Seen()
    packets: dict[int, list[tuple[Way, Packet]]] = {card.port: [] for card in cards}
    platform = Platform(disabled=frozenset(disabled), cards=cards)
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=platform)
    host = Host(spec, PROGRAMS, {"auto": laboratory_image()}, COSTS, observer=seen.note)
    slots = PhysicalSlots(host.board.root_complex, host.board.slots)
    for port, crossed in packets.items():
        slots.tap(port, lambda way, packet, crossed=crossed: (crossed.append((way, packet)), (packet,))[1])

    def launch(name: str, given: tuple[CardKind, ...], *more: tuple[str, int | str]) -> Guest:
        work = ProgramSpec("device-work", (*WORK.parameters, *more))
        guest = GuestSpec(name, generation, 1, 64 << 20, work, 7, devices=given, network=peer)
        host.launch(guest, lambda _: None, running=True)
        return host.guests[name]

    habits = ("rounds_attached", rounds_attached), ("sealed", int(sealed)), ("peer", "other" if peer else "")
    guests = [launch("vm", devices, *habits)]
    guests += [launch("other", (CardKind.NIC,), ("peer", "vm"))] if peer else []
    rounds = ROUNDS, PEERS_ROUNDS
    registers = [guest.vcpus[0].registers for guest in guests]
    while any(one.r13 < least for one, least in zip(registers, rounds, strict=False)):
        if any(guest.state is not GuestState.RUNNING for guest in guests):
            break
        assert host.clock.env.now < 2 * SECOND
        host.clock.env.run(until=host.clock.env.now + SECOND // 20)
    carried = b"".join(seen.octets)
    batch = tuple(
        op.HostRead(at, min(LARGE_PAGE_BYTES, spa + length - at))
        for guest in guests
        for spa, length in host.hypervisor.launched(guest.spec.name).frames
        for at in range(spa, spa + length, LARGE_PAGE_BYTES)
    )
    looked = [one for one in host.board.execute_host(batch) if isinstance(one, bytes)]
    assert sum(map(len, looked)) >= len(guests) * (64 << 20)
    return Watched(
        pieces_of("vm", registers[0].r13 + 1),
        pieces_of("other", registers[-1].r13 + 1)[CardKind.NIC] if peer else [],
        carried,
        packets,
        b"".join(one for one in looked if one != bytes(len(one))),
        registers[0].r11,
        guests[0].shutdown_code,
    )


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
    """One machine stores, talks with another, and has its GPU multiply. What crosses its NIC's cable is as sent."""
    saw = watched(generation, *disabled, cards=(*CARDS, PEERS_CARD), peer=True)
    assert (saw.ended, saw.trusted) == (0, 0b111 if generation is Generation.SEV_TIO else 0)
    crossed = saw.crossed
    assert len(crossed[1]) > 2 * ROUNDS * BLOCK_BYTES
    for card in CARDS:
        assert (found(saw.pieces[card.kind], crossed[card.port]) > 0) is on_links
        assert (found(saw.pieces[card.kind], saw.held) > 0) is in_memory
    for card in (CARDS[1], PEERS_CARD):
        # Frames cross two links each, one as they are sent and one as they arrive.
        for pieces in (saw.pieces[CardKind.NIC], saw.peers):
            assert (found(pieces, crossed[card.port]) >= PEERS_ROUNDS) is on_links
    secrets = [one for pieces in saw.pieces.values() for one in pieces] + saw.peers
    assert (found(secrets, saw.links) > 0, found(secrets, saw.held) > 0) == (on_links, in_memory)
    assert found(secrets, saw.carried) == 0


# Keys of links.

KEYS_OF_A_STREAM = 6
"""Three sub-streams, both ways."""


@pytest.mark.parametrize(
    ("encrypts", "disabled", "works", "known"),
    [
        (True, (Protection.SESSION_ENCRYPTION,), True, False),
        # Nobody gives keys to a card where they would be overheard, nor lets it into private memory.
        (False, (), False, False),
        (False, (Protection.SESSION_ENCRYPTION,), True, True),
    ],
)
def test_only_who_carries_sessions_that_do_not_encrypt_learns_the_keys_of_links_and_with_them_everything(
    encrypts: bool, disabled: tuple[Protection, ...], works: bool, known: bool
) -> None:
    """The same work as above, on devices that stay attached; what each card is given is read on its own link."""
    cards = tuple([replace(one, encrypts=encrypts) for one in (*CARDS, PEERS_CARD)])
    saw = watched(Generation.SEV_TIO, *disabled, cards=cards, peer=True, rounds_attached=0)
    assert (saw.ended, saw.trusted) == ((0, 0b111) if works else (NOT_TRUSTED.code, 0))
    secrets = [one for pieces in saw.pieces.values() for one in pieces] + saw.peers
    assert found(secrets, saw.links + saw.carried) == 0
    keys = keys_in(saw.carried)
    assert len(keys) == len(cards) * KEYS_OF_A_STREAM * known
    for card in cards if known else ():
        own = [one for one in keys if one.stream_id == card.port]
        assert len(own) == KEYS_OF_A_STREAM
        read = opened(saw.packets[card.port], own)
        if card is not cards[-1]:
            assert found(saw.pieces[card.kind], read) > ROUNDS
        if card.kind is CardKind.NIC:
            # Frames of both machines cross both links.
            for pieces in (saw.pieces[CardKind.NIC], saw.peers):
                assert found(pieces, read) >= PEERS_ROUNDS


# Without trusted I/O.


@pytest.mark.parametrize(("sealed", "seen"), [(False, True), (True, False)])
def test_a_card_without_tee_io_sees_private_memory_of_nobody_and_bounce_buffers_of_who_copies_there(
    sealed: bool, seen: bool
) -> None:
    cards = tuple([replace(one, tee_io=False) for one in CARDS])
    gpu = (CardKind.GPU,)
    saw = watched(Generation.SEV_TIO, devices=gpu, sealed=sealed, cards=cards)
    assert len(saw.links) > ROUNDS * 1024
    assert [found(saw.pieces[CardKind.GPU], seen_there) > 0 for seen_there in (saw.links, saw.held)] == [seen, seen]


@pytest.mark.parametrize("sealed", [False, True])
def test_what_is_sealed_in_a_session_of_the_guests_own_is_nobodys_business_either(sealed: bool) -> None:
    saw = watched(Generation.SEV_SNP, devices=(CardKind.GPU,), sealed=sealed)
    pieces = saw.pieces[CardKind.GPU]
    assert len(saw.links) > ROUNDS * 1024
    assert (found(pieces, saw.links) > 0) is not sealed
    assert (found(pieces, saw.held) > 0) is not sealed
    assert found(pieces, saw.carried) == 0


def test_no_keys_for_sealed_work_are_given_where_the_bus_would_overhear_them() -> None:
    cards = (CardSlot(1, CardKind.GPU, encrypts=False),)
    saw = watched(Generation.SEV_SNP, devices=(CardKind.GPU,), cards=cards, sealed=True)
    assert saw.ended == NOT_TRUSTED.code
    assert found(saw.pieces[CardKind.GPU], saw.links + saw.carried) == 0


@pytest.mark.parametrize(
    ("maker", "updates", "code"),
    [(1, (), 0), (2, (), NOT_TRUSTED.code), (1, (op.CardUpdate(1, "1.1", 2),), NOT_TRUSTED.code)],
)
def test_sealed_work_is_given_to_a_proper_card_alone(maker: int, updates: tuple, code: int) -> None:
    """One of the maker that the tenant knows, which runs what the tenant knows; and nothing is given to any other."""
    work = ProgramSpec("device-work", (("matrix_order", ORDER), ("sealed", 1)))
    platform = Platform(cards=(CardSlot(1, CardKind.GPU, maker=maker),))
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=platform)
    host = Host(spec, PROGRAMS, {"auto": laboratory_image()}, COSTS)
    assert host.board.execute_host(updates) == (None,) * len(updates)
    guest = GuestSpec("vm", Generation.SEV_SNP, 1, 64 << 20, work, 7, devices=(CardKind.GPU,))
    host.launch(guest, lambda _: None, running=True)
    host.clock.env.run(until=SECOND // 2)
    assert host.guests["vm"].shutdown_code == code
    assert (host.guests["vm"].vcpus[0].registers.r13 > 0) is (code == 0)


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
