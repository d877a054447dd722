"""The host's end of a link: what cores ask for reaches the card, and what the card asks for reaches memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from slot import BARS, CARD, DATA, FENCE, GPU_MEMORY, RESULT, RING, SESSION, STREAM, Slot, draw, keys_of, running

from tio.card import STREAM_PORT
from tio.device_security_module import ProtocolId
from tio.dma_port import DmaFault
from tio.doe import DataObject, DoeError
from tio.gpu import MEMORY_BAR, GpuCommand, GpuOpcode, GpuRegister, GpuStatus
from tio.ide import (
    Direction,
    Failure,
    IdeError,
    IdeTlp,
    Packet,
    StreamState,
    SubStream,
    Tlp,
    Way,
    completion,
    memory_read,
    memory_write,
)
from tio.ide import key_programmer as keys
from tio.ide.capability import BLOCKS_AT, BlockRegister
from tio.ide.keys import FIRST_INVOCATION
from tio.ide.requests import completions, configuration_write
from tio.pci import Register
from tio.pci.doe_mailbox import exchange
from tio.spdm import PCI_DOE, Requester, RequesterSettings, TrustAnchors
from tio.spdm.connection_messages import PCI_SIG_STANDARD, PCI_SIG_VENDOR
from tio.steps import carry
from tio.tdisp import InterfaceId, LockFlags, LockRequest, Tampering, TdiState, parse_report, requester

ONES = 0xFFFF_FFFF
STATUS = BLOCKS_AT + BlockRegister.STATUS
MEMORY_AT = BARS[MEMORY_BAR]
CANARY = b"a tenant's canary that nobody on the link may see"


def matrices() -> tuple[bytes, bytes]:
    """Two of 8 by 8 in a row, and their product as integers say it, cut to 32 bits."""
    drawn = np.random.default_rng(5).integers(-(1 << 31), 1 << 31, (2, 8, 8))
    product = [[sum(map(int.__mul__, row, column)) for column in drawn[1].T.tolist()] for row in drawn[0].tolist()]
    return drawn.astype("<i4").tobytes(), struct.pack("<64I", *[value % (1 << 32) for row in product for value in row])


def job(slot: Slot, *, tee: bool) -> None:
    """Copy in, multiply, copy out; the canary goes with the matrices."""
    brought, product = matrices()
    slot.memory.octets[DATA : DATA + len(brought) + len(CANARY)] = brought + CANARY
    slot.open_ring(tee=tee)
    length = len(brought) + len(CANARY)
    commands = (
        GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, length),
        GpuCommand(GpuOpcode.MULTIPLY, 2, 0, 0x1000, 256, 8, 8, 8),
        GpuCommand(GpuOpcode.COPY_OUT, 3, 0x1000, RESULT, 256),
        GpuCommand(GpuOpcode.COPY_OUT, 4, 0, RESULT + 256, length),
    )
    assert slot.submit(commands, tee=tee) == (4, GpuStatus.DONE)
    assert slot.memory.octets[RESULT : RESULT + 256] == product
    assert slot.memory.octets[RESULT + 256 : RESULT + 256 + length] == brought + CANARY


def test_a_card_is_attested_keyed_locked_and_works_over_its_link_and_nobody_on_it_learns_what() -> None:
    """Everything as its host carries it: the mailbox by configuration requests, the rest by packets."""
    slot = Slot()
    slot.watch()
    root, at = slot.root, slot.card.space.extended_at(slot.card.mailbox)
    assert root.configuration_read(CARD, at, 2) == 0x2E
    one = Requester(RequesterSettings(anchors=TrustAnchors((slot.card.identity.root,))), PCI_DOE, draw)

    def do(steps):
        return carry(steps, slot.through_the_mailbox)

    do(one.connect())
    do(one.digests())
    do(one.certificates())
    do(one.challenge())
    session = do(one.open_session())

    def told(protocol: ProtocolId, steps):
        def ask(message: bytes) -> bytes:
            payload = bytes((protocol,)) + message
            return do(one.vendor_defined(payload, PCI_SIG_STANDARD, PCI_SIG_VENDOR, session))[1:]

        return carry(steps, ask)

    some = keys_of()
    told(ProtocolId.IDE_KM, keys.program_keys(STREAM_PORT, STREAM, 0, some))
    for (way, sub_stream), key in some.items():
        root.program(STREAM, 0, Direction(1 - way), sub_stream, key, FIRST_INVOCATION)
        root.go(STREAM, 0, Direction(1 - way), sub_stream)
    told(ProtocolId.IDE_KM, keys.start_keys(STREAM_PORT, STREAM, 0))
    assert not root.is_secure(STREAM)
    slot.enable()
    assert root.is_secure(STREAM)
    interface = InterfaceId(CARD)
    nonce = told(ProtocolId.TDISP, requester.lock_interface(interface, LockRequest(0, STREAM)))
    report = parse_report(told(ProtocolId.TDISP, requester.read_report(interface)))
    assert [one.first_page << 12 for one in report.ranges] == [BARS[0], MEMORY_AT]
    told(ProtocolId.TDISP, requester.start_interface(interface, nonce))
    slot.seen.clear()
    job(slot, tee=True)
    assert all(isinstance(packet, IdeTlp) for _, packet in slot.seen)
    assert CANARY not in slot.on_the_wire()
    assert {(access.requester, access.tee, access.stream_id) for access in slot.memory.log} == {(CARD, True, STREAM)}


def test_without_a_stream_whoever_sits_on_the_link_reads_it() -> None:
    """The positive control of the test above."""
    slot = Slot()
    slot.watch()
    job(slot, tee=False)
    assert CANARY in slot.on_the_wire()
    assert {(access.tee, access.stream_id) for access in slot.memory.log} == {(False, None)}


# Loads and stores.


@pytest.mark.parametrize("tee", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_loads_and_stores_reach_the_bytes_they_name_and_no_others(width: int, tee: bool) -> None:
    slot = running() if tee else Slot()
    for at in range(0, 16, width):
        slot.gpu.memory[:16] = range(16)
        assert slot.root.load(MEMORY_AT + at, width, tee=tee) == int.from_bytes(range(at, at + width), "little")
        slot.root.store(MEMORY_AT + at, (1 << 8 * width) - 1, width, tee=tee)
        expected = bytearray(range(16))
        expected[at : at + width] = b"\xff" * width
        assert slot.gpu.memory[:16].tobytes() == expected


@pytest.mark.parametrize(("address", "width"), [(1, 4), (0, 3), (-4, 4), (1 << 64, 1)])
def test_what_no_core_can_ask_for_is_an_error_of_the_caller(address: int, width: int) -> None:
    slot = Slot()
    with pytest.raises(ValueError, match="alignment"):
        slot.root.load(address, width, tee=False)
    with pytest.raises(ValueError, match="alignment"):
        slot.root.store(address, 0, width, tee=False)


def test_where_nothing_answers_loads_are_ones() -> None:
    slot = Slot()
    assert slot.root.load(0x5000, 4, tee=False) == ONES
    assert slot.root.configuration_read(CARD + 1, 0) == ONES
    assert slot.root.configuration_read(CARD, 3, 2) == 0xFFFF
    slot.root.unplug()
    slot.root.store(MEMORY_AT, 1, 4, tee=False)
    assert slot.root.load(MEMORY_AT, 8, tee=False) == (1 << 64) - 1
    assert slot.root.configuration_read(CARD, Register.VENDOR_ID, 2) == 0xFFFF
    slot.root.configuration_write(CARD, Register.COMMAND, 0)


def test_an_untrusted_load_of_trusted_memory_is_refused_and_stores_change_nothing() -> None:
    slot = running()
    slot.gpu.memory[:4] = 7
    assert slot.root.load(MEMORY_AT, 4, tee=False) == ONES
    slot.root.store(MEMORY_AT, 0, 4, tee=False)
    assert slot.root.load(MEMORY_AT, 4, tee=True) == 0x07070707
    assert (slot.card.tdi.state, slot.card.port.streams[STREAM].state) == (TdiState.RUN, StreamState.SECURE)


def test_there_is_no_trusted_access_without_a_secure_stream() -> None:
    slot = Slot()
    slot.watch()
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    slot.root.store(MEMORY_AT, 5, 4, tee=True)
    assert slot.seen == []
    slot.give_keys()
    slot.seen.clear()
    assert slot.root.load(MEMORY_AT + 0x10_0000_0000, 4, tee=True) == ONES  # which belongs to no stream
    assert slot.seen == []


def test_what_is_unlocked_takes_nothing_trusted() -> None:
    slot = Slot()
    slot.give_keys()
    slot.root.store(MEMORY_AT, 5, 4, tee=True)
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    assert not slot.gpu.memory.any()
    assert slot.root.is_secure(STREAM)


def test_configuration_requests_reach_registers_in_their_widths_and_the_bus_number_is_captured() -> None:
    slot = Slot()
    root = slot.root
    assert root.configuration_read(CARD, Register.VENDOR_ID, 2) == 0x1AF4
    assert root.configuration_read(CARD, Register.CLASS_CODE + 2, 1) == 0x03
    root.configuration_write(CARD, Register.COMMAND + 1, 0x04, 1)
    assert root.configuration_read(CARD, Register.COMMAND, 2) == 0x0406
    assert (slot.card.space.bus, slot.card.function.requester_id) == (1, CARD)
    root.configuration_write(0x4200, Register.COMMAND, 6, 2)
    assert slot.card.function.requester_id == 0x4200


def test_configuration_is_never_taken_on_a_stream() -> None:
    """Somebody whose packets are protected asks for registers: the card refuses."""
    slot = running()
    wire = slot.root.port.streams[STREAM].send([configuration_write(0x18, CARD, Register.COMMAND, 0, 2, 9)])
    answers = slot.card.receive(wire)
    assert len(answers) == 1
    assert slot.card.tdi.state is TdiState.RUN


# Keys.


def test_keys_of_a_stream_that_is_not_set_up_are_refused() -> None:
    root = Slot().root
    for act in (
        lambda: root.program(9, 0, Direction.RX, SubStream.PR, bytes(32), 1),
        lambda: root.go(9, 0, Direction.RX, SubStream.PR),
        lambda: root.stop(9, 0, Direction.RX, SubStream.PR),
        lambda: root.is_secure(9),
        lambda: root.program(STREAM, 0, Direction.RX, SubStream.PR, bytes(31), 1),
        lambda: root.go(STREAM, 0, Direction.RX, SubStream.PR),
    ):
        with pytest.raises(IdeError):
            act()


def test_a_key_that_stops_ends_the_stream() -> None:
    slot = running()
    slot.root.stop(STREAM, 0, Direction.TX, SubStream.NPR)
    assert not slot.root.is_secure(STREAM)
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES


# What comes up and is not memory's to give.


def test_a_read_that_memory_refuses_is_answered_as_unsupported_and_a_write_is_lost() -> None:
    slot = running()
    slot.open_ring(tee=True)
    slot.memory.refused = {DATA >> 12, RESULT >> 12}
    assert slot.submit([GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, 64)], tee=True) == (1, GpuStatus.DMA_REFUSED)
    assert slot.submit([GpuCommand(GpuOpcode.COPY_OUT, 2, 0, RESULT, 64)], tee=True) == (2, GpuStatus.DONE)
    assert (slot.root.refused_reads, slot.root.refused_writes) == (1, 1)
    assert slot.card.tdi.state is TdiState.RUN


def test_requests_that_nobody_can_serve_are_answered_or_dropped() -> None:
    slot = Slot()
    gaps = Tlp(memory_read(CARD, 0x1000, 4, 8).header[:7] + b"\x05" + memory_read(CARD, 0x1000, 4, 8).header[8:])
    registers = Tlp(bytes.fromhex("04000001 0100080f 00180000"))
    slot.watch()
    slot.link.injected[Way.UP] += [gaps, registers]
    slot.root.store(MEMORY_AT, 1, 4, tee=False)
    answers = [packet for way, packet in slot.seen if way is Way.DOWN][1:]
    assert [packet.header[:1].hex() for packet in answers] == ["0a", "0a"]
    assert [packet.header[6] >> 5 for packet in answers] == [1, 1]


def test_a_configuration_request_for_more_than_a_register_is_refused() -> None:
    slot = Slot()
    slot.watch()
    slot.link.injected[Way.DOWN].append(Tlp(bytes.fromhex("04000101 010007ff 010000c0")))
    assert slot.root.load(MEMORY_AT, 4, tee=False) == 0
    answers = [packet.header for way, packet in slot.seen if way is Way.UP]
    assert [(header[0], header[6] >> 5) for header in answers] == [(0x0A, 1), (0x4A, 0)]


# Registers of streams.


def test_streams_are_set_up_and_seen_by_configuration_requests_at_both_ends() -> None:
    slot = Slot()
    assert [one(STATUS) for one in (slot.ide_of_root, slot.ide_of_card)] == [0, 0]
    slot.give_keys()
    assert [one(STATUS) & 0xF for one in (slot.ide_of_root, slot.ide_of_card)] == [2, 2]
    registers = slot.ide_km(keys.ask_for_port(STREAM_PORT)).registers
    assert registers == tuple([slot.ide_of_card(4 * at) for at in range(len(registers))])
    assert slot.root.space.read(Register.LINK_CAPABILITIES + 3, 1) == slot.root.number


@pytest.mark.parametrize("register", [BlockRegister.CONTROL, BlockRegister.RID_1, BlockRegister.ADDRESS_1])
def test_a_host_that_touches_the_bound_stream_takes_the_interface_to_error(register: BlockRegister) -> None:
    """Association can only change once the stream was disabled, which is what breaks the lock."""
    slot = running()
    at = slot.root.ide.block_at(0) + register
    slot.ide_of_card(at, 0)
    if register is BlockRegister.CONTROL:
        assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.IDE_CONTROL)
        assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    else:
        assert slot.card.tdi.state is TdiState.RUN
    # Another stream is the host's.
    slot = running()
    slot.ide_of_card(slot.root.ide.block_at(1) + register, 9 << 24)
    assert slot.card.tdi.state is TdiState.RUN


def test_a_stream_that_fails_at_one_end_fails_at_the_other() -> None:
    slot = running()
    slot.open_ring(tee=True)
    slot.link.tap = tampering(Way.UP, flipped)
    slot.dma.write(DATA, bytes(64))
    slot.link.tap = None
    assert slot.root.port.streams[STREAM].failure is Failure.MAC
    assert slot.card.port.streams[STREAM].failure is Failure.PARTNER
    assert slot.ide_of_card(STATUS) == 1 << 31
    assert slot.card.tdi.state is TdiState.ERROR


# Whoever sits on the link.


def tampering(way: Way, change):
    def tap(this: Way, packet: Packet) -> list[Packet]:
        return change(packet) if this is way else [packet]

    return tap


def flipped(packet: Packet) -> list[Packet]:
    if not packet.payload:
        return [packet]
    octets = bytes((packet.payload[0] ^ 1,)) + packet.payload[1:]
    if isinstance(packet, IdeTlp):
        return [IdeTlp(packet.prefix, packet.header, octets, packet.mac)]
    return [Tlp(packet.header, octets)]


@pytest.mark.parametrize(
    "change", [flipped, lambda _: [], lambda packet: [packet, packet]], ids=["altered", "dropped", "repeated"]
)
@pytest.mark.parametrize("way", list(Way))
def test_whatever_is_done_on_a_protected_link_nothing_wrong_arrives_and_nothing_breaks(way: Way, change) -> None:
    slot = running()
    slot.open_ring(tee=True)
    slot.memory.octets[DATA : DATA + 512] = CANARY.ljust(512, b"!")
    commands = [GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, 512), GpuCommand(GpuOpcode.COPY_OUT, 2, 0, RESULT, 512)]
    slot.link.tap = tampering(way, change)
    slot.submit(commands, tee=True)
    slot.submit([GpuCommand(GpuOpcode.COPY_OUT, 3, 0, RESULT, 512)], tee=True)
    assert slot.memory.octets[RESULT : RESULT + 512] in (bytes(512), CANARY.ljust(512, b"!"))
    slot.link.tap = None
    # What was dropped shows in the next packet on the same sub-stream.
    assert slot.root.load(MEMORY_AT, 4, tee=True) in (ONES, 0, int.from_bytes(CANARY[:4], "little"))
    with pytest.raises(DmaFault):
        slot.dma.read(DATA, 64)
    ends = [port.streams[STREAM] for port in (slot.root.port, slot.card.port)]
    assert StreamState.INSECURE in [one.state for one in ends]


def test_an_unprotected_link_takes_what_somebody_made_of_it() -> None:
    """The control: the same on a plain card."""
    slot = Slot()
    slot.open_ring(tee=False)
    slot.memory.octets[DATA : DATA + 4] = b"true"
    slot.link.tap = tampering(Way.DOWN, lambda p: flipped(p) if p.header[0] == 0x4A and len(p.payload) == 4 else [p])
    assert slot.submit([GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, 4)], tee=False) == (1, GpuStatus.DONE)
    assert slot.gpu.memory[:4].tobytes() == b"urue"


def test_a_completion_that_was_held_back_is_thrown_away_or_answers_another_load() -> None:
    """CVE-2025-9613 over a whole link, without and with the fence of tags."""
    for fenced in (False, True):
        slot = running()
        slot.root.port._tag_fence = fenced
        slot.gpu.memory[:8] = [1, 1, 1, 1, 2, 2, 2, 2]
        held: list[Packet] = []
        slot.link.tap = tampering(Way.UP, lambda packet, held=held: held.append(packet) or [])
        assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
        slot.link.tap = tampering(Way.UP, lambda packet, held=held: [held.pop(0), packet] if held else [packet])
        expected = 0x02020202 if fenced else 0x01010101
        assert slot.root.load(MEMORY_AT + 4, 4, tee=True) == expected


def test_a_stranger_in_the_slot_opens_nothing() -> None:
    """Somebody swaps the card: the new one has no keys."""
    slot = running()
    other = Slot()
    slot.root.plug(other.card)
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    slot.card.receive([])
    with pytest.raises(DmaFault):
        slot.dma.read(DATA, 64)


def test_a_mailbox_of_a_card_that_is_gone_is_an_error_of_the_exchange() -> None:
    slot = Slot()
    at = slot.card.space.extended_at(slot.card.mailbox)
    slot.root.unplug()
    with pytest.raises(DoeError, match="no error"):
        exchange(
            lambda offset: slot.root.configuration_read(CARD, at + offset),
            lambda offset, value: slot.root.configuration_write(CARD, at + offset, value),
            DataObject(1, 0, bytes(4)),
        )


def test_an_end_of_the_session_takes_link_and_interface_with_it() -> None:
    slot = running()
    slot.card.dsm.end_session(SESSION)
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.SESSION_END)
    assert slot.card.port.streams[STREAM].failure is Failure.SESSION
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES


def test_interrupts_are_trusted_if_the_lock_holds_their_table() -> None:
    """And else go in the clear, beside the stream."""
    for flags, tee in ((LockFlags.LOCK_MSIX, True), (LockFlags(0), False)):
        slot = Slot()
        slot.give_keys()
        slot.set_vector(0, 0x8000, 0xAB)
        slot.run(flags)
        slot.memory.log.clear()
        assert slot.dma.interrupt(0)
        assert slot.memory.octets[0x8000:0x8004] == b"\xab\0\0\0"
        assert [(one.tee, one.stream_id) for one in slot.memory.log] == [(tee, STREAM if tee else None)]
        slot.card.dsm.end_session(SESSION)
        assert not slot.dma.interrupt(0)


def test_the_ring_is_where_the_test_says() -> None:
    slot = Slot()
    slot.open_ring(tee=False)
    assert slot.root.load(BARS[0] + GpuRegister.RING_BASE, 8, tee=False) == RING
    assert slot.root.load(BARS[0] + GpuRegister.FENCE_BASE, 8, tee=False) == FENCE
    assert slot.root.load(BARS[0] + GpuRegister.MEMORY_BYTES, 4, tee=False) == GPU_MEMORY


# Long reads and writes.


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("tee", [False, True])
@pytest.mark.parametrize(("address", "length"), [(0x40000, 0x8000), (0x40003, 0x5001), (0x40FFE, 5), (0x40010, 300)])
def test_long_reads_and_writes_bring_every_byte_once(address: int, length: int, tee: bool, watched: bool) -> None:
    slot = running() if tee else Slot()
    if watched:
        slot.watch()
    data = np.random.default_rng(length).bytes(length)
    slot.memory.log.clear()
    slot.dma.write(address, data)
    assert slot.memory.octets[address : address + length] == data
    assert sum(one.length for one in slot.memory.log) == length
    slot.memory.log.clear()
    assert slot.dma.read(address, length) == data
    assert sum(one.length for one in slot.memory.log) == length
    assert {one.tee for one in slot.memory.log} == {tee}
    before = bytes(slot.memory.octets)
    slot.dma.write(address, b"")
    assert slot.dma.read(address, 0) == b""
    assert slot.memory.octets == before


def test_a_page_refused_in_the_middle_of_a_long_read_is_asked_for_once() -> None:
    slot = running()
    slot.memory.refused = {0x42}
    with pytest.raises(DmaFault):
        slot.dma.read(0x40000, 0x4000)
    assert slot.root.refused_reads == 1
    assert slot.card.tdi.state is TdiState.RUN
    assert slot.dma.read(0x43000, 0x2000) == bytes(0x2000)


def test_a_card_may_say_that_a_refusal_ends_trust() -> None:
    slot = running(refusal_ends=True)
    slot.memory.refused = {0x42}
    with pytest.raises(DmaFault):
        slot.dma.read(0x42000, 64)
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.COMPLETION)


# Answers that are wrong.


def test_an_answer_without_the_t_bit_of_its_request_ends_trust() -> None:
    """A root port that takes T bits away, on a stream that carries both."""
    slot = running(tee_limited=False)
    root = slot.root.port

    def without_t(wire: list) -> list:
        (asked,) = root.receive(wire)
        answers = list(completions(0x18, asked.packet, b"data", 256))
        return root.send(answers, tee=False, answers_on=STREAM)

    slot.card.upstream = without_t
    with pytest.raises(DmaFault):
        slot.dma.read(DATA, 4)
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.COMPLETION)


def test_an_answer_that_is_marked_as_wrong_is_not_taken() -> None:
    slot = running()
    root = slot.root.port

    def poisoned(wire: list) -> list:
        (asked,) = root.receive(wire)
        answers = [one.as_poisoned() for one in completions(0x18, asked.packet, b"data", 256)]
        return root.send(answers, tee=True, answers_on=STREAM)

    slot.card.upstream = poisoned
    with pytest.raises(DmaFault):
        slot.dma.read(DATA, 4)
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.POISONED)


@pytest.mark.parametrize("counts", [(8, 4), (4, 4), (12, 8)])
def test_answers_whose_counts_do_not_fit_together_are_none(counts: tuple[int, int]) -> None:
    """A plain card, whose answers anybody makes: 8 bytes in two, each saying how many are to come."""
    slot = Slot()

    def cut(wire: list) -> list:
        (asked,) = wire
        return [
            completion(0x18, CARD, asked.tag, b"evil", byte_count=count, lower_address=4 * number)
            for number, count in enumerate(counts)
        ]

    slot.card.upstream = cut
    if counts == (8, 4):
        assert slot.dma.read(DATA, 8) == b"evilevil"
        return
    with pytest.raises(DmaFault):
        slot.dma.read(DATA, 8)


def test_after_a_reset_no_tag_waits_for_what_cannot_come() -> None:
    slot = Slot()
    slot.root.port._tag_fence = True
    slot.link.tap = lambda way, packet: [] if way is Way.UP else [packet]
    for _ in range(300):
        assert slot.root.load(MEMORY_AT, 4, tee=False) == ONES
    slot.link.tap = None
    assert slot.root.load(MEMORY_AT, 4, tee=False) == ONES  # every tag is fenced
    slot.root.reset()
    slot.set_up()
    assert slot.root.load(MEMORY_AT, 4, tee=False) == 0


@pytest.mark.parametrize("poisoned", [False, True])
def test_a_store_that_is_marked_as_wrong_is_taken_by_neither_end(poisoned: bool) -> None:
    slot, data = running(), bytes(range(1, 65))
    down, up = memory_write(0x18, BARS[MEMORY_BAR], data), memory_write(CARD, DATA, data)
    if poisoned:
        down, up = down.as_poisoned(), up.as_poisoned()
    slot.card.receive(slot.root.port.send([down]))
    slot.card.upstream(slot.card.port.send([up]))
    found = slot.gpu.memory[:64].tobytes(), bytes(slot.memory.octets[DATA : DATA + 64])
    assert found == ((bytes(64),) * 2 if poisoned else (data,) * 2)
    assert slot.root.is_secure(STREAM)
