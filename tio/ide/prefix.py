"""The IDE prefix of a packet: which stream it belongs to, and what its receiver needs to check it.

Source: PCI Express base specification, 6.33.5 for the fields. Their places in the double word were not at hand:
these are the laboratory's own, on which both ends of its links agree.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX_BYTES = 4
_TYPE = 0x92
"""Fmt and Type of an end-to-end prefix."""
T, K, M, P = 1 << 3, 1 << 4, 1 << 5, 1 << 6
SUB_STREAM = 0b111


class PrefixError(ValueError):
    """Four bytes that are no IDE prefix."""


@dataclass(frozen=True, slots=True)
class IdePrefix:
    """Stream (8 bits), sub-stream (3 bits), ``tee`` (T), ``key_set`` (K), ``mac`` (M) and what was posted before.

    ``posted`` counts the posted packets that the sender sent since its last packet on the same sub-stream, 8 bits,
    on NPR and CPL.
    """

    stream: int
    sub_stream: int
    tee: bool
    key_set: int
    mac: bool
    posted: int = 0

    def pack(self) -> bytes:
        """The prefix's bytes."""
        flags = self.sub_stream | T * self.tee | K * self.key_set | M * self.mac
        return bytes((_TYPE, flags, self.posted, self.stream))


def parse_prefix(data: bytes) -> IdePrefix:
    """The prefix that ``data`` is. Raises PrefixError; reserved bits are ignored, as receivers must."""
    if len(data) != PREFIX_BYTES or data[0] != _TYPE:
        raise PrefixError(f"IDE prefix: expected {PREFIX_BYTES} bytes of type {_TYPE:#x}, found {data.hex()}")
    flags = data[1]
    return IdePrefix(data[3], flags & SUB_STREAM, bool(flags & T), int(bool(flags & K)), bool(flags & M), data[2])
