"""An NVMe disk: registers, doorbells and commands over real queue entries in memory.

NVM Express base specification 1.4. A doorbell runs the queue to its end, at
once and in order: what took how long is the board's to say. Rules:

- A command that is wrong gets its status code and changes nothing.
- A queue the device cannot reach is fatal (CSTS.CFS): it stops until reset.
- A doorbell that names no queue or no slot is ignored and counted.
- A full completion queue stops fetching until the host frees a slot.
- A reset forgets queues, never media.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tio.dma_port import DmaFault, DmaPort
from tio.nvme_admin import ADMIN_QUEUE, MOST_NAMESPACES, NAMESPACE_ID, AdminCommands, NvmeSettings, QueueTable
from tio.nvme_format import (
    ALL_NAMESPACES,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUTDOWN_COMPLETE,
    DO_NOT_RETRY,
    DOORBELLS,
    PAGE_BYTES,
    VERSION_1_4,
    CompletionEntry,
    IoOpcode,
    Register,
    Status,
    SubmissionEntry,
    capabilities,
)
from tio.nvme_namespace import MediaError, NvmeNamespace
from tio.nvme_prp import CommandRefused, prp_extents
from tio.nvme_queues import CompletionQueue, SubmissionQueue

_WRITABLE = {Register.CC: 4, Register.AQA: 4, Register.ASQ: 8, Register.ACQ: 8}
_REGISTER_BYTES = Register.ACQ + 8


@dataclass(frozen=True, slots=True)
class Served:
    """What the disk did for one command. Bytes are those that moved, 0 for a refused one."""

    queue: int
    cid: int
    opcode: int
    status: int
    bytes_read: int = 0
    bytes_written: int = 0


class NvmeController:
    """One controller, with a namespace and perhaps ``more`` of them. The port is the only way it reaches memory.

    ``interrupt`` hears of each vector whose completion queue got entries, once for all that a doorbell brought.
    """

    def __init__(
        self,
        port: DmaPort,
        namespace: NvmeNamespace,
        settings: NvmeSettings | None = None,
        more: Sequence[NvmeNamespace] = (),
    ) -> None:
        if len(more) >= MOST_NAMESPACES:
            raise ValueError(f"namespaces: expected at most {MOST_NAMESPACES}, got {1 + len(more)}")
        self.namespace = namespace
        self.namespaces = dict(enumerate((namespace, *more), NAMESPACE_ID))
        """By identifier."""
        self.settings = NvmeSettings() if settings is None else settings
        self.invalid_doorbells = 0
        self.interrupt: Callable[[int], None] = _nobody
        self._port = port
        self._queues = QueueTable()
        self._admin = AdminCommands(port, (namespace, *more), self.settings, self._queues)
        self._registers = bytearray()
        self.reset()

    @property
    def ready(self) -> bool:
        """CSTS.RDY without CSTS.CFS: commands are served."""
        return self._get(Register.CSTS, 4) & (CSTS_READY | CSTS_FATAL) == CSTS_READY

    def read_register(self, offset: int, width: int = 4) -> int:
        """Load from the register BAR; what is not there reads zero."""
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def write_register(self, offset: int, value: int, width: int = 4) -> tuple[Served, ...]:
        """Store to the register BAR, doorbells included; read-only registers stay as they are."""
        if offset >= DOORBELLS:
            slot, misplaced = divmod(offset - DOORBELLS, 4)
            if misplaced:
                self.invalid_doorbells += 1
                return ()
            number, is_completion = divmod(slot, 2)
            ring = self.ring_completion if is_completion else self.ring_submission
            return ring(number, value & 0xFFFF)
        for register, size in _WRITABLE.items():
            if register <= offset and offset + width <= register + size:
                self._store(register, offset, value, width)
        return ()

    def reset(self) -> None:
        """As it was made; the media stay."""
        self._reset_queues()
        self._registers = bytearray(_REGISTER_BYTES)
        self._put(Register.CAP, capabilities(self.settings.max_queue_entries), 8)
        self._put(Register.VS, VERSION_1_4, 4)

    def ring_submission(self, queue: int, tail: int) -> tuple[Served, ...]:
        """The tail doorbell of a submission queue: serve what is in it. Returns what was done."""
        submission = self._queues.submission.get(queue)
        if not self.ready or submission is None or not 0 <= tail < submission.size:
            self.invalid_doorbells += 1
            return ()
        submission.tail = tail
        return tuple(self._serve(queue, submission))

    def ring_completion(self, queue: int, head: int) -> tuple[Served, ...]:
        """The head doorbell of a completion queue: slots are free, and waiting commands go on."""
        completion = self._queues.completion.get(queue)
        if not self.ready or completion is None or not completion.accepts_head(head):
            self.invalid_doorbells += 1
            return ()
        completion.head = head
        served: list[Served] = []
        for number, submission in list(self._queues.submission.items()):
            if submission.completion_queue == queue:
                served += self._serve(number, submission)
        return tuple(served)

    def _serve(self, number: int, submission: SubmissionQueue) -> list[Served]:
        """Run a queue until it is empty, its completion queue is full, or memory fails.

        One doorbell fetches at most a ring of entries: nobody moves the tail meanwhile.
        """
        served: list[Served] = []
        completion = self._queues.completion[submission.completion_queue]
        posted = False
        while submission.head != submission.tail and not completion.full:
            try:
                entry = submission.fetch(self._port)
                done, result = self._execute(number, entry)
                status_field = done.status | (0 if done.status in _RETRIABLE else DO_NOT_RETRY)
                answer = CompletionEntry(result, submission.head, number, entry.cid, completion.phase, status_field)
                completion.post(self._port, answer)
            except DmaFault:
                if self._queues.submission.get(number) is submission:  # and no reset has come meanwhile
                    self._put(Register.CSTS, self._get(Register.CSTS, 4) | CSTS_FATAL, 4)
                break
            posted = True
            served.append(done)
        if posted and completion.vector is not None:
            self.interrupt(completion.vector)
        return served

    def _execute(self, number: int, entry: SubmissionEntry) -> tuple[Served, int]:
        """One command, and DW0 of its completion. Neither fused commands nor SGLs are announced."""
        if entry.fuse or entry.psdt:
            return Served(number, entry.cid, entry.opcode, Status.INVALID_FIELD), 0
        try:
            if number == ADMIN_QUEUE:
                result = self._admin.execute(entry)
                return Served(number, entry.cid, entry.opcode, Status.SUCCESS), result
            return self._io(number, entry), 0
        except CommandRefused as refusal:
            return Served(number, entry.cid, entry.opcode, refusal.status), 0

    def _io(self, number: int, entry: SubmissionEntry) -> Served:
        """The NVM command set (section 6)."""
        match entry.opcode:
            case IoOpcode.FLUSH:
                if entry.nsid != ALL_NAMESPACES and entry.nsid not in self.namespaces:
                    raise CommandRefused(Status.INVALID_NAMESPACE)
                return Served(number, entry.cid, entry.opcode, Status.SUCCESS)
            case IoOpcode.READ | IoOpcode.WRITE:
                return self._transfer(number, entry)
        raise CommandRefused(Status.INVALID_OPCODE)

    def _transfer(self, number: int, entry: SubmissionEntry) -> Served:
        """READ and WRITE (6.9, 6.15). A write reaches the media only when all its data has arrived."""
        namespace, port = self.namespaces.get(entry.nsid), self._port
        if namespace is None:
            raise CommandRefused(Status.INVALID_NAMESPACE)
        lba = entry.cdw10 | entry.cdw11 << 32
        blocks = (entry.cdw12 & 0xFFFF) + 1
        length = blocks * namespace.block_bytes
        if length > self.settings.max_transfer_bytes:
            raise CommandRefused(Status.INVALID_FIELD)
        if lba + blocks > namespace.blocks:
            raise CommandRefused(Status.LBA_OUT_OF_RANGE)
        extents = prp_extents(port, entry.prp1, entry.prp2, length)
        try:
            if entry.opcode == IoOpcode.WRITE:
                namespace.write(lba, b"".join([port.read(address, size) for address, size in extents]))
                return Served(number, entry.cid, entry.opcode, Status.SUCCESS, bytes_written=length)
            data = namespace.read(lba, blocks)
            offset = 0
            for address, size in extents:
                port.write(address, data[offset : offset + size])
                offset += size
        except DmaFault:
            raise CommandRefused(Status.DATA_TRANSFER_ERROR) from None
        except MediaError:
            raise CommandRefused(Status.UNRECOVERED_READ_ERROR) from None
        return Served(number, entry.cid, entry.opcode, Status.SUCCESS, bytes_read=length)

    def _store(self, register: Register, offset: int, value: int, width: int) -> None:
        """Write a register; the admin queue's may only change while the controller is off (3.1.5)."""
        was_enabled = self._get(Register.CC, 4) & 1
        if register is not Register.CC and was_enabled:
            return
        self._put(offset, value & (1 << 8 * width) - 1, width)
        if register is Register.CC:
            configuration = self._get(Register.CC, 4)
            self._queues.entry_sizes = (configuration >> 16 & 0xF, configuration >> 20 & 0xF)
            enabled = configuration & 1
            if enabled and not was_enabled:
                self._enable()
            elif was_enabled and not enabled:
                self._reset_queues()
                self._put(Register.CSTS, 0, 4)
            if configuration >> 14 & 3:
                self._put(Register.CSTS, self._get(Register.CSTS, 4) | CSTS_SHUTDOWN_COMPLETE, 4)

    def _enable(self) -> None:
        """CC.EN from 0 to 1 (3.1.5): the admin queues come to life, or the controller reports a fatal state."""
        configuration, sizes = self._get(Register.CC, 4), self._get(Register.AQA, 4)
        submission, completion = self._get(Register.ASQ, 8), self._get(Register.ACQ, 8)
        sq_size, cq_size = (sizes & 0xFFF) + 1, (sizes >> 16 & 0xFFF) + 1
        command_set_page_size_arbitration = configuration >> 4 & 0x3FF
        if command_set_page_size_arbitration or min(sq_size, cq_size) < 2 or (submission | completion) % PAGE_BYTES:
            self._put(Register.CSTS, CSTS_FATAL, 4)
            return
        self._queues.completion[ADMIN_QUEUE] = CompletionQueue(completion, cq_size)
        self._queues.submission[ADMIN_QUEUE] = SubmissionQueue(submission, sq_size, ADMIN_QUEUE)
        self._put(Register.CSTS, CSTS_READY, 4)

    def _reset_queues(self) -> None:
        self._queues.submission.clear()
        self._queues.completion.clear()
        self._queues.entry_sizes = (0, 0)

    def _get(self, offset: int, width: int) -> int:
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def _put(self, offset: int, value: int, width: int) -> None:
        self._registers[offset : offset + width] = value.to_bytes(width, "little")


def _nobody(_: int) -> None:
    """Hear nothing."""


_RETRIABLE = (Status.SUCCESS, Status.DATA_TRANSFER_ERROR)
