"""The metrics page says of each machine in which of KubeVirt's phases it is."""

from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
from talking_guests import CLIENT, SERVER
from test_live_migration import FIRMWARE, small_image

from cluster import Scenario, coordinator, launch_owner, run, session
from cluster.coordinator import Coordinator
from cluster.metrics import MetricsPage
from cluster.progress import Progress
from cluster.vmi_phases import VmiPhase, phase_of_ended, vmi_phases
from node.guest import GuestState

__all__ = ["small_image"]
STEP_NS = 10_000_000
VMI_PHASES = {"pending", "scheduling", "scheduled", "running", "succeeded", "failed", "unknown", "waitingforsync", ""}
"""VirtualMachineInstancePhase of kubevirt.io/api/core/v1, in lower case as kubevirt_vmi_info has it."""


def vm(name: str, generation: str = "PLAIN", **more: Any) -> dict[str, Any]:
    return {"name": name, "generation": generation, "memory": "512 MiB", "workload": "idle", "host": "host-1", **more}


Fates = dict[str, tuple[str, str | None]]


def lives(monkeypatch: pytest.MonkeyPatch, vms: list[dict[str, Any]], **more: Any) -> dict[str, list[tuple[str, str]]]:
    """(phase, node) that each machine went through, as somebody sees it who looks every 10 ms."""
    return lives_and_fates(monkeypatch, vms, **more)[0]


def lives_and_fates(
    monkeypatch: pytest.MonkeyPatch, vms: list[dict[str, Any]], **more: Any
) -> tuple[dict[str, list[tuple[str, str]]], Fates]:
    """The same, and each one's state in the end and the reason."""
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

    results = run(Scenario.parse(body), layout="inline", on_progress=look)
    fates = {row["vm"]: (row["state"], row["reason"]) for row in results.vms.to_pylist()}
    return {name: [one for one, _ in groupby(those)] for name, those in seen.items()}, fates


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


CRASH = {"kind": "host-crash", "host": "host-1", "at": "4 s"}
STORE = vm("store", workload="key-value-server", parameters=SERVER, host="host-2", arrival="4.99 s")
ALONE = vm("alone", workload="key-value-client", parameters={**CLIENT, "timeout_us": 10_000, "most_resends": 5})
"""Gives up, for what it asks comes too late to answer."""


@pytest.mark.parametrize("more", [{}, {"faults": [CRASH]}], ids=["", "crash"])
def test_that_one_powered_itself_off_is_final_whatever_becomes_of_its_host(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    once = vm("once", "SEV_SNP", workload="attesting", parameters={"stops": 1})
    seen, fates = lives_and_fates(monkeypatch, [once, vm("short", lifetime="4.5 s"), ALONE, STORE], **more)
    assert seen["once"] == [("scheduled", "host-1"), ("running", "host-1"), ("succeeded", "host-1")]
    assert fates["once"] == ("ended", None)
    # With a shutdown code it did not succeed.
    assert seen["alone"] == [("scheduled", "host-1"), ("running", "host-1"), ("failed", "host-1")]
    assert fates["alone"] == ("failed", "shutdown code 3")
    assert fates["short"] == ("ended", "host crashed" if more else None)


def test_one_that_failed_before_its_time_was_over_has_failed_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fates = lives_and_fates(monkeypatch, [{**ALONE, "lifetime": "4 s"}, STORE])
    assert seen["alone"][2:] == [("failed", "host-1"), ("", "")]
    assert fates["alone"] == ("failed", "shutdown code 3")


def test_one_that_comes_later_is_not_there_yet_also_where_the_control_plane_knows_that_nobody_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator, "PROGRESS_S", 0.0)
    vms = [
        vm("full", memory="7 GiB", start="running"), vm("late", memory="6 GiB", arrival="100 s"),
        vm("brief", memory="6 GiB", arrival="10 s", lifetime="20 s"),
        vm("busy", workload="stream", start="running", host="host-2"),
    ]  # fmt: skip
    hosts = [{"name": "host", "product": "Milan", "count": 2, "memory": "8 GiB"}]
    body = {"schema": 1, "name": "later", "duration": "3 min", "hosts": hosts, "vms": vms}
    asked: list[tuple[float, dict[str, Any]]] = []
    scenario = Scenario.parse({**body, "vms": [{"firmware": FIRMWARE[0], **one} for one in vms]})
    run(scenario, layout="inline", on_progress=lambda now: asked.append((now.virtual_ns / 1e9, {**now.vmi_phases})))
    assert len(asked) > 3
    assert all(phases == {} for now_s, phases in asked if now_s < 10)
    assert asked[-1] == (180.0, {"late": "scheduling"})


def test_what_a_host_says_of_one_s_end_counts_before_the_launch_of_which_it_will_say_yet() -> None:
    class Control:
        """One machine, of whose launch nothing was heard."""

        launching = frozenset({"one"})
        placement = SimpleNamespace(places=lambda: {"one": "host-1"})

        def without_place(self, _: int) -> tuple[()]:
            return ()

    control: Any = Control()
    assert vmi_phases(control, {}, 0) == {"one": "scheduled"}
    assert vmi_phases(control, {("host-2", "one"): VmiPhase.FAILED}, 0) == {"one": "scheduled"}
    assert vmi_phases(control, {("host-1", "one"): VmiPhase.FAILED}, 0) == {"one": "failed"}


@pytest.mark.parametrize(("state", "reason", "code", "phase"), [
    (GuestState.RUNNING, "", None, None),
    (GuestState.STOPPED, "", 0, "succeeded"),
    (GuestState.STOPPED, "", 3, "failed"),
    (GuestState.DESTROYED, "host crashed", None, "failed"),
    (GuestState.DESTROYED, "host crashed", 0, "succeeded"),
    (GuestState.DESTROYED, "host crashed", 3, "failed"),
    # By order: the control plane has forgotten it, and so it is not told of.
    (GuestState.DESTROYED, "", None, None),
    (GuestState.DESTROYED, "", 0, None),
    (GuestState.DEPARTED, "", None, None),
])  # fmt: skip
def test_only_one_that_ended_otherwise_than_by_an_order_is_told_of(
    state: GuestState, reason: str, code: int | None, phase: str | None
) -> None:
    guest: Any = SimpleNamespace(
        state=state, reason=reason, powered_off=code is not None, shutdown_code=code or 0
    )  # fmt: skip
    assert phase_of_ended(guest) == phase


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
