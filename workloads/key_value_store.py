"""A key-value store without clients: a table of records (``record_table``) and requests from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from node.operations import Compute, Read, Write
from node.program import Block, Demand, Placement, ProgramSpec, Registers
from workloads.block_outcome import FAULTED, WRONG_ANSWER, faulted, loaded
from workloads.keyed_content import KeyedContent
from workloads.parameters import MOST_INSTRUCTIONS, check_placement, parameters_from, share, whole
from workloads.record_table import VERSION, RecordTable, TableDamaged, TableFaulted, table_bytes

FORMAT_RIP, LOAD_RIP, SERVE_RIP = 0x40_0000, 0x40_1000, 0x40_2000

DEMAND = Demand(
    "serve",
    instructions_per_cycle=1.2,
    llc_misses_per_kilo_instruction=4.0,
    tlb_misses_per_kilo_instruction=2.0,
    memory_level_parallelism=2.0,
    bytes_per_llc_miss=80.0,
    llc_accesses_per_kilo_instruction=12.0,
    llc_working_set_bytes=12 << 20,
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
    def private_bytes(self) -> int:
        """The table."""
        return table_bytes(self.records, self.value_bytes)

    @property
    def shared_bytes(self) -> int:
        """None."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """None."""
        return 0


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
        size = self.parameters.private_bytes
        return (replace(DEMAND, written_set_bytes=size, read_set_bytes=size),)

    @property
    def blocks(self) -> Mapping[int, Callable[[Registers], Block]]:
        """Blocks by RIP."""
        return {FORMAT_RIP: self._format, LOAD_RIP: self._load, SERVE_RIP: self._serve}

    def _format(self, registers: Registers) -> Block:
        """Clear the table. R12: bytes cleared."""
        stop, writes = self._table.clearing(registers.r12)
        answers = yield writes
        if faulted(answers):
            return FAULTED
        registers.r12 = stop
        if stop == self._table.length:
            registers.r12 = 0
            registers.rip = LOAD_RIP
        return None

    def _load(self, registers: Registers) -> Block:
        """Store the first version of some keys. R12: keys stored."""
        parameters = self.parameters
        stop = min(parameters.records, registers.r12 + parameters.batch)
        keys = range(registers.r12, stop)
        try:
            places = yield from self._table.find(keys, insert=True)
        except TableDamaged:
            return WRONG_ANSWER
        except TableFaulted:
            return FAULTED
        versions = Write(self._table.version_gpa(keys[0]), VERSION.pack(1) * len(keys))
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
        answers = yield tuple(Read(self._table.version_gpa(key), VERSION.size) for key in wanted)
        stored = loaded(answers)
        if stored is None:
            return FAULTED
        versions = {key: VERSION.unpack(data)[0] for key, data in zip(wanted, stored, strict=True)}
        try:
            places = yield from self._table.find(wanted, insert=False)
        except TableDamaged:
            return WRONG_ANSWER
        except TableFaulted:
            return FAULTED
        if not all(self._table.is_current(key, versions[key], places[key][1]) for key in wanted):
            return WRONG_ANSWER
        changed = dict.fromkeys(key for key, put in zip(keys, puts, strict=True) if put)
        if changed:
            stores = [Write(places[key][0], self._record(key, versions[key] + 1)) for key in changed]
            stores += [Write(self._table.version_gpa(key), VERSION.pack(versions[key] + 1)) for key in changed]
            answers = yield tuple(stores)
            if faulted(answers):
                return FAULTED
        registers.r13 += parameters.batch
        registers.r12 += 1
        if registers.r12 % parameters.batches_per_round or not parameters.instructions_per_batch:
            return None
        return Compute(0, parameters.instructions_per_batch * parameters.batches_per_round)

    @property
    def _table(self) -> RecordTable:
        return RecordTable(
            self.placement.base_gpa, self.parameters.records, self.parameters.value_bytes, self.content
        )

    def _record(self, key: int, version: int) -> bytes:
        value = self.content.octets(b"value", key, version, self.parameters.value_bytes)
        return self._table.record(key, version, value)
