"""A scenario may replace every cost by both ends of its range, and by nothing beyond: one line, and nothing runs."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import main
from cluster.scenario import Scenario, ScenarioError
from cluster.simulation import run
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image

TABLE = load_cost_table()
BOUNDS = {name: TABLE.row(name).bounds for name in TABLE}


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> str:
    image = tmp_path_factory.mktemp("firmware") / "laboratory.fd"
    image.write_bytes(laboratory_image().data)
    return str(image)


def scenario(firmware: str, costs: dict[str, float]) -> Scenario:
    """Two virtual seconds in which every mechanism has work: three launches, a migration, four workloads."""
    small = {"memory": "64 MiB", "firmware": firmware}
    runs = {"start": "running", "host": "host-1", **small}
    return Scenario.parse({
        "schema": 1,
        "name": "bounds",
        "duration": "2 s",
        "hosts": [{"name": "host", "count": 2, "product": "Milan", "memory": "2 GiB"}],
        "vms": [
            {"name": "scatter", "generation": "PLAIN", "workload": "random-access", **runs},
            {"name": "database", "generation": "SEV_SNP", "workload": "key-value-store", **runs},
            {"name": "plain", "generation": "PLAIN", "workload": "key-value-store", **small},
            {"name": "batch", "generation": "SEV", "workload": "compile-job", **small},
            {"name": "stream", "generation": "SEV_SNP", "workload": "stream", **small},
        ],
        "migrations": [{"vm": "scatter", "at": "500 ms", "to": "host-2"}],
        "costs": costs,
    })  # fmt: skip


def runs_whole(firmware: str, costs: dict[str, float]) -> None:
    results = run(scenario(firmware, costs), layout="inline")
    assert results.partial is None
    assert set(results.vms["state"].to_pylist()) <= {"running", "launching"}
    (moved,) = results.tables["migrations"].to_pylist()
    assert moved["outcome"] in {"completed", "round cap", "unfinished"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("part", sorted({name.partition(".")[0] for name in BOUNDS}))
def test_a_run_is_whole_with_a_part_s_costs_at_the_upper_ends_of_their_ranges(part: str, firmware: str) -> None:
    runs_whole(firmware, {name: most for name, (_, most) in BOUNDS.items() if name.startswith(f"{part}.")})


@pytest.mark.filterwarnings("error")
def test_a_run_is_whole_with_all_costs_at_the_lower_ends_of_their_ranges(firmware: str) -> None:
    runs_whole(firmware, {name: least for name, (least, _) in BOUNDS.items()})


@pytest.mark.filterwarnings("error")
@settings(max_examples=6, deadline=None)
@given(ends=st.fixed_dictionaries({name: st.sampled_from(ends) for name, ends in BOUNDS.items()}))
def test_a_run_is_whole_with_all_costs_at_ends_of_their_ranges(firmware: str, ends: dict[str, float]) -> None:
    runs_whole(firmware, ends)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_cost_beyond_its_range_is_refused_with_file_field_and_range(name: str, firmware: str) -> None:
    least, most = BOUNDS[name]
    beyond = [most * 1.01, 9e18, 1e308, *([least / 2, 1e-300, 0] if least else [])]
    for value in beyond:
        with pytest.raises(ScenarioError) as caught:
            scenario(firmware, {name: value})
        assert str(caught.value).startswith(f"scenario: costs.{name}: expected {least:,.15g} to {most:,.15g} ")


@pytest.mark.parametrize("command", [["run", "--layout", "inline"], ["check"]], ids=["run", "check"])
def test_the_commands_name_the_file(
    command: list[str], tmp_path: Path, firmware: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cheap.toml"
    text = scenario(firmware, {"dram.copy_bytes_per_s": 1e9}).to_toml()
    file.write_text(text.replace("1000000000.0", "0"))
    assert main([*command, str(file)]) == 2
    expected = "expected 200,000,000 to 2,000,000,000,000 byte/s, got 0"
    assert capsys.readouterr() == ("", f"sevfleet: {file}: costs.dram.copy_bytes_per_s: {expected}\n")
