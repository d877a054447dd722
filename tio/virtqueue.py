"""A split virtqueue as the device sees it: rings in memory that a hostile driver wrote (VIRTIO 1.2, section 2.7).

What is taken from memory is taken once and checked. A chain visits no more
descriptors than the queue has, so a loop ends as an error; so does an index that
runs ahead of the queue. After an error nothing of the queue is known any more, and
the device must be reset.
"""

from __future__ import annotations

from dataclasses import dataclass

from tio.dma_port import DmaPort
from tio.virtio_format import AVAILABLE_ENTRY, DESCRIPTOR, INDEX_OFFSET, RING_HEAD, USED_ENTRY, DescriptorFlag

_INDICES = 1 << 16
_KNOWN = DescriptorFlag.NEXT | DescriptorFlag.WRITE

Part = tuple[int, int]
"""Address and length."""


class QueueError(Exception):
    """The driver put something into the queue that no driver may."""

    def __init__(self, field: str, expected: str, found: int) -> None:
        super().__init__(f"{field}: expected {expected}, found {found:#x}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Chain:
    """One buffer: parts that the device reads, then parts that it writes."""

    head: int
    readable: tuple[Part, ...]
    writable: tuple[Part, ...]

    @property
    def readable_bytes(self) -> int:
        """What there is to read."""
        return sum([length for _, length in self.readable])

    @property
    def writable_bytes(self) -> int:
        """What there is room for."""
        return sum([length for _, length in self.writable])


class Virtqueue:
    """``size`` entries, a power of two; addresses of the descriptor table, available ring and used ring.

    Every method raises DmaFault where memory cannot be reached.
    """

    def __init__(self, size: int, descriptors: int, available: int, used: int) -> None:
        self.size = size
        self._descriptors = descriptors
        self._available = available
        self._used = used
        self._taken = self._given = 0

    def take(self, port: DmaPort) -> Chain | None:
        """The next buffer that the driver offers, None if there is none. Raises QueueError."""
        index = int.from_bytes(port.read(self._available + INDEX_OFFSET, 2), "little")
        offered = (index - self._taken) % _INDICES
        if offered > self.size:
            raise QueueError("available index", f"at most {self.size} ahead of {self._taken:#x}", index)
        if not offered:
            return None
        place = self._available + RING_HEAD.size + self._taken % self.size * AVAILABLE_ENTRY.size
        (head,) = AVAILABLE_ENTRY.unpack(port.read(place, AVAILABLE_ENTRY.size))
        chain = self._chain(port, head)
        self._taken = (self._taken + 1) % _INDICES
        return chain

    def give_back(self, port: DmaPort, chain: Chain, written: int) -> None:
        """Hand a buffer back that ``written`` bytes were put into."""
        place = self._used + RING_HEAD.size + self._given % self.size * USED_ENTRY.size
        port.write(place, USED_ENTRY.pack(chain.head, written))
        self._given = (self._given + 1) % _INDICES
        port.write(self._used + INDEX_OFFSET, self._given.to_bytes(2, "little"))

    def _chain(self, port: DmaPort, head: int) -> Chain:
        readable: list[Part] = []
        writable: list[Part] = []
        number = head
        for _ in range(self.size):
            if number >= self.size:
                raise QueueError("descriptor", f"one of {self.size}", number)
            at = self._descriptors + number * DESCRIPTOR.size
            address, length, flags, following = DESCRIPTOR.unpack(port.read(at, DESCRIPTOR.size))
            if flags & ~_KNOWN:
                raise QueueError("descriptor flags", "NEXT and WRITE alone", flags)
            if not length:
                raise QueueError("descriptor length", "more than nothing", length)
            if flags & DescriptorFlag.WRITE:
                writable.append((address, length))
            elif writable:
                raise QueueError("descriptor flags", "nothing to read after what is to be written", flags)
            else:
                readable.append((address, length))
            if not flags & DescriptorFlag.NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            number = following
        raise QueueError("descriptor chain", f"at most {self.size} descriptors", head)
