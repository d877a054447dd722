"""The metrics page says of each machine in which of KubeVirt's phases it is."""

from functools import partial
from itertools import groupby
from typing import Any

import pytest
from test_live_migration import FIRMWARE, small_image

from cluster import Scenario, coordinator, launch_owner, run, session
from cluster.coordinator import Coordinator
from cluster.metrics import MetricsPage
from cluster.progress import Progress

__all__ = ["small_image"]
STEP_NS = 10_000_000
VMI_PHASES = {"pending", "scheduling", "scheduled", "running", "succeeded", "failed", "unknown", "waitingforsync", ""}
"""VirtualMachineInstancePhase of kubevirt.io/api/core/v1, in lower case as kubevirt_vmi_info has it."""


def vm(name: str, generation: str = "PLAIN", **more: Any) -> dict[str, Any]:
    return {"name": name, "generation": generation, "memory": "512 MiB", "workload": "idle", "host": "host-1", **more}


def lives(monkeypatch: pytest.MonkeyPatch, vms: list[dict[str, Any]], **more: Any) -> dict[str, list[tuple[str, str]]]:
    """(phase, node) that each machine went through, as somebody sees it who looks every 10 ms."""
    monkeypatch.setattr(coordinator, "PROGRESS_S", 0.0)
    cut = partial(Coordinator, cut=lambda reached, horizon: min(horizon, reached + STEP_NS))
    monkeypatch.setattr(session, "Coordinator", cut)
    # Machines that come one after another keep the control plane from acting far ahead of the hosts.
    others = vm("other", count=48, arrival_spacing="100 ms", memory="64 MiB", host="host-2")
    vms = [{"firmware": FIRMWARE[0], **one} for one in (*vms, others)]
    hosts = [{"name": "host", "product": "Milan", "count": 2, "memory": "8 GiB"}]
    body = {"schema": 1, "name": "lives", "duration": "5 s", "hosts": hosts, "vms": vms, **more}
    seen: dict[str, list[tuple[str, str]]] = {}
    page = MetricsPage()

    def look(progress: Progress) -> None:
        page.show(progress)
        (info,) = [one for one in page.collect() if one.name == "kubevirt_vmi_info"]
        found = {sample.labels["name"]: (sample.labels["phase"], sample.labels["node"]) for sample in info.samples}
        assert len(found) == len(info.samples)
        for name in seen.keys() | found.keys():
            seen.setdefault(name, []).append(found.get(name, ("", "")))

    run(Scenario.parse(body), layout="inline", on_progress=look)
    return {name: [one for one, _ in groupby(those)] for name, those in seen.items()}


def test_a_machine_is_scheduled_until_its_launch_is_over_and_then_runs(monkeypatch):
    seen = lives(monkeypatch, [
        vm("there", start="running"), vm("plain", arrival="1 s"), vm("snp", "SEV_SNP", arrival="1 s", lifetime="3 s"),
    ])  # fmt: skip
    assert seen["there"] == [("running", "host-1")]
    assert seen["snp"] == [("scheduled", "host-1"), ("running", "host-1"), ("", "")]
    assert seen["plain"] == [("scheduled", "host-1"), ("running", "host-1")]
    assert {phase for those in seen.values() for phase, _ in those} <= VMI_PHASES


def test_one_for_which_there_is_no_room_waits_to_be_scheduled_without_a_node(monkeypatch):
    first = vm("first", memory="6 GiB", start="running")
    seen = lives(monkeypatch, [first, vm("next", memory="6 GiB", arrival="1 s", lifetime="2 s")])
    assert seen["first"] == [("running", "host-1")]
    assert seen["next"] == [("scheduling", ""), ("", "")]


def test_one_that_powers_itself_off_has_succeeded_until_its_time_is_over(monkeypatch):
    parameters = {"stops": 1}
    seen = lives(monkeypatch, [vm("once", "SEV_SNP", workload="attesting", parameters=parameters, lifetime="4 s")])
    assert seen["once"] == [("scheduled", "host-1"), ("running", "host-1"), ("succeeded", "host-1"), ("", "")]


def test_one_that_goes_down_with_its_host_has_failed_and_one_that_moves_runs_all_the_while(monkeypatch):
    late = vm("late", "SEV_SNP", arrival="2.9 s")
    seen = lives(
        monkeypatch, [vm("stays", start="running"), vm("goes", start="running"), late],
        migrations=[{"vm": "goes", "at": "1 s", "to": "host-2"}], fabric={"link": "10 Gb/s"},
        faults=[{"kind": "host-crash", "host": "host-1", "at": "3 s"}],
    )  # fmt: skip
    assert seen["goes"] == [("running", "host-1"), ("running", "host-2")]
    assert seen["stays"] == [("running", "host-1"), ("failed", "host-1")]
    assert seen["late"] == [("scheduled", "host-1"), ("failed", "host-1")]


def test_one_that_every_host_refused_to_launch_has_failed(monkeypatch):
    # Its owner works out another image's digest than hosts launch.
    monkeypatch.setattr(launch_owner, "sev_digest", lambda *_: bytes(32))
    party = {
        "name": "party", "generation": "PLAIN", "memory": "256 MiB", "workload": "relying-party", "start": "running",
    }  # fmt: skip
    owned = vm("owned", "SEV", workload="stream", attest_to="party")
    del owned["host"]
    seen = lives(monkeypatch, [party, owned])
    assert seen["owned"] == [("scheduled", "host-1"), ("scheduled", "host-2"), ("failed", "")]
