"""The registers of a paravirtual device: features, status, queues (VIRTIO 1.2, sections 2.1, 2.2, 3.1 and 4.2).

Stores come from a hostile driver. One that a register does not take, or that comes
out of order, changes nothing: features after they were settled, addresses of a queue
that is ready, DRIVER_OK without features. Storing 0 to the status resets everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tio.virtio_format import MAGIC, VENDOR, VERSION, DeviceStatus, Feature, Interrupt, Register
from tio.virtqueue import Virtqueue

MOST_ENTRIES = 256
_WORD = 0xFFFF_FFFF
NEEDED = 1 << Feature.VERSION_1 | 1 << Feature.ACCESS_PLATFORM
"""Features that a driver must take: a device of this form, whose memory accesses go where the platform lets them."""


@dataclass(slots=True)
class QueueRegisters:
    """What the driver says of one queue."""

    size: int = 0
    ready: bool = False
    descriptors: int = 0
    available: int = 0
    used: int = 0


@dataclass(slots=True)
class MmioRegisters:
    """The state of one device of a kind, with ``offered`` feature bits and so many queues."""

    device_id: int
    offered: int
    queue_count: int
    status: DeviceStatus = field(default_factory=lambda: DeviceStatus(0))
    interrupt: Interrupt = field(default_factory=lambda: Interrupt(0))
    selected: int = 0
    device_word: int = 0
    driver_word: int = 0
    driver_features: int = 0
    ready: dict[int, Virtqueue] = field(default_factory=dict)
    """Queues that the driver has made ready, by number."""
    _queues: dict[int, QueueRegisters] = field(default_factory=dict)

    @property
    def serves(self) -> bool:
        """Whether the driver has set the device up, and nothing is wrong."""
        return self.status & (DeviceStatus.DRIVER_OK | DeviceStatus.NEEDS_RESET) == DeviceStatus.DRIVER_OK

    @property
    def queue(self) -> QueueRegisters:
        """Those of the queue selected; of one that is not there, a set that nobody looks at."""
        if self.selected >= self.queue_count:
            return QueueRegisters()
        return self._queues.setdefault(self.selected, QueueRegisters())

    def read(self, offset: int) -> int:
        """Load a register; what is not there reads zero."""
        read = _READS.get(offset)
        return read(self) & _WORD if read else 0

    def write(self, offset: int, value: int) -> None:
        """Store to a register."""
        write = _WRITES.get(offset)
        if write is not None:
            write(self, value & _WORD)

    def fail(self) -> None:
        """The device cannot go on."""
        self.status |= DeviceStatus.NEEDS_RESET
        self.interrupt |= Interrupt.CONFIGURATION

    def set_status(self, value: int) -> None:
        """Take the driver's bits, as far as they are in order."""
        if not value:
            self._reset()
            return
        wanted = DeviceStatus(value & 0xFF)
        if wanted & DeviceStatus.FEATURES_OK and not self._features_fit():
            wanted = DeviceStatus(wanted & ~int(DeviceStatus.FEATURES_OK))
        if wanted & DeviceStatus.DRIVER_OK and not wanted & DeviceStatus.FEATURES_OK:
            wanted = DeviceStatus(wanted & ~int(DeviceStatus.DRIVER_OK))
        self.status = DeviceStatus(wanted & ~int(DeviceStatus.NEEDS_RESET) | self.status & DeviceStatus.NEEDS_RESET)

    def set_driver_features(self, value: int) -> None:
        """Take a word of the features that the driver wants."""
        if self.driver_word < 2 and not self.status & DeviceStatus.FEATURES_OK:
            shift = 32 * self.driver_word
            self.driver_features = self.driver_features & ~(_WORD << shift) | value << shift

    def set_ready(self, value: int) -> None:
        """Begin the queue selected, or take it away."""
        queue = self.queue
        self.ready.pop(self.selected, None)
        fits = 0 < queue.size <= MOST_ENTRIES and not queue.size & (queue.size - 1)
        queue.ready = value == 1 and fits
        if queue.ready:
            self.ready[self.selected] = Virtqueue(queue.size, queue.descriptors, queue.available, queue.used)

    def _features_fit(self) -> bool:
        return not self.driver_features & ~self.offered and self.driver_features & NEEDED == NEEDED

    def _reset(self) -> None:
        self.status, self.interrupt = DeviceStatus(0), Interrupt(0)
        self.selected = self.device_word = self.driver_word = self.driver_features = 0
        self.ready, self._queues = {}, {}


def _word_of(features: int, number: int) -> int:
    return features >> 32 * number if number < 2 else 0


def _half(name: str, *, high: bool) -> Callable[[MmioRegisters, int], None]:
    """A store to one half of an address of the queue selected."""

    def store(device: MmioRegisters, value: int) -> None:
        queue = device.queue
        if not queue.ready:
            old = getattr(queue, name)
            setattr(queue, name, old & _WORD | value << 32 if high else old & ~_WORD | value)

    return store


def _set_size(device: MmioRegisters, value: int) -> None:
    if not device.queue.ready:
        device.queue.size = value


def _acknowledge(device: MmioRegisters, value: int) -> None:
    device.interrupt &= ~Interrupt(value & (Interrupt.USED_BUFFER | Interrupt.CONFIGURATION))


def _plain(name: str) -> Callable[[MmioRegisters, int], None]:
    return lambda device, value: setattr(device, name, value)


_READS: Mapping[int, Callable[[MmioRegisters], int]] = {
    Register.MAGIC_VALUE: lambda _: MAGIC,
    Register.VERSION: lambda _: VERSION,
    Register.DEVICE_ID: lambda device: device.device_id,
    Register.VENDOR_ID: lambda _: VENDOR,
    Register.DEVICE_FEATURES: lambda device: _word_of(device.offered, device.device_word),
    Register.QUEUE_NUM_MAX: lambda device: MOST_ENTRIES if device.selected < device.queue_count else 0,
    Register.QUEUE_READY: lambda device: device.queue.ready,
    Register.INTERRUPT_STATUS: lambda device: device.interrupt,
    Register.STATUS: lambda device: device.status,
}
_WRITES: Mapping[int, Callable[[MmioRegisters, int], None]] = {
    Register.DEVICE_FEATURES_SEL: _plain("device_word"),
    Register.DRIVER_FEATURES_SEL: _plain("driver_word"),
    Register.DRIVER_FEATURES: MmioRegisters.set_driver_features,
    Register.QUEUE_SEL: _plain("selected"),
    Register.QUEUE_NUM: _set_size,
    Register.QUEUE_READY: MmioRegisters.set_ready,
    Register.INTERRUPT_ACK: _acknowledge,
    Register.STATUS: MmioRegisters.set_status,
    Register.QUEUE_DESC_LOW: _half("descriptors", high=False),
    Register.QUEUE_DESC_HIGH: _half("descriptors", high=True),
    Register.QUEUE_DRIVER_LOW: _half("available", high=False),
    Register.QUEUE_DRIVER_HIGH: _half("available", high=True),
    Register.QUEUE_DEVICE_LOW: _half("used", high=False),
    Register.QUEUE_DEVICE_HIGH: _half("used", high=True),
}
"""What is missing here is read-only, or not there."""
