"""Every end of a plan's range is what a plan with that figure comes to."""

import json
import math

import pytest
from small_fleet import small_fleet, vm

from cluster.capacity_plan import PlanError, Planner, plan
from cluster.cli import main
from cluster.plan_ranges import HOSTS, LAUNCH, SLOWDOWN, plan_ranges
from cluster.scenario import Scenario
from cluster.tornado import swept_rows
from node.firmware_image import laboratory_image
from node.generation import Generation

IMAGE = laboratory_image()
CHOSEN = [Generation.PLAIN, Generation.SEV, Generation.SEV_SNP]


def fleet(**costs: float) -> Scenario:
    machines = [vm("stream", "PLAIN", "stream", vcpus=8, memory="2 GiB", count=12),
                vm("scatter", "PLAIN", "random-access", count=4)]  # fmt: skip
    hosts = [{"name": "host", "product": "Milan", "memory": "64 GiB"}]
    return small_fleet(hosts=hosts, vms=machines, trace=None, vcpu_overcommit=2.0, costs=costs)


@pytest.mark.parametrize("level", [None, 1.75])
def test_ranges_hold_what_a_plan_with_each_end_comes_to(level):
    planner = Planner(fleet(), IMAGE, level)
    needs = [planner.need(one) for one in CHOSEN]
    assert needs == plan(fleet(), CHOSEN, IMAGE, level)
    told: list[str] = []
    ranges = plan_ranges(planner, fleet(), needs, told.append)
    seen = {(one.generation, name): {value} for one in needs for name, value in
            ((HOSTS, one.hosts), (SLOWDOWN, one.slowdown), (LAUNCH, one.launch_all_s))}  # fmt: skip
    for row in swept_rows(fleet()):
        for end in row.sweep:
            if row.name in told:
                _note(seen, fleet(**{row.name: end}), level)
    for one in needs:
        for name in (HOSTS, SLOWDOWN, LAUNCH):
            ends = seen[one.generation, name]
            assert ranges[one.generation].figures[name] == pytest.approx((min(ends), max(ends))), (one, name)
    uncertain = [low != high for low, high in (ranges[one].figures[HOSTS] for one in CHOSEN)]
    assert any(uncertain) or level is None


def _note(seen: dict[tuple[Generation, str], set[float]], changed: Scenario, level: float | None) -> None:
    for generation in CHOSEN:
        try:
            (one,) = plan(changed, [generation], IMAGE, level)
            found = one.hosts, one.slowdown, one.launch_all_s
        except PlanError:
            found = (math.inf,) * 3
        for name, value in zip((HOSTS, SLOWDOWN, LAUNCH), found, strict=True):
            seen[generation, name].add(value)


def test_rows_that_are_not_told_change_nothing():
    planner = Planner(fleet(), IMAGE)
    needs = [planner.need(one) for one in CHOSEN]
    read = planner.read
    others = {one.name: one.sweep[1] for one in swept_rows(fleet()) if one.name not in read}
    assert len(others) > 10
    assert plan(fleet(**others), CHOSEN, IMAGE) == needs


def test_the_command_shows_ranges_and_what_matters(capsys):
    assert main(["plan", "quiet", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "What matters of the rows that nobody has published" in shown
    assert "rmp.walk_adder_ns" in shown
    assert main(["plan", "quiet", "--quiet", "--json"]) == 0
    bodies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(low <= one["slowdown"] <= high for one in bodies for low, high in [one["swept"]["slowdown"]])
    assert main(["plan", "quiet", "--no-sweep"]) == 0
    assert "swept" not in capsys.readouterr().out
