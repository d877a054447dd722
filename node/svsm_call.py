"""Calls of an SVSM: what a guest puts into its registers and calling area, and what comes back.

A guest at a lower VMPL sets the first byte of its calling area, puts protocol and call into RAX and
arguments into RCX, RDX and R8, and asks the hypervisor to run VMPL0 on its vCPU. It finds the result in RAX.
Source: Secure VM Service Module (58019), chapters 4 to 8, as coconut-svsm (kernel/src/protocols) and Linux
(arch/x86/include/asm/svsm.h) have it; the list of DEPOSIT_MEM and WITHDRAW_MEM, which neither of them serves,
is taken to be PVALIDATE's without its flags.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

CALL_PENDING, MEMORY_AVAILABLE = 0, 1
"""Offsets in the calling area."""
BUFFER = 8
"""Where the calling area has room for lists."""


class Protocol(IntEnum):
    """RAX bits 63:32."""

    CORE = 0
    ATTESTATION = 1
    VTPM = 2
    APIC = 3
    UEFI_MM = 4
    DEVICES = 0x8000_0000
    """The laboratory's own (``node.svsm_devices``)."""


class CoreCall(IntEnum):
    """RAX bits 31:0 of the core protocol."""

    REMAP_CA = 0
    PVALIDATE = 1
    CREATE_VCPU = 2
    DELETE_VCPU = 3
    DEPOSIT_MEM = 4
    WITHDRAW_MEM = 5
    QUERY_PROTOCOL = 6
    CONFIGURE_VTOM = 7


class VtpmCall(IntEnum):
    """RAX bits 31:0 of the vTPM protocol."""

    QUERY = 0
    CMD = 1


class DeviceCall(IntEnum):
    """RAX bits 31:0 of the laboratory's protocol of devices."""

    GRANT = 0


class SvsmResult(IntEnum):
    """RAX after a call."""

    SUCCESS = 0
    INCOMPLETE = 0x8000_0000
    UNSUPPORTED_PROTOCOL = 0x8000_0001
    UNSUPPORTED_CALL = 0x8000_0002
    INVALID_ADDRESS = 0x8000_0003
    INVALID_FORMAT = 0x8000_0004
    INVALID_PARAMETER = 0x8000_0005
    INVALID_REQUEST = 0x8000_0006
    BUSY = 0x8000_0007


PROTOCOL_BASE = 0x8000_1000
"""Plus the code of PVALIDATE or RMPADJUST that refused."""
FAIL_UNCHANGED = 0x10
"""In place of a code: the page was so already (CF)."""


class CallRefused(Exception):
    """A call that is answered with another result than success. ``registers`` are changed nevertheless."""

    def __init__(self, result: int) -> None:
        super().__init__(hex(result))
        self.result = result


# Lists of pages.

LIST_HEADER = struct.Struct("<HHI")
ENTRY_BYTES = 8
_RESERVED = 0xFF0


@dataclass(frozen=True, slots=True)
class ListHeader:
    """How many entries a list has, and which is next."""

    entries: int
    next: int

    @classmethod
    def parse(cls, data: bytes, room: int) -> ListHeader:
        """The header of a list with ``room`` bytes to the end of its page. Raises CallRefused."""
        entries, upcoming, reserved = LIST_HEADER.unpack(data)
        if reserved or not 0 < entries <= (room - LIST_HEADER.size) // ENTRY_BYTES or entries <= upcoming:
            raise CallRefused(SvsmResult.INVALID_PARAMETER)
        return cls(entries, upcoming)


@dataclass(frozen=True, slots=True)
class PageEntry:
    """One page: what is to be done with it; ``ignores_carry`` lets it be so already."""

    gpa: int
    large: bool = False
    validate: bool = True
    ignores_carry: bool = False

    @property
    def length(self) -> int:
        """Bytes of the page."""
        return LARGE_PAGE_BYTES if self.large else PAGE_BYTES

    @classmethod
    def parse(cls, word: int) -> PageEntry:
        """Raises CallRefused for reserved bits, an unknown size and a misaligned address."""
        size, gpa = word & 3, word & -PAGE_BYTES
        if word & _RESERVED or size > 1 or gpa % (LARGE_PAGE_BYTES if size else PAGE_BYTES):
            raise CallRefused(SvsmResult.INVALID_PARAMETER)
        return cls(gpa, bool(size), bool(word & 4), bool(word & 8))

    @property
    def word(self) -> int:
        """The entry as it stands in a list."""
        return self.gpa | self.ignores_carry << 3 | self.validate << 2 | self.large


def page_list(entries: Iterable[PageEntry], first: int = 0) -> bytes:
    """A list that begins with entry ``first``."""
    words = [entry.word for entry in entries]
    return LIST_HEADER.pack(len(words), first, 0) + struct.pack(f"<{len(words)}Q", *words)


def entry_words(data: bytes) -> Iterator[int]:
    """The words of a list behind its header."""
    return (word for (word,) in struct.iter_unpack("<Q", data))
