"""A key-value store: an open-addressing table of records in guest memory.

Layout, from the start of the private range, each part on a page of its own:

    versions   one little-endian u64 for each key: the version the table must hold
    buckets    ``SLOTS`` slots each, half of them filled on average

    slot       offset 0 key + 1 (u64, 0 is empty), 8 version (u64), 16 checksum,
               32 value

A key's record lies in the first bucket with room, from the key's home bucket
on. The checksum is keyed and covers key, version and value, so a record passes
only if this program wrote it, and the version table says whether it is the
newest. Memory that nobody wrote reads as anything under encryption, so the
program formats its table first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from node.operations import Answer, Compute, GuestOperation, Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, loaded
from workloads.keyed_content import KeyedContent
from workloads.parameters import MOST_INSTRUCTIONS, check_placement, pages, parameters_from, share, whole

SLOTS = 8
HEADER = struct.Struct("<QQ16s")
_IDENTITY = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_KEYS_OF_A_BUCKET = 4
"""Records for each bucket when the table is full: half of its slots."""

FORMAT_RIP, LOAD_RIP, SERVE_RIP = 0x40_0000, 0x40_1000, 0x40_2000
_FORMAT_BYTES = 64 << 10
_FORMAT_WRITES = 8
_MOST_PROBES = 64
"""A longer chain of full buckets than the filling can make: the table is damaged."""

DEMAND = Demand(
    "serve",
    instructions_per_cycle=1.2,
    llc_misses_per_kilo_instruction=4.0,
    tlb_misses_per_kilo_instruction=2.0,
    memory_level_parallelism=2.0,
    bytes_per_llc_miss=80.0,
    exits_per_mega_instruction=2.0,
    written_bytes_per_kilo_instruction=6.0,
)
"""Pointer chasing with a network in front; some 5,000 records written a second, a page each. The laboratory's choice:
not published."""


@dataclass(frozen=True, slots=True)
class KeyValueParameters:
    """Parameters of ``key-value-store``; the defaults fit 4 MiB and fill an hour with about a hundred batches.

    ``read_share`` 0.5 is the update-heavy mix that YCSB calls workload A
    (Cooper et al., Benchmarking Cloud Serving Systems with YCSB, SoCC 2010);
    the other defaults are the laboratory's choice.
    """

    records: int = whole(2048, 1, 1 << 24)
    value_bytes: int = whole(512, 8, 64 << 10, 8)
    batch: int = whole(64, 1, 1024)
    """Requests served at once."""
    read_share: float = share(0.5)
    batches_per_round: int = whole(1, 1, 10_000)
    """Batches between two ``Compute`` phases."""
    instructions_per_batch: int = whole(75_000_000_000, 0, MOST_INSTRUCTIONS)

    @property
    def slot_bytes(self) -> int:
        """A record with its header."""
        return HEADER.size + self.value_bytes

    @property
    def buckets(self) -> int:
        """Buckets of the table; one more than the records need, so that probing always ends."""
        return self.records // _KEYS_OF_A_BUCKET + 1

    @property
    def private_bytes(self) -> int:
        """Versions and buckets."""
        return pages(self.records * _NUMBER.size) + pages(self.buckets * SLOTS * self.slot_bytes)

    @property
    def shared_bytes(self) -> int:
        """None."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


class _Damaged(Exception):
    """The table does not hold what it must."""


class _Faulted(Exception):
    """An operation faulted."""


_Steps = Generator[tuple[GuestOperation, ...], tuple[Answer, ...], dict[int, tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class KeyValueStore:
    """The program. R12 counts what the present phase has done, R13 the requests answered."""

    parameters: KeyValueParameters
    placement: Placement
    content: KeyedContent

    @classmethod
    def build(cls, spec: ProgramSpec, placement: Placement) -> KeyValueStore:
        """Rebuild the program whole."""
        parameters = parameters_from(KeyValueParameters, spec.parameters)
        check_placement(parameters, placement)
        return cls(parameters, placement, KeyedContent.of(placement, spec.name))

    @property
    def entry(self) -> int:
        """RIP of the first block."""
        return FORMAT_RIP

    @property
    def demands(self) -> tuple[Demand, ...]:
        """One steady phase."""
        return (replace(DEMAND, written_set_bytes=self.parameters.private_bytes),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {FORMAT_RIP: self._format, LOAD_RIP: self._load, SERVE_RIP: self._serve}

    def _format(self, registers: Registers) -> Block:
        """Clear the table. R12: bytes cleared."""
        end = self.parameters.private_bytes
        start = registers.r12
        stop = min(end, start + _FORMAT_WRITES * _FORMAT_BYTES)
        base = self.placement.base_gpa
        answers = yield tuple(
            Write(base + at, bytes(min(_FORMAT_BYTES, stop - at))) for at in range(start, stop, _FORMAT_BYTES)
        )
        if faulted(answers):
            return FAULTED
        registers.r12 = stop
        if stop == end:
            registers.r12 = 0
            registers.rip = LOAD_RIP
        return None

    def _load(self, registers: Registers) -> Block:
        """Store the first version of some keys. R12: keys stored."""
        parameters = self.parameters
        stop = min(parameters.records, registers.r12 + parameters.batch)
        keys = range(registers.r12, stop)
        try:
            places = yield from self._find(keys, insert=True)
        except _Damaged:
            return WRONG_ANSWER
        except _Faulted:
            return FAULTED
        versions = Write(self._version_gpa(keys[0]), _NUMBER.pack(1) * len(keys))
        answers = yield (versions, *(Write(places[key][0], self._record(key, 1)) for key in keys))
        if faulted(answers):
            return FAULTED
        registers.r12 = stop
        if stop == parameters.records:
            registers.r12 = 0
            registers.rip = SERVE_RIP
        return None

    def _serve(self, registers: Registers) -> Block:
        """Answer one batch of requests. R12: batches done."""
        parameters = self.parameters
        draws = self.content.draws(b"requests", registers.r12, parameters.batch)
        keys = ((draws & np.uint64(0xFFFF_FFFF)) % np.uint64(parameters.records)).tolist()
        puts = ((draws >> np.uint64(32)) >= np.uint64(int(parameters.read_share * (1 << 32)))).tolist()
        # A batch sees the table as it was before: each key is looked up and written at most once.
        wanted = list(dict.fromkeys(keys))
        answers = yield tuple(Read(self._version_gpa(key), _NUMBER.size) for key in wanted)
        stored = loaded(answers)
        if stored is None:
            return FAULTED
        versions = {key: _NUMBER.unpack(data)[0] for key, data in zip(wanted, stored, strict=True)}
        try:
            places = yield from self._find(wanted, insert=False)
        except _Damaged:
            return WRONG_ANSWER
        except _Faulted:
            return FAULTED
        if not all(self._is_current(key, versions[key], places[key][1]) for key in wanted):
            return WRONG_ANSWER
        changed = dict.fromkeys(key for key, put in zip(keys, puts, strict=True) if put)
        if changed:
            stores = [Write(places[key][0], self._record(key, versions[key] + 1)) for key in changed]
            stores += [Write(self._version_gpa(key), _NUMBER.pack(versions[key] + 1)) for key in changed]
            answers = yield tuple(stores)
            if faulted(answers):
                return FAULTED
        registers.r13 += parameters.batch
        registers.r12 += 1
        if registers.r12 % parameters.batches_per_round or not parameters.instructions_per_batch:
            return None
        return Compute(0, parameters.instructions_per_batch * parameters.batches_per_round)

    def _is_current(self, key: int, version: int, record: bytes) -> bool:
        """Whether a record is this key's, of this version and whole."""
        if record[: _IDENTITY.size] != _IDENTITY.pack(key + 1, version):
            return False
        checksum = record[_IDENTITY.size : HEADER.size]
        return checksum == self.content.checksum(record[: _IDENTITY.size] + record[HEADER.size :])

    def _record(self, key: int, version: int) -> bytes:
        value = self.content.octets(b"value", key, version, self.parameters.value_bytes)
        identity = _IDENTITY.pack(key + 1, version)
        return b"".join((identity, self.content.checksum(identity + value), value))

    def _find(self, keys: list[int] | range, insert: bool) -> _Steps:
        """Where the records of ``keys`` lie (GPA) and what they hold; with ``insert``, the places they shall have."""
        bucket_bytes = SLOTS * self.parameters.slot_bytes
        buckets = self.parameters.buckets
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
                    raise _Faulted
                images.update((bucket, bytearray(image)) for bucket, image in zip(missing, data, strict=True))
            full = []
            for key, bucket in pending:
                place = self._slot(images[bucket], key, insert)
                if place is None:
                    full.append((key, (bucket + 1) % buckets))
                else:
                    record = bytes(images[bucket][place : place + self.parameters.slot_bytes])
                    places[key] = self._bucket_gpa(bucket) + place, record
            if not full:
                return places
            pending = full
        raise _Damaged

    def _slot(self, image: bytearray, key: int, insert: bool) -> int | None:
        """Offset of the key's slot in a bucket, None if all slots are others'."""
        for offset in range(0, len(image), self.parameters.slot_bytes):
            (found,) = _NUMBER.unpack_from(image, offset)
            if found == key + 1 and not insert:
                return offset
            if not found:
                if not insert:
                    break
                _NUMBER.pack_into(image, offset, key + 1)
                return offset
            if found > self.parameters.records or (found == key + 1 and insert):
                break
        else:
            return None
        # An empty slot before the key, a key that does not exist, or one stored twice.
        raise _Damaged

    def _version_gpa(self, key: int) -> int:
        return self.placement.base_gpa + key * _NUMBER.size

    def _bucket_gpa(self, bucket: int) -> int:
        table = self.placement.base_gpa + pages(self.parameters.records * _NUMBER.size)
        return table + bucket * SLOTS * self.parameters.slot_bytes
