"""Each rung of the ladder adds to the one below it, its parts add up, and several seeds give an interval."""

import json

import pytest
from small_fleet import small_fleet, vm

from cluster.cli import main
from cluster.ladder import Rung, climb, on_product, rungs_of, with_ranges
from cluster.ladder_report import print_ladder, print_ladder_as_json
from cluster.scenario import Scenario, ScenarioError
from cluster.tornado import swept_rows
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.mechanism import Mechanism

STUDENT = 12.706204736
"""Student's t of one degree of freedom at 97.5 % (tables)."""


class Mean:
    vms = 3

    def __init__(self, slowdown, **parts):
        self.ends = {}
        self.slowdown = slowdown
        self.parts = dict.fromkeys(Mechanism, 0.0) | {Mechanism(name): share for name, share in parts.items()}


def rungs(*seeds):
    return rungs_of("", [{("db", generation): mean for generation, mean in seed.items()} for seed in seeds])


def test_a_rung_adds_to_the_one_below_and_the_first_to_plain():
    sev, snp = Mean(1.25, encryption=0.25), Mean(1.4, encryption=0.3, rmp=0.1)
    first, second = rungs({Generation.SEV_SNP: snp, Generation.SEV: sev})
    assert [(one.generation, one.below) for one in (first, second)] == [
        (Generation.SEV, Generation.PLAIN), (Generation.SEV_SNP, Generation.SEV),
    ]  # fmt: skip
    assert first.added.mean == pytest.approx(0.25)
    assert second.added.mean == pytest.approx(0.15)
    assert second.parts[Mechanism.ENCRYPTION].mean == pytest.approx(0.05)
    assert second.parts[Mechanism.RMP].mean == pytest.approx(0.1)
    assert first.added.half_width is None


def test_seeds_give_students_interval_of_what_a_rung_adds():
    (one,) = rungs({Generation.SEV: Mean(1.1)}, {Generation.SEV: Mean(1.3)})
    assert one.slowdown.mean == pytest.approx(1.2)
    assert one.added.half_width == pytest.approx(STUDENT * 0.1)


def test_a_workload_that_one_seed_lacks_is_left_out():
    assert rungs({Generation.SEV: Mean(1.1)}, {}) == []


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    image = tmp_path_factory.mktemp("firmware") / "laboratory.fd"
    image.write_bytes(laboratory_image().data)
    tiny = {"table_bytes": 65536, "batch": 4, "loads": 1, "instructions_per_batch": 1_000_000_000}
    small = {"memory": "64 MiB", "parameters": tiny, "firmware": str(image)}
    machines = [vm("random", "PLAIN", "random-access", host="milan") | small]
    hosts = [{"name": "milan", "product": "Milan", "memory": "1 GiB"}]
    return small_fleet(hosts=hosts, vms=machines, trace=None, duration="5 s")


@pytest.fixture(scope="module")
def climbed(fleet: Scenario) -> list[Rung]:
    return climb(fleet, list(Generation), seeds=2, layout="inline")


def test_on_a_real_fleet_parts_add_up_to_what_each_rung_adds(climbed):
    assert [one.generation.name for one in climbed] == ["SEV", "SEV_ES", "SEV_SNP"]
    for one in climbed:
        assert sum(part.mean for part in one.parts.values()) == pytest.approx(one.added.mean, abs=1e-12)
        assert one.slowdown.n == 2
    assert climbed[-1].slowdown.mean - 1 == pytest.approx(sum(one.added.mean for one in climbed), abs=1e-12)
    assert climbed[0].parts[Mechanism.RMP].mean == pytest.approx(0, abs=1e-9)
    assert climbed[2].parts[Mechanism.RMP].mean > 0


def test_the_ladder_prints_what_is_not_nothing(climbed, capsys):
    print_ladder(climbed)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["workload", "generation", "VMs", "slowdown", "added"]
    assert "SVSM" not in head
    assert [line.split()[1] for line in lines[:3]] == ["SEV", "SEV_ES", "SEV_SNP"]
    assert any("What matters" in line for line in lines)
    print_ladder_as_json(climbed)
    body = json.loads(capsys.readouterr().out.splitlines()[2])
    assert (body["generation"], body["below"], body["seeds"]) == ("SEV_SNP", "SEV_ES", 2)
    assert body["rmp_percent"] > 0
    print_ladder([])
    assert "nothing to compare" in capsys.readouterr().out


def test_ranges_come_from_unpublished_figures_that_matter_and_hold_the_rung(fleet, climbed, monkeypatch, capsys):
    rows = [one for one in swept_rows(fleet) if one.name == "dram.encryption_adder_ns"]
    monkeypatch.setattr("cluster.ladder.swept_rows", lambda _: rows)
    sev = with_ranges([climbed[0]], fleet, [Generation.PLAIN, Generation.SEV], layout="inline")[0]
    (row, low, high), = sev.swings
    assert row == "dram.encryption_adder_ns"
    least, most = rows[0].sweep
    assert (low - 1) / (high - 1) == pytest.approx(least / most, rel=1e-2), "a cipher is a cost for each miss"
    assert sev.swept.slowdown == pytest.approx((low, high), rel=1e-6)
    print_ladder([sev])
    shown = capsys.readouterr().out
    assert "added swept" in shown
    assert "widest 1 of 1" in shown
    # What is worked out from the runs that there are is the same.
    worked_out = {name: ends for name, *ends in climbed[0].swings}
    assert worked_out[row] == pytest.approx([low, high], rel=1e-5)
    assert climbed[0].swept.slowdown[0] == pytest.approx(low, rel=1e-5)
    assert sev.body()["tornado"] == [{"row": row, "slowdown_low": low, "slowdown_high": high}]


def test_what_nobody_has_measured_says_model_only(capsys):
    snp, tio = Mean(1.1, rmp=0.1), Mean(1.2, rmp=0.1, ide=0.1)
    lone, device = rungs({Generation.SEV_SNP: snp, Generation.SEV_TIO: tio})
    (beside,) = rungs({Generation.SEV_SNP: Mean(1.1, rmp=0.09, llc=0.01)})
    said = ["", "model only", "model only: neighbours"]
    assert [one.model_only for one in (lone, device, beside)] == said
    print_ladder([lone, device, beside])
    assert capsys.readouterr().out.count("model only") == 2


def test_hosts_are_made_of_a_product_and_machines_that_it_lacks_are_plain():
    moved = on_product(small_fleet(), "Rome")
    assert {host.product for host in moved.hosts} == {"Rome"}
    assert {one.generation.name for one in moved.vms} <= {"PLAIN", "SEV", "SEV_ES"}
    assert moved.seed == small_fleet().seed


def test_a_product_that_cannot_take_the_scenario_is_one_line():
    host = {"name": "milan", "product": "Milan", "memory": "4 TiB"}
    large = small_fleet(hosts=[host], vms=[vm("a", "PLAIN", "stream")])
    with pytest.raises(ScenarioError, match="memory"):
        on_product(large, "Siena")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--products", "Milan,Zurich"], "--products: expected some of Naples, Rome"),
        (["--seeds", "0"], "--seeds: expected a whole number from 1 to 1000"),
        (["--generations", "sev,sev-x"], "--generations: expected some of plain"),
    ],
)
def test_bad_words_are_one_line(words, complaint, capsys):
    assert main(["compare", "quiet", *words]) == 2
    assert complaint in capsys.readouterr().err
