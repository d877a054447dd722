"""The GHCB page: what a guest with encrypted registers chooses to show its hypervisor, and what it gets back.

One page of 4,096 bytes that both can write. The guest lays down an exit code, two
words of information and the registers that the exit needs, sets their bits in
VALID_BITMAP, and executes VMGEXIT. The hypervisor answers in the same page.
Layout: GHCB specification (56421), table 3, as in edk2's Ghcb.h; bit i of the bitmap
covers the eight bytes at 8 * i.

Each side takes one copy and makes every check on the copy: what the other side
writes meanwhile is seen whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from node.ghcb_msr import PROTOCOL_VERSIONS

GHCB_BYTES = 4096
SHARED_BUFFER = 0x800
SHARED_BUFFER_BYTES = 2032
MOST_SCRATCH_BYTES = 16 * 4096
"""Most that a hypervisor copies from outside of the page (KVM's limit)."""

_VALID_BITMAP = 0x3F0
_BITMAP_BYTES = 16
_VERSION = slice(0xFFA, 0xFFC)
_USAGE = slice(0xFFC, 0x1000)

# fmt: off
GHCB_FIELDS: Mapping[str, tuple[int, int]] = MappingProxyType({
    "CPL": (0x0CB, 1), "XSS": (0x140, 8), "DR7": (0x160, 8), "RIP": (0x178, 8), "RSP": (0x1D8, 8), "RAX": (0x1F8, 8),
    "RCX": (0x308, 8), "RDX": (0x310, 8), "RBX": (0x318, 8), "RBP": (0x328, 8), "RSI": (0x330, 8), "RDI": (0x338, 8),
    "R8": (0x340, 8), "R9": (0x348, 8), "R10": (0x350, 8), "R11": (0x358, 8), "R12": (0x360, 8), "R13": (0x368, 8),
    "R14": (0x370, 8), "R15": (0x378, 8), "SW_EXITCODE": (0x390, 8), "SW_EXITINFO1": (0x398, 8),
    "SW_EXITINFO2": (0x3A0, 8), "SW_SCRATCH": (0x3A8, 8), "XCR0": (0x3E8, 8),
})
# fmt: on
"""Offset and width of every field that has a bit in the bitmap."""

ALWAYS = ("SW_EXITCODE", "SW_EXITINFO1", "SW_EXITINFO2")
"""Fields that a guest must always show."""


class BadInput(IntEnum):
    """SW_EXITINFO2 where SW_EXITINFO1 is 2: why a hypervisor refuses an exit."""

    NOT_REGISTERED = 1
    INVALID_USAGE = 2
    BAD_SCRATCH = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


class Outcome(IntEnum):
    """SW_EXITINFO1 bits 31:0 of a reply."""

    SUCCESS = 0
    EXCEPTION = 1
    MALFORMED_INPUT = 2


BAD_VERSION = BadInput.INVALID_USAGE
"""What a PROTOCOL_VERSION that is not spoken here gets.

The sheet gives it no reason of its own. Version and usage together say how the page
is to be read, so the reason of a usage that is not known is taken.
"""


class GhcbRefused(Exception):
    """An exit that the hypervisor refuses; nothing was changed for it."""

    def __init__(self, reason: BadInput, field_name: str) -> None:
        super().__init__(f"{field_name}: {reason.name}")
        self.reason = reason


class GhcbUntrusted(Exception):
    """A reply that a guest must not go on with: the hypervisor broke the protocol or refused the exit."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where an exit's data lie: within the GHCB page's own buffer, or in other memory that is shared."""

    gpa: int
    length: int
    offset: int | None
    """Within the GHCB page; None outside of it."""


@dataclass(frozen=True, slots=True)
class GhcbExit:
    """An exit as a hypervisor parsed it from its one copy of the page: the fields whose bits were set, no other."""

    gpa: int
    version: int
    fields: Mapping[str, int]
    buffer: bytes = field(repr=False)
    """The shared buffer at that same instant."""

    @property
    def code(self) -> int:
        """SW_EXITCODE."""
        return self.fields["SW_EXITCODE"]

    @property
    def info1(self) -> int:
        """SW_EXITINFO1."""
        return self.fields["SW_EXITINFO1"]

    @property
    def info2(self) -> int:
        """SW_EXITINFO2."""
        return self.fields["SW_EXITINFO2"]

    def require(self, names: Iterable[str]) -> None:
        """Raises GhcbRefused with MISSING_INPUT for the first field that the guest did not show."""
        for name in names:
            if name not in self.fields:
                raise GhcbRefused(BadInput.MISSING_INPUT, name)

    def scratch(self, length: int) -> Scratch:
        """The ``length`` bytes at SW_SCRATCH. Raises GhcbRefused.

        A range that touches the GHCB page must lie wholly in its buffer.
        """
        self.require(("SW_SCRATCH",))
        gpa = self.fields["SW_SCRATCH"]
        if not gpa or length <= 0 or gpa + length > 1 << 64:
            raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")
        if gpa + length <= self.gpa or gpa >= self.gpa + GHCB_BYTES:
            if length > MOST_SCRATCH_BYTES:
                raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")
            return Scratch(gpa, length, None)
        offset = gpa - self.gpa
        if offset < SHARED_BUFFER or offset + length > SHARED_BUFFER + SHARED_BUFFER_BYTES:
            raise GhcbRefused(BadInput.BAD_SCRATCH, "SW_SCRATCH")
        return Scratch(gpa, length, offset)


def parse_exit(page: bytes, gpa: int) -> GhcbExit:
    """A guest's exit out of a copy of its page at ``gpa``. Raises GhcbRefused; ValueError if it is no page.

    Checked in this order: usage, version, the three fields that are always there.
    """
    if len(page) != GHCB_BYTES:
        raise ValueError(f"GHCB: expected {GHCB_BYTES} bytes, got {len(page)}")
    page = bytes(page)
    if any(page[_USAGE]):
        raise GhcbRefused(BadInput.INVALID_USAGE, "USAGE")
    version = int.from_bytes(page[_VERSION], "little")
    if not PROTOCOL_VERSIONS[0] <= version <= PROTOCOL_VERSIONS[1]:
        raise GhcbRefused(BAD_VERSION, "PROTOCOL_VERSION")
    found = GhcbExit(gpa, version, _valid_fields(page), page[SHARED_BUFFER : SHARED_BUFFER + SHARED_BUFFER_BYTES])
    found.require(ALWAYS)
    return found


def build_exit(
    code: int,
    info1: int = 0,
    info2: int = 0,
    registers: Mapping[str, int] = MappingProxyType({}),
    buffer: bytes = b"",
    version: int = PROTOCOL_VERSIONS[1],
) -> bytes:
    """The whole page as a guest lays it down before VMGEXIT: what is not shown is zero.

    Raises ValueError for a buffer that does not fit, KeyError for a register that the page has no place for.
    """
    if len(buffer) > SHARED_BUFFER_BYTES:
        raise ValueError(f"shared buffer: expected at most {SHARED_BUFFER_BYTES} bytes, got {len(buffer)}")
    page = bytearray(GHCB_BYTES)
    _set_fields(page, {**registers, "SW_EXITCODE": code, "SW_EXITINFO1": info1, "SW_EXITINFO2": info2})
    page[SHARED_BUFFER : SHARED_BUFFER + len(buffer)] = buffer
    page[_VERSION] = version.to_bytes(2, "little")
    return bytes(page)


def build_reply(info1: int, info2: int, registers: Mapping[str, int] = MappingProxyType({})) -> bytes:
    """What a hypervisor lays over the page up to the bitmap's end: outputs, their bits, and no other bit."""
    page = bytearray(_VALID_BITMAP + _BITMAP_BYTES)
    _set_fields(page, {**registers, "SW_EXITINFO1": info1, "SW_EXITINFO2": info2})
    return bytes(page)


def refusal(reason: BadInput) -> bytes:
    """The reply to an exit that is malformed."""
    return build_reply(Outcome.MALFORMED_INPUT, reason)


@dataclass(frozen=True, slots=True)
class GhcbReply:
    """A hypervisor's reply as a guest parsed it from its one copy."""

    info2: int
    registers: Mapping[str, int]
    exception: int | None = None
    """Vector of the exception that the hypervisor asks the guest to raise, None for none."""
    error_code: int | None = None


GENERAL_PROTECTION = 13
UNDEFINED_OPCODE = 6
_INJECTABLE = frozenset({GENERAL_PROTECTION, UNDEFINED_OPCODE})
_EVENT_EXCEPTION = 3
_EVENT_RESERVED = 0x7FFF_F000


def exception_event(vector: int, error_code: int | None = None) -> int:
    """SW_EXITINFO2 where SW_EXITINFO1 is 1: an exception in the format of EVENTINJ."""
    event = vector | _EVENT_EXCEPTION << 8 | 1 << 31
    return event if error_code is None else event | 1 << 11 | error_code << 32


def parse_reply(page: bytes, outputs: Iterable[str]) -> GhcbReply:
    """A hypervisor's reply that must hold ``outputs``. Raises GhcbUntrusted.

    Fields whose bits are not set are not looked at, nor are outputs that nobody asked for.
    """
    if len(page) != GHCB_BYTES:
        raise ValueError(f"GHCB: expected {GHCB_BYTES} bytes, got {len(page)}")
    found = _valid_fields(bytes(page))
    missing = [name for name in ("SW_EXITINFO1", "SW_EXITINFO2") if name not in found]
    if missing:
        raise GhcbUntrusted(f"{missing[0]}: not valid in the reply")
    outcome, info2 = found["SW_EXITINFO1"] & 0xFFFF_FFFF, found["SW_EXITINFO2"]
    if outcome == Outcome.EXCEPTION:
        vector, kind = info2 & 0xFF, info2 >> 8 & 7
        if vector not in _INJECTABLE or kind != _EVENT_EXCEPTION or not info2 & 1 << 31 or info2 & _EVENT_RESERVED:
            raise GhcbUntrusted(f"SW_EXITINFO2: {info2:#x} is no exception that a hypervisor may ask for")
        return GhcbReply(info2, {}, vector, info2 >> 32 if info2 & 1 << 11 else None)
    if outcome != Outcome.SUCCESS:
        raise GhcbUntrusted(f"SW_EXITINFO1: {outcome}, reason {info2:#x}")
    wanted = tuple(outputs)
    for name in wanted:
        if name not in found:
            raise GhcbUntrusted(f"{name}: not valid in the reply")
    return GhcbReply(info2, {name: found[name] for name in wanted})


def take_reply(page: bytes, outputs: Iterable[str]) -> GhcbReply:
    """A reply as whoever looks at nothing takes it: whatever lies in the page is the answer, and all went well."""
    if len(page) != GHCB_BYTES:
        raise ValueError(f"GHCB: expected {GHCB_BYTES} bytes, got {len(page)}")
    return GhcbReply(_field(page, "SW_EXITINFO2"), {name: _field(page, name) for name in outputs})


def _field(page: bytes, name: str) -> int:
    offset, width = GHCB_FIELDS[name]
    return int.from_bytes(page[offset : offset + width], "little")


def _valid_fields(page: bytes) -> Mapping[str, int]:
    bitmap = int.from_bytes(page[_VALID_BITMAP : _VALID_BITMAP + _BITMAP_BYTES], "little")
    return {name: _field(page, name) for name, (offset, _) in GHCB_FIELDS.items() if bitmap >> offset // 8 & 1}


def _set_fields(page: bytearray, values: Mapping[str, int]) -> None:
    bitmap = 0
    for name, value in values.items():
        offset, width = GHCB_FIELDS[name]
        page[offset : offset + width] = value.to_bytes(width, "little")
        bitmap |= 1 << offset // 8
    page[_VALID_BITMAP : _VALID_BITMAP + _BITMAP_BYTES] = bitmap.to_bytes(_BITMAP_BYTES, "little")
