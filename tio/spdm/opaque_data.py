"""Opaque data of a key exchange: which version of secured messages is used (DSP0274, 10.18; DSP0277, chapter 8)."""

from __future__ import annotations

import struct

from tio.spdm.faults import MalformedMessage

SECURED_MESSAGE_VERSIONS = (0x1000, 0x1100, 0x1200)
"""Versions of DSP0277 whose records are the same with the algorithms that are here, lowest first."""

LONGEST_OPAQUE_BYTES = 1024

_TABLE_HEAD = struct.Struct("<B3x")
_ELEMENT = struct.Struct("<BBH")
_DMTF = 0
_DATA_VERSION = 1
_VERSION_SELECTION = 0
_SUPPORTED_VERSIONS = 1
_ALIGNMENT = 4


def supported_versions() -> bytes:
    """What a requester says."""
    listed = b"".join([version.to_bytes(2, "little") for version in SECURED_MESSAGE_VERSIONS])
    return _table(bytes((_DATA_VERSION, _SUPPORTED_VERSIONS, len(SECURED_MESSAGE_VERSIONS))) + listed)


def selected_version(version: int) -> bytes:
    """What a responder answers."""
    return _table(bytes((_DATA_VERSION, _VERSION_SELECTION)) + version.to_bytes(2, "little"))


def choose_version(opaque: bytes) -> int | None:
    """The highest version that a requester's data and we have in common; None if there is none.

    Raises MalformedMessage for what is no table of elements, or has no list of versions.
    """
    for data in _elements(opaque):
        if data[:2] == bytes((_DATA_VERSION, _SUPPORTED_VERSIONS)) and len(data) >= 3:
            count = data[2]
            if len(data) != 3 + 2 * count:
                raise MalformedMessage("supported versions", f"{count} of them", len(data))
            theirs = {int.from_bytes(data[at : at + 2], "little") & 0xFFF0 for at in range(3, len(data), 2)}
            return max(theirs & set(SECURED_MESSAGE_VERSIONS), default=None)
    raise MalformedMessage("opaque data", "a list of secured message versions", "none")


def parse_selection(opaque: bytes) -> int:
    """The version that a responder selected. Raises MalformedMessage unless it is one of ours."""
    for data in _elements(opaque):
        if data[:2] == bytes((_DATA_VERSION, _VERSION_SELECTION)) and len(data) == 4:
            version = int.from_bytes(data[2:], "little") & 0xFFF0
            if version in SECURED_MESSAGE_VERSIONS:
                return version
    raise MalformedMessage("opaque data", "the selection of a secured message version", "none")


def _table(data: bytes) -> bytes:
    element = _ELEMENT.pack(_DMTF, 0, len(data)) + data
    return _TABLE_HEAD.pack(1) + element + bytes(-len(element) % _ALIGNMENT)


def _elements(opaque: bytes) -> list[bytes]:
    """The data of DMTF's own elements; those of other standards are passed over."""
    if len(opaque) < _TABLE_HEAD.size:
        raise MalformedMessage("opaque data", "a table of elements", len(opaque))
    (count,) = _TABLE_HEAD.unpack_from(opaque)
    at = _TABLE_HEAD.size
    found: list[bytes] = []
    for _ in range(count):
        if at + _ELEMENT.size > len(opaque):
            raise MalformedMessage("opaque data", f"{count} elements", len(found))
        kind, vendor_bytes, _ = _ELEMENT.unpack_from(opaque, at)
        # The length stands behind the vendor's id, which is empty for DMTF.
        start = at + 2 + vendor_bytes
        length = int.from_bytes(opaque[start : start + 2], "little")
        end = start + 2 + length
        if start + 2 > len(opaque) or end > len(opaque):
            raise MalformedMessage("opaque element", f"{length} bytes", len(opaque) - start)
        if kind == _DMTF and not vendor_bytes:
            found.append(opaque[start + 2 : end])
        at += end - at + -(end - at) % _ALIGNMENT
    if at < len(opaque):
        raise MalformedMessage("opaque data", f"{at} bytes", len(opaque))
    return found
