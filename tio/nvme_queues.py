"""Queues of an NVMe controller: rings in host memory, of which the device keeps the indices."""

from __future__ import annotations

from dataclasses import dataclass

from tio.dma_port import DmaPort
from tio.nvme_format import CQE_BYTES, SQE_BYTES, CompletionEntry, SubmissionEntry


@dataclass(slots=True)
class CompletionQueue:
    """The device writes at ``tail``, the host reads up to it and hands back ``head``.

    ``vector`` is the interrupt that tells of entries; None for a queue that is polled.
    """

    base: int
    size: int
    vector: int | None = 0
    head: int = 0
    tail: int = 0
    phase: int = 1

    @property
    def full(self) -> bool:
        """One slot always stays empty, so that full differs from empty (4.1.2)."""
        return (self.tail + 1) % self.size == self.head

    def accepts_head(self, head: int) -> bool:
        """Whether a doorbell value lies between what was consumed and what was posted."""
        return 0 <= head < self.size and (head - self.head) % self.size <= (self.tail - self.head) % self.size

    def post(self, port: DmaPort, entry: CompletionEntry) -> None:
        """Write one entry and step on; the phase bit turns at every wrap. Raises ``DmaFault``."""
        port.write(self.base + self.tail * CQE_BYTES, entry.pack())
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1


@dataclass(slots=True)
class SubmissionQueue:
    """The host writes up to ``tail``, the device fetches from ``head``."""

    base: int
    size: int
    completion_queue: int
    head: int = 0
    tail: int = 0

    def fetch(self, port: DmaPort) -> SubmissionEntry:
        """Read the entry at the head and step on. Raises ``DmaFault``."""
        entry = SubmissionEntry.parse(port.read(self.base + self.head * SQE_BYTES, SQE_BYTES))
        self.head = (self.head + 1) % self.size
        return entry
