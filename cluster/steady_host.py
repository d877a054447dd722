"""Phases that run on one host all the time: how long an instruction of each takes, and what it loses to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.contention import Contention, PhaseLoad
from node.core_sharing import CoreSharing
from node.mechanism import Mechanism
from node.product import Product

_LOOK_NS = 1_000_000
_ENDLESS = 1e12

OF_HOSTS = ("dram.usable_bandwidth_share", "dram.latency_ns", "dram.loaded_latency_factor", "smt.gain_factor")
"""Figures of a host that its phases go by, beside their own."""
BETWEEN_PHASES = (Mechanism.LOADED_LATENCY, Mechanism.LLC, Mechanism.SMT, Mechanism.CORE_WAIT)
"""What phases lose to others of their host."""


@dataclass(frozen=True, slots=True)
class SteadyHost:
    """``spans_ns`` of an instruction by load, ``lost_ns`` of it by mechanism, and the share of bandwidth in use."""

    spans_ns: tuple[float, ...]
    lost_ns: tuple[Mapping[Mechanism, float], ...]
    utilisation: float


def steady_host(
    product: Product, costs: Mapping[str, float], loads: Sequence[tuple[PhaseLoad, int]]
) -> SteadyHost:
    """A host of a product on which so many phases of each load run; the equations are those of a run."""
    host = Contention(
        product.threads, product.memory_bandwidth_bytes_per_s * costs["dram.usable_bandwidth_share"],
        costs["dram.latency_ns"], costs["dram.loaded_latency_factor"], CoreSharing.of(product, costs),
    )  # fmt: skip
    slots = [[host.start(load, _ENDLESS) for _ in range(count)] for load, count in loads]
    host.solve()
    spans = tuple([1.0 / host.rate_per_ns(some[0]) for some in slots])
    host.advance(_LOOK_NS)
    accounts = [host.stop(some[0]) for some in slots]
    lost = tuple([
        {
            mechanism: ns / one.instructions if one.instructions else 0.0
            for mechanism, ns in zip(
                BETWEEN_PHASES, (one.loaded_ns, one.llc_ns, one.smt_ns, one.core_wait_ns), strict=True
            )
        }
        for one in accounts
    ])  # fmt: skip
    return SteadyHost(spans, lost, host.utilisation)
