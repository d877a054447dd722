"""Digest chains name the first bucket of virtual time in which two runs differ."""

from __future__ import annotations

import pytest

from node.event_log import EventLog
from node.host_events import EVENT_KINDS, HostEvent
from node.record_buffer import NO_LOG, NO_VCPU, LogWish


def chain_of(events: list[tuple[int, int, int]]) -> list[tuple[int, int, str]]:
    log = EventLog(bucket_ns=100)
    for now, kind, figure in events:
        log.chain("vm").record(now, kind, figure)
    return [(row.bucket, row.records, row.digest) for row in log.close()]


def test_only_buckets_with_records_have_rows() -> None:
    chain = chain_of([(5, 1, 0), (99, 1, 0), (350, 1, 0)])
    assert [(bucket, records) for bucket, records, _ in chain] == [(0, 2), (3, 1)]


def test_two_runs_part_in_the_bucket_of_the_first_difference() -> None:
    one = chain_of([(5, 1, 0), (150, 1, 0), (250, 1, 0)])
    other = chain_of([(5, 1, 0), (150, 1, 7), (250, 1, 0)])
    assert one[0] == other[0]
    assert one[1][2] != other[1][2]
    assert one[2][2] != other[2][2]


def test_octets_are_part_of_the_chain() -> None:
    logs = [EventLog(100), EventLog(100)]
    logs[0].chain("vm").record_octets(1, 1, b"a")
    logs[1].chain("vm").record_octets(1, 1, b"b")
    assert logs[0].close()[0].digest != logs[1].close()[0].digest


def test_entities_with_equal_records_have_chains_of_their_own() -> None:
    log = EventLog(100)
    for name in ("b", "a"):
        log.chain(name).record(1, 1)
    rows = log.close()
    assert [row.entity for row in rows] == ["a", "b"]
    assert rows[0].digest != rows[1].digest


EVERYTHING = LogWish(everything=True)


def logged(wish: LogWish) -> EventLog:
    log = EventLog(100, wish)
    host, vm = log.chain("host"), log.chain("vm")
    host.record_octets(5, HostEvent.ORDERED, b"vm")
    host.note(6, HostEvent.PSP_COMMAND, 7, 8, 9, about="vm")
    host.record_octets(7, HostEvent.ENTERED, b"\x01", "vm")
    vm.record(150, HostEvent.BATCH, 3, 4, 1, 20)
    log.chain("other").record(160, HostEvent.STOPPED, 2)
    return log


def kept(log: EventLog) -> list[tuple[object, ...]]:
    assert log.records is not None
    names = log.records.names
    return [
        (names[row["entity"]], row["time_ns"], row["kind"], row["vcpu"], row["took_ns"], names[row["about"]])
        for row in log.records.rows()
    ]


ORDERED = ("host", 5, HostEvent.ORDERED, NO_VCPU, 0, "vm")
PSP_COMMAND = ("host", 6, HostEvent.PSP_COMMAND, NO_VCPU, 9, "vm")
ENTERED = ("host", 7, HostEvent.ENTERED, NO_VCPU, 0, "vm")
BATCH = ("vm", 150, HostEvent.BATCH, 1, 20, "")
STOPPED = ("other", 160, HostEvent.STOPPED, NO_VCPU, 0, "")


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (EVERYTHING, [ORDERED, PSP_COMMAND, ENTERED, BATCH, STOPPED]),
        (LogWish(entities=frozenset({"vm"})), [ORDERED, PSP_COMMAND, ENTERED, BATCH]),
        (LogWish(entities=frozenset({"host"})), [ORDERED, PSP_COMMAND, ENTERED]),
        (LogWish(entities=frozenset({"other"})), [STOPPED]),
    ],
)
def test_a_log_keeps_what_was_wished_for_and_what_hosts_say_of_it(
    wish: LogWish, expected: list[tuple[object, ...]]
) -> None:
    assert kept(logged(wish)) == expected


def test_octets_and_figures_are_kept_as_they_were_recorded() -> None:
    records = logged(EVERYTHING).records
    assert records is not None
    assert len(records) == 5
    assert records.octets == [b"vm", b"\x01"]
    assert [(row["first"], row["second"]) for row in records.rows()] == [(2, 0), (7, 8), (1, 0), (3, 4), (2, 0)]


def test_chains_are_the_same_with_and_without_a_log() -> None:
    assert logged(EVERYTHING).close() == logged(NO_LOG).close()
    assert logged(NO_LOG).records is None


def test_every_kind_of_record_has_a_word_of_its_own() -> None:
    assert set(EVENT_KINDS) == set(HostEvent)
    assert len({kind.word for kind in EVENT_KINDS.values()}) == len(EVENT_KINDS)
