"""Where a vCPU's time goes, by mechanism."""

from __future__ import annotations

from enum import StrEnum


class Mechanism(StrEnum):
    """Where a vCPU's time goes. The parts of a phase add up to its elapsed time."""

    CORE = "core"
    """Instructions themselves, with caches that hit."""
    MEMORY = "memory"
    """LLC misses at the latency of an idle memory system."""
    NUMA = "numa"
    """What LLC misses take longer whose memory is another node's."""
    PAGE_WALK = "page_walk"
    """Nested page walks after TLB misses."""
    EXITS = "exits"
    """Exits to the hypervisor, as a plain VM pays them."""
    LOADED_LATENCY = "loaded_latency"
    """LLC misses made longer by everybody's traffic."""
    CORE_WAIT = "core_wait"
    """Wanting a hardware thread and having none."""
    SMT = "smt"
    """Sharing a core with its other thread."""
    LLC = "llc"
    """Misses that come of sharing a last-level cache."""
    ENCRYPTION = "encryption"
    """The cipher's share of each DRAM access."""
    RMP = "rmp"
    """RMP look-ups in page walks, and checks of stores by those whom the RMP does not protect."""
    VMGEXIT = "vmgexit"
    """What exits cost above a plain VM's."""
    OPERATIONS = "operations"
    """Reads, writes and device requests of the program's blocks, as a plain VM pays them."""
    BOOT = "boot"
    """Firmware and kernel until the first program."""
    ACCEPTANCE = "acceptance"
    """PVALIDATE, changes of the RMP, and what else a guest does before it believes in its memory and its devices."""
    BOUNCE = "bounce"
    """Copies between private memory and the pool that devices reach. A plain VM makes none."""
    PSP = "psp"
    """Requests that the security processor serves while their vCPU waits, and messages for it. A plain VM has none."""
    PSP_WAIT = "psp_wait"
    """Waiting for a security processor that is busy with others."""
    DISK_WAIT = "disk_wait"
    """Waiting for a drive that is busy with other requests."""
    LINK = "link"
    """Transfers of cards that were given to the VM, on their link."""
    IDE = "ide"
    """What prefixes and MACs of IDE add to them."""
    SVSM = "svsm"
    """What an SVSM below does: its operations, and changing to and from its VMPL."""
    MIGRATION = "migration"
    """Phases that stand still while their VM moves: for auto-converge, a dirty limit, the dirty log, a handler in the
    guest, and pages of a post-copy that have not come."""


MECHANISMS = tuple(Mechanism)
"""All of them: to go through an enumeration itself is slow."""

_NO_TIME = dict.fromkeys(MECHANISMS, 0.0)


def with_all(times: dict[Mechanism, float]) -> dict[Mechanism, float]:
    """Times by some of them as times by all."""
    return _NO_TIME | times


def no_time() -> dict[Mechanism, float]:
    """None by any: a copy, which is made faster than from the keys."""
    return _NO_TIME.copy()
