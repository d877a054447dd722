"""A shard behind bytes: calls and reports cross whole, and so do errors, whatever their class does when pickled."""

import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_hosts import ToyHost, TwoWordsError, build_toy, toys

from cluster import shard_worker
from cluster.entity import NEVER, Message
from cluster.inbox import ProtocolViolationError
from cluster.layout import merged_rows
from cluster.shard import Shard, ShardReport
from cluster.shard_worker import (
    ShardWorker,
    WorkerFailedError,
    packed_call,
    packed_report,
    parsed_call,
    parsed_report,
    portable,
)
from cluster.tables import TABLES


@pytest.fixture(autouse=True)
def _collector_as_usual() -> Iterator[None]:
    yield
    shard_worker.collect_fleet()  # A worker spares its fleet for as long as its process lives.


TIMES = st.integers(0, NEVER)
MESSAGES = st.builds(
    Message, TIMES, st.text(max_size=5), TIMES, st.text(max_size=5), st.text(max_size=5), st.binary(max_size=20)
)


@given(TIMES, TIMES, TIMES, st.booleans(), st.lists(MESSAGES, max_size=4))
def test_reports_cross_whole(following: int, promise: int, events: int, reached: bool, outputs: list[Message]) -> None:
    report = ShardReport(following, promise, events, reached, tuple(outputs))
    assert parsed_report(packed_report(report)) == report


@given(TIMES, st.dictionaries(st.text(max_size=5), st.lists(MESSAGES, max_size=3).map(tuple), max_size=3), TIMES)
def test_calls_cross_whole(horizon_ns: int, mail: dict[str, tuple[Message, ...]], event_budget: int) -> None:
    assert parsed_call(packed_call(horizon_ns, mail, event_budget)) == (horizon_ns, mail, event_budget)


def test_a_shard_behind_bytes_is_the_shard() -> None:
    specs = [(toy.name, toy.pack()) for toy in toys(3)]
    worker, shard = ShardWorker(), Shard(build_toy, specs)
    assert parsed_report(worker.start(build_toy, specs)) == shard.report()
    report = parsed_report(worker.advance(packed_call(500, {}, 1000)))
    assert report.busy_s > 0
    assert report._replace(busy_s=0.0) == shard.advance(500, {}, 1000)
    assert (worker.collect(500), worker.gauges()) == (shard.collect(500), shard.gauges())


class ClosedError(Exception):
    """Cannot be pickled."""

    def __reduce__(self) -> str:
        raise TypeError


def raised(error: Exception) -> Exception:
    def break_down() -> None:
        raise error

    try:
        break_down()
    except type(error) as caught:
        return portable(caught)


def test_an_error_crosses_as_what_it_is_with_where_it_was_raised() -> None:
    there = pickle.loads(pickle.dumps(raised(ProtocolViolationError("toy: did nothing"))))
    assert (type(there), str(there)) == (ProtocolViolationError, "toy: did nothing")
    assert "in break_down" in there.__notes__[0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TwoWordsError("memory", "4 GiB"), "TwoWordsError: memory: expected 4 GiB"),
        (ClosedError("shut"), "ClosedError: shut"),
    ],
)
def test_an_error_that_cannot_cross_is_named_in_one_that_can(error: Exception, text: str) -> None:
    there = pickle.loads(pickle.dumps(raised(error)))
    assert (type(there), str(there)) == (WorkerFailedError, text)
    assert "in break_down" in there.__notes__[0]


class Bookkeeper(ToyHost):
    """Has rows of a large table beside its log."""

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        row = {"entity": self.name, "bucket": 0, "start_ns": 0, "records": len(self.log), "digest": "ab"}
        return {**super().collect(end_ns), "digests": [row]}


def test_rows_of_large_tables_come_together_and_make_the_same_table() -> None:
    specs = [(toy.name, toy.pack()) for toy in toys(3)]
    worker, shard = ShardWorker(), Shard(lambda spec: Bookkeeper(build_toy(spec).toy), specs)
    worker.start(lambda spec: Bookkeeper(build_toy(spec).toy), specs)
    here, there = (merged_rows(one.collect(500)) for one in (shard, worker))
    assert (len(here["digests"]), len(there["digests"])) == (3, 1)
    assert TABLES["digests"].build(there["digests"]) == TABLES["digests"].build(here["digests"])
    assert {**here, "digests": []} == {**there, "digests": []}
