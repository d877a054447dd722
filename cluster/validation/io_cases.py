"""Predictions of what bounce buffers cost a network, and what trusted devices save."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from cluster.validation.case import Case
from node import operations as op
from node.card_cost import CardCost, CardTraffic
from node.generation import Generation
from node.host_kind import HostKind
from node.mechanism import Mechanism
from node.operation_cost import GuestOperationCost
from node.phase_cost import GenerationCost
from node.swiotlb import BounceArea

_KIND = HostKind(2.7e9)
_BURST_BYTES = 64 << 10
"""What one buffer of TCP's segmentation offload carries."""
QUEUES = 8
WITHOUT_GBPS = {"vhost, 8 queues": 59.1, "vhost, 1 queue": 17.6, "user space": 12.2}
"""The setup of IO-6: rates of the plain VM without bounce buffers."""


def forced_bounce(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """IO-6: the guest's vCPUs, which copy besides, or the host, whichever moves less.

    With a queue for each vCPU the guest is the limit, which is how much its vCPUs move; with one queue the host was.
    """
    more_ns = bounce_ns_per_byte(Generation.PLAIN, costs)
    guest = QUEUES * _slower(WITHOUT_GBPS["vhost, 8 queues"] / QUEUES, more_ns)
    return {name: min(host, guest) for name, host in WITHOUT_GBPS.items()}


def _slower(gbps: float, more_ns_per_byte: float) -> float:
    return 8.0 / (8.0 / gbps + more_ns_per_byte)


def bounce_ns_per_byte(generation: Generation, costs: Mapping[str, float]) -> float:
    """Time of a burst's way through the pool: slots found, lent, copied into, and taken back."""
    price, steps = GuestOperationCost(generation, costs, _KIND), _batches()
    lost: dict[Mechanism, float] = defaultdict(float)
    return sum(price.price(batch, costs["dram.latency_ns"], lost) for batch in steps) / _BURST_BYTES


def _batches() -> list[tuple[op.GuestOperation, ...]]:
    """What the guest's own driver yields for one burst."""
    area = BounceArea(gpa=0, length=_BURST_BYTES, book_gpa=1 << 20)
    found = []
    words = bytes(16)
    for steps in (area.map_to_device(2 << 20, _BURST_BYTES), area.unmap(0, _BURST_BYTES)):
        answers: tuple[op.Answer, ...] | None = None
        while True:
            try:
                batch = steps.send(answers)  # type: ignore[arg-type]
            except StopIteration:
                break
            found.append(batch)
            answers = tuple(_answer(one, words) for one in batch)
            words = bytes([0xFF]) * 16
    return found


def _answer(one: op.GuestOperation, words: bytes) -> op.Answer:
    return words if isinstance(one, op.Read) else None


def native_over_bounce(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """TI-4: what a link with IDE leaves of the native rate, over what the pool leaves of it, in an SNP guest.

    A trusted device is told and tells without exits; the host's wants one to be told and makes one when it is done.
    """
    each = WITHOUT_GBPS["vhost, 8 queues"] / QUEUES
    exits = costs["disk.exits_per_request"] * GenerationCost.of(Generation.SEV_SNP, costs, _KIND).vmgexit_extra_ns
    bounced = _slower(each, bounce_ns_per_byte(Generation.SEV_SNP, costs) + exits / _BURST_BYTES)
    return {"native over bounce": each * _link_share(costs) / bounced}


def link_share(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """TI-5: nothing but the link's efficiency, by the framing of its packets."""
    return {"share of the native rate": _link_share(costs)}


def _link_share(costs: Mapping[str, float]) -> float:
    """What prefixes and MACs leave of a link's rate."""
    link_ns, ide_ns = CardCost(costs).transfer_ns(CardTraffic(trusted_bytes=_BURST_BYTES))
    return link_ns / (link_ns + ide_ns)
