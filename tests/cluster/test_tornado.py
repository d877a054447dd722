"""Figures that nobody published are swept one at a time; those that change nothing are left out, in groups."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fleet import small_fleet

from cluster.tornado import range_of, swept_rows, tornado
from node.cost_table import load_cost_table
from node.generation import Generation

SNP, SEV = Generation.SEV_SNP, Generation.SEV
ROWS = [row for row in load_cost_table().rows if row.sweep is not None][:24]


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from([row.name for row in ROWS]), max_size=5))
def test_exactly_the_rows_that_matter_are_found_with_both_their_ends(matter):
    runs = []

    def predict(changes):
        runs.append(changes)
        moved = {row.name: changes.get(row.name, row.value) for row in ROWS}
        return {("db", SNP): 1.0 + sum(moved[name] for name in sorted(matter))}

    base = predict({})["db", SNP]
    swings = tornado(ROWS, predict)
    assert {one.row for one in swings} == matter
    for one in swings:
        row = next(row for row in ROWS if row.name == one.row)
        moved = [base - row.value + end for end in row.sweep]
        assert one.ends["db", SNP] == pytest.approx(moved, rel=1e-9)
    assert len(runs) <= 4 + 4 * len(matter) * len(ROWS).bit_length()


def test_a_figure_of_the_users_own_is_not_swept():
    assert "rmp.walk_adder_ns" in {row.name for row in swept_rows(small_fleet())}
    own = small_fleet(costs={"rmp.walk_adder_ns": 2.0})
    assert "rmp.walk_adder_ns" not in {row.name for row in swept_rows(own)}


def test_a_figure_that_its_user_gives_a_range_is_swept_over_that(tmp_path):
    rows = tmp_path / "mine.csv"
    rows.write_text(
        "name,value,unit,products,source,sweep_low,sweep_high\n"
        "core.exit_ns,1300,ns,all,our rack,1200,1500\nrmp.walk_adder_ns,2,ns,all,our rack,,\n"
    )
    swept = {row.name: row.sweep for row in swept_rows(small_fleet(cost_rows=str(rows)))}
    assert swept["core.exit_ns"] == (1200, 1500)
    assert "rmp.walk_adder_ns" not in swept
    assert "core.exit_ns" not in {row.name for row in swept_rows(small_fleet())}


def test_what_was_measured_on_one_product_is_still_swept_on_the_others(tmp_path):
    rows = tmp_path / "mine.csv"
    rows.write_text(
        "name,value,unit,products,source,sweep_low,sweep_high\nrmp.walk_adder_ns,2,ns,Milan,our rack,,\n"
    )
    measured = small_fleet(cost_rows=str(rows))
    swept = {product: {row.name for row in swept_rows(measured, product)} for product in ("Milan", "Turin")}
    assert swept["Turin"] - swept["Milan"] == {"rmp.walk_adder_ns"}
    # A sweep that replaces a figure for all hosts at once leaves out what is known of some.
    assert {row.name for row in swept_rows(measured)} == swept["Milan"]


def test_a_rungs_range_is_that_of_the_differences_not_the_difference_of_ranges():
    row = replace(ROWS[0], name="x")

    def predict(changes):
        cipher = changes.get("x", 0.1)
        return {("db", SEV): 1.0 + cipher, ("db", SNP): 1.02 + cipher}

    swings = tornado([replace(row, value=0.1, sweep=(0.0, 0.3))], predict)
    found = range_of(swings, "db", SNP, SEV, 1.12, 0.02)
    assert found.slowdown == pytest.approx((1.02, 1.32))
    assert found.added == pytest.approx((0.02, 0.02))
    first = range_of(swings, "db", SEV, Generation.PLAIN, 1.1, 0.1)
    assert first.added == pytest.approx((0.0, 0.3))
