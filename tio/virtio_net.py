"""A paravirtual network card: registers, two queues of real descriptors in memory, frames in and out.

A doorbell sends what is in the transmit queue, at once and in order; a frame that
comes is put into the next buffer of the receive queue. Rules:

- What a queue cannot go on from (VIRTIO 1.2, 2.1.2) sets DEVICE_NEEDS_RESET: nothing is served until the reset.
- A frame of the driver that is too short, too long or asks for an offload is dropped and counted.
- A frame of the network that comes while there is no buffer is dropped and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from tio.dma_port import DmaFault, DmaPort
from tio.virtio_format import NET_CONFIG, NET_HEADER, NETWORK_DEVICE, Feature, Interrupt, Register
from tio.virtio_mmio import NEEDED, MmioRegisters
from tio.virtqueue import Chain, QueueError, Virtqueue

RECEIVE, TRANSMIT = 0, 1
MTU = 1500
ETHERNET_HEADER_BYTES = 14
LONGEST_FRAME_BYTES = ETHERNET_HEADER_BYTES + MTU
RECEIVE_BUFFER_BYTES = NET_HEADER.size + LONGEST_FRAME_BYTES
"""What a receive buffer has room for at least (5.1.6.3.1)."""

_OFFERED = NEEDED | 1 << Feature.NET_MTU | 1 << Feature.NET_MAC
_SHORTEST_BYTES = NET_HEADER.size + ETHERNET_HEADER_BYTES
_PLAIN_HEADER = bytes(NET_HEADER.size)
_RECEIVED_HEADER = NET_HEADER.pack(0, 0, 0, 0, 0, 0, 1)


@dataclass(slots=True)
class NetCounts:
    """What the card did since it was made."""

    frames_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    bytes_received: int = 0
    bad_frames: int = 0
    """Frames of the driver that were dropped."""
    no_buffer: int = 0
    """Frames of the network that were dropped."""
    errors: int = 0
    """How often the card could not go on."""


class VirtioNet:
    """One card. The port is the only way it reaches memory; ``mac`` is its own address, 6 bytes."""

    def __init__(self, port: DmaPort, mac: bytes) -> None:
        self.counts = NetCounts()
        self.registers = MmioRegisters(NETWORK_DEVICE, _OFFERED, queue_count=2)
        self._port = port
        self.assign(mac)

    def assign(self, mac: bytes) -> None:
        """Give the card another address, as who runs the network may before a driver starts it."""
        self.mac = mac
        self._config = NET_CONFIG.pack(mac, 0, 1, MTU)

    def read_register(self, offset: int, width: int) -> int:
        """Load from the registers or configuration space; what is not there reads zero."""
        if offset >= Register.CONFIG:
            at = offset - Register.CONFIG
            return int.from_bytes(self._config[at : at + width], "little")
        return self.registers.read(offset) if width == 4 else 0

    def write_register(self, offset: int, value: int, width: int) -> tuple[bytes, ...]:
        """Store to a register; the frames that were sent by it."""
        if width != 4:
            return ()
        if offset == Register.QUEUE_NOTIFY:
            return self._transmit() if value == TRANSMIT else ()
        self.registers.write(offset, value)
        return ()

    def receive(self, frame: bytes) -> bool:
        """Take a frame from the network into the next buffer; False if it was dropped."""
        queue = self.registers.ready.get(RECEIVE) if self.registers.serves else None
        try:
            received = queue is not None and self._put(queue, _RECEIVED_HEADER + frame)
        except (QueueError, DmaFault):
            self._fail()
            return False
        if not received:
            self.counts.no_buffer += 1
            return False
        self.registers.interrupt |= Interrupt.USED_BUFFER
        self.counts.frames_received += 1
        self.counts.bytes_received += len(frame)
        return True

    def _put(self, queue: Virtqueue, data: bytes) -> bool:
        """Write into the next buffer of the driver, if it has offered one."""
        chain = queue.take(self._port)
        if chain is None:
            return False
        if chain.readable or chain.writable_bytes < RECEIVE_BUFFER_BYTES:
            raise QueueError("receive buffer", "room for the longest frame", chain.writable_bytes)
        done = 0
        for address, length in chain.writable:
            if done < len(data):
                self._port.write(address, data[done : done + length])
                done += length
        queue.give_back(self._port, chain, len(data))
        return True

    def _transmit(self) -> tuple[bytes, ...]:
        """Send until the queue is empty: at most a ring of entries, for nobody moves its index meanwhile."""
        queue = self.registers.ready.get(TRANSMIT)
        if queue is None or not self.registers.serves:
            return ()
        sent: list[bytes] = []
        try:
            for _ in range(queue.size):
                chain = queue.take(self._port)
                if chain is None:
                    break
                frame = self._frame(chain)
                if frame is None:
                    self.counts.bad_frames += 1
                else:
                    sent.append(frame)
                queue.give_back(self._port, chain, 0)
        except (QueueError, DmaFault):
            self._fail()
        self.counts.frames_sent += len(sent)
        self.counts.bytes_sent += sum(map(len, sent))
        return tuple(sent)

    def _frame(self, chain: Chain) -> bytes | None:
        """What a buffer of the driver asks to be sent, None if that is no frame."""
        if chain.writable or chain.readable_bytes < NET_HEADER.size:
            raise QueueError("transmit buffer", "a header to read, nothing to write", chain.readable_bytes)
        if not _SHORTEST_BYTES <= chain.readable_bytes <= RECEIVE_BUFFER_BYTES:
            return None
        data = b"".join([self._port.read(address, length) for address, length in chain.readable])
        return data[NET_HEADER.size :] if data.startswith(_PLAIN_HEADER) else None

    def _fail(self) -> None:
        self.registers.fail()
        self.counts.errors += 1
