"""NVMe's bytes: queue entries, status codes, registers and identify structures.

Source: NVM Express base specification 1.4. Section and figure numbers are
given beside each table.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

PAGE_BYTES = 4096
"""Memory page size; CAP allows no other (MPSMIN = MPSMAX = 0)."""
SQE_BYTES = 64
CQE_BYTES = 16
VERSION_1_4 = 0x0001_0400
ALL_NAMESPACES = 0xFFFF_FFFF


class Status(IntEnum):
    """Status code type in bits 10:8, status code in bits 7:0 (4.6.1, figures 126 to 128)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    LBA_OUT_OF_RANGE = 0x080
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_QUEUE_DELETION = 0x10C
    UNRECOVERED_READ_ERROR = 0x281


DO_NOT_RETRY = 1 << 14
"""Bit 14 of the status field: the same command would fail again."""


class AdminOpcode(IntEnum):
    """Admin commands that the controller knows (section 5, figure 139)."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A


class IoOpcode(IntEnum):
    """Commands of the NVM command set that the controller knows (section 6, figure 346)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02


class Identify(IntEnum):
    """Controller or namespace structure (5.15.1, figure 244)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03


FEATURE_NUMBER_OF_QUEUES = 0x07


class Register(IntEnum):
    """Offsets of controller registers (3.1, figure 69)."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30


DOORBELLS = 0x1000
"""First doorbell: submission tail of queue 0, then its completion head, 4 bytes each (CAP.DSTRD = 0)."""

CSTS_READY = 1 << 0
CSTS_FATAL = 1 << 1
CSTS_SHUTDOWN_COMPLETE = 2 << 2


@dataclass(frozen=True, slots=True)
class SubmissionEntry:
    """The 64 bytes of a command (4.2, figures 104 to 106)."""

    opcode: int
    cid: int
    nsid: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0
    fuse: int = 0
    psdt: int = 0

    def pack(self) -> bytes:
        """The entry's bytes; struct.error for a value wider than its field."""
        flags = self.fuse | self.psdt << 6
        tail = (self.cdw10, self.cdw11, self.cdw12, self.cdw13, self.cdw14, self.cdw15)
        return _SQE.pack(self.opcode, flags, self.cid, self.nsid, self.prp1, self.prp2, *tail)

    @classmethod
    def parse(cls, data: bytes) -> SubmissionEntry:
        """Read an entry; every 64 bytes are one, and the controller judges the values."""
        opcode, flags, cid, nsid, prp1, prp2, w10, w11, w12, w13, w14, w15 = _SQE.unpack(data)
        return cls(opcode, cid, nsid, prp1, prp2, w10, w11, w12, w13, w14, w15, fuse=flags & 3, psdt=flags >> 6)


_SQE = struct.Struct("<BBHI16xQQ6I")


@dataclass(frozen=True, slots=True)
class CompletionEntry:
    """The 16 bytes of an answer (4.6, figures 121 to 124)."""

    result: int
    sq_head: int
    sq_id: int
    cid: int
    phase: int
    status_field: int

    @property
    def status(self) -> int:
        """Type and code without the retry bits: a ``Status`` of ours, 0 is success."""
        return self.status_field & 0x7FF

    def pack(self) -> bytes:
        """The entry's bytes."""
        return _CQE.pack(self.result, self.sq_head, self.sq_id, self.cid, self.status_field << 1 | self.phase)

    @classmethod
    def parse(cls, data: bytes) -> CompletionEntry:
        """Read an entry from host memory."""
        result, sq_head, sq_id, cid, word = _CQE.unpack(data)
        return cls(result, sq_head, sq_id, cid, word & 1, word >> 1)


_CQE = struct.Struct("<I4xHHHH")


def capabilities(max_queue_entries: int) -> int:
    """CAP (3.1.1): contiguous queues only, NVM command set, 500 ms to become ready."""
    contiguous_queues, timeout, nvm_command_set = 1 << 16, 1 << 24, 1 << 37
    return max_queue_entries - 1 | contiguous_queues | timeout | nvm_command_set


IDENTIFY_CONTROLLER: Mapping[str, tuple[int, int]] = {
    "SN": (4, 20),
    "MN": (24, 40),
    "FR": (64, 8),
    "MDTS": (77, 1),
    "CNTLID": (78, 2),
    "VER": (80, 4),
    "CNTRLTYPE": (111, 1),
    "SQES": (512, 1),
    "CQES": (513, 1),
    "NN": (516, 4),
    "SUBNQN": (768, 256),
}
"""Offset and width of the fields that are not zero (5.15.2.2, figure 247); no vendor made it, so its ids are zero."""

IDENTIFY_NAMESPACE: Mapping[str, tuple[int, int]] = {
    "NSZE": (0, 8),
    "NCAP": (8, 8),
    "NUSE": (16, 8),
    "NGUID": (104, 16),
    "LBAF0": (128, 4),
}
"""As above (5.15.2.1, figure 245); one LBA format, no metadata, no protection."""

NAMESPACE_GUID_TYPE = 2
"""NIDT of an NGUID in the list of identification descriptors (5.15.2.4, figure 249)."""


def fill(layout: Mapping[str, tuple[int, int]], values: Mapping[str, int | str | bytes]) -> bytes:
    """A 4,096-byte identify structure; text is padded with spaces, as the specification wants."""
    page = bytearray(PAGE_BYTES)
    for name, value in values.items():
        offset, width = layout[name]
        match value:
            case int():
                field = value.to_bytes(width, "little")
            case str():
                field = value.encode("ascii").ljust(width)
            case bytes():
                field = value.ljust(width, b"\0")
        page[offset : offset + width] = field[:width]
    return bytes(page)
