"""The time-stamp counter of a guest that moves: it never goes back, however fast processors at the target count."""

from itertools import pairwise

import pytest
from moved_guests import move
from overheard_hypervisors import overheard
from toy_guests import IMAGE, SECOND, guest_spec, make_host, run, script

from node import operations as op
from node.actor import HYPERVISOR
from node.generation import Generation
from node.hypervisor_port import LaunchRefused
from node.operations import ReadTsc, Sleep
from node.packing import packed

STEP = SECOND // 10
AHEAD = 1 << 40


class Reader:
    """A guest whose vCPUs read their clock ten times a second, wherever they are."""

    def __init__(self, *products, vcpus=2, eager=False, **more):
        self.read = {}
        programs = {"clock": script(self.step)}
        self.hosts = [make_host(programs, product=one, name=f"{one}-{at}", **more) for at, one in enumerate(products)]
        for host in self.hosts if eager else ():
            host.board.unlaid.expect = lambda _: None
        self.here = self.hosts[0]
        self.spec = guest_spec("vm", Generation.PLAIN, "clock", vcpus=vcpus)
        self.here.launch(self.spec, lambda _: None, running=True)

    def step(self, placement, registers):
        (counted,) = yield (ReadTsc(),)
        self.read.setdefault(placement.vcpu, []).append((self.here.now_ns, counted))
        return Sleep(STEP)

    def go_to(self, host):
        there, before = host, self.here
        self.here = there
        move(before, there, self.spec)

    def stay(self, seconds=1):
        run(self.here, self.here.now_ns + seconds * SECOND)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "products",
    [("Genoa", "Milan"), ("Milan", "Genoa"), ("Turin", "Genoa", "Milan", "Milan", "Turin"), ("Milan", "Milan")],
)
def test_it_goes_on_from_where_it_stood_on_every_vcpu(products, eager):
    guest = Reader(*products, eager=eager)
    guest.stay(5)
    for host in guest.hosts[1:]:
        guest.go_to(host)
        guest.stay(3)
    fastest = max(host.spec.product.base_hz for host in guest.hosts)
    slowest = min(host.spec.product.base_hz for host in guest.hosts)
    assert set(guest.read) == {0, 1}
    for seen in guest.read.values():
        for (before_ns, before), (after_ns, after) in pairwise(seen):
            passed_ns = after_ns - before_ns
            assert slowest * passed_ns // SECOND - 2 <= after - before <= fastest * passed_ns // SECOND + 2


def test_what_a_hypervisor_had_added_goes_along():
    guest = Reader("Milan", "Milan", vcpus=1)
    guest.stay()
    added = op.VmcbStore("vm", 0, "TSC_OFFSET", AHEAD)
    assert guest.here.board.execute_host((added,)) == (None,)
    guest.go_to(guest.hosts[1])
    guest.stay()
    now_ns, counted = guest.read[0][-1]
    assert counted == now_ns * guest.here.spec.product.base_hz // SECOND + AHEAD


def test_it_is_the_hypervisor_who_sets_it_and_he_reads_what_becomes_of_that():
    """With hypervisors in processes of their own, too: what they do not issue nobody issues for them."""
    crossed, remote = overheard(IMAGE)
    guest = Reader("Genoa", "Milan", hypervisor=remote)
    guest.stay(5)
    seen, there = [], guest.hosts[1]
    there.board.observer = lambda who, batch, answers: seen.extend(
        (who, one, answer) for one, answer in zip(batch, answers, strict=True) if isinstance(one, op.VmcbStore)
    )
    before = len(crossed)
    guest.go_to(there)
    (offset,) = there.board.execute_host((op.VmcbLoad("vm", 0, "TSC_OFFSET"),))
    assert seen == [(HYPERVISOR, op.VmcbStore("vm", vcpu, "TSC_OFFSET", offset), None) for vcpu in (0, 1)]
    assert [one for one in crossed[before:] if packed(offset) in one]
    with pytest.raises(LaunchRefused, match="VmcbStore"):
        there.tasks.at_once(there.hypervisor.set_clock("nobody", 1, 1))


def test_a_control_block_that_is_filled_anew_keeps_it():
    guest = Reader("Genoa", "Milan", vcpus=1)
    guest.stay(5)
    guest.go_to(guest.hosts[1])
    board, load = guest.here.board, op.VmcbLoad("vm", 0, "TSC_OFFSET")
    (offset,) = board.execute_host((load,))
    vmcb = board.vmcb("vm", 0)
    board.execute_host((op.VmcbWrite("vm", 0, vmcb.asid, "PLAIN", vmcb.save_area_spa),))
    assert board.execute_host((load,)) == (offset,) != (0,)
