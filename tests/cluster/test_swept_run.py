"""A run's books under other figures of costs are, within little, those of a run with these figures."""

import json

import pytest
from small_fleet import small_fleet, vm

from cluster import run
from cluster.cli import main
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.stretched import OWN, stretched
from cluster.swept_run import SweptRun
from cluster.tornado import swept_rows
from node.cost_table import load_cost_table

LARGE = {"table_bytes": 65536, "batch": 4, "loads": 1, "instructions_per_batch": 2_000_000_000}
MACHINES = [
    vm("scattered", "SEV_SNP", "random-access", start="running", parameters=LARGE, vcpus=4),
    vm("streams", "PLAIN", "stream", start="running", vcpus=16),
    vm("sev", "SEV", "stream", start="running", vcpus=4),
]


def fleet(**costs: float) -> Scenario:
    host = {"name": "one", "product": "Milan", "memory": "32 GiB"}
    return small_fleet(hosts=[host], vms=MACHINES, trace=None, duration="30 s", costs=costs)


@pytest.fixture(scope="module")
def results() -> Results:
    return run(fleet(), layout="inline")


@pytest.fixture(scope="module")
def swept(results: Results) -> SweptRun:
    return SweptRun(results)


def per_instruction(results: Results) -> dict[str, float]:
    times = dict.fromkeys((row["vm"] for row in results.vms.to_pylist()), 0.0)
    for row in results.vm_time.to_pylist():
        times[row["vm"]] += row["time_ns"]
    return {row["vm"]: times[row["vm"]] / row["instructions"] for row in results.vms.to_pylist()}


@pytest.mark.parametrize(
    ("row", "end"),
    [
        ("dram.encryption_adder_ns", 0), ("dram.loaded_latency_factor", 1), ("dram.usable_bandwidth_share", 0),
        ("rmp.walk_adder_ns", 1),
    ],
)  # fmt: skip
def test_what_a_sweep_makes_of_a_run_is_what_another_run_shows(results, swept, row, end):
    (cost,) = (one for one in swept_rows(fleet()) if one.name == row)
    before, after = per_instruction(results), per_instruction(run(fleet(**{row: cost.sweep[end]}), layout="inline"))
    assert max(abs(after[one] / before[one] - 1) for one in after) > 1e-4, "it matters here"
    for one in after:
        expected, got = after[one] / before[one] - 1, swept.of(one).share_at(row, end) - 1
        assert got == pytest.approx(expected, rel=0.15, abs=1e-3), one


def test_a_row_that_no_price_rests_on_is_not_looked_at(swept):
    rows = {row for one in swept.vms for row in swept.of(one).ends}
    assert rows <= {one.name for one in swept_rows(fleet())}
    assert not rows & {"disk.exits_per_request", "psp.tio_exchange_ns", "migration.post_copy_fault_ns", "halt.wake_ns"}


def test_times_of_blocks_by_row_are_a_part_of_all(results):
    """An SNP guest validates its memory and shares its pool once: the rows hold all of its acceptance but accesses."""
    times = {row["mechanism"]: row["time_ns"] for row in results.vm_time.to_pylist() if row["vm"] == "scattered"}
    rows = {row["row"]: row["time_ns"] for row in results.vm_rows.to_pylist() if row["vm"] == "scattered"}
    of_rmp = sum(ns for name, ns in rows.items() if name.startswith("rmp."))
    assert of_rmp == pytest.approx(times["acceptance"], rel=2e-3)
    pages = rows["rmp.pvalidate_large_ns"] / load_cost_table()["rmp.pvalidate_large_ns"]
    assert pages == round(pages)
    assert 0.8 * 256 < pages < 256, "512 MiB in 2 MiB, without pool and kernel"


def test_a_headline_holds_its_value_and_what_rows_make_of_it(results):
    found = {(one.workload, one.generation): one for one in stretched(results)}
    assert found.keys() == {("random-access", "SEV_SNP"), ("stream", "PLAIN"), ("stream", "SEV")}
    times = {row["mechanism"]: row["time_ns"] for row in results.vm_time.to_pylist() if row["vm"] == "scattered"}
    one = found["random-access", "SEV_SNP"]
    assert one.value == pytest.approx(sum(times.values()) / sum(times[mechanism] for mechanism in OWN))
    assert one.low < one.value < one.high
    widths = [abs(high - low) for _, low, high in one.swings]
    assert widths == sorted(widths, reverse=True)
    assert {one.low, one.high} <= {end for _, *ends in one.swings for end in ends}


def test_a_run_shows_its_ranges_unless_it_is_told_not_to(capsys, tmp_path):
    file = tmp_path / "quick.toml"
    file.write_text(fleet().model_copy(update={"duration": 10**8}).to_toml(), "utf-8")
    assert main(["run", str(file), "--layout", "inline", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert {one["workload"] for one in body["stretched"]} == {"random-access", "stream"}
    assert all(one["swept"][0] <= one["stretched"] <= one["swept"][1] for one in body["stretched"])
    assert main(["run", str(file), "--layout", "inline", "--json", "--no-sweep"]) == 0
    assert "stretched" not in json.loads(capsys.readouterr().out)


def test_whatever_row_a_user_gives_a_range_is_swept(tmp_path):
    """Of machines whose blocks pay by rows of all kinds: boots, an SVSM, a disk, reports that are judged."""
    table, mine = load_cost_table(), tmp_path / "mine.csv"
    lines = ["name,value,unit,products,source,sweep_low,sweep_high"]
    for name in table:
        row = table.row(name)
        low, high = max(row.bounds[0], 0.9 * row.value), min(row.bounds[1], 1.1 * row.value)
        lines.append(f"{name},{row.value!r},{row.unit},all,our rack,{low!r},{high!r}")
    mine.write_text("\n".join(lines) + "\n")
    small = {"source_blocks": 64, "access_bytes": 4096, "instructions_per_unit": 50_000_000}
    machines = [
        vm("direct", "SEV_SNP", "random-access", host="milan", parameters=LARGE, kernel={"boot": "direct"}),
        vm("above", "SEV_SNP", "random-access", host="milan", parameters=LARGE, svsm=True),
        vm("builds", "SEV_SNP", "compile-job", host="milan", parameters=small, kernel={"encrypts_disk": True}),
        vm("party", "PLAIN", "relying-party", host="naples", start="running"),
        vm("tenant", "SEV_SNP", "random-access", host="milan", parameters=LARGE, attest_to="party", start="running"),
    ]
    done = run(
        small_fleet(vms=machines, trace=None, duration="4 s", cost_rows=str(mine), key_service={"delay": "10 ms"}),
        layout="inline",
    )
    matter = {one.workload + " " + one.generation: {row for row, _, _ in one.swings} for one in stretched(done)}
    swept_machines = SweptRun(done)
    assert {row["vm"] for row in done.vms.to_pylist()} == set(swept_machines.vms)
    assert "boot.linux_lupine_ns" in swept_machines.of("direct").ends
    assert {"disk.crypt_block_ns", "disk.crypt_request_ns"} <= swept_machines.of("builds").ends.keys()
    assert {"attest.verify_chain_ns", "attest.verify_report_ns"} <= swept_machines.of("party").ends.keys()
    assert "core.exit_ns" in matter["compile-job SEV_SNP"]
