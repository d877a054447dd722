"""Traces made up in the manner of real ones, in the schema that ``workloads.trace`` reads.

For users who have no trace. Many machines live shortly and a few for ever (a
bounded Pareto distribution of lifetimes), most use little of their CPUs and a
few much, use rises and falls with the day and comes in bursts. The shapes are
those that studies of public clouds report (Cortez et al., Resource Central,
SOSP 2017; Shen et al., Statistical Characterization of Business-Critical
Workloads, CCGrid 2015, on Bitbrains); the figures are the laboratory's choice.

Only additions, multiplications and divisions are used, never a library's
exponential or logarithm, so that every machine makes the same trace of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from node.counter_random import CounterRandom
from workloads.trace import read_trace
from workloads.trace_table import TraceTable
from workloads.trace_vm import TraceVm

_TASK_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("id", pa.int32()),
    ("submission_time", pa.int64()),
    ("duration", pa.int64()),
    ("cpu_count", pa.int32()),
    ("cpu_capacity", pa.float64()),
    ("mem_capacity", pa.int64()),
)
_FRAGMENT_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("id", pa.int32()),
    ("duration", pa.int64()),
    ("cpu_usage", pa.float64()),
)


def _schema(fields: tuple[tuple[str, pa.DataType], ...]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


TASK_SCHEMA = _schema(_TASK_FIELDS)
FRAGMENT_SCHEMA = _schema(_FRAGMENT_FIELDS)

EPOCH_MS = 1_577_836_800_000
"""Every generated trace begins on 1 January 2020, 00:00 UTC."""
DAY_MS = 86_400_000
SAMPLE_MS = 300_000
"""Five minutes, as in the Bitbrains extract: a trace has at least one sample."""
MHZ = 2600
"""Clock of the traced machines, as most of the Bitbrains extract has."""

_SIZES = ((1, 2, 30), (2, 4, 30), (2, 8, 15), (4, 16, 15), (8, 32, 10))
"""CPUs, GiB of memory, and how many of a hundred machines have them."""
_LOWEST_PERMILLE, _HIGHEST_PERMILLE = 40.0, 800.0
"""Mean CPU use of a machine."""
_BURST_IN, _BURST = 16, 3
"""One sample in so many is a burst, so many times as high."""
_SMOOTH = 4
"""Samples that noise is averaged over."""


@dataclass(frozen=True, slots=True)
class TraceShape:
    """What a generated trace looks like. ``resident_share`` of the machines live from its start to its end."""

    vms: int = 12
    span_ms: int = 3_600_000
    sample_ms: int = SAMPLE_MS
    resident_share: float = 0.5
    shortest_lifetime_ms: int = 600_000
    longest_lifetime_ms: int = 30 * DAY_MS

    def __post_init__(self) -> None:
        if self.vms < 1 or not 0 < self.sample_ms <= self.span_ms or not 0 <= self.resident_share <= 1:
            raise ValueError("expected at least one machine, samples within the span, and a share from 0 to 1")
        if not 0 < self.shortest_lifetime_ms < self.longest_lifetime_ms:
            raise ValueError("expected a shortest lifetime below the longest")


def generate_tables(seed: int, shape: TraceShape) -> tuple[pa.Table, pa.Table]:
    """The tasks and fragments of a seed."""
    random = CounterRandom(seed)
    tasks = [_task(random, index, shape) for index in range(shape.vms)]
    columns = list(zip(*tasks, strict=True))
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, TASK_SCHEMA, strict=True)]
    pieces = [_fragments(random, task, shape) for task in tasks]
    ids = np.repeat(np.array([task[0] for task in tasks]), [len(durations) for durations, _ in pieces])
    fragments = (ids, np.concatenate([one for one, _ in pieces]), np.concatenate([one for _, one in pieces]))
    return (
        pa.Table.from_arrays(arrays, schema=TASK_SCHEMA),
        pa.Table.from_arrays(
            [pa.array(column, type=field.type) for column, field in zip(fragments, FRAGMENT_SCHEMA, strict=True)],
            schema=FRAGMENT_SCHEMA,
        ),
    )


def generate_trace(seed: int, shape: TraceShape) -> tuple[TraceVm, ...]:
    """The machines of a seed, read as those of a file are."""
    tasks, fragments = generate_tables(seed, shape)
    return read_trace(TraceTable("generated tasks", tasks), TraceTable("generated fragments", fragments))


def write_trace(folder: Path, seed: int, shape: TraceShape) -> None:
    """Write tasks.parquet and fragments.parquet of a seed."""
    tasks, fragments = generate_tables(seed, shape)
    pyarrow.parquet.write_table(tasks, folder / "tasks.parquet")
    pyarrow.parquet.write_table(fragments, folder / "fragments.parquet")


_Task = tuple[int, int, int, int, float, int]


def _task(random: CounterRandom, index: int, shape: TraceShape) -> _Task:
    """One row of the tasks; the first machine is there from the start, which fixes the trace's."""
    name = f"trace vm {index}"
    resident = index == 0 or random.uniform(name, "resident", 0) < shape.resident_share
    arrival = 0 if resident else random.integer(name, "arrival", 0) % shape.span_ms
    lifetime = shape.span_ms if resident else round(_bounded_pareto(
        random.uniform(name, "lifetime", 0), shape.shortest_lifetime_ms, shape.longest_lifetime_ms
    ))  # fmt: skip
    cpus, gib = _size(random.integer(name, "size", 0) % 100)
    duration = min(lifetime, shape.span_ms - arrival)
    return index + 1, EPOCH_MS + arrival, duration, cpus, float(cpus * MHZ), gib << 10


def _size(percentile: int) -> tuple[int, int]:
    for cpus, gib, share in _SIZES:
        if percentile < share:
            return cpus, gib
        percentile -= share
    raise AssertionError("shares add up to a hundred")


def _bounded_pareto(uniform: float, low: float, high: float) -> float:
    """A draw of the bounded Pareto distribution with index 1, the heaviest tail that needs no power function."""
    return 1.0 / (1.0 / low - uniform * (1.0 / low - 1.0 / high))


def _fragments(random: CounterRandom, task: _Task, shape: TraceShape) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Durations and MHz of one task, in whole thousandths of its capacity."""
    number, submitted, duration, _, capacity, _ = task
    name = f"trace vm {number - 1}"
    count = -(-duration // shape.sample_ms)
    durations = np.full(count, shape.sample_ms, dtype=np.int64)
    durations[-1] = duration - (count - 1) * shape.sample_ms
    mean = _bounded_pareto(random.uniform(name, "mean use", 0), _LOWEST_PERMILLE, _HIGHEST_PERMILLE)
    noise = np.frombuffer(random.octets(name, "noise", 0, 2 * (count + _SMOOTH)), dtype="<u2").astype(np.int64)
    sums = np.cumsum(noise)
    smooth = (sums[_SMOOTH:] - sums[:-_SMOOTH]) / (_SMOOTH * 65_536)
    time = submitted - EPOCH_MS + np.arange(count, dtype=np.int64) * shape.sample_ms
    # Lowest at midnight, highest at noon, straight in between.
    day = 1.25 - np.abs(time % DAY_MS - DAY_MS // 2) / DAY_MS
    burst = np.where(noise[_SMOOTH:] % _BURST_IN == 0, _BURST, 1)
    permille = np.minimum(1000, np.rint(mean * (0.5 + smooth) * day * burst)).astype(np.int64)
    usage: NDArray[np.float64] = permille.astype(np.float64) * (capacity / 1000.0)
    return durations, usage
