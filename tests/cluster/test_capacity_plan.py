"""How many hosts a fleet needs is what memory, ASIDs, vCPUs and slowdown ask for, and the first of them is named."""

import json

import pytest
from small_fleet import small_fleet, vm

from cluster.capacity_plan import PlanError, plan
from cluster.cli import main
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.host_kind import HostKind
from node.phase_cost import PhaseCost
from node.product import PRODUCTS
from workloads.random_access import DEMAND

IMAGE = laboratory_image()
ALL = tuple(Generation)


def needs(product, *machines, memory="64 GiB", level=None):
    hosts = [{"name": "host", "product": product, "memory": memory}]
    scenario = small_fleet(hosts=hosts, vms=list(machines), trace=None, vcpu_overcommit=4.0)
    return {one.generation: one for one in plan(scenario, ALL, IMAGE, level)}


def test_memory_runs_out_first_where_machines_are_large():
    """Hosts of 16 GiB have room for three of 4 GiB beside RMP and firmware: ten need four."""
    found = needs("Milan", vm("large", "PLAIN", "idle", memory="4 GiB", count=10), memory="16 GiB")
    assert {one.hosts for one in found.values()} == {4}
    assert {one.limit for one in found.values()} == {"memory"}
    assert set(found) == {Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP}


def test_asids_run_out_first_on_a_naples():
    """It has seven ASIDs for SEV and eight for SEV-ES (15 in all, split at 9): twenty guests need three hosts."""
    found = needs("Naples", vm("tiny", "PLAIN", "idle", count=20))
    assert {generation: one.hosts for generation, one in found.items()} == {
        Generation.PLAIN: 1, Generation.SEV: 3, Generation.SEV_ES: 3,
    }  # fmt: skip
    assert (found[Generation.SEV].limit, found[Generation.SEV].against_plain) == ("ASIDs", 3)
    assert found[Generation.SEV].asid_share == pytest.approx(7 / 7)


def test_a_machine_alone_is_slowed_down_by_what_its_phases_cost():
    product = PRODUCTS["Milan"]
    kind, costs = HostKind(float(product.base_hz), rmp=True), load_cost_table()
    plain, snp = (
        sum(ns for _, ns in PhaseCost.of(DEMAND, one, kind, costs).parts)
        for one in (Generation.PLAIN, Generation.SEV_SNP)
    )
    found = needs("Milan", vm("one", "PLAIN", "random-access"), level=2.0)
    assert found[Generation.SEV_SNP].slowdown == pytest.approx(snp / plain, rel=0.02)
    assert found[Generation.PLAIN].slowdown == pytest.approx(1, rel=0.02)


def test_a_level_that_neighbours_break_takes_more_hosts():
    streams = vm("stream", "PLAIN", "stream", vcpus=8, memory="2 GiB", count=8)
    loose, tight = (needs("Milan", streams, level=level) for level in (10.0, 1.8))
    assert loose[Generation.PLAIN].hosts == 1 < tight[Generation.PLAIN].hosts
    assert tight[Generation.PLAIN].limit == "memory bandwidth"
    assert tight[Generation.SEV_SNP].hosts >= tight[Generation.PLAIN].hosts
    assert all(one.slowdown <= 1.8 for one in tight.values())


def test_slower_machines_are_joined_by_more_to_do_the_same_work():
    found = needs("Milan", vm("scatter", "PLAIN", "random-access", count=40))
    plain, snp = found[Generation.PLAIN], found[Generation.SEV_SNP]
    assert plain.machines == 40
    assert snp.machines >= 40 * snp.slowdown / plain.slowdown / 1.002
    assert snp.machines / snp.slowdown >= 40 / plain.slowdown / 1.002


def test_launches_take_the_security_processor_machine_by_machine():
    found = needs("Milan", vm("tiny", "PLAIN", "idle", count=20))
    costs = load_cost_table()
    page_s = 4 * costs["psp.launch_update_ns_per_kib"] / 1e9
    each_s = len(IMAGE.data) // 4096 * page_s + (costs["psp.launch_fixed_ns"] + 4 * costs["psp.command_ns"]) / 1e9
    assert found[Generation.SEV_SNP].launch_all_s == pytest.approx(20 * each_s)
    assert found[Generation.PLAIN].launch_all_s == 0
    small = needs("Milan", vm("tiny", "PLAIN", "idle", count=20, kernel={"boot": "direct"}))
    # Four pages of an image and four commands, and none of what QEMU's launches take besides.
    small_s = 4 * page_s + 4 * costs["psp.command_ns"] / 1e9
    assert small[Generation.SEV_SNP].launch_all_s == pytest.approx(20 * small_s)


def test_what_no_number_of_hosts_serves_is_one_line(capsys):
    with pytest.raises(PlanError, match="SEV: expected a level that a host for each machine reaches"):
        needs("Milan", vm("one", "PLAIN", "random-access"), level=1.01)
    assert main(["plan", "quiet", "--level", "0.5"]) == 2
    assert '--level: expected a number from 1 to 1000, got "0.5"' in capsys.readouterr().err


def test_the_command_speaks_json(capsys):
    assert main(["plan", "quiet", "--generations", "plain,sev-snp", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["generation"] for line in lines] == ["PLAIN", "SEV_SNP"]
    assert lines[1]["shares"]["ASIDs"] > 0
