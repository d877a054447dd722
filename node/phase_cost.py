"""What a program's demand costs per instruction on a host, mechanism by mechanism.

Overhead is never a percentage: it is the sum of what the demand's misses, page
walks and exits cost under the VM's generation, each from the cost table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from node.contention import PhaseLoad
from node.generation import CAPABILITIES, Generation
from node.platform import HostMode
from node.program import Demand


class Mechanism(StrEnum):
    """Where a vCPU's time goes. The parts of a phase add up to its elapsed time."""

    CORE = "core"
    """Instructions themselves, with caches that hit."""
    MEMORY = "memory"
    """LLC misses at the latency of an idle memory system."""
    PAGE_WALK = "page_walk"
    """Nested page walks after TLB misses."""
    EXITS = "exits"
    """Exits to the hypervisor, as a plain VM pays them."""
    LOADED_LATENCY = "loaded_latency"
    """LLC misses made longer by everybody's traffic."""
    CORE_WAIT = "core_wait"
    """Wanting a hardware thread and having none."""
    ENCRYPTION = "encryption"
    """The cipher's share of each DRAM access."""
    RMP = "rmp"
    """RMP look-ups in page walks."""
    VMGEXIT = "vmgexit"
    """What exits cost above a plain VM's."""
    OPERATIONS = "operations"
    """Reads, writes and device requests of the program's blocks, as a plain VM pays them."""
    ACCEPTANCE = "acceptance"
    """PVALIDATE and page state changes."""
    BOUNCE = "bounce"
    """Copies between private memory and the pool that devices reach. A plain VM makes none."""
    SVSM = "svsm"
    """What an SVSM below does: its operations, and changing to and from its VMPL."""


MECHANISMS = tuple(Mechanism)
"""All of them: to go through an enumeration itself is slow."""

RMP_CHECKED = frozenset({Generation.SEV_SNP, Generation.SEV_TIO})


@dataclass(frozen=True, slots=True)
class GenerationCost:
    """The rows of the cost table as they hold for one generation on a host of one mode.

    ``shared_encryption_ns`` is that of memory without the guest's key: under SME and TSME the host's key covers it.
    """

    encryption_ns: float
    shared_encryption_ns: float
    rmp_walk_ns: float
    exit_ns: float
    vmgexit_extra_ns: float
    bandwidth_share: float
    shared_bandwidth_share: float

    @classmethod
    def of(cls, generation: Generation, costs: Mapping[str, float], mode: HostMode = HostMode.NONE) -> GenerationCost:
        """Pick the rows that apply to a VM of ``generation``."""
        by_host = generation is Generation.SME or mode is HostMode.TSME
        encrypted = by_host or CAPABILITIES[generation].encrypted_memory
        checked = generation in RMP_CHECKED
        by_ghcb = CAPABILITIES[generation].encrypted_registers
        adder_ns, share = costs["dram.encryption_adder_ns"], costs["dram.encrypted_bandwidth_share"]
        return cls(
            encryption_ns=adder_ns if encrypted else 0.0,
            shared_encryption_ns=adder_ns if by_host else 0.0,
            rmp_walk_ns=costs["rmp.walk_adder_ns"] if checked else 0.0,
            exit_ns=costs["core.exit_ns"],
            vmgexit_extra_ns=max(0.0, costs["core.vmgexit_ns"] - costs["core.exit_ns"]) if by_ghcb else 0.0,
            bandwidth_share=share if encrypted else 1.0,
            shared_bandwidth_share=share if by_host else 1.0,
        )


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """A demand's load on the host and its fixed parts, in nanoseconds per instruction."""

    load: PhaseLoad
    parts: tuple[tuple[Mechanism, float], ...]

    @classmethod
    def of(
        cls,
        demand: Demand,
        generation: Generation,
        hz: float,
        costs: Mapping[str, float],
        mode: HostMode = HostMode.NONE,
    ) -> PhaseCost:
        """Cost of ``demand`` for a VM of ``generation`` on cores of ``hz``."""
        own = GenerationCost.of(generation, costs, mode)
        misses = demand.llc_misses_per_kilo_instruction / 1000.0
        exposed = misses / demand.memory_level_parallelism
        walks = demand.tlb_misses_per_kilo_instruction / 1000.0
        exits = demand.exits_per_mega_instruction / 1e6
        fixed = {
            Mechanism.CORE: 1e9 / (demand.instructions_per_cycle * hz),
            Mechanism.PAGE_WALK: walks * costs["tlb.miss_ns"],
            Mechanism.EXITS: exits * own.exit_ns,
            Mechanism.ENCRYPTION: exposed * own.encryption_ns,
            Mechanism.RMP: walks * own.rmp_walk_ns,
            Mechanism.VMGEXIT: exits * own.vmgexit_extra_ns,
        }
        load = PhaseLoad(
            core_ns=sum(fixed.values()),
            miss=exposed,
            traffic_bytes=misses * demand.bytes_per_llc_miss / own.bandwidth_share,
            cap_per_ns=demand.max_instructions_per_s * 1e-9,
        )
        fixed[Mechanism.MEMORY] = exposed * costs["dram.latency_ns"]
        return cls(load, tuple(fixed.items()))
