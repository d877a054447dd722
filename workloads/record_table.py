"""An open-addressing table of records in guest memory, as the key-value programs keep it.

Layout, from the start of the private range, each part on a page of its own:

    versions   one little-endian u64 for each key: the version the table must hold
    buckets    ``SLOTS`` slots each, half of them filled on average

    slot       offset 0 key + 1 (u64, 0 is empty), 8 version (u64), 16 checksum,
               32 value

A key's record lies in the first bucket with room, from the key's home bucket
on. The checksum is keyed and covers key, version and value, so a record passes
only if this program wrote it, and the version table says whether it is the
newest. Memory that nobody wrote reads as anything under encryption, so a
program formats its table first.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from node.operations import Answer, GuestOperation, Read, Write
from workloads.block_outcome import loaded
from workloads.keyed_content import KeyedContent
from workloads.parameters import pages

SLOTS = 8
HEADER = struct.Struct("<QQ16s")
_IDENTITY = struct.Struct("<QQ")
VERSION = struct.Struct("<Q")
_KEYS_OF_A_BUCKET = 4
"""Records for each bucket when the table is full: half of its slots."""
_FORMAT_BYTES = 64 << 10
_FORMAT_WRITES = 8
_MOST_PROBES = 64
"""A longer chain of full buckets than the filling can make: the table is damaged."""


class TableDamaged(Exception):
    """The table does not hold what it must."""


class TableFaulted(Exception):
    """An operation faulted."""


Found = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], dict[int, tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class RecordTable:
    """``records`` keys from 0 on with values of ``value_bytes``, from ``base_gpa`` on."""

    base_gpa: int
    records: int
    value_bytes: int
    content: KeyedContent

    @property
    def slot_bytes(self) -> int:
        """A record with its header."""
        return HEADER.size + self.value_bytes

    @property
    def length(self) -> int:
        """Versions and buckets."""
        return table_bytes(self.records, self.value_bytes)

    def clearing(self, start: int) -> tuple[int, tuple[Write, ...]]:
        """Stores that clear the next part of the table from ``start`` on, and where that part ends."""
        stop = min(self.length, start + _FORMAT_WRITES * _FORMAT_BYTES)
        writes = [
            Write(self.base_gpa + at, bytes(min(_FORMAT_BYTES, stop - at)))
            for at in range(start, stop, _FORMAT_BYTES)
        ]
        return stop, tuple(writes)

    def version_gpa(self, key: int) -> int:
        """Where a key's version stands."""
        return self.base_gpa + key * VERSION.size

    def is_current(self, key: int, version: int, record: bytes) -> bool:
        """Whether a record is this key's, of this version and whole."""
        if record[: _IDENTITY.size] != _IDENTITY.pack(key + 1, version):
            return False
        checksum = record[_IDENTITY.size : HEADER.size]
        return checksum == self.content.checksum(record[: _IDENTITY.size] + record[HEADER.size :])

    def record(self, key: int, version: int, value: bytes) -> bytes:
        """The record of a value."""
        identity = _IDENTITY.pack(key + 1, version)
        return b"".join((identity, self.content.checksum(identity + value), value))

    def find(self, keys: list[int] | range, insert: bool) -> Found:
        """Where the records of ``keys`` lie (GPA) and what they hold; with ``insert``, the places they shall have.

        Raises TableDamaged, TableFaulted.
        """
        bucket_bytes = SLOTS * self.slot_bytes
        buckets = _buckets(self.records)
        homes = self.content.words(np.asarray(keys, dtype=np.uint64)) % np.uint64(buckets)
        pending = list(zip(keys, homes.tolist(), strict=True))
        images: dict[int, bytearray] = {}
        places: dict[int, tuple[int, bytes]] = {}
        for _ in range(_MOST_PROBES):
            missing = list(dict.fromkeys(bucket for _, bucket in pending if bucket not in images))
            if missing:
                answers = yield tuple(Read(self._bucket_gpa(bucket), bucket_bytes) for bucket in missing)
                data = loaded(answers)
                if data is None:
                    raise TableFaulted
                images.update((bucket, bytearray(image)) for bucket, image in zip(missing, data, strict=True))
            full = []
            for key, bucket in pending:
                place = self._slot(images[bucket], key, insert)
                if place is None:
                    full.append((key, (bucket + 1) % buckets))
                else:
                    record = bytes(images[bucket][place : place + self.slot_bytes])
                    places[key] = self._bucket_gpa(bucket) + place, record
            if not full:
                return places
            pending = full
        raise TableDamaged

    def _slot(self, image: bytearray, key: int, insert: bool) -> int | None:
        """Offset of the key's slot in a bucket, None if all slots are others'."""
        for offset in range(0, len(image), self.slot_bytes):
            (found,) = VERSION.unpack_from(image, offset)
            if found == key + 1 and not insert:
                return offset
            if not found:
                if not insert:
                    break
                VERSION.pack_into(image, offset, key + 1)
                return offset
            if found > self.records or (found == key + 1 and insert):
                break
        else:
            return None
        # An empty slot before the key, a key that does not exist, or one stored twice.
        raise TableDamaged

    def _bucket_gpa(self, bucket: int) -> int:
        return self.base_gpa + pages(self.records * VERSION.size) + bucket * SLOTS * self.slot_bytes


def table_bytes(records: int, value_bytes: int) -> int:
    """Memory of a table."""
    slot_bytes = HEADER.size + value_bytes
    return pages(records * VERSION.size) + pages(_buckets(records) * SLOTS * slot_bytes)


def _buckets(records: int) -> int:
    """Buckets of a table; one more than the records need, so that probing always ends."""
    return records // _KEYS_OF_A_BUCKET + 1
