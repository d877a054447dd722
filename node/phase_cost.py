"""What a program's demand costs per instruction on a host, mechanism by mechanism.

Overhead is never a percentage: it is the sum of what the demand's misses, page
walks and exits cost under the VM's generation, each from the cost table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from node.cache_shares import CacheUser
from node.contention import PhaseLoad
from node.generation import CAPABILITIES, Generation
from node.guest_backing import LARGE_AND_NEAR, Backing
from node.host_kind import HostKind
from node.mechanism import Mechanism
from node.memory_cipher import CipherMode
from node.platform import HostMode
from node.program import Demand

RMP_CHECKED = frozenset({Generation.SEV_SNP, Generation.SEV_TIO})


@dataclass(frozen=True, slots=True)
class GenerationCost:
    """The rows of the cost table as they hold for one generation on a host of one kind.

    ``shared_encryption_ns`` is that of memory without the guest's key: under SME and TSME the host's key covers it.
    """

    encryption_ns: float
    shared_encryption_ns: float
    rmp_walk_ns: float
    """Of a walk to memory that nested tables and RMP have in pages of 2 MiB."""
    rmp_small_walk_ns: float
    """The same in pages of 4 KiB."""
    exit_ns: float
    vmgexit_extra_ns: float
    call_ns: float
    """Of an exit that no plain VM makes."""
    bandwidth_share: float
    shared_bandwidth_share: float
    remote_ns: float
    """Of an access to memory of another NUMA node, on average over a machine's life."""
    channel_share: float
    """Of the channels' bandwidth, what all encrypted traffic together reaches."""

    @classmethod
    def of(cls, generation: Generation, costs: Mapping[str, float], kind: HostKind) -> GenerationCost:
        """Pick the rows that apply to a VM of ``generation``."""
        by_host = generation is Generation.SME or kind.mode is HostMode.TSME
        own_key = CAPABILITIES[generation].key_per_vm
        checked = generation in RMP_CHECKED
        by_ghcb = CAPABILITIES[generation].encrypted_registers
        longer_ns = costs["dram.aes_256_extra_ns"] if kind.cipher is CipherMode.AES_256_XTS else 0.0
        host_ns, share = costs["dram.host_key_adder_ns"] + longer_ns, costs["dram.encrypted_bandwidth_share"]
        stores = costs["tlb.store_share"] * costs["rmp.write_check_ns"] if kind.rmp else 0.0
        return cls(
            encryption_ns=costs["dram.encryption_adder_ns"] + longer_ns if own_key else host_ns if by_host else 0.0,
            shared_encryption_ns=host_ns if by_host else 0.0,
            rmp_walk_ns=costs["rmp.walk_adder_ns"] if checked else stores,
            rmp_small_walk_ns=costs["rmp.small_walk_adder_ns"] if checked else stores,
            exit_ns=costs["core.exit_ns"],
            vmgexit_extra_ns=max(0.0, costs["core.vmgexit_ns"] - costs["core.exit_ns"]) if by_ghcb else 0.0,
            call_ns=costs["core.vmgexit_ns"] if by_ghcb else costs["core.hypercall_ns"] if own_key else 0.0,
            bandwidth_share=share if own_key or by_host else 1.0,
            shared_bandwidth_share=share if by_host else 1.0,
            remote_ns=costs["numa.hop_ns"] * _stays(costs, pinned=own_key),
            channel_share=costs["dram.encrypted_channel_share"] if own_key or by_host else 1.0,
        )


def _stays(costs: Mapping[str, float], *, pinned: bool) -> float:
    """What of the accesses to other nodes stays so; a host moves pages nearer that it has not pinned."""
    return min(1.0, costs["numa.balanced_share"] * (costs["numa.pinned_factor"] if pinned else 1.0))


GUEST_LEVELS = {False: 4, True: 3}
"""Levels of tables that a walk goes through, by whether the leaf maps 2 MiB (APM volume 2, 5.3)."""


def walk_references(*, guest_large: bool, nested_large: bool) -> int:
    """Loads of a two-dimensional walk without any cache: (g + 1) (h + 1) - 1, 24 where all pages are small."""
    return (GUEST_LEVELS[guest_large] + 1) * (GUEST_LEVELS[nested_large] + 1) - 1


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """A demand's load on the host and its fixed parts, in nanoseconds per instruction."""

    load: PhaseLoad
    parts: tuple[tuple[Mechanism, float], ...]
    felt: tuple[tuple[Mechanism, float], ...] = field(init=False, repr=False, compare=False)
    """The parts that are not zero."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "felt", tuple([part for part in self.parts if part[1]]))

    @classmethod
    def of(
        cls,
        demand: Demand,
        generation: Generation,
        kind: HostKind,
        costs: Mapping[str, float],
        backing: Backing = LARGE_AND_NEAR,
    ) -> PhaseCost:
        """Cost of ``demand`` for a VM of ``generation`` on a host of a kind.

        Where nested tables map its memory by 4 KiB, walks are longer, each RMP entry covers less, and a large page of
        the guest's falls apart in the TLB. What lies on another node is further away, unless the host brings it near,
        as it may do with pages that are not pinned.
        """
        own = GenerationCost.of(generation, costs, kind)
        misses = demand.llc_misses_per_kilo_instruction / 1000.0
        exposed = misses / demand.memory_level_parallelism
        small_share, large = backing.small_share, demand.large_pages
        large_walks = demand.tlb_misses_per_kilo_instruction / 1000.0 * (1.0 - small_share)
        small_walks = demand.tlb_misses_per_kilo_instruction / 1000.0 * small_share
        if large:
            small_walks *= costs["tlb.splintered_factor"]
        exits = demand.exits_per_mega_instruction / 1e6
        references = large_walks * walk_references(guest_large=large, nested_large=True)
        references += small_walks * walk_references(guest_large=large, nested_large=False)
        fixed = {
            Mechanism.CORE: 1e9 / (demand.instructions_per_cycle * kind.hz),
            Mechanism.PAGE_WALK: references * costs["tlb.walk_reference_ns"],
            Mechanism.EXITS: exits * own.exit_ns,
            Mechanism.ENCRYPTION: exposed * own.encryption_ns,
            Mechanism.RMP: large_walks * own.rmp_walk_ns + small_walks * own.rmp_small_walk_ns,
            Mechanism.VMGEXIT: exits * own.vmgexit_extra_ns,
            Mechanism.NUMA: exposed * backing.remote_share * own.remote_ns,
        }
        load = PhaseLoad(
            core_ns=sum(fixed.values()),
            miss=exposed,
            traffic_bytes=misses * demand.bytes_per_llc_miss / own.channel_share,
            cap_per_ns=demand.max_instructions_per_s * 1e-9,
            pipeline_ns=fixed[Mechanism.CORE],
            miss_ns=own.encryption_ns + backing.remote_share * own.remote_ns,
            misses=_cache_user(demand),
        )
        fixed[Mechanism.MEMORY] = exposed * costs["dram.latency_ns"]
        return cls(load, tuple(fixed.items()))


def _cache_user(demand: Demand) -> CacheUser | None:
    fewest, most = demand.llc_misses_per_kilo_instruction, demand.llc_accesses_per_kilo_instruction
    if demand.llc_working_set_bytes <= 0 or not 0 < fewest < most:
        return None
    return CacheUser(most / fewest - 1.0, float(demand.llc_working_set_bytes))
