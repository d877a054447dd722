"""A card's interrupt awakes the vCPU that its function was assigned to, and no other."""

from __future__ import annotations

from toy_guests import SECOND, make_host, run, script, start

from node.card_memory import INTERRUPTS_BASE
from node.generation import Generation
from node.operations import Await, Sleep

REQUESTER = 0x0200
VECTOR = (0x55).to_bytes(4, "little")


def waiter(_place, registers):
    """Count how often somebody calls."""
    registers.r13 += 1
    return Await(10**15)
    yield ()


def sleeper(_place, registers):
    registers.r13 += 1
    return Sleep(10**15)
    yield ()


def fire(host, requester=REQUESTER):
    host.board.card_memory.write(requester, INTERRUPTS_BASE, VECTOR, tee=False, stream_id=None)


def counts(host):
    return [guest.vcpus[0].registers.r13 for guest in host.guests.values()]


def test_who_waits_awakes_once_for_each_and_who_sleeps_does_not():
    host = make_host({"waiter": script(waiter), "sleeper": script(sleeper)})
    for name, program in (("one", "waiter"), ("two", "waiter"), ("three", "sleeper")):
        start(host, name, Generation.SEV_SNP, program)
    run(host, SECOND)
    assert counts(host) == [1, 1, 1]
    host.interrupts.assign(REQUESTER, "one")
    host.interrupts.assign(REQUESTER + 1, "three")
    for _ in range(3):
        fire(host)
        fire(host, REQUESTER + 1)
        run(host, host.now_ns + SECOND)
    assert counts(host) == [4, 1, 1]
    assert (host.interrupts.brought, host.interrupts.lost) == (6, 0)
    assert host.now_ns < 100 * SECOND


def test_what_nobody_has_is_lost_and_counted():
    host = make_host({"waiter": script(waiter)})
    start(host, "one", Generation.PLAIN, "waiter")
    run(host, SECOND)
    fire(host)
    host.interrupts.assign(REQUESTER, "one")
    host.interrupts.release(REQUESTER)
    fire(host)
    for vm, vcpu in (("nobody", 0), ("one", 7), ("one", -1)):
        host.interrupts.assign(REQUESTER, vm, vcpu)
        fire(host)
    host.interrupts.assign(REQUESTER, "one")
    host.destroy("one")
    fire(host)
    run(host, host.now_ns + SECOND)
    assert (host.interrupts.brought, host.interrupts.lost) == (0, 6)
