"""Two trusted cards on a stream of their own: what one takes from the other, and whoever sits between learns nothing.

Two interfaces of one guest, each bound to the stream by BIND_P2P_STREAM. Source: PCI Express base specification 6.x,
11.3.16 to 11.3.19 and 6.33 (selective streams pass what lies between their ends).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from slot import BARS, DATA, Slot, keys_of, running

from tio.card import STREAM_PORT
from tio.dma_port import DmaFault
from tio.ide import Direction, Packet, StreamState, SubStream, Way
from tio.ide import key_programmer as keys
from tio.ide.capability import control_word
from tio.ide.stream import IdeTlp
from tio.peer_path import PeerPath, PeerWindow
from tio.tdisp import InterfaceId, LockFlags, TdispError, TdiState, requester
from tio.tdisp.messages import ErrorCode

PEER, P2P = 0x0500, 9
PEER_BARS = {index: address + (1 << 36) for index, address in BARS.items()}
MEMORY, PEER_MEMORY = BARS[2], PEER_BARS[2]
LOCK = LockFlags.BIND_P2P
SECRET = b"between two cards of one guest.."


class OtherSlot(Slot):
    """The peer's."""

    requester, bars = PEER, PEER_BARS


def bind(slot: Slot, stream_id: int = P2P) -> None:
    slot.tdisp(requester.bind_p2p_stream(InterfaceId(slot.requester), stream_id))


def unbind(slot: Slot, stream_id: int = P2P) -> None:
    slot.tdisp(requester.unbind_p2p_stream(InterfaceId(slot.requester), stream_id))


def code(refused: pytest.ExceptionInfo) -> ErrorCode:
    return refused.value.code


class Pair:
    """Two running cards, a stream between them with keys of the sessions that locked them, not bound yet."""

    def __init__(self, flags: LockFlags = LOCK, *, other: LockFlags = LOCK, joined: bool = True) -> None:
        self.one, self.peer = Slot(port=0), OtherSlot(port=4)
        for slot, towards in ((self.one, self.peer), (self.peer, self.one)):
            last = towards.bars[4] + 0x1FFF
            word = control_word(P2P, **slot.control)
            slot.write_block(slot.ide_of_card, 1, (towards.requester,) * 2, (towards.bars[0], last), word)
            slot.give_keys(seed=f"{slot.requester}")
        for slot, mirrored in ((self.one, False), (self.peer, True)):
            some = keys_of(seed="between")
            if mirrored:
                some = {(Direction(1 - way), sub): key for (way, sub), key in some.items()}
            slot.ide_km(keys.program_keys(STREAM_PORT, P2P, 0, some))
            slot.ide_km(keys.start_keys(STREAM_PORT, P2P, 0))
            towards = self.peer if slot is self.one else self.one
            last = towards.bars[4] + 0x1FFF
            word = control_word(P2P, enable=True, **slot.control)
            slot.write_block(slot.ide_of_card, 1, (towards.requester,) * 2, (towards.bars[0], last), word)
        self.one.run(flags)
        self.peer.run(other)
        self.seen: list[tuple[Way, Packet]] = []
        if joined:
            self.path = PeerPath([
                PeerWindow(slot.root, slot.requester >> 8, (slot.bars[0], slot.bars[4] + 0x1FFF))
                for slot in (self.one, self.peer)
            ])
        for slot in (self.one, self.peer):
            slot.link.tap = lambda way, packet: (self.seen.append((way, packet)), [packet])[1]

    def bound(self) -> Pair:
        bind(self.one)
        bind(self.peer)
        return self


def test_cards_read_and_write_each_others_memory_and_nobody_between_sees_what() -> None:
    pair = Pair().bound()
    pair.one.dma.write(PEER_MEMORY + 0x40, SECRET)
    assert pair.peer.gpu.memory[0x40 : 0x40 + len(SECRET)].tobytes() == SECRET
    assert pair.one.dma.read(PEER_MEMORY + 0x40, len(SECRET)) == SECRET
    pair.peer.dma.write(MEMORY, SECRET[::-1] * 64)
    assert pair.one.gpu.memory[: 64 * len(SECRET)].tobytes() == SECRET[::-1] * 64
    crossed = [packet for _, packet in pair.seen]
    assert len(crossed) >= 2 * 4
    assert all(isinstance(one, IdeTlp) and one.prefix[3] == P2P for one in crossed)
    assert not any(SECRET[:8] in one.payload or SECRET[:-9:-1] in one.payload for one in crossed)
    # Neither host's memory saw any of it, and what goes there goes on the stream of the lock as before.
    assert not pair.one.memory.log
    pair.one.dma.write(DATA, SECRET)
    assert (pair.one.memory.log[-1].tee, pair.one.memory.log[-1].stream_id) == (True, 1)


@pytest.mark.parametrize("bound", ["neither", "sender", "receiver"])
def test_both_must_have_bound_the_stream(bound: str) -> None:
    pair = Pair()
    if bound == "sender":
        bind(pair.one)
    if bound == "receiver":
        bind(pair.peer)
    pair.one.dma.write(PEER_MEMORY, SECRET)
    assert not pair.peer.gpu.memory.any()
    with pytest.raises(DmaFault):
        pair.one.dma.read(PEER_MEMORY, 8)
    assert bool(pair.seen) is (bound == "sender")


@pytest.mark.parametrize("who", ["one", "peer"])
@pytest.mark.parametrize("ends", ["unbound", "stopped"])
def test_nothing_crosses_once_one_of_them_has_ended_it(who: str, ends: str) -> None:
    pair = Pair().bound()
    pair.one.dma.write(PEER_MEMORY, SECRET)
    slot = getattr(pair, who)
    unbind(slot) if ends == "unbound" else slot.stop()
    pair.peer.gpu.memory[:] = 0
    if (who, ends) != ("one", "stopped"):  # One that is stopped is an ordinary card, which sends in the clear.
        pair.one.dma.write(PEER_MEMORY, SECRET)
        with pytest.raises(DmaFault):
            pair.one.dma.read(PEER_MEMORY, 8)
    assert not pair.peer.gpu.memory.any()


def test_a_stream_that_fails_between_them_is_bound_no_more_and_takes_no_lock_along() -> None:
    pair = Pair().bound()
    pair.one.link.tap = lambda _, packet: [replace(packet, mac=bytes(len(packet.mac)))]
    pair.one.dma.write(PEER_MEMORY, SECRET)
    pair.one.link.tap = None
    assert pair.peer.card.port.streams[P2P].state is StreamState.INSECURE
    assert not pair.peer.gpu.memory.any()
    assert pair.one.card.tdi.state is pair.peer.card.tdi.state is TdiState.RUN
    pair.one.dma.write(DATA, SECRET)
    assert pair.one.memory.octets[DATA : DATA + len(SECRET)] == SECRET
    with pytest.raises(TdispError) as refused:
        bind(pair.peer)
    assert code(refused) is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("flags", [LockFlags(0), LockFlags.LOCK_MSIX, LOCK | LockFlags.ALL_REQUEST_REDIRECT])
def test_a_lock_that_lets_no_request_go_past_the_host_binds_no_stream(flags: LockFlags) -> None:
    slot = Pair(flags).one
    with pytest.raises(TdispError) as refused:
        bind(slot)
    assert code(refused) is ErrorCode.INVALID_REQUEST
    assert slot.card.tdi.state is TdiState.RUN


@pytest.mark.parametrize("stream_id", [0, 2, 0xFF])
def test_a_stream_that_is_none_or_has_no_keys_is_refused_and_nothing_changes(stream_id: int) -> None:
    slot = running(flags=LOCK)
    for ask in (bind, unbind):
        with pytest.raises(TdispError) as refused:
            ask(slot, stream_id)
        assert code(refused) is ErrorCode.INVALID_REQUEST
    assert slot.card.tdi.state is TdiState.RUN


def test_a_stream_is_bound_once_and_unbound_once() -> None:
    pair = Pair().bound()
    with pytest.raises(TdispError):
        bind(pair.one)
    pair.one.dma.write(PEER_MEMORY, SECRET)
    unbind(pair.one)
    with pytest.raises(TdispError):
        unbind(pair.one)
    bind(pair.one)
    pair.one.dma.write(PEER_MEMORY, SECRET)
    assert pair.peer.gpu.memory[:4].any()


def test_without_a_path_between_the_ports_what_was_sent_is_lost() -> None:
    pair = Pair(joined=False).bound()
    pair.one.dma.write(PEER_MEMORY, SECRET)
    with pytest.raises(DmaFault):
        pair.one.dma.read(PEER_MEMORY, 8)
    assert not pair.peer.gpu.memory.any()


def test_what_is_sent_partly_to_a_peer_and_partly_past_it_does_not_go() -> None:
    pair = Pair().bound()
    end = PEER_BARS[0] & ~0xF_FFFF
    pair.one.dma.write(end - 16, SECRET)
    with pytest.raises(DmaFault):
        pair.one.dma.read(end - 16, len(SECRET))
    assert not pair.seen


def test_a_path_drops_what_no_header_leads_anywhere() -> None:
    pair = Pair().bound()
    for header in (b"", bytes(12), b"\xff" * 16, bytes(range(16))):
        pair.path.pass_on(IdeTlp(bytes((0x92, SubStream.PR, 0, P2P)), header, b"abcd"))
    assert not pair.peer.gpu.memory.any()
    assert pair.path.lost == 4
