"""A scenario's orders to security processors: what comes of them, and what a file may not ask for."""

import pytest

from cluster.bundled_scenarios import load_scenario
from cluster.fleet import build_fleet
from cluster.host_entity import HostEntity, HostOrder
from cluster.scenario import Scenario, ScenarioError
from cluster.simulation import run
from node.hypervisor_server import HypervisorServer
from node.remote_hypervisor import RemoteHypervisor

OLD, NEW = "7308000000000003", "7318000000000003"
"""Milan's TCB versions: an update brings SEV firmware alone, so one component rises."""


@pytest.fixture(scope="module")
def results():
    return run(load_scenario("firmware-update"), layout="inline")


def orders(results, host):
    return [row for row in results.tables["firmware"].to_pylist() if row["host"] == host]


def test_a_commit_changes_what_is_reported_and_its_key_and_shuts_the_way_back(results):
    update, commit, back = orders(results, "host-1")
    assert [one["result"] for one in (update, commit, back)] == ["SUCCESS", "SUCCESS", "BAD_SVN"]
    assert [one["current_tcb"] for one in (update, commit, back)] == [NEW] * 3
    assert [one["reported_tcb"] for one in (update, commit, back)] == [OLD, NEW, NEW]
    assert update["vcek"] != commit["vcek"] == back["vcek"]


def test_what_was_not_committed_goes_back_and_reports_never_told(results):
    update, back = orders(results, "host-2")
    assert (update["version"], back["version"]) == ("1.55.29", "1.52.4")
    assert {one["reported_tcb"] for one in (update, back)} == {OLD}
    assert update["vcek"] == back["vcek"]
    (refused,) = orders(results, "host-3")
    assert (refused["result"], refused["version"]) == ("SEV or SEV-ES guests are there", "1.52.4")


def test_guests_keep_the_tcb_of_their_launch(results):
    kept = {row["vm"]: (row["state"], row["launch_tcb"]) for row in results.tables["vms"].to_pylist()}
    assert kept == {
        **dict.fromkeys(("early-1", "early-2", "early-3", "between-1"), ("running", OLD)),
        "late-1": ("running", NEW),
        "legacy-3": ("running", None),
    }


def test_a_hypervisor_behind_bytes_comes_to_the_same():
    fleet = build_fleet(load_scenario("firmware-update"))
    order = HostOrder.parse(fleet.orders[0].pack())
    server = HypervisorServer(lambda key: entity_images[key])
    entity_images = HostEntity(order).host.images
    remote = HostEntity(order, hypervisor=lambda *wanted: RemoteHypervisor(server.exchange, *wanted))
    found = []
    fleet.control.updates.send = lambda host, kind, body: sent.append((host, kind, body))
    sent: list[tuple[str, str, object]] = []
    fleet.control.agenda.advance(10**15)
    for entity in (HostEntity(order), remote):
        for host, kind, body in sent:
            if host == entity.name:
                entity.host.firmware.update(body, commit=False) if kind == "firmware" else entity.host.firmware.commit()
                while entity.next_event_ns() < entity.host.now_ns + 10**9:
                    entity.advance(entity.host.now_ns + 10**9, 1000)
        found.append(entity.host.firmware.entries)
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "nobody"}, r"firmware_updates\[0\].host: expected a host or a group of hosts"),
        ({"to": "1.55.30"}, r"firmware_updates\[0\].to: expected a version that Milan was seen with"),
        ({"to": "1.55"}, 'expected a version like "1.55.29"'),
        ({"to": "1.55.256"}, 'expected a version like "1.55.29"'),
        ({"at": "20 min"}, r"firmware_updates\[0\].at: expected before the end"),
        ({"commit_after": "19 min"}, r"firmware_updates\[0\].commit_after: expected before the end"),
    ],
)
def test_an_order_that_cannot_be_is_refused_in_one_line(changes, said):
    data = load_scenario("firmware-update").model_dump(mode="json", by_alias=True, exclude_none=True)
    data["firmware_updates"][0] |= changes
    with pytest.raises(ScenarioError, match=said):
        Scenario.parse(data)
