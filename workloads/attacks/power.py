"""The hypervisor reads how much energy a victim's core has used (row 29b; PwrLeak, DIMVA 2023, CVE-2023-20575)."""

from __future__ import annotations

from node.energy_counters import CORE_ENERGY
from node.operations import Answer, ReadMsr
from workloads.attacks.claims import Claim
from workloads.attacks.target import LET_IT_RUN, Attack, Target

CORE = 0
"""Where it runs the victim."""
_ROUNDS = 32


def read_energy(target: Target) -> Attack:
    """Row 29b: read the counter around each round; the rounds that took more are those with more bits set."""
    del target  # It needs to know nothing of it but where it runs.
    reading = (ReadMsr(CORE, CORE_ENERGY),)
    (before,) = yield reading
    used = []
    for _ in range(_ROUNDS):
        yield LET_IT_RUN
        (now,) = yield reading
        used.append(_grown(before, now))
        before = now
    middle = (min(used) + max(used)) / 2
    yield (Claim((0, *[int(one > middle) for one in used])),)  # its first round was before the attack


def _grown(before: Answer, now: Answer) -> int:
    return now - before if isinstance(before, int) and isinstance(now, int) else 0
