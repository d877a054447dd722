import tomllib
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bundled_scenarios import bundled_names, bundled_text, load_scenario
from cluster.commands.check import _schema
from cluster.guest_body import guest_body, guest_of
from cluster.placed_orders import placed_orders
from cluster.scenario import Scenario, ScenarioError, instance_names
from cluster.scenario_kernel import KernelTable
from cluster.scenario_migration import MigrationSettings
from cluster.scenario_text import write_toml
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.kernel_settings import CAREFUL, KernelSettings

SMALL = """
schema = 1
name = "small"
duration = "1 min"

[[hosts]]
name = "rack"
product = "Milan"
count = 3
memory = "64 GiB"
min_sev_asid = 10

[[vms]]
name = "web"
count = 2
generation = "sev-snp"
memory = "1 GiB"
workload = "key-value-store"
arrival = "1 s"
arrival_spacing = "250 ms"
firmware = "image.fd"
host = "rack-2"

[costs]
core.exit_ns = 900
"dram.latency_ns" = 80.5
"""


@pytest.fixture
def small(tmp_path: Path) -> Scenario:
    (tmp_path / "image.fd").write_bytes(laboratory_image().data)
    (tmp_path / "small.toml").write_text(SMALL)
    return Scenario.load(tmp_path / "small.toml")


def test_units_become_integers_and_words_become_what_they_name(small: Scenario) -> None:
    assert small.duration == 60 * 10**9
    assert small.control_plane_latency == 10**6
    assert small.hosts[0].memory == 64 << 30
    assert small.vms[0].generation is Generation.SEV_SNP
    assert small.vms[0].program.name == "key-value-store"


def test_costs_are_named_as_in_the_cost_table(small: Scenario) -> None:
    assert small.costs == {"core.exit_ns": 900, "dram.latency_ns": 80.5}


def test_a_group_is_as_many_members_with_names_of_their_own(small: Scenario) -> None:
    assert [host.name for host in small.host_instances] == ["rack-1", "rack-2", "rack-3"]
    assert [(vm.name, vm.arrival_ns) for vm in small.vm_instances] == [("web-1", 10**9), ("web-2", 1_250_000_000)]
    assert instance_names("a", 10)[0] == "a-01"


def test_a_host_splits_its_asids_between_sev_and_snp(small: Scenario) -> None:
    host = small.host_instances[0]
    assert host.asids(Generation.SEV_SNP) == 9
    assert host.asids(Generation.SEV) == host.product.max_asid - 9
    assert host.asids(Generation.PLAIN) is None


def test_paths_are_taken_from_the_scenarios_folder(small: Scenario, tmp_path: Path) -> None:
    assert small.vms[0].firmware == str(tmp_path / "image.fd")


def test_a_kernel_is_careful_unless_the_scenario_says_otherwise(small: Scenario) -> None:
    assert small.vms[0].kernel.settings == CAREFUL
    lines = SMALL.replace('host = "rack-2"', "kernel = {lazy_validation = true, checks_carry = false}")
    scenario = Scenario.parse(tomllib.loads(lines.replace('firmware = "image.fd"', "")))
    assert scenario.vms[0].kernel.settings == KernelSettings(lazy_validation=True, checks_carry=False)
    assert Scenario.parse(tomllib.loads(scenario.to_toml())) == scenario
    # No program that a scenario may name has a #VC handler of its own.
    assert [one.name for one in fields(KernelSettings) if one.name != "handles_vc"] == list(KernelTable.model_fields)
    order = placed_orders(scenario, {}, {}).arriving[0]
    assert guest_of(guest_body(order.guest)).kernel == scenario.vms[0].kernel.settings


def test_a_scenario_cannot_be_changed(small: Scenario) -> None:
    with pytest.raises(ValueError, match="frozen"):
        small.seed = 3  # type: ignore[misc]


def test_another_seed_is_another_scenario_in_nothing_else(small: Scenario) -> None:
    assert small.with_seed(9).seed == 9
    assert small.with_seed(9).with_seed(small.seed) == small
    with pytest.raises(ScenarioError, match="seed: expected"):
        small.with_seed(-1)


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_scenarios_are_valid_and_survive_being_written(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert Scenario.parse(tomllib.loads(scenario.to_toml())) == scenario


def test_the_demo_is_what_it_says() -> None:
    demo = load_scenario("demo")
    assert demo.trace is not None
    assert len({host.product.name for host in demo.host_instances}) == len(demo.host_instances) == 4
    assert len(demo.vm_instances) + demo.trace.vms == 12
    assert {vm.group.generation for vm in demo.vm_instances} == {
        Generation.PLAIN,
        Generation.SEV,
        Generation.SEV_SNP,
    }
    assert demo.duration == 3600 * 10**9


@pytest.mark.parametrize("name", bundled_names())
def test_the_json_schema_for_editors_accepts_what_is_valid_and_refuses_a_slip(name: str) -> None:
    validator = jsonschema.Draft202012Validator(_schema())
    validator.check_schema(_schema())
    data = tomllib.loads(bundled_text(name))
    validator.validate(data)
    for slip in ({"seeed": 1}, {"duration": "1 hour"}, {"schema": 2}, {"hosts": []}):
        assert not validator.is_valid(data | slip)


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3).filter(lambda values: not any(isinstance(v, dict) for v in values))
        | st.lists(st.dictionaries(st.text(), inner, max_size=3), min_size=1, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_written_toml_reads_back_equal(values: dict[str, object]) -> None:
    try:
        text = write_toml(values)
    except (TypeError, UnicodeEncodeError):
        return  # tables inside plain lists: no scenario has them
    assert tomllib.loads(text) == values


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*Scenario.model_fields, "schema", "x"]), VALUES, max_size=6))
def test_any_values_make_a_scenario_or_one_line(values: dict[str, object]) -> None:
    try:
        Scenario.parse(values)
    except ScenarioError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 600, "the keys of a move are many"


def test_what_a_scenario_does_not_say_of_moves_is_what_products_do() -> None:
    """KubeVirt: 5 moves at once, 2 of a node. QEMU: 300 ms, and vCPUs that stand still for 20 %, 10 % more, 99 %."""
    usual = MigrationSettings()
    assert (usual.per_fleet, usual.per_host) == (5, 2)
    assert (usual.downtime_limit, usual.connections) == (300_000_000, 1)
    assert (usual.throttle_initial, usual.throttle_increment, usual.throttle_max) == (0.2, 0.1, 0.99)
    switches = usual.auto_converge, usual.dirty_limit, usual.compression, usual.zero_pages, usual.bandwidth
    assert switches == (False, None, None, None, None)
