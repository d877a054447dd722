"""The few lines of a driver that an NVMe disk needs: queues set up, one command at a time.

For whoever plays the host. It lays real queue entries into memory, rings the
doorbells and reads the completions; nothing passes it by. One page each for
the admin queues, the I/O queues, the PRP list and the identify data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tio.dma_port import DmaPort
from tio.nvme import NvmeController, Served
from tio.nvme_format import (
    CQE_BYTES,
    FEATURE_NUMBER_OF_QUEUES,
    IDENTIFY_CONTROLLER,
    IDENTIFY_NAMESPACE,
    PAGE_BYTES,
    SQE_BYTES,
    AdminOpcode,
    CompletionEntry,
    Identify,
    IoOpcode,
    Register,
    Status,
    SubmissionEntry,
)

DRIVER_MEMORY_BYTES = 6 * PAGE_BYTES
"""What ``NvmeDriver`` needs at its base: page-aligned, reachable by device and host alike."""

_ADMIN, _IO = 0, 1
_QUEUE_ENTRIES = PAGE_BYTES // SQE_BYTES
_LIST_PAGE, _IDENTIFY_PAGE = 4, 5
_MAX_BLOCKS = 1 << 16
_ENABLE = 1 | 6 << 16 | 4 << 20
"""CC: on, NVM command set, 4 KiB pages, entries of 64 and 16 bytes."""


class NvmeDriverError(Exception):
    """The controller did not come up or answered nothing; or our caller's memory has the wrong shape."""


@dataclass(slots=True)
class _Ring:
    """The host's side of a queue pair."""

    submission: int
    completion: int
    tail: int = 0
    head: int = 0
    phase: int = 1


class NvmeDriver:
    """Drives a controller from ``memory`` at ``base``. Addresses are the device's.

    ``start`` must come first. ``read``, ``write`` and ``flush`` return the NVMe
    status, 0 is success; ``served`` is what the disk did for the last of them.
    They raise ``DmaFault`` when the host itself cannot reach the queues, and
    ``NvmeDriverError`` when no answer comes; ``start`` then begins anew.
    """

    def __init__(self, controller: NvmeController, memory: DmaPort, base: int) -> None:
        if base % PAGE_BYTES:
            raise NvmeDriverError(f"base: expected a page boundary, found {base:#x}")
        self.block_bytes = 0
        self.blocks = 0
        self.max_transfer_bytes = 0
        self.served: list[Served] = []
        self._controller = controller
        self._memory = memory
        self._base = base
        self._cid = 0
        self._rings: dict[int, _Ring] = {}

    def start(self) -> None:
        """Reset the controller, make the queues, learn the disk's size."""
        self._rings.clear()
        controller = self._controller
        controller.write_register(Register.CC, 0)
        self._new_ring(_ADMIN)
        admin = self._rings[_ADMIN]
        controller.write_register(Register.AQA, _QUEUE_ENTRIES - 1 << 16 | _QUEUE_ENTRIES - 1)
        controller.write_register(Register.ASQ, admin.submission, 8)
        controller.write_register(Register.ACQ, admin.completion, 8)
        controller.write_register(Register.CC, _ENABLE)
        if not controller.ready:
            raise NvmeDriverError("CSTS: expected a ready controller")
        page = self._identify(Identify.CONTROLLER, 0)
        self.max_transfer_bytes = PAGE_BYTES << _field(page, IDENTIFY_CONTROLLER["MDTS"])
        page = self._identify(Identify.NAMESPACE, 1)
        self.blocks = _field(page, IDENTIFY_NAMESPACE["NSZE"])
        self.block_bytes = 1 << (_field(page, IDENTIFY_NAMESPACE["LBAF0"]) >> 16 & 0xFF)
        self._admin(SubmissionEntry(AdminOpcode.SET_FEATURES, 0, cdw10=FEATURE_NUMBER_OF_QUEUES))
        self._new_ring(_IO)
        ring, size = self._rings[_IO], _QUEUE_ENTRIES - 1 << 16 | _IO
        self._admin(SubmissionEntry(AdminOpcode.CREATE_IO_CQ, 0, prp1=ring.completion, cdw10=size, cdw11=1))
        self._admin(SubmissionEntry(AdminOpcode.CREATE_IO_SQ, 0, prp1=ring.submission, cdw10=size, cdw11=_IO << 16 | 1))
        self.served.clear()

    def read(self, lba: int, blocks: int, extents: Iterable[tuple[int, int]]) -> int:
        """Blocks into memory; ``extents`` are (address, length) runs that join at page boundaries."""
        return self._transfer(IoOpcode.READ, lba, blocks, extents)

    def write(self, lba: int, blocks: int, extents: Iterable[tuple[int, int]]) -> int:
        """Memory onto blocks; ``extents`` as for ``read``."""
        return self._transfer(IoOpcode.WRITE, lba, blocks, extents)

    def flush(self) -> int:
        """Wait until everything written is on the media, which here it always is."""
        self.served.clear()
        return self.submit(_IO, SubmissionEntry(IoOpcode.FLUSH, 0, nsid=1)).status

    def submit(self, queue: int, entry: SubmissionEntry) -> CompletionEntry:
        """Lay one entry into a queue, ring, take the completion. The entry's command id is filled in."""
        ring = self._rings.get(queue)
        if ring is None:
            raise NvmeDriverError(f"queue {queue}: expected one that start() made")
        self._cid = (self._cid + 1) & 0xFFFF
        self._memory.write(ring.submission + ring.tail * SQE_BYTES, replace(entry, cid=self._cid).pack())
        ring.tail = (ring.tail + 1) % _QUEUE_ENTRIES
        self.served += self._controller.ring_submission(queue, ring.tail)
        answer = CompletionEntry.parse(self._memory.read(ring.completion + ring.head * CQE_BYTES, CQE_BYTES))
        if answer.phase != ring.phase or answer.cid != self._cid:
            raise NvmeDriverError(f"completion of command {self._cid}: expected one in queue {queue}, found none")
        ring.head += 1
        if ring.head == _QUEUE_ENTRIES:
            ring.head, ring.phase = 0, ring.phase ^ 1
        self.served += self._controller.ring_completion(queue, ring.head)
        return answer

    def _transfer(self, opcode: IoOpcode, lba: int, blocks: int, extents: Iterable[tuple[int, int]]) -> int:
        """Split at the controller's limits; the first status that is not success ends the transfer."""
        self.served.clear()
        left = list(extents)
        if blocks < 1 or sum(length for _, length in left) != blocks * self.block_bytes:
            expected = f"{blocks} blocks of {self.block_bytes} bytes"
            raise NvmeDriverError(f"extents: expected {expected}, found {sum(length for _, length in left)} bytes")
        if not 0 <= lba < 1 << 64:
            return Status.LBA_OUT_OF_RANGE
        limit = min(_MAX_BLOCKS, self.max_transfer_bytes // self.block_bytes)
        while blocks:
            count = min(blocks, limit)
            part, left = _split(left, count * self.block_bytes)
            prp1, prp2 = self._data_pointer(part)
            words = {"cdw10": lba & 0xFFFF_FFFF, "cdw11": lba >> 32, "cdw12": count - 1}
            status = self.submit(_IO, SubmissionEntry(opcode, 0, nsid=1, prp1=prp1, prp2=prp2, **words)).status
            if status:
                return status
            blocks -= count
            lba += count
        return Status.SUCCESS

    def _data_pointer(self, extents: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """PRP1 and PRP2 for a run of memory; a longer one goes through the list page (4.3)."""
        pages = list(_pages(extents))
        if len(pages) <= 2:
            return pages[0], pages[1] if len(pages) == 2 else 0
        address = self._page(_LIST_PAGE)
        self._memory.write(address, struct.pack(f"<{len(pages) - 1}Q", *pages[1:]))
        return pages[0], address

    def _identify(self, cns: Identify, nsid: int) -> bytes:
        address = self._page(_IDENTIFY_PAGE)
        self._admin(SubmissionEntry(AdminOpcode.IDENTIFY, 0, nsid=nsid, prp1=address, cdw10=cns))
        return self._memory.read(address, PAGE_BYTES)

    def _admin(self, entry: SubmissionEntry) -> None:
        status = self.submit(_ADMIN, entry).status
        if status:
            raise NvmeDriverError(f"{AdminOpcode(entry.opcode).name}: expected success, found status {status:#x}")

    def _new_ring(self, queue: int) -> None:
        ring = _Ring(self._page(2 * queue), self._page(2 * queue + 1))
        self._memory.write(ring.completion, bytes(PAGE_BYTES))
        self._rings[queue] = ring

    def _page(self, index: int) -> int:
        return self._base + index * PAGE_BYTES


def _field(page: bytes, place: tuple[int, int]) -> int:
    offset, width = place
    return int.from_bytes(page[offset : offset + width], "little")


def _split(extents: Sequence[tuple[int, int]], length: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first ``length`` bytes of a run of memory, and the rest."""
    part: list[tuple[int, int]] = []
    for index, (address, size) in enumerate(extents):
        if size >= length:
            rest = [(address + length, size - length)] if size > length else []
            return [*part, (address, length)], [*rest, *extents[index + 1 :]]
        part.append((address, size))
        length -= size
    return part, []


def _pages(extents: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The address of every page of a run of memory, the first with its offset."""
    last = len(extents) - 1
    for index, (address, size) in enumerate(extents):
        end = address + size
        if (index and address % PAGE_BYTES) or (index < last and end % PAGE_BYTES):
            raise NvmeDriverError(
                f"extents: expected runs that join at page boundaries, found {address:#x} + {size:#x}"
            )
        yield address
        yield from range((address // PAGE_BYTES + 1) * PAGE_BYTES, end, PAGE_BYTES)
