"""What hosts say late of a round that is over counts for no other, where messages may come twice."""

import pytest
from test_live_migration import scenario, small_image

from cluster.fleet import build_fleet
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration, MigrationOrder
from cluster.scenario import Scenario

__all__ = ["small_image"]  # a fixture
MIB = 1 << 20
PLATFORM = ("Milan", 51, 5, (1, 55, 29), 0)
WRITES = ((64 * MIB, 60e6),)


@pytest.fixture
def live() -> LiveMigrations:
    """Those of a fleet whose hosts hear nothing: a test answers for them."""
    body = scenario()
    body["vms"][0] |= {"generation": "SEV", "memory": "256 MiB"}
    live = build_fleet(Scenario.parse(body)).control.migrations
    live.send = lambda *_: None
    return live


def passed(live: LiveMigrations, one: Migration, rounds: int) -> int:
    """Let all happen until the network has brought what so many rounds send; when that is (ns)."""
    now_ns = 0
    while one.rounds_told < rounds or len(live.fabric):
        now_ns = live.next_event_ns()
        live.advance(now_ns)
    return now_ns


def test_firmware_that_is_said_again_to_be_through_with_a_round_is_waited_for_in_the_next(live: LiveMigrations) -> None:
    one = live.order(MigrationOrder("vm", "host-2"), 0)
    live.receive("ready", (one.number, 256 * MIB, WRITES, PLATFORM, 0, 0), 0)
    live.receive("place", (one.number, None, b"", PLATFORM), 0)
    live.receive("sealed", (one.number, None, b""), 0)
    live.receive("opened", (one.number, None), 0)
    passed(live, one, 1)
    now_ns = 60_000_000_000
    through = [("through", (one.number, 1, host)) for host in ("host-1", "host-2")]
    for said in through:
        live.receive(*said, now_ns)
    now_ns = passed(live, one, 2)
    for said in through:
        live.receive(*said, now_ns)
    assert set(one.unserved) == {"host-1", "host-2"}
    assert one.precopy is not None
    assert len(one.precopy.rounds) == 1
