"""The hypervisor compares ciphertexts of one address with each other (rows 30, 31).

The same bytes at the same address are the same ciphertext, for as long as a VM lives. Whoever has seen what stands
for one answer knows it again: in a save area (CipherLeaks, Li et al., USENIX Security 2021, CVE-2020-12966) as in any
memory (Li et al., S&P 2022, CVE-2021-46744).
"""

from __future__ import annotations

from node.operations import HostRead, VmKick, Wbinvd
from node.vmsa import VMSA_FIELDS
from workloads.attacks.claims import Claim
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, AttackBatch, Target
from workloads.attacks.vault import CONTENT_BYTES

_ROUNDS = 20
_BLOCK_BYTES = 16
_RAX = VMSA_FIELDS["RAX"].offset // _BLOCK_BYTES * _BLOCK_BYTES
"""RAX lies in a block whose other half is zero, if it has no shadow stack."""


def compare_registers(target: Target) -> Attack:
    """Row 30: make the victim exit while it rests, with what it decided in RAX, and load the block where that is."""
    look = HostRead(target.victim.save_area + _RAX, _BLOCK_BYTES)
    return _compare(look, (VmKick(target.victim.vm, 0), Wbinvd()))


def compare_memory(target: Target) -> Attack:
    """Row 31: load what the victim has decided, through a mapping without the C-bit, round by round."""
    return _compare(HostRead(target.victim.decision.spa, CONTENT_BYTES), WRITE_BACK)


def _compare(look: HostRead, prepare: AttackBatch) -> Attack:
    yield prepare
    (no,) = yield (look,)  # what everybody has decided who has just begun
    bits = []
    for _ in range(_ROUNDS):
        yield LET_IT_RUN
        yield prepare
        (now,) = yield (look,)
        bits.append(int(now != no))
    yield (Claim(tuple(bits)),)
