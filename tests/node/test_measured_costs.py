"""A user's own rows replace the shipped ones on hosts of their products, and a bad one is named."""

import pytest

from node.cost_table import CostTableError, Kind, load_cost_table
from node.measured_costs import COLUMNS, parse_measured_costs

HEAD = ",".join(COLUMNS) + "\n"
GOOD = "dram.latency_ns,90,ns,Milan Genoa,our rack,80,100\n"


def parsed(text):
    return parse_measured_costs(text, "mine.csv", load_cost_table())


def test_a_row_holds_on_its_products_alone():
    table = load_cost_table().measured(parsed(HEAD + GOOD))
    assert [table.of_product(product)["dram.latency_ns"] for product in ("Milan", "Genoa")] == [90, 90]
    assert table.of_product("Turin")["dram.latency_ns"] == load_cost_table()["dram.latency_ns"]
    row = table.of_product("Milan").row("dram.latency_ns")
    assert (row.kind, row.source, row.sweep, row.points) == (Kind.OVERRIDDEN, "our rack", (80, 100), ())


def test_a_row_of_all_products_holds_everywhere_and_needs_no_sweep():
    table = load_cost_table().measured(parsed(HEAD + "rmp.update_ns,650,ns,all,our rack,,\n"))
    assert table["rmp.update_ns"] == table.of_product("Turin")["rmp.update_ns"] == 650
    assert table.row("rmp.update_ns").sweep is None


def test_a_scenarios_figure_stands_above_a_measured_row():
    table = load_cost_table().measured(parsed(HEAD + GOOD)).overridden({"dram.latency_ns": 70})
    assert table.of_product("Milan")["dram.latency_ns"] == 70
    assert table.of_product("Milan").row("dram.latency_ns").sweep is None, "nobody said what else it may be"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name,value\n", "line 1: expected the columns name, value, unit, products"),
        (HEAD + GOOD.replace("dram.", "drum."), "line 2: name: expected a figure of the cost table"),
        (HEAD + GOOD.replace(",ns,", ",us,"), "line 2: unit: expected ns, as the name says, got 'us'"),
        (HEAD + GOOD.replace("our rack", " "), "line 2: source: expected text, got nothing"),
        (HEAD + GOOD.replace(",90,", ",,"), "line 2: value: expected a number, got ''"),
        (HEAD + GOOD.replace(",90,", ",inf,"), "line 2: value: expected a finite number"),
        (HEAD + GOOD.replace(",90,", ",90000,"), "line 2: value: expected 10 to 10,000 ns, got 90000"),
        (HEAD + GOOD.replace("80,100", "95,100"), "line 2: value: expected it inside its sweep 95 to 100, got 90"),
        (HEAD + GOOD.replace("80,100", "80,"), "line 2: sweep_high: expected both ends"),
        (HEAD + GOOD.replace("80,100", "0,100"), "line 2: sweep_low: expected 10 to 10,000 ns, got 0"),
        (HEAD + GOOD.replace("80,100", "80,1e99"), "line 2: sweep_high: expected 10 to 10,000 ns, got 1e\\+99"),
        (HEAD + GOOD.replace(",90,", ",9_0,"), "line 2: value: expected a number, got '9_0'"),
        (HEAD + GOOD.replace("Milan Genoa", "Vienna"), "line 2: products: expected all or some of Naples"),
        (HEAD + GOOD + GOOD, "line 3: name: dram.latency_ns stands twice"),
        (HEAD + GOOD * 40_000, "expected at most 1,048,576 bytes"),
    ],
)
def test_a_broken_row_is_refused_with_line_and_column(text, complaint):
    with pytest.raises(CostTableError, match=complaint):
        parsed(text)
