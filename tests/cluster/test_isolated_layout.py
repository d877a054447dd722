"""Layout ``isolated``: the results of one process, and every process of it says how it fared."""

import os
import signal
from typing import Any

import pytest
from isolated_parts import STORE, alive, ray_processes_of

from cluster import Scenario, run
from cluster.actor_layout import ACTOR_BYTES
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.isolated_layout import IsolatedLayout
from cluster.layout import LayoutError
from cluster.lent_processes import LentProcesses
from cluster.progress import Progress
from cluster.ray_cluster import RayCluster
from cluster.session import Session
from cluster.tenant_process import TenantProcess


def moving() -> Scenario:
    """Two hosts, a VM of each kind, one that moves there and back, one that comes and goes."""
    own: dict[str, Any] = {"memory": "256 MiB", "workload": "key-value-store", "parameters": dict(STORE.parameters)}
    return Scenario.parse({
        "schema": 1, "name": "moving", "duration": "40 s",
        "hosts": [{"name": "host", "product": "Milan", "count": 2, "memory": "16 GiB"}],
        "vms": [
            {**own, "name": "plain", "generation": "PLAIN", "start": "running", "host": "host-1", "vcpus": 2},
            {**own, "name": "sev", "generation": "SEV", "start": "running"},
            {**own, "name": "snp", "generation": "SEV_SNP", "arrival": "1 s", "lifetime": "20 s"},
        ],
        "migrations": [{"vm": "plain", "at": "5 s", "times": 2}, {"vm": "snp", "at": "12 s"}],
    })  # fmt: skip


@pytest.mark.ray
def test_results_are_those_of_one_process_and_every_process_says_how_it_fared() -> None:
    family: dict[int, str] = {}

    def on_progress(_: Progress) -> None:
        family.update(ray_processes_of(os.getpid()))

    results = run(moving(), layout="isolated", on_progress=on_progress, log=True)
    inline = run(moving(), layout="inline", log=True)
    assert (results.digest, results.events) == (inline.digest, inline.events)
    assert inline.events is not None
    assert {"move asked", "move done", "move failed"} <= set(inline.events["event"].to_pylist())
    assert sorted(row["outcome"] for row in results.migrations.to_pylist()) == ["completed", "completed", "refused"]
    told: Any = results.run["operations_by_process"]
    assert sorted(told) == ["host-1", "host-2"]
    on_hosts = {host: sorted(told[host].get("tenants", {})) for host in told}
    assert on_hosts == {"host-1": ["plain", "sev", "snp"], "host-2": ["plain"]}
    assert len(told["host-1"]["tenants"]["plain"]) == 2  # before it went, and since it came back
    pids = [told[host][kind]["pid"] for host in told for kind in ("host", "hypervisor")]
    assert len(set(pids)) == 4
    issued = sum(one["operations"] for host in told.values() for vm in host["tenants"].values() for one in vm)
    assert issued == sum(row["operations"] for row in results.vms.to_pylist())
    for kind, names in (("worker", told), ("hypervisor", told), ("tenant", {"plain", "sev", "snp"})):
        held: Any = results.run[f"{kind}_memory_bytes"]
        assert set(held) == set(names)
        assert all(size > 10 << 20 for size in held.values())
    assert family
    assert not alive(family)


@pytest.mark.ray
def test_a_tenant_or_hypervisor_that_is_killed_has_its_host_built_again_and_nothing_else_changes() -> None:
    due = ["HypervisorProcess", "TenantProcess"]
    quiet_looks = 0

    with Session("isolated", None) as session:

        def kill_some() -> None:
            """Now and then, where such a process is and nobody is being replaced."""
            nonlocal quiet_looks
            killed = 2 - len(due)
            quiet_looks = quiet_looks + 1 if session._layout.facts().get("workers_replaced", 0) == killed else 0
            found = [pid for pid, line in ray_processes_of(os.getpid()).items() if due and due[-1] in line]
            if found and quiet_looks > 4:
                os.kill(min(found), signal.SIGKILL)
                due.pop()

        results = session.run(moving(), None, None, kill_some)
    assert not due
    assert results.run["workers_replaced"] == 2
    assert results.digest == run(moving(), layout="inline").digest


def test_workers_are_not_to_be_counted_by_hand() -> None:
    with pytest.raises(LayoutError, match=r"workers: expected none with layout isolated.*got 3"):
        IsolatedLayout(3)


def test_more_processes_than_memory_holds_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.isolated_layout.free_bytes", lambda: 6 * ACTOR_BYTES)
    layout = IsolatedLayout(None)
    fleet = build_fleet(moving())
    layout.expect(fleet.vms_at_once)
    with pytest.raises(LayoutError, match=r"^layout: expected room for 7 processes, .*90 MiB each, got 540 MiB"):
        layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet.orders])
    assert layout.startup_s == 0


def test_a_process_that_finds_no_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.lent_processes.free_bytes", lambda: ACTOR_BYTES - 1)
    with pytest.raises(LayoutError, match=r"^tenant late: expected about 90 MiB of free memory"):
        LentProcesses(RayCluster()).lend(TenantProcess, "tenant late")


@pytest.mark.parametrize(("spacing", "at_once"), [("1 s", 5), ("3 s", 4), ("10 s", 2), ("11 s", 2)])
def test_vms_at_once_are_counted_as_they_come_and_go(spacing: str, at_once: int) -> None:
    vm = {"generation": "PLAIN", "memory": "256 MiB", "workload": "stream"}
    scenario = Scenario.parse({
        "schema": 1, "name": "coming", "duration": "1 min",
        "hosts": [{"name": "host", "product": "Milan", "memory": "16 GiB"}],
        "vms": [
            {**vm, "name": "stays", "start": "running"},
            {**vm, "name": "comes", "count": 4, "arrival": "1 s", "arrival_spacing": spacing, "lifetime": "9 s"},
        ],
    })  # fmt: skip
    assert build_fleet(scenario).vms_at_once == at_once
