"""Admin commands of the NVMe controller: identify, queue creation, the number of queues.

NVMe base specification 1.4, section 5. Each handler checks everything before it
changes anything; its answer is DW0 of the completion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tio.dma_port import DmaFault, DmaPort
from tio.nvme_format import (
    ALL_NAMESPACES,
    FEATURE_NUMBER_OF_QUEUES,
    IDENTIFY_CONTROLLER,
    IDENTIFY_NAMESPACE,
    NAMESPACE_GUID_TYPE,
    PAGE_BYTES,
    VERSION_1_4,
    AdminOpcode,
    Identify,
    Status,
    SubmissionEntry,
    fill,
)
from tio.nvme_namespace import NvmeNamespace
from tio.nvme_prp import CommandRefused, prp_extents
from tio.nvme_queues import CompletionQueue, SubmissionQueue

NAMESPACE_ID = 1
"""Of the first; others follow."""
MOST_NAMESPACES = 1024
"""As many as one page of identifiers holds."""
ADMIN_QUEUE = 0
_INTERRUPTS_ENABLED = 1 << 1
_IO_ENTRY_SIZES = (6, 4)
"""CC.IOSQES and IOCQES: 64 and 16 bytes, the only sizes of the NVM command set."""


@dataclass(frozen=True, slots=True)
class NvmeSettings:
    """What a controller offers. ``max_transfer_log2`` is MDTS: pages of 4 KiB as a power of two."""

    serial: str = "SEVFLEET0"
    model: str = "sevfleet laboratory NVMe disk"
    firmware: str = "1"
    max_io_queues: int = 1
    max_queue_entries: int = 1024
    max_transfer_log2: int = 9

    @property
    def max_transfer_bytes(self) -> int:
        """The longest transfer of one command."""
        return PAGE_BYTES << self.max_transfer_log2


@dataclass(slots=True)
class QueueTable:
    """The queues that exist, and the entry sizes the host announced in CC. Number 0 are the admin queues."""

    submission: dict[int, SubmissionQueue] = field(default_factory=dict)
    completion: dict[int, CompletionQueue] = field(default_factory=dict)
    entry_sizes: tuple[int, int] = (0, 0)


class AdminCommands:
    """Executes admin commands on a queue table."""

    def __init__(
        self, port: DmaPort, namespaces: Sequence[NvmeNamespace], settings: NvmeSettings, queues: QueueTable
    ) -> None:
        self._port = port
        self._namespaces = tuple(namespaces)
        self._settings = settings
        self._queues = queues

    def execute(self, entry: SubmissionEntry) -> int:
        """Run one command; raises ``CommandRefused`` with nothing changed."""
        handler = _HANDLERS.get(entry.opcode)
        if handler is None:
            raise CommandRefused(Status.INVALID_OPCODE)
        return handler(self, entry)

    def identify(self, entry: SubmissionEntry) -> int:
        """5.15: one page of data for each CNS."""
        page = self._identify_page(entry.cdw10 & 0xFF, entry.nsid)
        extents = prp_extents(self._port, entry.prp1, entry.prp2, PAGE_BYTES)
        offset = 0
        try:
            for address, length in extents:
                self._port.write(address, page[offset : offset + length])
                offset += length
        except DmaFault:
            raise CommandRefused(Status.DATA_TRANSFER_ERROR) from None
        return 0

    def create_completion_queue(self, entry: SubmissionEntry) -> int:
        """5.3."""
        number, size = self._new_queue(entry, self._queues.completion)
        vector = entry.cdw11 >> 16
        if vector > self._settings.max_io_queues:
            raise CommandRefused(Status.INVALID_INTERRUPT_VECTOR)
        told = bool(entry.cdw11 & _INTERRUPTS_ENABLED)
        self._queues.completion[number] = CompletionQueue(entry.prp1, size, vector if told else None)
        return 0

    def create_submission_queue(self, entry: SubmissionEntry) -> int:
        """5.4."""
        number, size = self._new_queue(entry, self._queues.submission)
        target = entry.cdw11 >> 16
        if target == ADMIN_QUEUE:
            raise CommandRefused(Status.INVALID_QUEUE_IDENTIFIER)
        if target not in self._queues.completion:
            raise CommandRefused(Status.COMPLETION_QUEUE_INVALID)
        self._queues.submission[number] = SubmissionQueue(entry.prp1, size, target)
        return 0

    def delete_completion_queue(self, entry: SubmissionEntry) -> int:
        """5.5: not while a submission queue posts there."""
        number = self._existing(entry, self._queues.completion)
        if any(queue.completion_queue == number for queue in self._queues.submission.values()):
            raise CommandRefused(Status.INVALID_QUEUE_DELETION)
        del self._queues.completion[number]
        return 0

    def delete_submission_queue(self, entry: SubmissionEntry) -> int:
        """5.6."""
        del self._queues.submission[self._existing(entry, self._queues.submission)]
        return 0

    def set_features(self, entry: SubmissionEntry) -> int:
        """5.21.1.7: the number of queues, before any is made."""
        answer = self.get_features(entry)
        if entry.cdw11 & 0xFFFF == 0xFFFF or entry.cdw11 >> 16 == 0xFFFF:
            raise CommandRefused(Status.INVALID_FIELD)
        if len(self._queues.submission) + len(self._queues.completion) > 2:
            raise CommandRefused(Status.COMMAND_SEQUENCE_ERROR)
        return answer

    def get_features(self, entry: SubmissionEntry) -> int:
        """5.14: the controller always allocates as many queues as it has; counts are 0's based."""
        if entry.cdw10 & 0xFF != FEATURE_NUMBER_OF_QUEUES:
            raise CommandRefused(Status.INVALID_FIELD)
        count = self._settings.max_io_queues - 1
        return count << 16 | count

    def _identify_page(self, cns: int, nsid: int) -> bytes:
        match cns:
            case Identify.CONTROLLER:
                return self._controller_page()
            case Identify.ACTIVE_NAMESPACES:
                if nsid >= ALL_NAMESPACES - 1:
                    raise CommandRefused(Status.INVALID_NAMESPACE)
                names = range(max(nsid + 1, NAMESPACE_ID), NAMESPACE_ID + len(self._namespaces))
                return b"".join([name.to_bytes(4, "little") for name in names]).ljust(PAGE_BYTES, b"\0")
            case Identify.NAMESPACE | Identify.NAMESPACE_DESCRIPTORS:
                if not NAMESPACE_ID <= nsid < NAMESPACE_ID + len(self._namespaces):
                    raise CommandRefused(Status.INVALID_NAMESPACE)
                if cns == Identify.NAMESPACE:
                    return self._namespace_page(nsid)
                guid = self._guid(nsid)
                return (bytes((NAMESPACE_GUID_TYPE, len(guid), 0, 0)) + guid).ljust(PAGE_BYTES, b"\0")
        raise CommandRefused(Status.INVALID_FIELD)

    def _controller_page(self) -> bytes:
        settings = self._settings
        return fill(
            IDENTIFY_CONTROLLER,
            {
                "SN": settings.serial,
                "MN": settings.model,
                "FR": settings.firmware,
                "MDTS": settings.max_transfer_log2,
                "CNTLID": 1,
                "VER": VERSION_1_4,
                "CNTRLTYPE": 1,
                "SQES": 0x66,
                "CQES": 0x44,
                "NN": len(self._namespaces),
                "SUBNQN": f"nqn.2014-08.org.nvmexpress:sevfleet:{settings.serial}".encode(),
            },
        )

    def _namespace_page(self, nsid: int) -> bytes:
        namespace = self._namespaces[nsid - NAMESPACE_ID]
        blocks, data_size = namespace.blocks, namespace.block_bytes.bit_length() - 1
        return fill(
            IDENTIFY_NAMESPACE,
            {"NSZE": blocks, "NCAP": blocks, "NUSE": blocks, "NGUID": self._guid(nsid), "LBAF0": data_size << 16},
        )

    def _guid(self, nsid: int) -> bytes:
        """A name that follows from the serial number: same settings, same disk."""
        name = self._settings.serial if nsid == NAMESPACE_ID else f"{self._settings.serial} {nsid}"
        return hashlib.sha256(name.encode()).digest()[:16]

    def _new_queue(
        self, entry: SubmissionEntry, existing: Mapping[int, CompletionQueue] | Mapping[int, SubmissionQueue]
    ) -> tuple[int, int]:
        """Checks that both kinds share: number, size, memory (figures 152 to 157)."""
        number, size = entry.cdw10 & 0xFFFF, (entry.cdw10 >> 16) + 1
        if not ADMIN_QUEUE < number <= self._settings.max_io_queues or number in existing:
            raise CommandRefused(Status.INVALID_QUEUE_IDENTIFIER)
        if not 2 <= size <= self._settings.max_queue_entries or self._queues.entry_sizes != _IO_ENTRY_SIZES:
            raise CommandRefused(Status.INVALID_QUEUE_SIZE)
        if not entry.cdw11 & 1:
            raise CommandRefused(Status.INVALID_FIELD)
        if entry.prp1 % PAGE_BYTES:
            raise CommandRefused(Status.PRP_OFFSET_INVALID)
        return number, size

    @staticmethod
    def _existing(
        entry: SubmissionEntry, existing: Mapping[int, CompletionQueue] | Mapping[int, SubmissionQueue]
    ) -> int:
        number = entry.cdw10 & 0xFFFF
        if number == ADMIN_QUEUE or number not in existing:
            raise CommandRefused(Status.INVALID_QUEUE_IDENTIFIER)
        return number


_HANDLERS: Mapping[int, Callable[[AdminCommands, SubmissionEntry], int]] = {
    AdminOpcode.DELETE_IO_SQ: AdminCommands.delete_submission_queue,
    AdminOpcode.CREATE_IO_SQ: AdminCommands.create_submission_queue,
    AdminOpcode.DELETE_IO_CQ: AdminCommands.delete_completion_queue,
    AdminOpcode.CREATE_IO_CQ: AdminCommands.create_completion_queue,
    AdminOpcode.IDENTIFY: AdminCommands.identify,
    AdminOpcode.SET_FEATURES: AdminCommands.set_features,
    AdminOpcode.GET_FEATURES: AdminCommands.get_features,
}
"""Every other opcode is refused with INVALID_OPCODE."""
