"""Hashes of kernel, initrd and command line, laid where OVMF's AmdSev build looks for them.

QEMU puts the table into guest memory with ``kernel-hashes=on``, so that the
launch digest covers a kernel that travels outside of the image. Layout:
``SevHashTable`` of QEMU, target/i386/sev.c: a GUID and a length, then three
entries of the same form, padded to 16 bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from uuid import UUID

_TABLE = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_CMDLINE = UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD = UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_KERNEL = UUID("4de79437-abd2-427f-b835-d5b172d2045b")

_HEADER = struct.Struct("<16sH")
_DIGEST_BYTES = hashlib.sha256().digest_size
_ENTRY_BYTES = _HEADER.size + _DIGEST_BYTES
_TABLE_BYTES = _HEADER.size + 3 * _ENTRY_BYTES

HASH_TABLE_BYTES = (_TABLE_BYTES + 15) & ~15
"""The table with its padding, as it is measured: LAUNCH_UPDATE_DATA takes multiples of 16."""


def command_line_digest(cmdline: bytes) -> bytes:
    """SHA-256 of a kernel's command line with its terminating zero."""
    return hashlib.sha256(cmdline + b"\0").digest()


@dataclass(frozen=True, slots=True)
class KernelHashes:
    """SHA-256 of what a measured direct boot loads."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes

    @classmethod
    def of(cls, kernel: bytes, initrd: bytes = b"", cmdline: str = "") -> KernelHashes:
        """Hash the three."""
        return cls(
            hashlib.sha256(kernel).digest(),
            hashlib.sha256(initrd).digest(),
            command_line_digest(cmdline.encode()),
        )

    def table(self) -> bytes:
        """The padded table."""
        entries = ((_CMDLINE, self.cmdline), (_INITRD, self.initrd), (_KERNEL, self.kernel))
        table = _HEADER.pack(_TABLE.bytes_le, _TABLE_BYTES) + b"".join(
            _HEADER.pack(guid.bytes_le, _ENTRY_BYTES) + digest for guid, digest in entries
        )
        return table.ljust(HASH_TABLE_BYTES, b"\0")
