"""Where encryption costs nothing, whole runs of every generation are the plain one, to the nanosecond.

Each machine of a bundled scenario is made one of the generation; the table has every figure at nothing that plain
machines do not pay. What is compared is everything that has to do with time: what each machine did, when, and what
its time went to.
"""

import tomllib
from typing import Any

import pytest
from small_fleet import vm

from cluster import run
from cluster.bundled_scenarios import load_scenario
from cluster.scenario import Scenario
from node.cost_table import load_cost_table
from node.free_costs import without_encryption

FREE = dict(without_encryption(load_cost_table()))
WITHOUT_DEVICES = ["SME", "SEV", "SEV_ES", "SEV_SNP"]
NOT_TIME = {
    "generation", "asid", "launch_tcb", "launch_digest", "faults", "bytes_read", "bytes_written", "bytes_bounced",
    "copies",
}  # fmt: skip
"""Columns of ``vms`` that differ: who has a key makes more accesses, some of which fault, and may have a report."""
LARGE = {"table_bytes": 65536, "batch": 4, "loads": 1, "instructions_per_batch": 500_000_000}
SMALL = {"source_blocks": 64, "access_bytes": 4096, "instructions_per_unit": 500_000}
BRIEF = {"start": "running", "lifetime": "8 ms"}
MACHINES = [
    vm("launched", "PLAIN", "random-access", vcpus=2, arrival="1 ms", parameters=LARGE),
    vm("booted", "PLAIN", "random-access", kernel={"boot": "direct"}, parameters=LARGE),
    vm("database", "PLAIN", "key-value-store", **BRIEF, vcpus=2),
    vm("streams", "PLAIN", "stream", **BRIEF, vcpus=4),
    vm("builds", "PLAIN", "compile-job", **BRIEF, count=2, vcpus=2, parameters=SMALL),
    vm("store", "PLAIN", "key-value-server", **BRIEF),
    vm("near", "PLAIN", "key-value-client", **BRIEF, parameters={"server": "store"}),
    vm("far", "PLAIN", "key-value-client", **BRIEF, parameters={"server": "store", "first_key": 256}, host="two"),
]
FLEET = {
    "schema": 1, "name": "free", "duration": "3 s", "vms": [{"host": "one"} | one for one in MACHINES],
    "hosts": [{"name": name, "product": "Turin", "memory": "16 GiB"} for name in ("one", "two")],
}  # fmt: skip


def bundled(name: str, duration: str) -> dict[str, Any]:
    return tomllib.loads(load_scenario(name).to_toml()) | {"duration": duration}


SCENARIOS = {
    "every workload": (FLEET, WITHOUT_DEVICES),
    "big guests": (bundled("big-guests", "5 s"), ["SEV_SNP"]),
    "trusted devices": (bundled("trusted-devices", "2 s"), ["SEV_SNP", "SEV_TIO"]),
}


def as_generation(values: dict[str, Any], generation: str) -> Scenario:
    """A scenario on Turins, all of its machines of one generation."""
    mode = "sme" if generation == "SME" else "none"
    machines = [one | {"generation": generation} for one in values["vms"]]
    if generation != "SEV_SNP":
        machines = [_eager(one) for one in machines]
    hosts = [one | {"product": "Turin", "mode": mode} for one in values["hosts"]]
    return Scenario.parse(values | {"hosts": hosts, "vms": machines, "costs": FREE})


def _eager(machine: dict[str, Any]) -> dict[str, Any]:
    """Only SNP guests can accept memory lazily; others have it from the beginning."""
    kernel = {name: value for name, value in machine.get("kernel", {}).items() if name != "lazy_validation"}
    return machine | ({"kernel": kernel} if kernel else {})


def times(values: dict[str, Any], generation: str) -> dict[str, dict[str, Any]]:
    """By machine its row of the results and its time by mechanism."""
    results = run(as_generation(values, generation), layout="inline")
    found = {
        row["vm"]: {column: value for column, value in row.items() if column not in NOT_TIME}
        for row in results.vms.to_pylist()
    }
    for row in results.vm_time.to_pylist():
        found[row["vm"]][row["mechanism"]] = row["time_ns"]
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_costs_of_encryption_a_whole_run_is_the_plain_one(name: str) -> None:
    values, generations = SCENARIOS[name]
    plain = times(values, "PLAIN")
    assert all(one["active_ns"] > 0 or one["state"] == "refused" for one in plain.values())
    for generation in generations:
        assert times(values, generation) == plain, generation


def test_every_mechanism_but_those_of_encryption_takes_time_there() -> None:
    """So that the test above can fail: every workload computes, waits and shares, and with the table as it is pays."""
    usual = as_generation(FLEET, "SEV_SNP").model_copy(update={"costs": {}})
    spent: dict[str, float] = {}
    for row in run(usual, layout="inline").vm_time.to_pylist():
        spent[row["mechanism"]] = spent.get(row["mechanism"], 0.0) + row["time_ns"]
    paid = {mechanism for mechanism, ns in spent.items() if ns > 1}
    assert paid >= {
        "core", "memory", "page_walk", "exits", "loaded_latency", "operations", "boot", "disk_wait",
        "encryption", "rmp", "vmgexit", "acceptance", "bounce",
    }  # fmt: skip
