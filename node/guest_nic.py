"""A guest's driver of its network card: queues where the device reaches them, frames from and to its own memory.

The device and who emulates it are not trusted: what the driver has to remember stands
in its books in private memory, never in the rings, and whatever comes back is read
once and checked. A card is used by the vCPU that it belongs to alone, and an answer
that a driver must not go on with raises NicUntrusted.

Each method is a part of a block, for ``yield from``. Memory, from ``gpa`` on, private:

    0          what the card reaches: rings and receive buffers; where devices reach only the pool it lies there, and
               this place is unused
    CARD_BYTES the books, a page
    then       frames that are to go out, and the one that came last
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from node.device_window import DeviceWindow
from node.guest_memory_map import NIC_GPA, NIC_WINDOW_BYTES
from node.mac_address import MAC_BYTES
from node.operations import Fault, GuestOperation, MmioLoad, MmioStore, Read, Write
from node.swiotlb import SLOT_BYTES, BounceArea, BounceBuffersFull, BounceFault, Steps
from tio.virtio_format import (
    AVAILABLE_ENTRY,
    DESCRIPTOR,
    INDEX_OFFSET,
    MAGIC,
    NET_HEADER,
    NETWORK_DEVICE,
    RING_HEAD,
    USED_ENTRY,
    VERSION,
    DescriptorFlag,
    DeviceStatus,
    Feature,
    Register,
)
from tio.virtio_net import ETHERNET_HEADER_BYTES, LONGEST_FRAME_BYTES, RECEIVE, TRANSMIT

ENTRIES = 16
MOST_AT_ONCE = ENTRIES // 2
"""Frames of one ``send``: each takes a descriptor for its header and one for itself."""
BUFFER_BYTES = SLOT_BYTES

_REGISTER_BAR = 0
_QUEUES = {RECEIVE: 0x000, TRANSMIT: 0x800}
_DESCRIPTORS, _AVAILABLE, _USED = 0x000, 0x200, 0x400
_HEADER = 0xE00
"""A header of zeros for all frames that go out."""
_BUFFERS = 0x1000
_PAGE_BYTES = 4096
CARD_BYTES = _BUFFERS + ENTRIES * BUFFER_BYTES
_OUT = CARD_BYTES + _PAGE_BYTES
_IN = _OUT + MOST_AT_ONCE * BUFFER_BYTES
PRIVATE_BYTES = _IN + _PAGE_BYTES
"""Private memory that a driver needs, from a page's beginning."""
SHARED_BYTES = CARD_BYTES + MOST_AT_ONCE * BUFFER_BYTES
"""Bounce buffers that it needs."""

_FEATURES = (0, 1 << Feature.VERSION_1 - 32 | 1 << Feature.ACCESS_PLATFORM - 32)
"""Words of what the driver takes: no offload, and the card's own MAC and MTU without asking."""
_BEGUN = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
_SETTLED = _BEGUN | DeviceStatus.FEATURES_OK
_BOOKS = struct.Struct("<QHHHH")
_INDICES = 1 << 16
_FULL = (1 << ENTRIES) - 1
_RECEIVED_HEADER = NET_HEADER.pack(0, 0, 0, 0, 0, 0, 1)


class NicUntrusted(Exception):
    """The card, or whoever emulates it, said something that no card does; or there is none."""


@dataclass(frozen=True, slots=True)
class _Books:
    """Where the card's memory is, and how far its queues are."""

    card_gpa: int
    sent: int
    offered: int
    taken: int
    lent: int
    """Receive buffers that the card has, a bit for each."""

    def pack(self) -> bytes:
        return _BOOKS.pack(self.card_gpa, self.sent, self.offered, self.taken, self.lent)


@dataclass(frozen=True, slots=True)
class GuestNic:
    """One vCPU's card with its bounce buffers and private memory.

    Its registers are reached as the kernel has it: where that is by a GHCB, its #VC handler ends the VM for answers
    that it does not believe. Errors beside NicUntrusted: those of ``BounceArea``.
    """

    area: BounceArea
    vcpu: int
    gpa: int
    window: DeviceWindow | None = None
    """Where its registers are if the device was given to the guest; None for the one its hypervisor emulates."""

    def start(self) -> Steps[bytes]:
        """Set the card up with all buffers to receive; its MAC."""
        card_gpa = yield from self.area.map_from_device(self.gpa, CARD_BYTES)
        if card_gpa % _PAGE_BYTES:
            raise NicUntrusted(f"card: expected memory from a page's beginning, got {card_gpa:#x}")
        yield from self._done((Write(card_gpa, bytes(_BUFFERS), self._private),))
        for register, expected in (
            (Register.MAGIC_VALUE, MAGIC), (Register.VERSION, VERSION), (Register.DEVICE_ID, NETWORK_DEVICE),
        ):  # fmt: skip
            found = yield from self._load(register)
            if found != expected:
                raise NicUntrusted(f"{register.name}: expected {expected:#x}, got {found:#x}")
        for value in (0, DeviceStatus.ACKNOWLEDGE, _BEGUN):
            yield from self._store(Register.STATUS, value)
        for word, features in enumerate(_FEATURES):
            yield from self._store(Register.DRIVER_FEATURES_SEL, word)
            yield from self._store(Register.DRIVER_FEATURES, features)
        yield from self._store(Register.STATUS, _SETTLED)
        if not (yield from self._load(Register.STATUS)) & DeviceStatus.FEATURES_OK:
            raise NicUntrusted("STATUS: the card refuses the features of every card of its kind")
        for queue, base in _QUEUES.items():
            yield from self._begin_queue(card_gpa, queue, base)
        yield from self._offer_all(card_gpa)
        yield from self._store(Register.STATUS, _SETTLED | DeviceStatus.DRIVER_OK)
        low = yield from self._load(Register.CONFIG)
        high = yield from self._load(Register.CONFIG + 4)
        yield from self._keep(_Books(card_gpa, 0, ENTRIES, 0, _FULL))
        return (high << 32 | low).to_bytes(8, "little")[:MAC_BYTES]

    def stop(self) -> Steps[None]:
        """Reset the card: it has no buffers any more, and what comes is lost."""
        yield from self._store(Register.STATUS, 0)

    def send(self, frames: Sequence[bytes]) -> Steps[None]:
        """Send up to ``MOST_AT_ONCE`` frames at once, each with its Ethernet header."""
        if not 0 < len(frames) <= MOST_AT_ONCE or max(map(len, frames)) > LONGEST_FRAME_BYTES:
            raise ValueError(f"frames: expected 1 to {MOST_AT_ONCE} of at most {LONGEST_FRAME_BYTES} bytes")
        books = yield from self._books()
        places = [self.gpa + _OUT + number * BUFFER_BYTES for number in range(len(frames))]
        yield from self._done(tuple(Write(place, frame) for place, frame in zip(places, frames, strict=True)))
        mapped: list[tuple[int, int]] = []
        try:
            for place, frame in zip(places, frames, strict=True):
                mapped.append(((yield from self.area.map_to_device(place, len(frame))), len(frame)))
            yield from self._transmit(books, mapped)
        except (NicUntrusted, BounceFault, BounceBuffersFull):
            yield from self._unmap(mapped)
            raise
        yield from self._unmap(mapped)
        yield from self._keep(replace(books, sent=(books.sent + len(frames)) % _INDICES))

    def receive(self, most: int) -> Steps[list[bytes]]:
        """Up to ``most`` of the frames that have come, oldest first; their buffers are the card's again."""
        books = yield from self._books()
        ring = books.card_gpa + _QUEUES[RECEIVE] + _USED
        index = yield from self._number(ring + INDEX_OFFSET)
        waiting = (index - books.taken) % _INDICES
        if waiting > books.lent.bit_count():
            raise NicUntrusted(f"used index: {index:#x} is {waiting} ahead of buffers that the card has")
        frames = []
        for _ in range(min(waiting, most)):
            entry = ring + RING_HEAD.size + books.taken % ENTRIES * USED_ENTRY.size
            number, length = USED_ENTRY.unpack((yield from self._bytes(entry, USED_ENTRY.size, self._private)))
            if number >= ENTRIES or not books.lent >> number & 1:
                raise NicUntrusted(f"used buffer: {number:#x} is none that the card has")
            if not NET_HEADER.size + ETHERNET_HEADER_BYTES <= length <= NET_HEADER.size + LONGEST_FRAME_BYTES:
                raise NicUntrusted(f"used length: {length} bytes of buffer {number}")
            frames.append((yield from self._take_in(self._buffer(books.card_gpa, number), length)))
            yield from self._offer(books, number)
            taken, offered = ((count + 1) % _INDICES for count in (books.taken, books.offered))
            books = replace(books, taken=taken, offered=offered)
            yield from self._keep(books)
        return frames

    # The queues.

    def _unmap(self, parts: Sequence[tuple[int, int]]) -> Steps[None]:
        for at, length in parts:
            yield from self.area.unmap(at, length)

    def _begin_queue(self, card_gpa: int, queue: int, base: int) -> Steps[None]:
        yield from self._store(Register.QUEUE_SEL, queue)
        yield from self._store(Register.QUEUE_NUM, ENTRIES)
        for register, offset in (
            (Register.QUEUE_DESC_LOW, _DESCRIPTORS), (Register.QUEUE_DRIVER_LOW, _AVAILABLE),
            (Register.QUEUE_DEVICE_LOW, _USED),
        ):  # fmt: skip
            address = card_gpa + base + offset
            yield from self._store(register, address & 0xFFFF_FFFF)
            yield from self._store(register + 4, address >> 32)
        yield from self._store(Register.QUEUE_READY, 1)

    def _offer_all(self, card_gpa: int) -> Steps[None]:
        base = card_gpa + _QUEUES[RECEIVE]
        descriptors = b"".join([
            DESCRIPTOR.pack(self._buffer(card_gpa, number), BUFFER_BYTES, DescriptorFlag.WRITE, 0)
            for number in range(ENTRIES)
        ])  # fmt: skip
        ring = b"".join(map(AVAILABLE_ENTRY.pack, range(ENTRIES)))
        yield from self._done((
            Write(base + _DESCRIPTORS, descriptors, self._private),
            Write(base + _AVAILABLE, RING_HEAD.pack(0, ENTRIES) + ring, self._private),
        ))  # fmt: skip

    def _offer(self, books: _Books, number: int) -> Steps[None]:
        """Give one receive buffer back to the card."""
        ring = books.card_gpa + _QUEUES[RECEIVE] + _AVAILABLE
        place = ring + RING_HEAD.size + books.offered % ENTRIES * AVAILABLE_ENTRY.size
        yield from self._done((
            Write(place, AVAILABLE_ENTRY.pack(number), self._private),
            Write(ring + INDEX_OFFSET, AVAILABLE_ENTRY.pack((books.offered + 1) % _INDICES), self._private),
        ))  # fmt: skip

    def _transmit(self, books: _Books, parts: Sequence[tuple[int, int]]) -> Steps[None]:
        """Lay frames that the card can reach into its queue, ring, and see that it took all of them."""
        base, header = books.card_gpa + _QUEUES[TRANSMIT], books.card_gpa + _HEADER
        descriptors = b"".join([
            DESCRIPTOR.pack(header, NET_HEADER.size, DescriptorFlag.NEXT, 2 * number + 1)
            + DESCRIPTOR.pack(at, length, 0, 0)
            for number, (at, length) in enumerate(parts)
        ])  # fmt: skip
        writes = [Write(base + _DESCRIPTORS, descriptors, self._private)]
        for number in range(len(parts)):
            slot = (books.sent + number) % ENTRIES
            place = base + _AVAILABLE + RING_HEAD.size + slot * AVAILABLE_ENTRY.size
            writes.append(Write(place, AVAILABLE_ENTRY.pack(2 * number), self._private))
        sent = (books.sent + len(parts)) % _INDICES
        writes.append(Write(base + _AVAILABLE + INDEX_OFFSET, AVAILABLE_ENTRY.pack(sent), self._private))
        yield from self._done(tuple(writes))
        yield from self._store(Register.QUEUE_NOTIFY, TRANSMIT)
        index = yield from self._number(base + _USED + INDEX_OFFSET)
        if index != sent:
            raise NicUntrusted(f"used index: expected {sent:#x}, got {index:#x}")
        for number in range(len(parts)):
            slot = (books.sent + number) % ENTRIES
            entry = base + _USED + RING_HEAD.size + slot * USED_ENTRY.size
            (head, _) = USED_ENTRY.unpack((yield from self._bytes(entry, USED_ENTRY.size, self._private)))
            if head != 2 * number:
                raise NicUntrusted(f"used buffer: expected {2 * number}, got {head:#x}")

    def _take_in(self, buffer: int, length: int) -> Steps[bytes]:
        """What the card wrote, read once: into private memory where it can be changed meanwhile."""
        if self.area.bounces:
            yield from self.area.copy_from_device(buffer, self.gpa + _IN, length)
            buffer = self.gpa + _IN
        (data,) = yield (Read(buffer, length),)
        if not isinstance(data, bytes):
            raise BounceFault(data)
        if not data.startswith(_RECEIVED_HEADER):
            raise NicUntrusted(f"header: {data[: NET_HEADER.size].hex()}")
        return data[NET_HEADER.size :]

    # Memory and registers.

    @property
    def _private(self) -> bool:
        """Whether the card's memory is the guest's own."""
        return not self.area.bounces

    def _buffer(self, card_gpa: int, number: int) -> int:
        return card_gpa + _BUFFERS + number * BUFFER_BYTES

    def _books(self) -> Steps[_Books]:
        return _Books(*_BOOKS.unpack((yield from self._bytes(self.gpa + CARD_BYTES, _BOOKS.size, True))))

    def _keep(self, books: _Books) -> Steps[None]:
        yield from self._done((Write(self.gpa + CARD_BYTES, books.pack()),))

    def _number(self, gpa: int) -> Steps[int]:
        return int.from_bytes((yield from self._bytes(gpa, 2, self._private)), "little")

    def _bytes(self, gpa: int, length: int, private: bool) -> Steps[bytes]:
        (data,) = yield (Read(gpa, length, private),)
        if not isinstance(data, bytes):
            raise BounceFault(data)
        return data

    def _done(self, batch: tuple[GuestOperation, ...]) -> Steps[None]:
        for answer in (yield batch):
            if isinstance(answer, Fault):
                raise BounceFault(answer)

    def _load(self, offset: int) -> Steps[int]:
        if self.window is not None:
            return (yield from self.window.load(_REGISTER_BAR, offset))
        gpa = NIC_GPA + self.vcpu * NIC_WINDOW_BYTES + offset
        (answer,) = yield (MmioLoad(gpa),)
        if not isinstance(answer, int):
            raise NicUntrusted(f"register {offset:#x}: {answer!r}")
        return answer

    def _store(self, offset: int, value: int) -> Steps[None]:
        if self.window is not None:
            yield from self.window.store(_REGISTER_BAR, (offset, value, 4))
            return
        gpa = NIC_GPA + self.vcpu * NIC_WINDOW_BYTES + offset
        (answer,) = yield (MmioStore(gpa, value),)
        if answer is not None:
            raise NicUntrusted(f"register {offset:#x}: {answer!r}")
