"""What people write becomes grid points, each a valid scenario, or one line that names the setting."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scenario import Scenario
from cluster.sweeps.plan import MOST_POINTS, GridError, SeedsError, SweepPlan
from cluster.sweeps.values import ValuesError, seeds_of, setting_of, values_of
from node.generation import Generation


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4", (1, 2, 4)),
        ("2000, 3000.5", (2000, 3000.5)),
        ("4 GiB,8 GiB", ("4 GiB", "8 GiB")),
        ("PLAIN,sev-snp", ("PLAIN", "sev-snp")),
        ("1..4", (1, 2, 3, 4)),
        ("0..16..4,99", (0, 4, 8, 12, 16, 99)),
        ("-2..1", (-2, -1, 0, 1)),
        ('"1"', ("1",)),
        ('"a,b",c', ("a,b", "c")),
        ("true", (True,)),
        ("../x.fd", ("../x.fd",)),
        ("2024-01-01", ("2024-01-01",)),
        ("1\nx = 2", ("1\nx = 2",)),
    ],
)
def test_values_are_read_as_a_scenario_has_them(text: str, values: tuple[object, ...]) -> None:
    assert values_of(text) == values
    assert [type(one) for one in values_of(text)] == [type(one) for one in values]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("vms.a.vcpus", 'expected PATH=VALUES, such as vms.database.vcpus=1,2,4, got "vms.a.vcpus"'),
        ("=1", 'expected PATH=VALUES, such as vms.database.vcpus=1,2,4, got "=1"'),
        ("a=", 'a: expected a value on each side of a comma, got ""'),
        ("a=1,,2", 'a: expected a value on each side of a comma, got "1,,2"'),
        ("a=4..1", 'a: expected a range from low to high, such as 1..4, got "4..1"'),
        ("a=1..4..0", 'a: expected a range from low to high, such as 1..4, got "1..4..0"'),
        ("a=1..999999999999", 'a: expected a range of at most 10,000 values, got "1..999999999999"'),
        ("a=1..6000,1..6000", "a: expected at most 10,000 values, got more"),
    ],
)
def test_a_setting_that_cannot_be_read_is_one_line(text: str, line: str) -> None:
    with pytest.raises(ValuesError) as caught:
        setting_of(text)
    assert str(caught.value) == line


@given(st.text(max_size=40))
def test_any_text_is_values_or_one_error(text: str) -> None:
    try:
        assert values_of(text)
    except ValuesError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (1, 2, 3)), ("1..4", (1, 2, 3, 4)), ("7,5", (7, 5)), ("0..9..3", (0, 3, 6, 9))]
)
def test_seeds_are_a_number_from_the_scenarios_own_or_a_list(
    quiet_scenario: Scenario, text: str, seeds: tuple[int, ...]
) -> None:
    assert SweepPlan.of(quiet_scenario, seeds_of(text)).seeds == seeds


@pytest.mark.parametrize("text", ["", "a", "1.5", "5..1", "1,,2", '"1"', "true"])
def test_seeds_that_are_none_say_how_they_are_written(text: str) -> None:
    with pytest.raises(ValuesError, match=r"^expected how many seeds, or which: 8, or 1..20, or 3,5,8, got "):
        seeds_of(text)


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        (0, "expected from 1 to 100,000 of them, got 0"),
        (10**18, "expected from 1 to 100,000 of them, got 1000000000000000000"),
        ((), "expected from 1 to 100,000 of them, got none"),
        ((-1,), r"expected whole numbers from 0 to 2\^63 - 1, got -1"),
        ((1 << 63,), r"expected whole numbers from 0 to 2\^63 - 1, got"),
        ((1, 2, 1), "expected each once, got 1 twice"),
    ],
)
def test_seeds_that_cannot_be_are_refused(
    quiet_scenario: Scenario, seeds: int | tuple[int, ...], line: str
) -> None:
    with pytest.raises(SeedsError, match=f"^seeds: {line}"):
        SweepPlan.of(quiet_scenario, seeds)


def test_points_are_every_combination_the_last_setting_varied_first(quiet_scenario: Scenario) -> None:
    grid = {"vms.batch.vcpus": [1, 2], "vms.*.generation": ["PLAIN", "SEV"], "costs.core.exit_ns": np.array([900])}
    plan = SweepPlan.of(quiet_scenario, range(2), grid)
    assert [point.values for point in plan.points] == [
        (1, "PLAIN", 900), (1, "SEV", 900), (2, "PLAIN", 900), (2, "SEV", 900),
    ]  # fmt: skip
    assert [(run.point.number, run.seed) for run in plan.runs] == [(n, seed) for n in range(4) for seed in (0, 1)]
    last = Scenario.parse(tomllib.loads(plan.points[3].text))
    assert {vm.generation for vm in last.vms} == {Generation.SEV}
    assert (last.vms[1].vcpus, last.costs) == (2, {"core.exit_ns": 900.0})
    assert plan.runs[7].described(plan.axes) == (
        "vms.batch.vcpus=2 vms.*.generation=SEV costs.core.exit_ns=900 seed=1"
    )


def test_a_sweep_without_settings_has_one_point_the_scenario_itself(quiet_scenario: Scenario) -> None:
    (point,) = SweepPlan.of(quiet_scenario, 3).points
    assert Scenario.parse(tomllib.loads(point.text)).with_seed(quiet_scenario.seed) == quiet_scenario


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        (
            {"vms.database.vcpus": [1, 999]},
            'vms.database.vcpus=999: vms[0].vcpus of "database": expected at most 128, the threads of the largest host',
        ),
        ({"duration": [60]}, 'duration=60: duration: expected a time such as "30 s" (units:'),
        ({"costs.core.exit_ns": [-1]}, "costs.core.exit_ns=-1: costs.core.exit_ns: expected at least 0.0, got -1"),
        ({"seed": [1, 2]}, "seed: expected among the seeds of the sweep, got a setting"),
        ({"vms.batch.vcpus": []}, "vms.batch.vcpus: expected from 1 to 10,000 values, got none"),
        ({"vms.batch.vcpus": [1, 1]}, 'vms.batch.vcpus: expected each value once, got "1" twice'),
        ({"vms.batch.vcpus": [None]}, "vms.batch.vcpus: expected numbers and texts, got None"),
        (
            {"vms.batch.vcpus": [1], "vms.1.vcpus": [2]},
            "vms.1.vcpus: expected a setting of its own, got one that vms.batch.vcpus sets too",
        ),
        (
            {"vms.batch.vcpus": range(1, 100), "costs.core.exit_ns": range(1000)},
            f"the grid: expected at most {MOST_POINTS:,} combinations of values, got 99,000",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_one_line_that_names_the_setting(
    quiet_scenario: Scenario, grid: dict[str, list[object]], line: str
) -> None:
    with pytest.raises(GridError) as caught:
        SweepPlan.of(quiet_scenario, 1, grid)
    assert str(caught.value).startswith(line)


def test_more_runs_than_anybody_waits_for_are_refused_before_any_point_is_built(quiet_scenario: Scenario) -> None:
    with pytest.raises(GridError, match="at most 100,000 runs, got 9,000 combinations of values with 12 seeds each"):
        SweepPlan.of(quiet_scenario, 12, {"costs.core.exit_ns": range(9000)})


def test_only_the_setting_that_is_wrong_alone_is_named_else_all(quiet_scenario: Scenario) -> None:
    with pytest.raises(GridError, match=r"^vms.batch.vcpus=0: vms\[1\].vcpus"):
        SweepPlan.of(quiet_scenario, 1, {"vms.database.vcpus": [2], "vms.batch.vcpus": [0]})
    with pytest.raises(GridError, match=r"^vms.database.memory=48 GiB, hosts.host.memory=32 GiB: vms\[0\].memory"):
        SweepPlan.of(quiet_scenario, 1, {"vms.database.memory": ["48 GiB"], "hosts.host.memory": ["32 GiB"]})


def test_settings_that_only_together_are_right_are_right(quiet_scenario: Scenario) -> None:
    grid = {"vms.database.memory": ["96 GiB"], "hosts.host.memory": ["128 GiB"]}
    assert len(SweepPlan.of(quiet_scenario, 1, grid).points) == 1
