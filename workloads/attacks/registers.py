"""The hypervisor makes a victim exit, and looks into its save area or stores there (rows 02 to 04).

Where registers are encrypted a store reaches ciphertext, a block of the cipher at least. What lay in one before is a
ciphertext of the same address, and a value if it is put back.
"""

from __future__ import annotations

from node.operations import HostRead, HostWrite, VmKick, VmPreempt, Wbinvd
from node.vmsa import VMSA_FIELDS
from workloads.attacks.service import ASKED, GRANTED, LOADED, RESTS
from workloads.attacks.target import LET_IT_RUN, Attack, Household, Target
from workloads.attacks.vault import PAGE_BYTES

_BLOCK_BYTES = 16
_RAX = VMSA_FIELDS["RAX"].offset
_RIP = VMSA_FIELDS["RIP"].offset // _BLOCK_BYTES * _BLOCK_BYTES
"""RIP lies in a block with RFLAGS."""


def read_at_exit(target: Target) -> Attack:
    """Row 02: load the whole save area while a secret is in registers, without the C-bit and with it."""
    victim = target.victim
    yield from _rest(LOADED)
    yield VmPreempt(victim.vm, 0), Wbinvd()
    for with_c_bit in (False, True):
        yield (HostRead(victim.save_area, PAGE_BYTES, with_c_bit),)


def grant_the_login(target: Target) -> Attack:
    """Row 03: store another answer over the one that a check has put into RAX."""
    yield from _rest(ASKED)
    yield from _store(target.victim, _RAX, GRANTED.to_bytes(8, "little"))


def turn_back(target: Target) -> Attack:
    """Row 03: have the victim go on where it was before, with whatever is in its registers now."""
    yield from _rest(ASKED)
    yield from _put_back(target.victim, _RIP, _BLOCK_BYTES, LOADED - ASKED)


def put_back_all(target: Target) -> Attack:
    """Row 04: keep a save area, and put it back when the victim has come to the same place once more."""
    yield from _rest(ASKED)
    yield from _put_back(target.victim, 0, PAGE_BYTES, RESTS)


def _put_back(victim: Household, at: int, length: int, rests: int) -> Attack:
    yield VmPreempt(victim.vm, 0), Wbinvd()
    (old,) = yield (HostRead(victim.save_area + at, length, victim.c_bit),)
    yield from _rest(rests)
    if isinstance(old, bytes):
        yield from _store(victim, at, old)


def _store(victim: Household, at: int, octets: bytes) -> Attack:
    yield (
        VmPreempt(victim.vm, 0), Wbinvd(), HostWrite(victim.save_area + at, octets, victim.c_bit), Wbinvd(),
        VmKick(victim.vm, 0),
    )  # fmt: skip
    yield LET_IT_RUN


def _rest(times: int) -> Attack:
    for _ in range(times):
        yield LET_IT_RUN
