"""The hypervisor looks at what a victim leaves in predictors, caches, counters and nested faults (rows 27, 28, 29c)."""

from __future__ import annotations

from node.operations import (
    HostBranch,
    HostClflush,
    HostReadCounter,
    HostTimedRead,
    NestedUnmap,
    TraceFaults,
    VmcbLoad,
    VmKick,
)
from node.performance_counters import CounterEvent
from workloads.attacks.chooser import GADGET, PROBE_BYTES, SITE
from workloads.attacks.claims import Claim
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.target import LET_IT_RUN, Attack, Target
from workloads.attacks.vault import PAGE_BYTES

CORE = 0
"""Where it runs the victim."""
_ROUNDS = 32


def poison_predictor(target: Target) -> Attack:
    """Row 27: train the victim's jump to go to code that loads by what it decided, and see which line that left."""
    page, c_bit = target.victim.outbox.spa, target.victim.c_bit
    lines = (page, page + PROBE_BYTES)
    bits = [0]  # its first round was before the attack
    for _ in range(_ROUNDS):
        yield tuple(HostClflush(line, 1, c_bit) for line in lines)
        yield (HostBranch(CORE, SITE, GADGET),)
        yield LET_IT_RUN
        no, yes = yield tuple(HostTimedRead(line, c_bit) for line in lines)
        bits.append(int(isinstance(no, int) and isinstance(yes, int) and yes < no))
    yield (Claim(tuple(bits)),)


def trace_faults(target: Target) -> Attack:
    """Row 28: back two pages with nothing, and see at which of them the victim stops; give it back, round by round."""
    victim = target.victim
    pages = victim.value, victim.other
    yield smash(*pages)
    yield (TraceFaults(victim.vm, on=True),)
    bits = [0]
    for _ in range(_ROUNDS):
        yield tuple(NestedUnmap(victim.vm, page.gpa, PAGE_BYTES) for page in pages)
        yield LET_IT_RUN
        (at,) = yield (VmcbLoad(victim.vm, 0, "EXITINFO2"),)
        bits.append(int(isinstance(at, int) and at // PAGE_BYTES == victim.other.gpa // PAGE_BYTES))
        yield tuple(point(victim, page, page.spa) for page in pages)
        yield (VmKick(victim.vm, 0),)
        yield LET_IT_RUN
    yield (TraceFaults(victim.vm, on=False),)
    yield (Claim(tuple(bits)),)


def count_branches(target: Target) -> Attack:
    """Row 29c (CounterSEVeillance): read a counter after each step, and see whether the branch was taken."""
    del target  # It needs to know nothing of it but where it runs.
    events = CounterEvent.RETIRED_TAKEN_BRANCHES, CounterEvent.RETIRED_BRANCHES
    counter = tuple(HostReadCounter(CORE, event) for event in events)
    bits = [0]
    before = yield counter
    for _ in range(_ROUNDS):
        yield LET_IT_RUN
        now = yield counter
        taken, all_ = (_grown(one, other) for one, other in zip(before, now, strict=True))
        bits.append(int(all_ > 0 and taken == all_))  # a conditional branch, and a jump that is always taken
        before = now
    yield (Claim(tuple(bits)),)


def _grown(before: object, now: object) -> int:
    return now - before if isinstance(before, int) and isinstance(now, int) else 0
