"""The hypervisor compares ciphertexts of one address with each other (row 31).

The same bytes at the same address are the same ciphertext, for as long as a VM lives. Whoever has seen what stands
for one answer knows it again (Li et al., S&P 2022, CVE-2021-46744).
"""

from __future__ import annotations

from node.operations import HostRead
from workloads.attacks.claims import Claim
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import CONTENT_BYTES

_ROUNDS = 32


def compare_memory(target: Target) -> Attack:
    """Row 31: load what the victim has decided, through a mapping without the C-bit, round by round."""
    decision = HostRead(target.victim.decision.spa, CONTENT_BYTES)
    yield WRITE_BACK
    (no,) = yield (decision,)  # what everybody has decided who has just begun
    bits = []
    for _ in range(_ROUNDS):
        yield LET_IT_RUN
        yield WRITE_BACK
        (now,) = yield (decision,)
        bits.append(int(now != no))
    yield (Claim(tuple(bits)),)
