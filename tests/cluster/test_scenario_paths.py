"""Paths lead to settings of a scenario, and what leads nowhere is told what was meant."""

import pytest

from cluster.bundled_scenarios import load_scenario
from cluster.scenario import Scenario
from cluster.sweeps.scenario_paths import PathError, places_of, scenario_values, with_values

DEMO = scenario_values(load_scenario("demo"))
DRAIN = scenario_values(load_scenario("drain"))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("duration", ("duration",)),
        ("migration.downtime_limit", ("migration", "downtime_limit")),
        ("vms.database-snp.vcpus", ("vms", 2, "vcpus")),
        ("vms.2.vcpus", ("vms", 2, "vcpus")),
        ("vms.build-plain.lifetime", ("vms", 8, "lifetime")),
        ("vms.random-sev.lifetime", ("vms", 6, "lifetime")),  # not in the file, but may be
        ("vms.stream-sev.parameters.array_bytes", ("vms", 4, "parameters", "array_bytes")),
        ("hosts.milan.memory", ("hosts", 1, "memory")),
        ("costs.core.vmgexit_ns", ("costs", "core.vmgexit_ns")),
        ("trace.generations.SEV", ("trace", "generations", "SEV")),
    ],
)
def test_a_path_leads_to_its_setting(path: str, place: tuple[str | int, ...]) -> None:
    assert places_of(path, DEMO) == (place,)


def test_lists_without_names_go_by_index_and_an_asterisk_is_every_entry() -> None:
    assert places_of("migrations.1.at", DRAIN) == (("migrations", 1, "at"),)
    assert places_of("migrations.*.at", DRAIN) == (("migrations", 0, "at"), ("migrations", 1, "at"))
    assert places_of("hosts.*.memory", DEMO) == tuple(("hosts", index, "memory") for index in range(4))


def test_a_name_may_have_dots_or_be_a_number() -> None:
    values = scenario_values(load_scenario("quiet"))
    values["vms"][0]["name"] = "db.v2"
    values["vms"][1]["name"] = "0"
    assert places_of("vms.db.v2.vcpus", values) == (("vms", 0, "vcpus"),)
    assert places_of("vms.0.vcpus", values) == (("vms", 1, "vcpus"),)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cost.core.exit_ns", 'cost.core.exit_ns: expected "costs", got "cost"'),
        ("vms.databse-snp.vcpus", 'vms.databse-snp.vcpus: expected "database-snp", got "databse-snp"'),
        ("vms.database-snp.vcpu", 'vms.database-snp.vcpu: expected "vcpus", got "vcpu"'),
        ("costs.core.vmgexit", 'costs.core.vmgexit: expected "core.vmgexit_ns", got "core.vmgexit"'),
        ("costs.x", 'costs.x: expected one of the figures of the cost table (node/costs.csv), got "x"'),
        ("hosts.9.memory", 'hosts.9.memory: expected one of the hosts: naples, milan, genoa, turin, got "9"'),
        ("vms", "vms: expected a setting of vms, as vms.NAME, got all of vms"),
        ("vms.0", "vms.0: expected one of its settings, as vms.0.NAME, got all of it"),
        ("costs", "costs: expected a setting of costs, as costs.NAME, got all of costs"),
        ("fabric", "fabric: expected a setting of fabric, as fabric.NAME, got all of fabric"),
        ("duration.x", 'duration.x: expected duration to be the last word: it has no settings below, got "x"'),
        ("migrations.0.at", "migrations.0.at: expected a scenario with migrations, got one without"),
        ("vms..vcpus", 'vms..vcpus: expected names with dots between, such as "vms.database.vcpus", got "vms..vcpus"'),
        ("\x1b[2J.x", '\\x1b[2J.x: expected one of the keys, got "\\x1b[2J"'),
    ],
)
def test_a_path_that_leads_nowhere_is_told_what_was_meant(path: str, line: str) -> None:
    with pytest.raises(PathError) as caught:
        places_of(path, DEMO)
    assert str(caught.value) == line


def test_a_table_that_the_scenario_does_not_have_is_missed(quiet_scenario: Scenario) -> None:
    with pytest.raises(PathError, match=r"^trace.vms: expected a scenario with \[trace\], got one without$"):
        places_of("trace.vms", scenario_values(quiet_scenario))


def test_values_are_set_in_a_copy() -> None:
    before = Scenario.parse(DEMO)
    changed = with_values(DEMO, {("vms", 2, "vcpus"): 4, ("costs", "core.vmgexit_ns"): 1000})
    assert Scenario.parse(DEMO) == before
    scenario = Scenario.parse(changed)
    assert scenario.vms[2].vcpus == 4
    assert scenario.costs == {"core.vmgexit_ns": 1000.0}
    assert scenario.vms[1] == before.vms[1]
