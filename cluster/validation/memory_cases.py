"""Predictions of memory latency, exits, switches of VMPL, and what hosts' tenants do to each other's memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress

from cluster.validation.case import Case
from node import operations as op
from node.contention import Contention
from node.core_sharing import CoreSharing
from node.cpu_model import shown_leaves
from node.cpuid_page import cpuid_page
from node.generation import Generation
from node.ghcb_page import GHCB_BYTES, build_reply
from node.host_kind import HostKind
from node.kernel_settings import CAREFUL
from node.mechanism import Mechanism
from node.operation_cost import GuestOperationCost
from node.phase_cost import PhaseCost
from node.product import PRODUCTS
from node.program import Demand
from node.vc_instructions import VcInstructions

_MIB = 1 << 20
_KIND = HostKind(2.45e9)
_PAID_BY_SNP = (Mechanism.ENCRYPTION, Mechanism.RMP)

PLAIN_LATENCY_NS = {8: 19.8, 16: 29.5, 32: 47.0, 64: 83.2}
"""The setup of MC-5: what the plain VM measured, by MiB of the block, 4 KiB pages."""
_HUGE_64_NS = 56.3
"""The same of 64 MiB in huge pages, where half of the reads hit 32 MiB of L3."""
_TLB_ENTRIES = 2048
_GHCB_GPA, _CPUID_GPA = 0x1000, 0x2000
_CROSSING_CYCLES = 33_000
"""The setup of MC-10: between 32,000 and 34,000."""


def read_latency(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MC-5: the plain latency, what SNP adds to the reads of it that reach DRAM, and to its page walks."""
    found = {"4 MiB, added": _added_ns(_cache_misses(4), _tlb_misses(4), costs)}
    dram_ns = costs["dram.latency_ns"]
    cached_ns = 2 * _HUGE_64_NS - dram_ns
    for block, plain_ns in PLAIN_LATENCY_NS.items():
        walks = _tlb_misses(block)
        walk_ns = dict(_reads(0.0, walks, Generation.PLAIN, costs).parts)[Mechanism.PAGE_WALK]
        reached = max(0.0, (plain_ns - cached_ns - walk_ns) / (dram_ns - cached_ns))
        found[f"{block} MiB"] = plain_ns + _added_ns(reached, walks, costs)
    return found


def _cache_misses(block_mib: int) -> float:
    """Of reads all over a block: those whose lines do not fit into the level 3 cache."""
    return max(0.0, 1.0 - PRODUCTS["Milan"].llc_bytes_per_complex / (block_mib * _MIB))


def _tlb_misses(block_mib: int) -> float:
    return max(0.0, 1.0 - _TLB_ENTRIES * 4096 / (block_mib * _MIB))


def _reads(reach_dram: float, walks: float, generation: Generation, costs: Mapping[str, float]) -> PhaseCost:
    """A program whose every instruction is a dependent read."""
    return PhaseCost.of(Demand("reads", 1.0, 1000 * reach_dram, 1000 * walks, 1.0), generation, _KIND, costs)


def _added_ns(reach_dram: float, walks: float, costs: Mapping[str, float]) -> float:
    parts = dict(_reads(reach_dram, walks, Generation.SEV_SNP, costs).parts)
    return sum(parts[one] for one in _PAID_BY_SNP)


def enclave_switches(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """MC-10: each timer tick takes a busy enclave out of its VMPL and back in."""
    lost = costs["guest.tick_per_s"] * _CROSSING_CYCLES / _KIND.hz
    return {"average overhead": 100 * lost / (1.0 - lost)}


def exits(case: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """EX-1: an instruction that a plain VM's host emulates, and what the kernel of an SNP guest does in its place."""
    cpuid, port = op.Cpuid(1), op.PortIn(0x60, 1)
    plain, snp = (GuestOperationCost(one, costs, HostKind(2.7e9)) for one in (Generation.PLAIN, Generation.SEV_SNP))

    def ns(price: GuestOperationCost, *batches: tuple[op.GuestOperation, ...]) -> int:
        return sum(price.price(batch, costs["dram.latency_ns"], defaultdict(float)) for batch in batches)

    page = cpuid_page(shown_leaves(PRODUCTS[str(case.product)], Generation.SEV_SNP))
    return {
        "CPUID, plain VM": ns(plain, (cpuid,)),
        "CPUID, leaf 1, SNP": ns(snp, (cpuid,), *_handled(cpuid, page)),
        "CPUID, leaf 11, SNP": ns(snp, (op.Cpuid(11),), *_handled(op.Cpuid(11), page)),
        "port, SNP over plain": ns(snp, (port,), *_handled(port, page)) / ns(plain, (port,)),
    }  # fmt: skip


def _handled(one: op.Cpuid | op.PortIn, page: bytes) -> Iterator[tuple[op.GuestOperation, ...]]:
    """What a guest with this CPUID page does for an instruction that raised #VC, a hypervisor answering in zeros."""
    reply = build_reply(0, 0, dict.fromkeys(("RAX", "RBX", "RCX", "RDX"), 0)).ljust(GHCB_BYTES, b"\0")

    def answer(each: op.GuestOperation) -> op.Answer:
        if isinstance(each, op.UpkeepRead):
            return page if each.gpa == _CPUID_GPA else reply
        return each.msr if isinstance(each, op.VmgExit) else None

    known = VcInstructions(_GHCB_GPA, _CPUID_GPA, CAREFUL, Generation.SEV_SNP)
    steps = known.table[type(one)][1](one)
    batch = next(steps)
    with suppress(StopIteration):
        while True:
            yield batch
            batch = steps.send(tuple(answer(each) for each in batch))


def store_checks(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """CT-7: a plain VM's page walks where an RMP is in use, over the same where none is."""
    walks = Demand("walks", 1.0, 0.0, 1000.0, 1.0)
    on, off = (
        sum(ns for _, ns in PhaseCost.of(walks, Generation.PLAIN, HostKind(2.45e9, rmp=rmp), costs).parts)
        for rmp in (True, False)
    )
    return {"added to a walk": on - off}


def snp_neighbours(_: Case, costs: Mapping[str, float]) -> Mapping[str, float]:
    """CT-8: the time of an instruction of plain streams beside SNP streams, over that beside plain ones."""
    took = {generation: _stream_ns(generation, costs) for generation in (Generation.SEV_SNP, Generation.PLAIN)}
    return {"added": 100 * (took[Generation.SEV_SNP] / took[Generation.PLAIN] - 1.0)}


def _stream_ns(neighbour: Generation, costs: Mapping[str, float]) -> float:
    product = PRODUCTS["Milan"]
    kind = HostKind(float(product.base_hz), rmp=True)
    host = Contention(
        product.threads, product.memory_bandwidth_bytes_per_s * costs["dram.usable_bandwidth_share"],
        costs["dram.latency_ns"], costs["dram.loaded_latency_factor"], CoreSharing.of(product, costs),
    )  # fmt: skip
    stream = Demand("stream", 1.5, 15.0, 0.1, 10.0, 128.0)
    slots = [
        host.start(PhaseCost.of(stream, generation, kind, costs).load, 1e12)
        for generation in (Generation.PLAIN, neighbour)
        for _ in range(32)
    ]
    host.solve()
    return 1.0 / host.rate_per_ns(slots[0])
