"""A host whose hypervisor and VMs have processes: work is done where it is said to be, losses are told by name."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from isolated_parts import TELL, RecordingHypervisor, S, alive, guest, host_order, ray_processes_of, secrets_of

from cluster.host_entity import HostEntity
from cluster.isolated_host import PROCESSES, IsolatedHost
from cluster.layout import WorkerLostError
from cluster.lent_processes import LentProcesses
from cluster.ray_cluster import RayCluster
from node.generation import Generation
from node.host import Host


@pytest.fixture(scope="module")
def processes() -> Iterator[LentProcesses]:
    """What a worker has, in this process."""
    with RayCluster() as cluster:
        cluster.start(2)
        yield LentProcesses(cluster)
        family = ray_processes_of(os.getpid())
    assert family
    assert not alive(family)


def advance(entity: HostEntity, until_ns: int) -> None:
    while entity.next_event_ns() < until_ns:
        entity.advance(until_ns, 1000)


def rows_of(entity: IsolatedHost, end_ns: int) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    """The rows of its tables, and those of its processes by kind and name."""
    rows = entity.collect(end_ns)
    there = rows.pop(PROCESSES)
    return rows, {(str(row["kind"]), str(row["name"])): row for row in there}


GUESTS = (guest("plain", Generation.PLAIN), guest("sev", Generation.SEV), guest("snp", Generation.SEV_SNP))


@pytest.mark.ray
def test_each_process_issues_the_operations_that_are_its_own(processes: LentProcesses) -> None:
    here, isolated = HostEntity(host_order(*GUESTS)), IsolatedHost(host_order(*GUESTS), processes)
    for entity in (here, isolated):
        advance(entity, 20 * S)
        entity.host.destroy("sev")
        advance(entity, 40 * S)
    rows, by_process = rows_of(isolated, 40 * S)
    assert rows == here.collect(40 * S)
    assert len({row["pid"] for row in by_process.values()}) == 5
    assert by_process["host", "milan"]["pid"] == os.getpid()
    # Counted in one process, and in the books of another.
    issued = {name: row["operations"] for (kind, name), row in by_process.items() if kind == "tenant"}
    assert issued == {row["vm"]: row["operations"] for row in rows["vms"]}
    assert min(issued.values()) > 100
    others = issued | {"hypervisor": by_process["hypervisor", "milan"]["operations"]}
    assert by_process["host", "milan"]["operations"] == sum(others.values())
    assert all(row["memory_bytes"] > 10 << 20 for row in by_process.values())


@pytest.mark.ray
def test_a_killed_tenant_stops_and_is_named_while_the_others_go_on(processes: LentProcesses) -> None:
    isolated = IsolatedHost(host_order(*GUESTS), processes)
    host = isolated.host
    advance(isolated, 20 * S)
    killed = isolated._tenants["sev"].facts().pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"^tenant sev: its process ended unexpectedly$"):
        advance(isolated, 40 * S)
    before = {name: one.operations for name, one in host.guests.items()}
    lost_ns = host.now_ns
    run_on(host, 60 * S)  # nothing is left of that VM but a vCPU whose block never ends
    after = {name: one.operations for name, one in host.guests.items()}
    assert 20 * S < lost_ns < 40 * S
    assert after["sev"] == before["sev"]
    assert after["plain"] > before["plain"]
    assert after["snp"] > before["snp"]
    rows, by_process = rows_of(isolated, 60 * S)  # what is known is not lost with it
    assert [row["vm"] for row in rows["vms"]] == ["plain", "sev", "snp"]
    assert sorted(by_process) == [("host", "milan"), ("hypervisor", "milan"), ("tenant", "plain"), ("tenant", "snp")]
    # Whoever builds the host again gets other processes, and the history that it would have had.
    again, here = IsolatedHost(host_order(*GUESTS), processes), HostEntity(host_order(*GUESTS))
    advance(again, 30 * S)
    advance(here, 30 * S)
    rows, by_process = rows_of(again, 30 * S)
    assert rows == here.collect(30 * S)
    assert killed not in {row["pid"] for row in by_process.values()}


def run_on(host: Host, until_ns: int) -> None:
    while host.clock.env.peek() < until_ns:
        host.clock.env.step()


@pytest.mark.ray
def test_a_killed_hypervisor_is_named(processes: LentProcesses) -> None:
    isolated = IsolatedHost(host_order(), processes)
    os.kill(isolated._hypervisor.facts().pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"^hypervisor of milan: its process ended unexpectedly$"):
        isolated.gauges()


@pytest.mark.ray
def test_a_process_serves_one_vm_after_another(processes: LentProcesses) -> None:
    isolated = IsolatedHost(host_order(GUESTS[0]), processes)
    before = ray_processes_of(os.getpid()).keys()
    isolated.host.destroy("plain")
    isolated.host.launch(guest("next", Generation.PLAIN), lambda _: None)
    advance(isolated, 10 * S)
    _, by_process = rows_of(isolated, 10 * S)
    first, second = by_process["tenant", "plain"], by_process["tenant", "next"]
    assert first["operations"] == 0
    assert second["operations"] > 100
    assert ray_processes_of(os.getpid()).keys() == before


@pytest.mark.ray
def test_an_error_in_a_process_comes_out_as_it_was_raised(processes: LentProcesses) -> None:
    isolated = IsolatedHost(host_order(), processes)
    with pytest.raises(KeyError, match="nobody"):
        isolated.host.tasks.at_once(isolated.host.hypervisor.cpuid("nobody", 0, 0, 0))
    assert IsolatedHost(host_order(), processes).gauges()["asids_in_use"] == 0


@pytest.mark.ray
@pytest.mark.parametrize(("generation", "readable"), [(Generation.PLAIN, True), (Generation.SEV_SNP, False)])
def test_no_secret_reaches_the_process_of_a_hypervisor(
    processes: LentProcesses, generation: Generation, *, readable: bool
) -> None:
    vault = guest("vault", generation)
    isolated = IsolatedHost(host_order(vault), processes, RecordingHypervisor)
    host = isolated.host
    advance(isolated, 10 * S)
    host.pause("vault")
    advance(isolated, 20 * S)
    host.tasks.at_once(host.hypervisor.export("vault", (True,), host.guests["vault"].reset_rips))
    host.destroy("vault")
    advance(isolated, 30 * S)
    told = isolated._hypervisor.exchange(TELL)
    assert len(told) > 1 << 20
    assert any(secret in told for secret in secrets_of(vault).values()) is readable
