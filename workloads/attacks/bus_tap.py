"""Somebody listens on the memory bus and changes nothing (row 40; TEE.fail).

The same bytes at the same address are the same ciphertext. The victim writes anew, each round, what it has
decided: whoever has seen the ciphertext of one answer knows it again.
"""

from __future__ import annotations

from workloads.attacks.claims import Claim
from workloads.attacks.dimm_operations import DimmTap
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import CONTENT_BYTES

_ROUNDS = 32


def listen(target: Target) -> Attack:
    """Row 40: what crosses the bus of the secret and of the decision, round by round."""
    decision, secret = (
        DimmTap(page.spa, CONTENT_BYTES) for page in (target.victim.decision, target.victim.secret)
    )  # fmt: skip
    yield WRITE_BACK
    (no,) = yield (decision,)  # what everybody has decided who has just begun
    bits = []
    for _ in range(_ROUNDS):
        yield LET_IT_RUN
        yield WRITE_BACK
        now, _ = yield (decision, secret)
        bits.append(int(now != no))
    yield (Claim(tuple(bits)),)
