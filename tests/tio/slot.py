"""A card in the slot of a root port, the memory behind that, and whoever sets them up, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tio.card import STREAM_PORT, Card
from tio.card_dma import CardDma
from tio.device_identity import CardKind
from tio.device_security_module import ProtocolId
from tio.dma_port import DmaFault
from tio.doe import DataObject
from tio.gpu import Gpu, GpuCommand, GpuRegister
from tio.ide import Direction, Link, Packet, SubStream, Way
from tio.ide import key_programmer as keys
from tio.ide.capability import BlockRegister, address_words, control_word, requester_words
from tio.ide.keys import FIRST_INVOCATION
from tio.pci import Command, MsixControl, Register
from tio.pci.doe_mailbox import exchange
from tio.root_port import RootPort
from tio.spdm import PCI_DOE
from tio.spdm import Packet as SpdmPacket
from tio.steps import carry
from tio.tdisp import InterfaceId, LockFlags, LockRequest, requester

T = TypeVar("T")
CARD, STREAM, SESSION = 0x0100, 1, 7
RING, FENCE, DATA, RESULT = 0x1000, 0x3000, 0x10000, 0x30000
GPU_MEMORY = 1 << 16
BARS = {0: 0xC0_0000_0000, 2: 0xC0_0010_0000, 4: 0xC0_0020_0000}


def draw(count: int) -> bytes:
    """What a DRBG would draw, if it always drew the same: two that use it know each other's numbers."""
    return hashlib.shake_128(b"drawn").digest(count)


class Draws:
    """What a DRBG would draw: something else each time, and the same in each run."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, count: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(f"drawn {self._count}".encode()).digest(count)


@dataclass(frozen=True)
class Access:
    """What reached memory."""

    write: bool
    requester: int
    address: int
    length: int
    tee: bool
    stream_id: int | None


class Memory:
    """1 MiB that refuses pages of ``refused``, and notes who asks for what."""

    def __init__(self) -> None:
        self.octets = bytearray(1 << 20)
        self.refused: set[int] = set()
        self.log: list[Access] = []

    def read(self, requester: int, address: int, length: int, *, tee: bool, stream_id: int | None) -> bytes:
        self._note(Access(False, requester, address, length, tee, stream_id))
        return bytes(self.octets[address : address + length])

    def write(self, requester: int, address: int, data: bytes, *, tee: bool, stream_id: int | None) -> None:
        self._note(Access(True, requester, address, len(data), tee, stream_id))
        self.octets[address : address + len(data)] = data

    def _note(self, one: Access) -> None:
        pages = range(one.address >> 12, (one.address + one.length - 1 >> 12) + 1)
        if one.address + one.length > len(self.octets) or not self.refused.isdisjoint(pages):
            raise DmaFault(one.address, one.length, write=one.write)
        self.log.append(one)


class Slot:
    """A GPU unless another card is given, set up as a host would, without keys."""

    requester, bars = CARD, BARS

    def __init__(self, card: Card | None = None, *, tee_limited: bool = True, port: int = 3, **dma: int) -> None:
        self.memory, self.link = Memory(), Link()
        self.root = RootPort(port, self.link, self.memory)
        if card is None:
            self.dma = CardDma(**dma)
            self.gpu = Gpu(self.dma, GPU_MEMORY)
            place = self.requester
            card = Card(CardKind.GPU, self.gpu, Draws(), dma=self.dma, memory_bytes=GPU_MEMORY, requester_id=place)
        self.card = card
        self.root.plug(self.card)
        self.control = {"tee_limited": tee_limited, "aggregation": 8}
        self.seen: list[tuple[Way, Packet]] = []
        self.tail = 0
        self.set_up()

    def set_up(self) -> None:
        """BARs, memory and bus mastering, and a stream at both ends."""
        for index in self.card.space.bars:
            address = self.bars[index]
            self.root.configuration_write(self.requester, 0x10 + 4 * index, address & 0xFFFF_FFFF)
            self.root.configuration_write(self.requester, 0x14 + 4 * index, address >> 32)
        self.root.configuration_write(self.requester, Register.COMMAND, Command.MEMORY_SPACE | Command.BUS_MASTER, 2)
        last = self.bars[4] + 0x1FFF
        word = control_word(STREAM, **self.control)
        self.write_block(self.ide_of_root, 0, (self.requester,) * 2, (self.bars[0], last), word)
        self.write_block(
            self.ide_of_card, 0, (self.root.requester_id,) * 2, None, control_word(STREAM, default=True, **self.control)
        )

    # As a host that sets streams up.

    def ide_of_root(self, offset: int, value: int | None = None) -> int:
        """A register of the root port's capability."""
        at = self.root.space.extended_at(self.root.ide) + offset
        return self.root.space.read(at) if value is None else self.root.space.write(at, value) or 0

    def ide_of_card(self, offset: int, value: int | None = None) -> int:
        """A register of the card's, by configuration requests."""
        at = self.card.space.extended_at(self.card.ide) + offset
        if value is None:
            return self.root.configuration_read(self.requester, at)
        self.root.configuration_write(self.requester, at, value)
        return 0

    def write_block(
        self,
        write: Callable[..., int],
        number: int,
        requesters: tuple[int, int],
        addresses: tuple[int, int] | None,
        control: int,
    ) -> None:
        """Association first, then control."""
        at = self.root.ide.block_at(number)
        words = requester_words(*requesters) + (() if addresses is None else address_words(*addresses))
        for place, word in enumerate(words):
            write(at + BlockRegister.RID_1 + 4 * place, word)
        write(at + BlockRegister.CONTROL, control)

    def enable(self) -> None:
        """Set the enable bit at both ends."""
        for write, default in ((self.ide_of_root, False), (self.ide_of_card, True)):
            word = control_word(STREAM, enable=True, default=default, **self.control)
            write(self.root.ide.block_at(0) + BlockRegister.CONTROL, word)

    def through_the_mailbox(self, packet: SpdmPacket) -> SpdmPacket:
        """An SPDM packet's answer, as a host carries both by configuration requests."""
        at, wrapped = self.card.space.extended_at(self.card.mailbox), PCI_DOE.wrap(packet)
        found = exchange(
            lambda offset: self.root.configuration_read(self.requester, at + offset),
            lambda offset, value: self.root.configuration_write(self.requester, at + offset, value),
            DataObject(1, wrapped[2], wrapped[8:]),
        )
        assert found is not None
        return PCI_DOE.unwrap(found.pack())

    def disable(self, write: Callable[..., int], *, default: bool) -> None:
        """Clear the enable bit at one end."""
        write(self.root.ide.block_at(0) + BlockRegister.CONTROL, control_word(STREAM, default=default, **self.control))

    # As a TSM whose session is there.

    def ask(self, protocol: ProtocolId, message: bytes, session: int = SESSION) -> bytes:
        answer = self.card.dsm.answer(session, bytes((protocol,)) + message)
        assert answer is not None
        return answer[1:]

    def ide_km(self, steps: Generator[bytes, bytes, T]) -> T:
        return carry(steps, lambda message: self.ask(ProtocolId.IDE_KM, message))

    def tdisp(self, steps: Generator[bytes, bytes, T]) -> T:
        return carry(steps, lambda message: self.ask(ProtocolId.TDISP, message))

    def give_keys(self, key_set: int = 0, seed: str = "key") -> None:
        """Program a key set at both ends and use it; streams are enabled."""
        some = keys_of(key_set, seed)
        self.ide_km(keys.program_keys(STREAM_PORT, STREAM, key_set, some))
        for (way, sub_stream), key in some.items():
            self.root.program(STREAM, key_set, Direction(1 - way), sub_stream, key, FIRST_INVOCATION)
        self.ide_km(keys.start_keys(STREAM_PORT, STREAM, key_set))
        for way in Direction:
            for sub_stream in SubStream:
                self.root.go(STREAM, key_set, way, sub_stream)
        self.enable()

    def lock(self, flags: int = LockFlags.LOCK_MSIX) -> bytes:
        return self.tdisp(requester.lock_interface(InterfaceId(self.requester), LockRequest(flags, STREAM)))

    def run(self, flags: int = LockFlags.LOCK_MSIX) -> None:
        self.tdisp(requester.start_interface(InterfaceId(self.requester), self.lock(flags)))

    def stop(self) -> None:
        self.tdisp(requester.stop_interface(InterfaceId(self.requester)))

    def set_vector(self, vector: int, address: int, value: int, *, tee: bool = False) -> None:
        """Have a vector write ``value`` to ``address``, with MSI-X on."""
        for at, word in ((0, address), (4, 0), (8, value), (12, 0)):
            self.root.store(self.bars[4] + 16 * vector + at, word, 4, tee=tee)
        if not tee:
            self.root.configuration_write(self.requester, Register.MSIX_CONTROL, MsixControl.ENABLE, 2)

    # As a driver of the GPU.

    def open_ring(self, *, tee: bool, entries: int = 16) -> None:
        self.tail = 0
        for register, value, width in (
            (GpuRegister.RING_BASE, RING, 8), (GpuRegister.FENCE_BASE, FENCE, 8), (GpuRegister.RING_ENTRIES, entries, 4)
        ):  # fmt: skip
            self.root.store(self.bars[0] + register, value, width, tee=tee)

    def submit(self, commands: Sequence[GpuCommand], *, tee: bool) -> tuple[int, int]:
        """Run commands: sequence number and status as the fence says them."""
        for one in commands:
            self.memory.octets[RING + 64 * self.tail : RING + 64 * self.tail + 64] = one.pack()
            self.tail += 1
        self.root.store(self.bars[0] + GpuRegister.DOORBELL, self.tail, 4, tee=tee)
        sequence, status = (int.from_bytes(self.memory.octets[FENCE + at : FENCE + at + 4], "little") for at in (0, 4))
        return sequence, status

    # As whoever sits on the link.

    def watch(self) -> None:
        def look(way: Way, packet: Packet) -> list[Packet]:
            self.seen.append((way, packet))
            return [packet]

        self.link.tap = look

    def on_the_wire(self) -> bytes:
        return b"".join([packet.payload for _, packet in self.seen])


def keys_of(key_set: int = 0, seed: str = "key") -> dict[tuple[Direction, SubStream], bytes]:
    return {
        (way, sub): hashlib.sha256(f"{seed} {key_set} {way} {sub}".encode()).digest()
        for way in Direction
        for sub in SubStream
    }


def running(card: Card | None = None, flags: int = LockFlags.LOCK_MSIX, **more: int) -> Slot:
    """A slot whose card runs trusted."""
    slot = Slot(card, **more)
    slot.give_keys()
    slot.run(flags)
    return slot
