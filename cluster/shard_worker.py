"""What a worker process runs: a shard behind bytes, and how calls and reports become bytes.

Nothing here knows Ray. A window crosses as one packed call and one packed report.
"""

from __future__ import annotations

import contextlib
import pickle
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence

import msgpack

from cluster.entity import Message
from cluster.errors import ToolError
from cluster.fleet_garbage import collect_fleet, growing_fleet
from cluster.fleet_pages import enlarge_pages
from cluster.shard import EntityFactory, Shard, ShardReport
from cluster.tables import BULK, TABLES
from node.packing import packed

Mail = Mapping[str, tuple[Message, ...]]
RowsByEntity = dict[str, dict[str, list[dict[str, object]]]]


class WorkerFailedError(ToolError):
    """An error in a worker that cannot cross to the driver as what it is; names its type and text."""


@contextlib.contextmanager
def _errors_that_cross() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver must get to know it
        raise portable(error) from None


def portable(error: Exception) -> Exception:
    """``error``, or one in its place where pickling would lose it, with its traceback as a note."""
    note = "raised in a worker:\n" + "".join(traceback.format_exception(error))
    try:
        crosses = type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301 - made in this very line
    except Exception:  # noqa: BLE001 - classes may do anything when they are pickled
        crosses = False
    there = error if crosses else WorkerFailedError(f"{type(error).__name__}: {error}")
    there.add_note(note)
    return there


class ShardWorker:
    """A shard behind bytes."""

    def __init__(self) -> None:
        self._shard: Shard | None = None

    def start(self, factory: EntityFactory, specs: Sequence[tuple[str, bytes]]) -> bytes:
        """Build the entities; the ones before are gone first, so that both never need memory at once."""
        with _errors_that_cross():
            self._shard = None
            collect_fleet()
            with growing_fleet():
                self._shard = Shard(factory, specs)
            enlarge_pages(len(specs))
            return packed_report(self._shard.report())

    def advance(self, call: bytes) -> bytes:
        """One window."""
        assert self._shard is not None
        began_s = time.perf_counter()
        with _errors_that_cross():
            report = self._shard.advance(*parsed_call(call))
            return packed_report(report._replace(busy_s=time.perf_counter() - began_s))

    def collect(self, end_ns: int) -> RowsByEntity:
        """Rows by entity; those of large tables together, with the first of the entities."""
        assert self._shard is not None
        with _errors_that_cross():
            return _gathered(self._shard.collect(end_ns))

    def loads(self) -> list[int]:
        """Events that each entity has done so far."""
        assert self._shard is not None
        return self._shard.loads()

    def gauges(self) -> dict[str, dict[str, float]]:
        """Live figures by entity."""
        assert self._shard is not None
        with _errors_that_cross():
            return self._shard.gauges()


def _gathered(rows: RowsByEntity) -> RowsByEntity:
    for name in BULK:
        found = [row for tables in rows.values() for row in tables.pop(name, ())]
        if found:
            next(iter(rows.values()))[name] = [dict(TABLES[name].gathered(found))]
    return rows


def packed_call(horizon_ns: int, mail: Mail, event_budget: int) -> bytes:
    """The arguments of ``Shard.advance`` as msgpack."""
    return packed((horizon_ns, mail, event_budget))


def parsed_call(data: bytes) -> tuple[int, Mail, int]:
    """The arguments back from msgpack."""
    horizon_ns, mail, event_budget = msgpack.unpackb(data, use_list=False)
    letters = {name: tuple(Message(*fields) for fields in messages) for name, messages in mail.items()}
    return horizon_ns, letters, event_budget


def packed_report(report: ShardReport) -> bytes:
    """A report as msgpack."""
    return packed(report)


def parsed_report(data: bytes) -> ShardReport:
    """A report back from msgpack."""
    following, promise, events, reached, outputs, busy_s = msgpack.unpackb(data, use_list=False)
    return ShardReport(following, promise, events, reached, tuple(Message(*fields) for fields in outputs), busy_s)
