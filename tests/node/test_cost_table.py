"""Every cost has a value, a unit and a source, and a bad row is named."""

from __future__ import annotations

import math

import pytest

from node.cost_table import COLUMNS, CostOverrideError, CostTableError, load_cost_table, parse_cost_table

HEAD = ",".join(COLUMNS) + "\n"
GOOD = "a.b_ns,5,ns,all,all,a thing,published,somewhere,paper@1,1,9,0,90\n"
UNSOURCED = GOOD.replace("published", "unpublished").replace("paper@1", "")


def test_the_shipped_table_has_about_a_dozen_sourced_rows_or_more() -> None:
    table = load_cost_table()
    assert len(table) >= 12
    assert sum(table.row(name).published for name in table) >= 10


def test_a_figure_nobody_published_has_a_sweep_around_its_value() -> None:
    table = load_cost_table()
    for name in table:
        row = table.row(name)
        if not row.published:
            assert row.sweep is not None
            assert row.sweep[0] <= row.value <= row.sweep[1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name,value\n", "line 1: expected the columns"),
        (HEAD + "a.b_ns,5,ns\n", "line 2: expected 13 columns, got 3"),
        (HEAD + GOOD.replace(",5,", ",five,"), "line 2: value: expected a number, got 'five'"),
        (HEAD + GOOD.replace(",5,", ",-5,"), "line 2: value: expected a finite number"),
        (HEAD + GOOD.replace(",5,", ",nan,"), "line 2: value: expected a finite number"),
        (HEAD + GOOD.replace(",5,", ",50,"), "line 2: value: expected it inside its sweep 1 to 9, got 50"),
        (HEAD + GOOD.replace("somewhere", ""), "line 2: source: expected text"),
        (HEAD + GOOD.replace("published", "maybe"), "line 2: kind: expected published, fitted or unpublished"),
        (HEAD + GOOD.replace("published", "overridden"), "line 2: kind: expected published, fitted or unpublished"),
        (HEAD + GOOD.replace("paper@1", ""), "line 2: points: expected the results that a published figure rests on"),
        (HEAD + GOOD.replace("published", "unpublished"), "line 2: points: expected nothing, for nobody published it"),
        (HEAD + UNSOURCED.replace("1,9", ","), "line 2: sweep_low: expected a sweep range"),
        (HEAD + GOOD.replace("1,9", "1,"), "line 2: sweep_high: expected both ends"),
        (HEAD + GOOD.replace(",ns,", ",us,"), "line 2: unit: expected ns, as the name says, got 'us'"),
        (HEAD + GOOD.replace("a.b_ns", "a.b_cycles"), "line 2: name: expected it to end in one of"),
        (HEAD + GOOD.replace("ns,all", "ns,SEV_XL"), "line 2: generations: expected all or some of PLAIN"),
        (HEAD + GOOD.replace("all,a thing", "Zurich,a thing"), "line 2: products: expected all or some of Naples"),
        (HEAD + GOOD.replace("a thing", ""), "line 2: what: expected text"),
        (HEAD + 'a.b_ns,"5', "line 2: expected CSV"),
        (HEAD + GOOD.replace(",0,90", ",,90"), "line 2: least: expected a number"),
        (HEAD + GOOD.replace(",0,90", ",0,inf"), "line 2: most: expected a finite number"),
        (HEAD + GOOD.replace(",0,90", ",2,90"), "line 2: least: expected 1 to 9 between least and most, got 2 to 90"),
        (HEAD + GOOD.replace(",0,90", ",0,8"), "line 2: most: expected 1 to 9 between least and most, got 0 to 8"),
        (HEAD + GOOD.replace(",1,9,0,90", ",,,6,90"), "line 2: least: expected 5 to 5 between"),
        (HEAD + GOOD + GOOD, "line 3: name: a.b_ns stands twice"),
        (HEAD + GOOD + GOOD.replace("all,a thing", "Rome,a thing"), "line 3: name: a.b_ns stands twice"),
    ],
)
def test_a_broken_row_is_refused_with_line_and_column(text: str, complaint: str) -> None:
    with pytest.raises(CostTableError, match=complaint):
        parse_cost_table(text, "mine.csv")


def test_an_override_replaces_a_figure_and_says_so() -> None:
    table = load_cost_table().overridden({"dram.latency_ns": 90})
    assert table["dram.latency_ns"] == 90
    assert table.row("dram.latency_ns").source == "overridden by the scenario"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("no.such", 1.0, "expected a figure of the cost table (node/costs.csv), got an unknown name"),
        ("dram.latency_ns", -1.0, "expected 10 to 10,000 ns, got -1"),
        ("dram.latency_ns", float("inf"), "expected 10 to 10,000 ns, got inf"),
        ("dram.latency_ns", float("nan"), "expected 10 to 10,000 ns, got nan"),
        ("dram.encrypted_bandwidth_share", 1.5, "expected 0.1 to 1 ratio, got 1.5"),
    ],
)
def test_an_impossible_override_is_refused_with_what_is_possible(name: str, value: float, complaint: str) -> None:
    with pytest.raises(CostOverrideError) as caught:
        load_cost_table().overridden({name: value})
    assert str(caught.value) == f"costs.{name}: {complaint}"


@pytest.mark.parametrize("name", list(load_cost_table()))
def test_a_figure_may_be_replaced_by_both_its_bounds_and_by_nothing_beyond_them(name: str) -> None:
    table = load_cost_table()
    least, most = table.row(name).bounds
    assert [table.overridden({name: end})[name] for end in (least, most)] == [least, most]
    for beyond in (math.nextafter(least, -1), math.nextafter(most, math.inf)):
        with pytest.raises(CostOverrideError, match=f"costs.{name}: expected "):
            table.overridden({name: beyond})


def test_a_host_takes_its_products_row_and_the_first_where_none_names_it() -> None:
    other = GOOD.replace(",5,", ",7,").replace("all,a thing", "Genoa Siena,a thing")
    table = parse_cost_table(HEAD + GOOD.replace("all,a thing", "Milan,a thing") + other, "mine.csv")
    found = {product: table.of_product(product)["a.b_ns"] for product in ("Milan", "Genoa", "Siena", "Turin")}
    assert found == {"Milan": 5, "Genoa": 7, "Siena": 7, "Turin": 5}
    replaced = table.overridden({"a.b_ns": 6})
    assert {replaced.of_product(product)["a.b_ns"] for product in found} == {6}


def test_every_unit_is_the_one_its_name_ends_in() -> None:
    table = load_cost_table()
    names = ("core.exit_ns", "net.bytes_per_s", "psp.launch_update_ns_per_kib", "disk.exits_per_request")
    assert [table.row(name).unit for name in names] == ["ns", "byte/s", "ns/KiB", "count"]
