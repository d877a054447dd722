"""A vCPU that is slowed down in several ways goes at the slowest of them."""

import pytest

from node.contention import PhaseLoad
from node.vcpu_throttle import Throttle

LOAD = PhaseLoad(0.5, 0.01, 0.0)
LATENCY_NS, WRITTEN = 50.0, 0.2
ALONE = 1 / (0.5 + 0.01 * LATENCY_NS)
"""Instructions a nanosecond."""


@pytest.mark.parametrize(
    ("standing_still", "most_bytes_per_s", "own", "cap"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (0.9, 0.0, 0.0, ALONE / 10),
        (0.0, 1e7, 0.0, 0.05),
        (0.9, 1e7, 0.0, 0.05),
        (0.99, 1e7, 0.0, ALONE / 100),
        (0.9, 1e7, 0.01, 0.01),
        (0.9, 1e7, 9.0, 0.05),
    ],
)
def test_the_lowest_of_its_own_rate_the_pause_and_the_limit_holds(standing_still, most_bytes_per_s, own, cap):
    load = LOAD._replace(cap_per_ns=own)
    held = Throttle(standing_still, most_bytes_per_s).held(load, LATENCY_NS, WRITTEN)
    assert held.cap_per_ns == pytest.approx(cap)
    assert held._replace(cap_per_ns=own) == load


def test_who_writes_nothing_that_is_copied_is_held_by_no_limit_on_that():
    assert Throttle(0.0, 1e7).held(LOAD, LATENCY_NS, 0.0) == LOAD
