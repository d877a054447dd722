"""The chained digest of what happened to each entity, in buckets of virtual time.

Each record extends its entity's chain. Whenever an entity's time enters
another bucket the chain's value is kept, so two runs can be compared down to
the first bucket and entity that differ. The records themselves are kept only
where somebody wished for it; the chains are the same either way.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import NamedTuple

from node.host_events import EVENT_KINDS, HostEvent, Octets
from node.record_buffer import NO_LOG, NO_VCPU, LogWish, RecordBuffer

_RECORD = struct.Struct("<qqqq")


class BucketDigest(NamedTuple):
    """The chain's value of one entity when a bucket of virtual time was closed."""

    entity: str
    bucket: int
    records: int
    digest: str


class ChainEnd(NamedTuple):
    """Where a chain stands: its open bucket, the records in it, its value."""

    bucket: int
    records: int
    digest: bytes


class EventLog:
    """Digest chains of the entities of one host, and ``records`` where somebody wished for them."""

    def __init__(self, bucket_ns: int, wish: LogWish = NO_LOG) -> None:
        self.records = RecordBuffer() if wish else None
        self._wish = wish
        self._bucket_ns = bucket_ns
        self._chains: dict[str, Chain] = {}

    def chain(self, entity: str) -> Chain:
        """The chain of an entity, begun on first use."""
        return self._chains.get(entity) or self._begun(entity, (0, 0, entity.encode()))

    def _begun(self, entity: str, end: tuple[int, int, bytes]) -> Chain:
        if self.records is None:
            begun = Chain(entity, self._bucket_ns, end)
        else:
            begun = _KeptChain(entity, self._bucket_ns, end, self._wish, self.records)
        self._chains[entity] = begun
        return begun

    def enter(self, entity: str, end: tuple[int, int, bytes]) -> Chain:
        """Go on with the chain of an entity that came."""
        found = self._chains.get(entity)
        if found is None:
            return self._begun(entity, end)
        found.enter(end)
        return found

    def close(self) -> list[BucketDigest]:
        """Close every open bucket; rows by entity, then bucket."""
        rows: list[BucketDigest] = []
        for entity in sorted(self._chains):
            rows.extend(self._chains[entity].close())
        return rows


class Chain:
    """The digest chain of one entity."""

    __slots__ = ("_bucket", "_bucket_ns", "_count", "_end_ns", "_entity", "_hash", "_rows", "_update")
    _bucket: int
    _count: int
    _end_ns: int
    _update: Callable[[bytes], None]

    def __init__(self, entity: str, bucket_ns: int, end: tuple[int, int, bytes]) -> None:
        self._entity = entity
        self._bucket_ns = bucket_ns
        self._rows: list[BucketDigest] = []
        self.enter(end)

    def record(
        self, now_ns: int, kind: HostEvent, first: int = 0, second: int = 0, vcpu: int = NO_VCPU, took_ns: int = 0
    ) -> None:
        """Add one event: its time, a code of the host's table of events, and two figures.

        Which vCPU did it and how long it took follow from the rest of a run; only logs keep them.
        """
        if now_ns >= self._end_ns:
            self._open_bucket(now_ns)
        self._count += 1
        self._update(_RECORD.pack(now_ns, kind, first, second))

    def record_octets(self, now_ns: int, kind: HostEvent, octets: bytes, about: str = "") -> None:
        """Add one event that carries bytes, such as a launch digest; ``about`` is the VM, where they do not say."""
        if now_ns >= self._end_ns:
            self._open_bucket(now_ns)
        self._count += 1
        self._update(_RECORD.pack(now_ns, kind, len(octets), 0) + octets)

    keeps = False
    """Whether ``note`` may keep anything."""

    def note(
        self, now_ns: int, kind: HostEvent, first: int, second: int, took_ns: int, vcpu: int = NO_VCPU, about: str = ""
    ) -> None:
        """Keep a record that is no part of the digest, if anybody wished for it."""

    def leave(self, now_ns: int) -> ChainEnd:
        """Hand the chain over to where its entity goes: the open bucket goes along, closed ones stay here."""
        if now_ns >= self._end_ns:
            self._open_bucket(now_ns)
        end = tuple.__new__(ChainEnd, (self._bucket, self._count, self._hash.digest()))
        self._count = 0
        return end

    def enter(self, end: tuple[int, int, bytes]) -> None:
        """Go on where another chain of this entity stood: at a ``ChainEnd``, or what it was packed as."""
        self._bucket, self._count, digest = end
        self._end_ns = (self._bucket + 1) * self._bucket_ns
        self._hash = hashlib.blake2b(digest, digest_size=16)
        self._update = self._hash.update

    def _open_bucket(self, now_ns: int) -> None:
        self._close_bucket()
        self._bucket = now_ns // self._bucket_ns
        self._end_ns = (self._bucket + 1) * self._bucket_ns

    def _close_bucket(self) -> None:
        if self._count:
            self._rows.append(BucketDigest(self._entity, self._bucket, self._count, self._hash.hexdigest()))
            self._count = 0

    def close(self) -> list[BucketDigest]:
        self._close_bucket()
        return self._rows


class _KeptChain(Chain):
    """A chain whose records are kept as well, as far as they were wished for."""

    __slots__ = ("_records", "_wish")

    def __init__(
        self, entity: str, bucket_ns: int, end: tuple[int, int, bytes], wish: LogWish, records: RecordBuffer
    ) -> None:
        super().__init__(entity, bucket_ns, end)
        self._wish = wish
        self._records = records

    keeps = True

    def note(
        self, now_ns: int, kind: HostEvent, first: int, second: int, took_ns: int, vcpu: int = NO_VCPU, about: str = ""
    ) -> None:
        if self._wish.wants(self._entity, about):
            self._records.append(self._entity, now_ns, kind, first, second, vcpu, took_ns, about)

    def record(
        self, now_ns: int, kind: HostEvent, first: int = 0, second: int = 0, vcpu: int = NO_VCPU, took_ns: int = 0
    ) -> None:
        Chain.record(self, now_ns, kind, first, second)
        if self._wish.wants(self._entity):
            self._records.append(self._entity, now_ns, kind, first, second, vcpu, took_ns)

    def record_octets(self, now_ns: int, kind: HostEvent, octets: bytes, about: str = "") -> None:
        Chain.record(self, now_ns, kind, len(octets))
        self._update(octets)
        if EVENT_KINDS[kind].octets is Octets.VM:
            about = octets.decode()
        if self._wish.wants(self._entity, about):
            self._records.append(self._entity, now_ns, kind, len(octets), about=about, octets=octets)
