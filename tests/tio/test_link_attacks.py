"""What attackers do to cards and links, each with the switch that stops it: rows 73 to 88 of the matrix.

Here the mechanisms are tried alone; the laboratory judges them in whole machines.
"""

from __future__ import annotations

import pytest
from slot import BARS, CARD, DATA, RESULT, SESSION, STREAM, Slot, draw, running

from tio.card import Card
from tio.card_dma import CardDma
from tio.device_identity import CardKind
from tio.dma_port import DmaFault
from tio.gpu import Gpu
from tio.ide import Direction, Failure, IdeTlp, Link, Packet, StreamState, SubStream, Way, memory_write
from tio.ide.stream import ALL_CHECKS, MOST_POSTED, StreamChecks
from tio.pci import DeviceControl, MsixControl, Register
from tio.root_port import RootPort
from tio.tdisp import InterfaceId, LockFlags, LockRequest, Tampering, TdispError, TdiState, requester

ONES = 0xFFFF_FFFF
MEMORY_AT = BARS[2]
CANARY = b"sixty-four bytes that a tenant's device writes to its memory!!!!"
GPU_MEMORY = 1 << 16


class Switched(Slot):
    """A slot and card with what a laboratory switches."""

    def __init__(
        self, checks: StreamChecks = ALL_CHECKS, *, tag_fence: bool = False, reorder_check: bool = False
    ) -> None:
        self.dma = CardDma()
        self.gpu = Gpu(self.dma, GPU_MEMORY)
        card = Card(
            CardKind.GPU, self.gpu, draw, dma=self.dma, memory_bytes=GPU_MEMORY, requester_id=CARD,
            checks=checks, tag_fence=tag_fence, reorder_check=reorder_check,
        )  # fmt: skip
        super().__init__(card)
        link, memory = self.link, self.memory
        self.root = RootPort(3, link, memory, checks=checks, tag_fence=tag_fence, reorder_check=reorder_check)
        self.root.plug(card)
        self.set_up()
        self.give_keys()
        self.run()


# 73 and 74: what changes behind a lock.


@pytest.mark.parametrize("offset", [0x10, 0x14, 0x20, 0x30])
def test_74a_a_base_address_that_moves_takes_the_interface_to_error(offset: int) -> None:
    slot = running()
    slot.root.configuration_write(CARD, offset, 0x7000_0001)
    assert (slot.card.tdi.state, slot.card.tdi.why) == (TdiState.ERROR, Tampering.BAR)


@pytest.mark.parametrize("locked", [False, True])
def test_74b_interrupts_go_where_the_host_says_unless_their_table_is_locked(locked: bool) -> None:
    slot = Slot()
    slot.set_vector(0, 0x8000, 0xA1)
    slot.give_keys()
    slot.run(LockFlags.LOCK_MSIX if locked else LockFlags(0))
    slot.set_vector(0, 0x9000, 0xEE)
    slot.dma.interrupt(0)
    reached = [slot.memory.octets[at] for at in (0x8000, 0x9000)]
    assert reached == ([0xA1, 0] if locked else [0, 0xEE])
    slot.root.configuration_write(CARD, Register.MSIX_CONTROL, MsixControl.FUNCTION_MASK, 2)
    assert slot.card.tdi.state is (TdiState.ERROR if locked else TdiState.RUN)


# 76 and 77: the link.


def test_76_and_77_without_link_encryption_writes_are_read_and_altered_on_the_way() -> None:
    for ciphers in (True, False):
        slot = Switched(StreamChecks(ciphers=ciphers))
        slot.watch()
        slot.dma.write(DATA, CANARY * 40)
        assert slot.memory.octets[DATA : DATA + 64 * 40] == CANARY * 40
        assert (CANARY in slot.on_the_wire()) is not ciphers
        slot.link.tap = lambda way, packet: [bent(packet) if way is Way.UP and packet.payload else packet]
        slot.dma.write(RESULT, CANARY)
        assert slot.memory.octets[RESULT] == (0 if ciphers else CANARY[0] ^ 1)
        assert (slot.root.port.streams[STREAM].failure is Failure.MAC) is ciphers


def bent(packet: Packet) -> Packet:
    assert isinstance(packet, IdeTlp)
    return IdeTlp(packet.prefix, packet.header, bytes((packet.payload[0] ^ 1,)) + packet.payload[1:], packet.mac)


# 80: stopped or reset while it runs.


@pytest.mark.parametrize("how", ["stop", "reset"])
def test_80_a_device_that_was_stopped_or_reset_answers_no_trusted_load(how: str) -> None:
    slot = running()
    slot.root.store(MEMORY_AT, 7, 4, tee=True)
    if how == "stop":
        slot.stop()
    else:
        slot.root.configuration_write(CARD, Register.DEVICE_CONTROL, DeviceControl.FUNCTION_LEVEL_RESET, 2)
    assert slot.card.tdi.state is (TdiState.CONFIG_UNLOCKED if how == "stop" else TdiState.ERROR)
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES


# 81: peers.


def test_81_a_peers_write_is_taken_only_if_somebody_passes_it_on_as_trusted() -> None:
    slot = running()
    write = memory_write(0x0200, MEMORY_AT, b"evil")
    slot.root.forward(write, tee=False)
    assert not slot.gpu.memory.any()
    slot.root.forward(write, tee=True)
    assert slot.gpu.memory[:4].tobytes() == b"evil"


def test_81_no_stream_of_a_peer_is_bound_by_a_lock_that_does_not_let_it() -> None:
    slot = running(flags=LockFlags(0))
    with pytest.raises(TdispError):
        slot.card.tdi.bind_p2p(slot.card.port.streams[STREAM], 9)
    assert not slot.card.tdi.admits(0, tee=True, stream_id=9)
    slot = running(flags=LockFlags.BIND_P2P)
    slot.card.tdi.bind_p2p(slot.card.port.streams[STREAM], 9)
    assert slot.card.tdi.admits(0, tee=True, stream_id=9)


# 86: CVE-2025-9612.


@pytest.mark.parametrize("reorder_check", [False, True])
def test_86_a_read_that_passes_writes_is_seen_only_with_the_check(reorder_check: bool) -> None:
    """The device posts more than a prefix counts, then reads a flag: it must not see the memory of before."""
    slot = Switched(reorder_check=reorder_check)
    held: list[Packet] = []

    def tap(way: Way, packet: Packet) -> list[Packet]:
        """Hold all writes back; let the read go first."""
        if way is not Way.UP or not isinstance(packet, IdeTlp):
            return [packet]
        if packet.header[0] == 0x20:
            out, held[:] = [packet, *held], []
            return out
        held.append(packet)
        return []

    slot.link.tap = tap
    size = 256 * (MOST_POSTED + 1)
    for at in range(0, size, 0x1000):
        slot.dma.write(DATA + at, b"\1" * 0x1000)
    if reorder_check:
        with pytest.raises(DmaFault):
            slot.dma.read(DATA, 4)
        assert slot.root.port.streams[STREAM].state is StreamState.INSECURE
        return
    assert slot.dma.read(DATA, 4) == bytes(4)  # as memory was before
    assert slot.root.is_secure(STREAM)
    assert slot.memory.octets[DATA : DATA + size] == b"\1" * size


# 87: CVE-2025-9613.


@pytest.mark.parametrize("fence", [False, True])
def test_87_a_stale_completion_answers_another_load_unless_tags_are_fenced(fence: bool) -> None:
    slot = Switched(tag_fence=fence)
    slot.gpu.memory[:8] = [1, 1, 1, 1, 2, 2, 2, 2]
    held: list[Packet] = []
    slot.link.tap = lambda way, packet: (held.append(packet) or []) if way is Way.UP else [packet]
    assert slot.root.load(MEMORY_AT, 4, tee=True) == ONES
    slot.link.tap = lambda way, packet: [held.pop(0), packet] if way is Way.UP and held else [packet]
    assert slot.root.load(MEMORY_AT + 4, 4, tee=True) == (0x02020202 if fence else 0x01010101)


# 88: CVE-2025-9614.


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("way", list(Way))
def test_88_a_write_held_back_reaches_the_next_owner_unless_keys_are_fresh(way: Way, fresh: bool) -> None:
    """The last packet before the interface changes hands: nothing behind it on the stream shows that it is missing."""
    slot = running()
    held: list[Packet] = []
    slot.link.tap = lambda this, packet: (held.append(packet) or []) if this is way else [packet]
    if way is Way.UP:
        slot.dma.write(DATA, b"old owner's data")
    else:
        slot.root.store(MEMORY_AT, 0x01DDA7A, 4, tee=True)
    slot.link.tap = None
    slot.stop()
    if fresh:  # disabled, which throws away what waits, and with other keys enabled again
        for end, default in ((slot.ide_of_root, False), (slot.ide_of_card, True)):
            slot.disable(end, default=default)
        slot.card.dsm.end_session(SESSION)
        slot.give_keys(seed="next owner")
    slot.run()
    slot.link.injected[way] += held
    slot.root.load(BARS[0], 4, tee=True)
    landed = slot.memory.octets[DATA : DATA + 3] == b"old" or bool(slot.gpu.memory[:4].any())
    assert landed is not fresh
    if fresh:
        assert slot.card.tdi.state is TdiState.ERROR or not slot.root.is_secure(STREAM)


def test_keys_are_rolled_under_work_and_the_old_ones_stop() -> None:
    """TIO_ROLL_KEY: the other key set is programmed, started and used; nothing is lost."""
    slot = running()
    slot.gpu.memory[:4] = 7
    for key_set in (1, 0, 1):
        slot.give_keys(key_set, seed=f"roll {key_set}")
        for _ in range(2):
            assert slot.root.load(MEMORY_AT, 4, tee=True) == 0x07070707
            slot.dma.write(DATA, b"data")
            assert slot.dma.read(DATA, 4) == b"data"
            slot.root.store(MEMORY_AT + 8, 1, 4, tee=True)
        for sub_stream in SubStream:
            for way in Direction:
                slot.root.stop(STREAM, 1 - key_set, way, sub_stream)
    assert slot.card.tdi.state is TdiState.RUN
    assert slot.tdisp(requester.ask_state(InterfaceId(CARD))) is TdiState.RUN
    with pytest.raises(TdispError):
        slot.tdisp(requester.lock_interface(InterfaceId(CARD), LockRequest(0, STREAM)))


def test_links_that_nobody_sits_on_know_it() -> None:
    assert Link().is_bare
