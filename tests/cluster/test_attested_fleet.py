"""Tenants of a scenario that begin when a relying party on another host has believed them."""

import pytest

from cluster.scenario import Scenario, ScenarioError
from cluster.simulation import run

HOSTS = [
    {"name": "own", "product": "Naples", "memory": "4 GiB"},
    {"name": "cloud", "product": "Milan", "memory": "4 GiB"},
]
PARTY = {
    "name": "party", "generation": "PLAIN", "memory": "256 MiB", "workload": "relying-party", "start": "running",
    "host": "own",
}  # fmt: skip
TENANT = {
    "name": "tenant", "generation": "SEV_SNP", "memory": "256 MiB", "workload": "stream", "attest_to": "party",
    "start": "running",
}  # fmt: skip


def scenario(tenant=TENANT, party=PARTY, **more):
    rest = {"key_service": {"delay": "200 ms"}} | more
    return Scenario.parse({
        "schema": 1, "name": "attested", "duration": "4 s", "hosts": HOSTS, "vms": [party, tenant],
        **{key: value for key, value in rest.items() if value is not None},
    })  # fmt: skip


def vms(wanted):
    return {row["vm"]: row for row in run(wanted, layout="inline").vms.to_pylist()}


def test_a_tenant_works_once_it_is_believed():
    found = vms(scenario())
    assert found["party"]["units_of_work"] == 1
    assert found["tenant"]["units_of_work"] > 0
    assert found["tenant"]["state"] == "running"


def test_a_tenant_that_is_not_believed_never_works():
    strict = PARTY | {"parameters": {"min_tcb": "snp=255"}}
    found = vms(scenario(party=strict))
    assert found["party"]["units_of_work"] == 0
    assert (found["tenant"]["units_of_work"], found["tenant"]["reason"]) == (0, "shutdown code 6")


@pytest.mark.parametrize("lie", ["other-root", "other-tcb"])
def test_a_lying_key_service_proves_nothing(lie):
    found = vms(scenario(key_service={"lie": lie}))
    assert (found["party"]["units_of_work"], found["tenant"]["units_of_work"]) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tenant": TENANT | {"attest_to": "nobody"}}, 'a virtual machine with relying-party (party), got "nobody"'),
        ({"tenant": TENANT | {"attest_to": "tenant"}}, "a virtual machine with relying-party (party)"),
        ({"tenant": TENANT | {"generation": "SEV_ES"}}, "generation SEV_SNP, whose guests have reports, got SEV_ES"),
        ({"key_service": None}, "a [key_service] from which hosts fetch certificates, got none"),
        ({"party": PARTY | {"parameters": {"measurement": "00"}}}, "96 hexadecimal digits"),
        ({"party": PARTY | {"parameters": {"min_tcb": "spl=1"}}}, "levels such as snp=8"),
        ({"party": PARTY | {"parameters": {"roots": "Milan=1"}}}, "64 hexadecimal digits"),
    ],
)  # fmt: skip
def test_what_cannot_attest_is_refused_by_name(changes, expected):
    with pytest.raises(ScenarioError) as caught:
        scenario(**changes)
    assert expected in str(caught.value)
