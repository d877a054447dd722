"""The result tables: for each column its name, type, unit and meaning.

This file is the truth about them: rows are checked against it, Parquet files
and the digest follow it, and the reference page is drawn from it. To add a
column, add a line.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Row = Mapping[str, object]

BUILT = "built"
"""The only column of a row that stands for a table of rows."""


class TableError(ValueError):
    """A row that does not fit its table; the message names table, row, column and expectation."""


class ColumnType(Enum):
    """What a column holds; the value is the word in documents and in the digest."""

    TEXT = "text"
    INTEGER = "integer"
    """64-bit signed."""
    REAL = "real"
    """Finite, 64-bit."""
    BOOLEAN = "boolean"


ARROW_TYPES: Mapping[ColumnType, pa.DataType] = {
    ColumnType.TEXT: pa.string(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.REAL: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``optional`` values may be None: not applicable, or not come to pass."""

    name: str
    type: ColumnType
    unit: str
    meaning: str
    key: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table; its key columns together name a row."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.key)

    @property
    def arrow(self) -> pa.Schema:
        """The table's schema in Arrow's terms."""
        return pa.schema(
            [pa.field(column.name, ARROW_TYPES[column.type], nullable=column.optional) for column in self.columns]
        )

    def build(self, rows: Sequence[Row]) -> pa.Table:
        """Check rows and make a table of them, in the order of their keys. Raises TableError.

        A row whose only column is ``BUILT`` stands for those that ``gathered`` made a table of.
        """
        built: list[Any] = [row[BUILT] for row in rows if BUILT in row]
        table = self._checked([row for row in rows if BUILT not in row] if built else rows)
        if built:
            table = pa.concat_tables([table, *built]).combine_chunks()
        table = table.sort_by([(key, "ascending") for key in self.keys])
        self._check_unique(table)
        return table

    def gathered(self, rows: Sequence[Row]) -> Row:
        """One row in place of many, where they are: to make them, and to hand them on, is dear. Raises TableError."""
        return {BUILT: self._checked(rows)}

    def _checked(self, rows: Sequence[Row]) -> pa.Table:
        names = {column.name for column in self.columns}
        for number, row in enumerate(rows):
            if not row.keys() <= names:
                raise TableError(f"table {self.name}: row {number}: {min(row.keys() - names)}: no such column")
        arrays = {column.name: self._array(column, [row.get(column.name) for row in rows]) for column in self.columns}
        return pa.table(arrays, schema=self.arrow)

    def _array(self, column: Column, values: list[object]) -> pa.Array[Any]:
        """One column's values, checked as a whole; only a bad one is looked for row by row."""
        allowed = _PYTHON_TYPES[column.type] | ({type(None)} if column.optional else set())
        if set(map(type, values)) <= allowed:
            with contextlib.suppress(OverflowError):
                array = pa.array(values, ARROW_TYPES[column.type])
                if column.type is not ColumnType.REAL or pc.all(pc.is_finite(array), min_count=0).as_py():
                    return array
        for number, value in enumerate(values):
            if type(value) not in allowed or not _fits(column.type, value):
                expected = f"{column.type.value}, got {value!r}"
                raise TableError(f"table {self.name}: row {number}: {column.name}: expected {expected}")
        raise AssertionError("a column was refused, but none of its values")

    def _check_unique(self, table: pa.Table) -> None:
        """Look at neighbours: rows are in the order of their keys, and no key is ever absent."""
        keys = list(self.keys)
        last = table.num_rows - 1
        if last < 1:
            return
        pairs = [pc.equal(table[key].slice(0, last), table[key].slice(1)) for key in keys]
        if not pc.any(reduce(pc.and_, pairs)).as_py():
            return
        seen: set[tuple[object, ...]] = set()
        for row in table.select(keys).to_pylist():
            name = tuple(row.values())
            if name in seen:
                raise TableError(f"table {self.name}: the row {', '.join(map(str, name))} stands twice")
            seen.add(name)


_PYTHON_TYPES: Mapping[ColumnType, set[type]] = {
    ColumnType.TEXT: {str},
    ColumnType.INTEGER: {int},
    ColumnType.REAL: {float, int},
    ColumnType.BOOLEAN: {bool},
}


def _fits(kind: ColumnType, value: object) -> bool:
    """Whether a value of an allowed Python type is also within its column's range."""
    if kind is ColumnType.INTEGER:
        return not isinstance(value, int) or -(1 << 63) <= value < 1 << 63
    return not isinstance(value, (int, float)) or math.isfinite(value)


def _columns(*rows: tuple[str, ColumnType, str, str] | tuple[str, ColumnType, str, str, str]) -> tuple[Column, ...]:
    """Columns from lines of (name, type, unit, meaning[, "key" or "optional"])."""
    return tuple(
        Column(row[0], row[1], row[2], row[3], key=row[4:] == ("key",), optional=row[4:] == ("optional",))
        for row in rows
    )


_T, _I, _R = ColumnType.TEXT, ColumnType.INTEGER, ColumnType.REAL

_VMS = TableSchema(
    "vms",
    "One row per virtual machine that was asked for.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("generation", _T, "", "how it is protected"),
        ("workload", _T, "", "what its vCPUs run"),
        ("host", _T, "", "where it ran; none if no host took it", "optional"),
        ("vcpus", _I, "1", "virtual processors"),
        ("memory_bytes", _I, "byte", "guest memory"),
        ("asid", _I, "1", "its ASID; none without one", "optional"),
        ("arrival_ns", _I, "ns", "when it was asked for"),
        ("running_ns", _I, "ns", "when its first vCPU ran", "optional"),
        ("ended_ns", _I, "ns", "when it had ended: powered off, destroyed or refused", "optional"),
        ("state", _T, "", "in the end: launching, running, ended, failed (a shutdown code), refused, waiting or lost"),
        ("reason", _T, "", "why it was refused or failed", "optional"),
        ("launch_digest", _T, "hex", "launch measurement", "optional"),
        ("launch_tcb", _T, "hex", "TCB version that firmware keeps of its launch; SEV_SNP only", "optional"),
        ("launch_ns", _I, "ns", "from order to running", "optional"),
        ("psp_wait_ns", _I, "ns", "time its commands waited for the security processor"),
        ("psp_service_ns", _I, "ns", "time the security processor worked for it"),
        ("units_of_work", _I, "1", "units its programs completed, summed over vCPUs"),
        ("instructions", _I, "1", "instructions its vCPUs retired in phases"),
        ("active_ns", _R, "ns", "time its vCPUs were not asleep, summed"),
        ("operations", _I, "1", "operations its vCPUs issued"),
        ("faults", _I, "1", "faults its vCPUs received"),
        ("bytes_read", _I, "byte", "loaded by its vCPUs, private and shared"),
        ("bytes_written", _I, "byte", "stored by its vCPUs, private and shared"),
        ("bytes_bounced", _I, "byte", "copied between private memory and buffers that devices reach"),
        ("copies", _I, "1", "copies by which they were"),
    ),
)

_VM_TIME = TableSchema(
    "vm_time",
    "Where the time of a virtual machine's vCPUs went, by mechanism (node/phase_cost.py).",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("mechanism", _T, "", "name of the mechanism", "key"),
        ("time_ns", _R, "ns", "vCPU time, summed over vCPUs"),
    ),
)

_VM_ROWS = TableSchema(
    "vm_rows",
    "Time of a virtual machine's blocks in proportion to rows of the cost table that have a sweep range.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("row", _T, "", "name of the row", "key"),
        ("time_ns", _R, "ns", "vCPU time, summed over vCPUs"),
    ),
)

_NEIGHBOURS = TableSchema(
    "neighbours",
    "Time that phases lost to others of their host, where a scenario has it attributed (node/neighbour_ledger.py).",
    _columns(
        ("host", _T, "", "name of the host", "key"),
        ("vm", _T, "", "who lost it", "key"),
        ("phase", _T, "", "demand; blocks between; pages of its migration; or its state, where its host worked", "key"),
        ("neighbour", _T, "", "to whom: another virtual machine, its own phases, or the host itself", "key"),
        ("mechanism", _T, "", "loaded_latency, llc, smt, core_wait, disk_wait or psp_wait", "key"),
        ("time_ns", _R, "ns", "vCPU time, and of the host's work for it virtual time"),
    ),
)

_DISKS = TableSchema(
    "disks",
    "One row per virtual machine that used its disk.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("reads", _I, "1", "requests served that read"),
        ("writes", _I, "1", "requests served that wrote"),
        ("errors", _I, "1", "requests that the disk refused"),
        ("bytes_read", _I, "byte", "from the disk"),
        ("bytes_written", _I, "byte", "to the disk"),
        ("time_ns", _R, "ns", "what vCPUs waited for requests: the device, and exits above a plain VM's"),
        ("latency_mean_ns", _R, "ns", "of one request", "optional"),
        ("latency_longest_ns", _R, "ns", "of one request", "optional"),
    ),
)

_SVSMS = TableSchema(
    "svsms",
    "One row per virtual machine that had an SVSM below it.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("calls", _I, "1", "exits to VMPL0"),
        ("time_ns", _I, "ns", "vCPU time at VMPL0, the SVSM's own start included"),
    ),
)

_CERTIFICATES = TableSchema(
    "certificates",
    "One row per host that fetched its chip's certificates.",
    _columns(
        ("host", _T, "", "name of the host", "key"),
        ("asked", _I, "1", "requests to the key service"),
        ("refused", _I, "1", "of these, how many were to come again later"),
        ("renewed", _I, "1", "how often it had to fetch them anew, for another reported TCB"),
        ("wanted_ns", _I, "ns", "when its first guest came that may attest"),
        ("held_ns", _I, "ns", "when they were there for the first time", "optional"),
    ),
)

_NETWORKS = TableSchema(
    "networks",
    "One row per virtual machine with network cards.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("frames_sent", _I, "1", "that its host's switch took"),
        ("bytes_sent", _I, "byte", "in them"),
        ("frames_received", _I, "1", "put into its memory"),
        ("bytes_received", _I, "byte", "in them"),
        ("frames_refused", _I, "1", "that it sent and the switch dropped: in another's name"),
        ("frames_missed", _I, "1", "that came while it had no buffer for them, or did not run"),
        ("frames_malformed", _I, "1", "of its own that its cards dropped"),
        ("device_errors", _I, "1", "how often a card could not go on with its queues"),
        ("delay_mean_ns", _R, "ns", "from a sender's doorbell to its memory", "optional"),
        ("delay_longest_ns", _I, "ns", "of one frame", "optional"),
    ),
)

_TRAFFIC = TableSchema(
    "traffic",
    "One row per pair of hosts between which guests sent frames.",
    _columns(
        ("source", _T, "", "host that they left", "key"),
        ("destination", _T, "", "host that they were for; empty if nobody has the address", "key"),
        ("frames", _I, "1", "that left the first"),
        ("bytes", _I, "byte", "in them"),
        ("lost", _I, "1", "frames dropped: no such address, too many of one card waiting, or their host crashed"),
        ("transfer_mean_ns", _R, "ns", "from the card to the last byte on the links, waits included", "optional"),
        ("transfer_longest_ns", _I, "ns", "of one frame", "optional"),
    ),
)

_PHASES = TableSchema(
    "phases",
    "One row per virtual machine and demand: its steady phases.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("demand", _T, "", "name of the demand", "key"),
        ("phases", _I, "1", "phases completed"),
        ("instructions", _I, "1", "instructions retired"),
    ),
)

_HOSTS = TableSchema(
    "hosts",
    "One row per host.",
    _columns(
        ("host", _T, "", "name of the host", "key"),
        ("product", _T, "", "line of its processors"),
        ("threads", _I, "1", "hardware threads"),
        ("vcpus_peak", _I, "1", "most vCPUs at once"),
        ("memory_bytes", _I, "byte", "installed memory"),
        ("memory_peak_bytes", _I, "byte", "most memory that guests held at once"),
        ("rmp_bytes", _I, "byte", "memory that the RMP takes"),
        ("resident_bytes", _I, "byte", "memory that holds bytes at the end"),
        ("asids_sev", _I, "1", "ASIDs for SEV guests"),
        ("asids_sev_peak", _I, "1", "most of them in use at once"),
        ("asids_es_snp", _I, "1", "ASIDs for SEV-ES and SEV-SNP guests"),
        ("asids_es_snp_peak", _I, "1", "most of them in use at once"),
        ("vms", _I, "1", "virtual machines it took"),
        ("core_mean_ratio", _R, "ratio", "hardware threads in use, mean over time"),
        ("bandwidth_mean_ratio", _R, "ratio", "memory bandwidth in use, mean over time"),
        ("psp_busy_ns", _I, "ns", "time the security processor worked"),
        ("psp_wait_ns", _I, "ns", "time commands waited for it, summed"),
        ("psp_longest_wait_ns", _I, "ns", "longest wait of one command"),
        ("bytes_encrypted", _I, "byte", "through the cipher on the way to memory"),
        ("bytes_decrypted", _I, "byte", "through the cipher on the way from memory"),
        ("operations", _I, "1", "operations that vCPUs issued"),
        ("phase_completions", _I, "1", "phases completed"),
        ("events", _I, "1", "events of its loop"),
        ("limit", _T, "", "the resource that came closest to its end"),
        ("limit_ratio", _R, "ratio", "share of that resource in use"),
    ),
)

_PSP = TableSchema(
    "psp",
    "One row per host and command of its security processor.",
    _columns(
        ("host", _T, "", "whose security processor", "key"),
        ("command", _T, "", "the specification's name", "key"),
        ("commands", _I, "1", "how often it was given"),
        ("service_ns", _I, "ns", "time spent on it"),
    ),
)

_PAIRS = TableSchema(
    "pairs",
    "One row per virtual machine that was paired with itself run as PLAIN: same host, neighbours and seed.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("generation", _T, "", "the generation it is held against PLAIN in", "key"),
        ("workload", _T, "", "what its vCPUs run"),
        ("host", _T, "", "where both ran"),
        ("slowdown", _R, "1", "vCPU time per instruction against the plain run's"),
    ),
)

_PAIR_PARTS = TableSchema(
    "pair_parts",
    "What a pair's slowdown is made of; the parts of a pair add up to its slowdown less one.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("generation", _T, "", "the generation it is held against PLAIN in", "key"),
        ("mechanism", _T, "", "name of the mechanism", "key"),
        ("share", _R, "1", "difference in vCPU time per instruction, in parts of the plain run's whole"),
    ),
)

_PAIR_SWINGS = TableSchema(
    "pair_swings",
    "A pair's slowdown at both ends of each row of the cost table that nobody has published and that changes it.",
    _columns(
        ("vm", _T, "", "name of the virtual machine", "key"),
        ("generation", _T, "", "its generation", "key"),
        ("row", _T, "", "name of the row", "key"),
        ("low", _R, "ratio", "slowdown at the low end of its sweep range (cluster/swept_run.py)"),
        ("high", _R, "ratio", "the same at the high end"),
    ),
)

_MIGRATIONS = TableSchema(
    "migrations",
    "One row per live migration that was asked for.",
    _columns(
        ("migration", _I, "1", "number, in the order they were asked for", "key"),
        ("vm", _T, "", "name of the virtual machine"),
        ("generation", _T, "", "how the guest is protected, or would be: it may be on no host"),
        ("source", _T, "", "host it was on", "optional"),
        ("destination", _T, "", "host it was to go to", "optional"),
        ("drain", _T, "", "host whose drain asked for it", "optional"),
        ("ordered_ns", _I, "ns", "when it was asked for"),
        ("started_ns", _I, "ns", "when it was admitted", "optional"),
        ("ended_ns", _I, "ns", "when it was over", "optional"),
        ("outcome", _T, "", "how it ended"),
        ("reason", _T, "", "why, if it did not complete", "optional"),
        ("setup_ns", _I, "ns", "from its admission to its first byte", "optional"),
        ("rounds", _I, "1", "rounds of pre-copy, also one that was broken off, or was next when time was over"),
        ("remaining_bytes", _I, "byte", "dirty at the end of the last round", "optional"),
        ("dirty_bytes_per_s", _R, "byte/s", "distinct bytes written between the last looks at the log", "optional"),
        ("throttle_ratio", _R, "ratio", "share of time for which its vCPUs were made to stand still at last"),
        (
            "expected_downtime_ns", _I, "ns",
            "downtime by what the last round left and its rate; the fixed part of post-copy without rounds", "optional",
        ),
        ("bytes", _I, "byte", "memory and registers sent, the last copy included"),
        ("zero_bytes", _I, "byte", "of the memory, pages of zeros that were recognised"),
        ("wire_bytes", _I, "byte", "what that was on the wire, compressed where migrations compress"),
        ("final_bytes", _I, "byte", "of these, sent while it stood still, or in a round that was broken off"),
        ("post_copy_bytes", _I, "byte", "of the memory, what came after the virtual machine ran at the target"),
        ("post_copy_faults", _I, "1", "pages of that which it touched before they came, each of which it waited for"),
        ("post_copy_ns", _I, "ns", "how long it ran before all of its memory was there"),
        ("post_copy_pauses", _I, "1", "how often no page came any more, for want of a link"),
        ("post_copy_paused_ns", _I, "ns", "how long none came"),
        ("frame_bytes", _I, "byte", "frames of registers, pages and blocks that really travelled"),
        ("pages_checked", _I, "1", "pages read back at the target and found as the source had them"),
        ("downtime_ns", _I, "ns", "how long the virtual machine stood still", "optional"),
        ("carrier", _T, "", "who carries it: hosts, firmware, agents, handler, or handler and agents"),
        ("devices_free_ns", _I, "ns", "when its guest had let its trusted devices go", "optional"),
        ("devices_settled_ns", _I, "ns", "when it had made what it could of those at the target", "optional"),
        ("devices", _T, "", "how it uses those: trusted, n of m trusted, or bounce buffers", "optional"),
    ),
)

_MIGRATION_PHASES = TableSchema(
    "migration_phases",
    "One row per phase that a live migration entered, as the hand-over has them.",
    _columns(
        ("migration", _I, "1", "number of the migration", "key"),
        ("step", _I, "1", "number of the phase among its own", "key"),
        ("phase", _T, "", "pre, paused, stopped, sent, doubted, committed, draining, destination or aborted"),
        ("at_ns", _I, "ns", "when it was entered"),
    ),
)

_MIGRATION_ROUNDS = TableSchema(
    "migration_rounds",
    "One row per round of pre-copy that was through, or broken off.",
    _columns(
        ("migration", _I, "1", "number of the migration", "key"),
        ("round", _I, "1", "number of the round among its own", "key"),
        ("began_ns", _I, "ns", "when its first byte went out"),
        ("ended_ns", _I, "ns", "when its last one was there"),
        ("bytes", _I, "byte", "memory that it sent"),
        ("left_bytes", _I, "byte", "memory that was dirty when it ended"),
    ),
)

_DRAINS = TableSchema(
    "drains",
    "One row per host that was to be emptied.",
    _columns(
        ("host", _T, "", "name of the host", "key"),
        ("asked_ns", _I, "ns", "when it was asked for", "key"),
        ("ended_ns", _I, "ns", "when its last migration was over", "optional"),
        ("result", _T, "", "complete, or what is missing"),
    ),
)

_FIRMWARE = TableSchema(
    "firmware",
    "One row per order to a host's security processor: other firmware, or to commit what runs.",
    _columns(
        ("host", _T, "", "name of the host", "key"),
        ("number", _I, "1", "the order's number on the host, from 1 on, as they ended", "key"),
        ("action", _T, "", "update or commit"),
        ("asked_ns", _I, "ns", "when the host was asked"),
        ("ended_ns", _I, "ns", "when it was over"),
        ("result", _T, "", "the firmware's status, or why it was not asked"),
        ("version", _T, "", "version of the firmware that runs then"),
        ("committed_version", _T, "", "version below which it never runs again"),
        ("current_tcb", _T, "hex", "TCB version of what runs then"),
        ("committed_tcb", _T, "hex", "TCB version below which it never runs again"),
        ("reported_tcb", _T, "hex", "TCB version that reports say, and that their signing key follows from"),
        ("vcek", _T, "hex", "first 8 bytes of the SHA-256 of that key's public point; empty without SEV-SNP"),
        ("guests", _I, "1", "SEV-SNP guests that were there"),
    ),
)

_DIGESTS = TableSchema(
    "digests",
    "One row per entity and bucket of virtual time: the chained digest of what it did until the bucket's end.",
    _columns(
        ("entity", _T, "", "name of the entity", "key"),
        ("bucket", _I, "1", "number of the bucket", "key"),
        ("start_ns", _I, "ns", "where the bucket begins"),
        ("records", _I, "1", "what it recorded in the bucket"),
        ("digest", _T, "hex", "digest, chained from the bucket before"),
    ),
)

EVENTS = TableSchema(
    "events",
    "One row per record of a host or a virtual machine. A log and no result: it is not among TABLES.",
    _columns(
        ("entity", _T, "", "whose record", "key"),
        ("time_ns", _I, "ns", "when it happened; when it ended, if it took time", "key"),
        ("host", _T, "", "where it was recorded; control for the control plane", "key"),
        ("number", _I, "1", "place in the log that it is from", "key"),
        ("event", _T, "", "kind of the record (node/host_events.py; of moves cluster/move_events.py)"),
        ("vm", _T, "", "the virtual machine that a host's record is about", "optional"),
        ("vcpu", _I, "1", "which vCPU did it", "optional"),
        ("took_ns", _I, "ns", "how long it took", "optional"),
        ("first", _I, "1", "first figure; its meaning depends on the kind"),
        ("second", _I, "1", "second figure"),
        ("text", _T, "", "demand, command, reason, phase or launch digest", "optional"),
    ),
)

TABLES: Mapping[str, TableSchema] = {
    schema.name: schema
    for schema in (
        _VMS, _VM_TIME, _VM_ROWS, _NEIGHBOURS, _PHASES, _DISKS, _SVSMS, _NETWORKS, _TRAFFIC, _HOSTS, _PSP, _PAIRS,
        _PAIR_PARTS, _PAIR_SWINGS, _MIGRATIONS, _MIGRATION_PHASES, _MIGRATION_ROUNDS, _DRAINS, _FIRMWARE,
        _CERTIFICATES, _DIGESTS,
    )
}


BULK = ("vm_time", "phases", "digests")
"""Tables with many rows for each VM, which nobody looks at before all of them are together."""


def build_tables(rows: Mapping[str, Sequence[Row]]) -> dict[str, pa.Table]:
    """Every table, from rows by table name; a table without rows is empty. Raises TableError."""
    unknown = rows.keys() - TABLES.keys()
    if unknown:
        raise TableError(f"table {min(unknown)}: no such table")
    return {name: schema.build(rows.get(name, ())) for name, schema in TABLES.items()}
