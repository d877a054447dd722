"""Guests without a key that move between two hosts of one process, and all that a host then holds of them."""

import dataclasses

from toy_guests import SECOND, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.migration_frames import NO_SESSION, PageDigests, Stream
from node.program import Compute, Registers
from psp.system_bus import PAGE_BYTES

PLAIN = Generation.PLAIN
MARK = b"\xa5" * PAGE_BYTES


def works(placement, registers):
    """Write a page, then compute for so long that only somebody else ends it."""
    yield (op.Write(placement.base_gpa + PAGE_BYTES * (registers.r13 % 4), MARK),)
    registers.r13 += 1
    return Compute(0, 10**12)


WORKS = script(works)


def until(condition, host):
    while not condition():
        host.clock.env.step()


def host(*, eager=False, **kwargs):
    """A host; one that is ``eager`` puts nothing off."""
    made = make_host({"works": WORKS}, **kwargs)
    if eager:
        made.board.unlaid.expect = lambda _: None
    return made


def move(source, target, spec, passing=lambda _step, _host: None):
    """What a migration does, in one process; the target's clock goes on to where the source's is.

    ``passing`` is called while the time of a step passes, and when the VM stands whole at the target.
    """
    name, told = spec.name, []
    source.clock.env.run(until=max(source.now_ns + 1, target.now_ns))
    assert isinstance(source.departures.begin(name, lambda _: None), tuple)
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    target.arrivals.prepare(spec, lambda wrong, _: told.append(wrong))
    until(lambda: told, target)
    source.departures.stop(name, 0, told.append)
    passing("export", source)
    until(lambda: len(told) > 1, source)
    what = told[1]
    target.clock.env.run(until=max(target.now_ns + 1, source.now_ns))
    frames, digests = Stream(what.state, NO_SESSION), PageDigests(what.state.pages)
    target.arrivals.complete(name, frames, digests, what.books, told.append)
    passing("fill", target)
    until(lambda: len(told) > 2, target)
    assert told[0] is told[2] is None
    passing("whole", target)
    target.arrivals.start(name)
    source.departures.finish(name)
    passing("depart", source)
    run(source, source.now_ns + SECOND)
    return what


def moved(*, eager=False, turns=1):
    """A pair of hosts between which a VM went back and forth; where it is now comes first."""
    here, there = host(name="here"), host(name="there", eager=eager)
    if eager:
        here.board.unlaid.expect = lambda _: None
    guest = start(here, "vm", PLAIN, "works")
    run(here, SECOND)
    for _ in range(turns):
        move(here, there, guest.spec)
        here, there = there, here
    return here, there


def frames_of(one, name="vm"):
    """All frames that a VM has, as (SPA, length): its memory first, its tables last."""
    record = one.hypervisor.launched(name)
    return [*record.frames, *[(spa, PAGE_BYTES) for spa in record.small], *record.tables]


def on_board(one, name="vm"):
    """All that there is of the VM, as bytes and as who runs with what."""
    board, record = one.board, one.hypervisor.launched(name)
    runs = [run for spa, length in frames_of(one, name) for run in board.dram.resident_runs(spa, length)]
    octets = [board.dram.read(spa, length) for spa, length in runs]
    vmcb = board.vmcb(name, 0)
    mapped = vmcb.nested.translate(record.ram[0][0], record.ram[0][2])
    running = dict(board.running._areas), set(board.running._scheduled), dict(board.running.threads)
    return (
        octets, dataclasses.replace(vmcb, nested=None), vmcb.nested.nested_cr3, mapped, running,
        board.residents.at_home(vmcb), board.backing(name), registers(one, name), one.now_ns,
        board.dram.resident_bytes,
    )  # fmt: skip


def registers(one, name="vm"):
    held = one.guests[name].vcpus[0].registers
    return {name: getattr(held, name) for name in Registers.__slots__}
