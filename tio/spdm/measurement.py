"""Measurements of a device: blocks, records and summaries (DSP0274, 10.11)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tio.spdm.algorithms import BaseHash, HashAlgorithm
from tio.spdm.codes import SummaryType
from tio.spdm.faults import MalformedMessage

MANIFEST_INDEX = 0xFD
DEVICE_MODE_INDEX = 0xFE
COUNT_OPERATION = 0x00
ALL_OPERATION = 0xFF

_BLOCK = struct.Struct("<BBH")
_VALUE = struct.Struct("<BH")
_DMTF = 1
_RAW = 0x80


class ValueType(IntEnum):
    """What a measurement is of."""

    IMMUTABLE_ROM = 0
    MUTABLE_FIRMWARE = 1
    HARDWARE_CONFIGURATION = 2
    FIRMWARE_CONFIGURATION = 3
    MANIFEST = 4
    DEVICE_MODE = 5
    VERSION = 6
    SECURITY_VERSION = 7


_ALWAYS_RAW = {ValueType.MANIFEST, ValueType.DEVICE_MODE, ValueType.VERSION, ValueType.SECURITY_VERSION}
"""Values that a verifier must read, not compare."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing that a device measured; ``raw`` is the bit stream."""

    index: int
    kind: ValueType
    raw: bytes

    @property
    def in_tcb(self) -> bool:
        """Whether it belongs to the trusted computing base: code that others stand on and that cannot change."""
        return self.kind is ValueType.IMMUTABLE_ROM

    def pack(self, measurement_hash: HashAlgorithm, *, raw: bool = False) -> bytes:
        """The block: a digest, or the bit stream where that is asked for or always told."""
        plain = raw or self.kind in _ALWAYS_RAW
        value = self.raw if plain else measurement_hash.digest(self.raw)
        head = _VALUE.pack(self.kind | (_RAW if plain else 0), len(value))
        return _BLOCK.pack(self.index, _DMTF, len(head) + len(value)) + head + value


@dataclass(frozen=True, slots=True)
class MeasurementBlock:
    """One block as a requester reads it."""

    index: int
    kind: int
    """A ``ValueType``, or a number that is none of ours."""
    is_raw: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """What a proper device measures at an index, as its verifier knows it."""

    index: int
    value: bytes
    """The SHA-384 digest of the bits; with ``raw`` the bits."""
    raw: bool = False
    """Of what a device tells as bits alone, such as its mode."""

    def fits(self, block: MeasurementBlock) -> bool:
        """Whether a block says so. Bits in place of a digest, which whoever asks may choose, are hashed first."""
        if self.raw:
            return block.is_raw and block.value == self.value
        return self.value == (hashlib.sha384(block.value).digest() if block.is_raw else block.value)


def first_unlike(references: Iterable[ReferenceValue], blocks: Sequence[MeasurementBlock]) -> ReferenceValue | None:
    """The first reference that no block fits, or not every one of its index; None where all are met."""
    for one in references:
        told = [block for block in blocks if block.index == one.index]
        if not told or not all(map(one.fits, told)):
            return one
    return None


def parse_record(record: bytes, count: int) -> tuple[MeasurementBlock, ...]:
    """The blocks of a record. Raises MalformedMessage unless it is exactly ``count`` of DMTF's."""
    blocks = []
    at = 0
    while at < len(record):
        if at + _BLOCK.size > len(record):
            raise MalformedMessage("measurement block", "its head", len(record) - at)
        index, specification, size = _BLOCK.unpack_from(record, at)
        end = at + _BLOCK.size + size
        if specification != _DMTF or size < _VALUE.size or end > len(record):
            raise MalformedMessage(f"measurement block {index:#x}", "a whole block of DMTF's", specification)
        kind, length = _VALUE.unpack_from(record, at + _BLOCK.size)
        value = record[at + _BLOCK.size + _VALUE.size : end]
        if len(value) != length:
            raise MalformedMessage(f"measurement block {index:#x}", f"{length} bytes", len(value))
        blocks.append(MeasurementBlock(index, kind & ~_RAW, bool(kind & _RAW), value))
        at = end
    if len(blocks) != count:
        raise MalformedMessage("measurement record", f"{count} blocks", len(blocks))
    return tuple(blocks)


def summary_hash(
    measurements: Iterable[Measurement], kind: SummaryType, base_hash: HashAlgorithm, measurement_hash: BaseHash
) -> bytes:
    """MeasurementSummaryHash: over whole blocks in the order of their index; nothing where none is asked for."""
    if kind is SummaryType.NONE:
        return b""
    chosen = [one for one in measurements if kind is SummaryType.ALL or one.in_tcb]
    blocks = [one.pack(measurement_hash.value) for one in sorted(chosen, key=lambda one: one.index)]
    return base_hash.digest(b"".join(blocks))
