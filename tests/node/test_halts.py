"""A halt costs its exits; a host that has given the thread up has to bring it back."""

import itertools
from collections import defaultdict

import pytest
from toy_guests import COSTS, KIND, make_host, run, script, start

from node import operations as op
from node.generation import Generation
from node.mechanism import Mechanism
from node.operation_cost import GuestOperationCost

EXIT_NS, EXTRA_NS, WAKE_NS, POLL_NS = 1255, 3553 - 1255, COSTS["halt.wake_ns"], int(COSTS["halt.poll_ns"])


def halted(generation, slept_ns, timer):
    lost = defaultdict(float)
    total = GuestOperationCost(generation, COSTS, KIND).halt(lost, slept_ns, timer=timer)
    assert total == pytest.approx(sum(lost.values()), abs=0.5)
    return dict(lost)


@pytest.mark.parametrize(("slept_ns", "wake_ns"), [(0, 0), (POLL_NS, 0), (POLL_NS + 1, WAKE_NS)])
def test_a_host_polls_before_it_gives_a_thread_up(slept_ns, wake_ns):
    assert halted(Generation.PLAIN, slept_ns, timer=False) == {
        Mechanism.OPERATIONS: EXIT_NS + wake_ns, Mechanism.VMGEXIT: 0,
    }  # fmt: skip


def test_a_timer_is_an_exit_more_and_each_exit_of_an_encrypted_guest_is_dearer():
    assert halted(Generation.SEV, 0, timer=True)[Mechanism.VMGEXIT] == 0
    for generation in (Generation.SEV_ES, Generation.SEV_SNP):
        assert halted(generation, 0, timer=True) == {
            Mechanism.OPERATIONS: 2 * EXIT_NS, Mechanism.VMGEXIT: 2 * EXTRA_NS,
        }  # fmt: skip


def test_a_vcpu_that_slept_goes_on_later_by_what_its_halt_costs():
    seen = []

    def naps(_, registers):
        seen.append(host.now_ns)
        registers.r13 += 1
        return op.Sleep(1_000_000) if registers.r13 < 5 else op.Shutdown(0)
        yield ()

    spent = {}
    for generation in (Generation.PLAIN, Generation.SEV_SNP):
        seen.clear()
        host = make_host({"naps": script(naps)}, product="Milan")
        start(host, "vm", generation, "naps")
        run(host, 10**9)
        spent[generation] = {later - earlier - 1_000_000 for earlier, later in itertools.pairwise(seen)}
    assert spent[Generation.PLAIN] == {2 * EXIT_NS + WAKE_NS}
    assert spent[Generation.SEV_SNP] == {2 * EXIT_NS + WAKE_NS + 2 * EXTRA_NS}
