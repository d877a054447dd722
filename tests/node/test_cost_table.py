"""Every cost has a value, a unit and a source, and a bad row is named."""

from __future__ import annotations

import math

import pytest

from node.cost_table import COLUMNS, CostOverrideError, CostTableError, load_cost_table, parse_cost_table

HEAD = ",".join(COLUMNS) + "\n"
GOOD = "a.b_ns,5,ns,all,yes,somewhere,1,9,0,90\n"


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
        (HEAD + "a.b_ns,5,ns\n", "line 2: expected 10 columns, got 3"),
        (HEAD + GOOD.replace("5", "five"), "line 2: value: expected a number, got 'five'"),
        (HEAD + GOOD.replace("5", "-5"), "line 2: value: expected a finite number"),
        (HEAD + GOOD.replace("5", "nan"), "line 2: value: expected a finite number"),
        (HEAD + GOOD.replace("5", "50"), "line 2: value: expected it inside its sweep 1 to 9, got 50"),
        (HEAD + GOOD.replace("somewhere", ""), "line 2: source: expected text"),
        (HEAD + GOOD.replace("yes", "maybe"), "line 2: published: expected yes or no"),
        (HEAD + "a.b_ns,5,ns,all,no,nowhere,,,0,90\n", "line 2: sweep_low: expected a sweep range"),
        (HEAD + "a.b_ns,5,ns,all,yes,somewhere,1,,0,90\n", "line 2: sweep_high: expected both ends"),
        (HEAD + GOOD.replace(",0,90", ",,90"), "line 2: least: expected a number"),
        (HEAD + GOOD.replace(",0,90", ",0,inf"), "line 2: most: expected a finite number"),
        (HEAD + GOOD.replace(",0,90", ",2,90"), "line 2: least: expected 1 to 9 between least and most, got 2 to 90"),
        (HEAD + GOOD.replace(",0,90", ",0,8"), "line 2: most: expected 1 to 9 between least and most, got 0 to 8"),
        (HEAD + GOOD.replace(",1,9,0,90", ",,,6,90"), "line 2: least: expected 5 to 5 between"),
        (HEAD + GOOD + GOOD, "line 3: name: a.b_ns stands twice"),
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
