"""Prices are worked out once for hosts of one kind, and are those of each alone."""

from itertools import product

from node.cost_table import load_cost_table
from node.generation import Generation
from node.host_kind import HostKind
from node.host_prices import host_prices
from node.phase_cost import PhaseCost
from node.platform import HostMode
from node.program import Demand

COSTS = dict(load_cost_table())
DEMANDS = tuple(
    Demand(f"{ipc}", ipc, 2.0, 1.0, 4.0, exits_per_mega_instruction=3.0, max_instructions_per_s=cap)
    for ipc, cap in ((0.5, 0.0), (2.0, 1e9))
)
KINDS = tuple(HostKind(hz, mode) for hz, mode in product((2.4e9, 3.1e9), (HostMode.NONE, HostMode.TSME)))


def test_each_kind_of_host_has_the_prices_of_its_cores_and_mode() -> None:
    for kind in KINDS:
        prices = host_prices(COSTS, kind)
        for generation in (Generation.PLAIN, Generation.SEV_SNP):
            expected = tuple(PhaseCost.of(one, generation, kind, COSTS) for one in DEMANDS)
            assert prices.phases(DEMANDS, generation) == expected


def test_hosts_of_one_kind_share_what_was_worked_out_and_others_do_not() -> None:
    found = [host_prices(COSTS, kind) for kind in KINDS]
    assert found == [host_prices(COSTS, kind) for kind in KINDS]
    assert len({id(one) for one in found}) == len(KINDS)
    assert host_prices(dict(COSTS), KINDS[0]) is not found[0]
    here = found[0].phases(DEMANDS, Generation.PLAIN)
    assert found[0].phases(DEMANDS[:1] + DEMANDS[1:], Generation.PLAIN) is here
    assert found[0].guest(Generation.PLAIN) is found[0].guest(Generation.PLAIN)
