"""Digest chains name the first bucket of virtual time in which two runs differ."""

from __future__ import annotations

from node.event_log import EventLog


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
