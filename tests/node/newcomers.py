"""VMs that nobody asks for: they nap, or compute, between two hosts, and all that a host's books have of one."""

from dataclasses import dataclass
from functools import partial

from moved_guests import MARK, PLAIN
from toy_guests import DEMANDS, SECOND, Script, guest_spec, make_host, run

from node import operations as op
from node.guest import GONE
from node.hypervisor import Hypervisor
from node.newcomer import Newcomer
from node.program import Compute, Demand, Sleep
from node.vcpu import VcpuState
from psp.system_bus import PAGE_BYTES

NAP_NS = 40 * SECOND
WRITES = Demand("writes", 2.0, 1.0, 0.5, 2.0, written_set_bytes=1 << 20, written_bytes_per_kilo_instruction=8.0)


def naps(placement, held, first=0):
    """Write a page, then sleep long; every third time compute for some seconds instead, each vCPU at another time."""
    yield (op.Write(placement.base_gpa + PAGE_BYTES * (held.r13 % 4), MARK),)
    held.r13 += 1
    return Compute(0, 10**11) if (held.r13 + first + placement.vcpu) % 3 == 0 else Sleep(NAP_NS)


@dataclass(frozen=True, slots=True)
class Napper(Script):
    demands = (WRITES, *DEMANDS)


def pair(*, eager=False, vcpus=1, first=0, here=Hypervisor, there=Hypervisor, kind=Napper, spec=None, **kwargs):
    """Two hosts and a VM that sleeps on the first, or computes; if ``eager`` they put nothing off.

    ``here`` and ``there`` are the classes of their hypervisors, ``kind`` that of the VM's program.
    """
    program = {"naps": lambda _, placement: kind(placement, partial(naps, first=first))}
    named = {"here": here, "there": there}
    hosts = [make_host(program, name=name, hypervisor=made, **kwargs) for name, made in named.items()]
    for one in hosts:
        if eager:
            one.board.unlaid.expect = lambda _: None
    hosts[0].launch(spec or guest_spec("vm", PLAIN, "naps", vcpus=vcpus), lambda _: None, running=True)
    run(hosts[0], 2 * SECOND)
    states = [VcpuState.COMPUTING if (1 + first + vcpu) % 3 == 0 else VcpuState.SLEEPING for vcpu in range(vcpus)]
    assert [vcpu.state for vcpu in hosts[0].guests["vm"].vcpus] == states
    return hosts


def is_newcomer(one):
    return isinstance(one.guests["vm"].newcomer, Newcomer)


def wait(one, ns):
    one.clock.env.run(until=one.now_ns + ns)


def books(one):
    """All that a host has of the VM, and what happened there, once its books are closed."""
    one.close(one.now_ns)
    guest = one.guests.get("vm")
    events = next(one.clock._eid)
    found = [one.log.close(), one.hypervisor.figures(), one.vcpus.seats.peak, one.vcpus.operations, events, one.now_ns]
    if guest is None or guest.state in GONE:
        return [*found, guest and guest.state]
    figures = {name: vars(guest).get(name, getattr(type(guest), name)) for name in FIGURES}
    seats = [
        (
            vcpu.state, vcpu.epoch, vcpu.elapsed_ns, vcpu.instructions, vcpu.moved_instructions, vcpu.phases,
            vcpu.save_area_spa, [getattr(vcpu.registers, name) for name in type(vcpu.registers).__slots__],
        )
        for vcpu in guest.vcpus
    ]  # fmt: skip
    return [*found, guest.state, figures, seats, guest.lost_ns, guest.row_ns, guest.demands, guest.phase_costs]


FIGURES = (
    "asid", "launched", "reset_rips", "boot_rips", "running_ns", "ended_ns", "operation_ns", "operations", "faults",
    "units_of_work", "bytes_read", "bytes_written", "launch_digest",
)  # fmt: skip


def at(step, what):
    """``what`` is done with the host where a move is at this step."""
    return lambda now, one: what(one) if now == step else None
