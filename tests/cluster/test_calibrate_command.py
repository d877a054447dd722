"""``sevfleet calibrate`` prints the cost table, and a user's own rows reach a scenario's hosts."""

import json
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.fleet import build_fleet
from cluster.scenario import Scenario
from node.cost_table import CostTableError, load_cost_table

HEAD = "name,value,unit,products,source,sweep_low,sweep_high\n"
ROWS = HEAD + "dram.latency_ns,90,ns,Milan,our rack,80,100\nrmp.update_ns,650,ns,all,our rack,,\n"


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "mine.csv"
    file.write_text(ROWS)
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert main(["calibrate", *words, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_row_is_printed_with_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys)
    assert [line["name"] for line in lines] == [row.name for row in load_cost_table().rows]
    assert all(line["source"] and line["unit"] for line in lines)
    assert all(line["points"] or line["sweep"] for line in lines)


def test_a_name_and_a_kind_filter(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "rmp.", "--kind", "unpublished")
    assert "rmp.psmash_ns" in [line["name"] for line in lines]
    assert {line["kind"] for line in lines} == {"unpublished"}


def test_own_rows_stand_in_the_table_of_their_product(capsys: pytest.CaptureFixture[str], rows: str) -> None:
    milan, genoa = (printed(capsys, "dram.latency", "--rows", rows, "--product", one) for one in ("Milan", "Genoa"))
    assert (milan[0]["value"], milan[0]["source"], milan[0]["kind"]) == (90, "our rack", "overridden")
    assert genoa[0]["value"] == load_cost_table()["dram.latency_ns"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["no-such"], 'NAME: expected part of the name of a figure, such as dram, got "no-such"'),
        (["--product", "Zurich"], "--product: expected one of Naples, Rome, Milan"),
        (["--kind", "guessed"], "expected one of published, fitted, unpublished, overridden"),
        (["--rows", "/nowhere/mine.csv"], "/nowhere/mine.csv: expected a CSV file of cost rows, got: No such file"),
        (["--rows", "/dev/zero"], "/dev/zero: expected a CSV file of cost rows, got something else"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def scenario(folder: Path, **more: object) -> Scenario:
    return Scenario.parse({
        "schema": 1, "name": "mine", "duration": "1 s", "cost_rows": "mine.csv",
        "hosts": [{"name": one.lower(), "product": one, "memory": "1 GiB"} for one in ("Milan", "Genoa")],
        "vms": [{"name": "vm", "generation": "PLAIN", "memory": "64 MiB", "workload": "stream"}], **more,
    }, folder=folder)  # fmt: skip


def test_a_scenarios_hosts_take_the_rows_of_their_product(rows: str) -> None:
    fleet = build_fleet(scenario(Path(rows).parent, costs={"rmp.psmash_ns": 900}))
    assert {order.spec.name: dict(order.costs) for order in fleet.orders} == {
        "milan": {"dram.latency_ns": 90, "rmp.update_ns": 650, "rmp.psmash_ns": 900},
        "genoa": {"rmp.update_ns": 650, "rmp.psmash_ns": 900},
    }


def test_a_bad_row_refuses_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(ROWS.replace("650,ns", "650,us"))
    with pytest.raises(CostTableError, match=r"mine.csv: line 3: unit: expected ns"):
        scenario(tmp_path)
