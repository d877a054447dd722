"""What a move leaves at the control plane when it ends before it is through: nothing."""

from typing import Any

import pytest
from test_live_migration import GIB, scenario, small_image

from cluster.entity import NEVER
from cluster.fleet import build_fleet
from cluster.hand_over import Phase
from cluster.live_migration import LiveMigrations
from cluster.migration import Migration, MigrationOrder, Outcome
from cluster.scenario import Scenario
from node.vmsa import VMSA_BYTES

__all__ = ["small_image"]  # a fixture
PAGE = 4096
LINK = 1.25e9
MS = 1_000_000
SETUP_NS = 4_250_000
"""From both hosts' answers to the first byte of a GiB."""


@pytest.fixture
def live() -> LiveMigrations:
    """Those of a fleet whose hosts hear nothing: a test answers for them."""
    live = build_fleet(Scenario.parse(scenario())).control.migrations
    live.send = lambda *_: None
    return live


def begun(live: LiveMigrations, at_ns: int = 0) -> Migration:
    """A move whose first round is under way."""
    one = live.order(MigrationOrder("vm", "host-2"), at_ns)
    live.receive("ready", (one.number, GIB, (), (), 0, 0), at_ns)
    live.receive("place", (one.number, None, b"", ()), at_ns)
    live.advance(at_ns + SETUP_NS)
    assert len(live.fabric) == 1
    return one


def room(live: LiveMigrations) -> list[tuple[Any, ...]]:
    return [(one.name, one.free_bytes, one.free_vcpus, dict(one.free_asids)) for one in live.placement.accounts]


def test_a_move_that_is_called_off_leaves_the_link_and_the_place_to_others(live: LiveMigrations) -> None:
    before = room(live)
    one = begun(live)
    assert room(live) != before
    live.cancel(one, SETUP_NS + 100 * MS)
    assert one.outcome is Outcome.CANCELLED
    assert len(live.fabric) == 0
    assert live.next_event_ns() == NEVER
    assert room(live) == before
    assert one.final_bytes == pytest.approx(0.1 * LINK, rel=0.01)
    begun(live, 200 * MS)  # as if nothing had been


def test_pages_that_were_written_by_the_byte_are_sent_at_the_stop_beside_what_rates_tell(live: LiveMigrations) -> None:
    one = begun(live)
    while one.phase is Phase.PRE:
        live.advance(live.next_event_ns())
    now_ns = 2000 * MS
    live.receive("stopped", (one.number, (b"frame",), b"", (), 7, now_ns, 0, ()), now_ns)
    assert one.final_bytes == 7 * PAGE + 2 * VMSA_BYTES
    live.fail(one, Outcome.TIMED_OUT, now_ns, "for a test")
    assert len(live.fabric) == 0
