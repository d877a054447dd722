"""Whole runs: the same results in every layout, from launch to the last byte given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fleet import small_fleet, vm

from cluster.compare import Pair, compare
from cluster.coordinator import Coordinator
from cluster.fleet import build_fleet
from cluster.host_entity import build_host
from cluster.inline_layout import InlineLayout
from cluster.results import Results
from cluster.scenario import Scenario, ScenarioError
from cluster.session import Session
from cluster.simulation import run
from node.cost_table import load_cost_table
from node.counter_random import CounterRandom
from node.free_costs import without_encryption
from node.generation import Generation
from node.mechanism import Mechanism
from workloads.trace_player import pack_runs


@pytest.fixture(scope="module")
def inline() -> Results:
    return run(small_fleet(), layout="inline")


def row(results: Results, name: str) -> dict[str, Any]:
    return next(one for one in results.vms.to_pylist() if one["vm"] == name)


def digests_with_cuts(cut: Callable[[int, int], int]) -> list[tuple[object, ...]]:
    """The digest chains of every host and machine, in a run whose windows are cut anew."""
    fleet = build_fleet(small_fleet())
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet.orders])
    small = small_fleet()
    Coordinator(layout, fleet.control, small.control_plane_latency, small.duration, cut=cut).run()
    rows = layout.collect(small.duration)["digests"]
    return sorted((row["entity"], row["bucket"], row["records"], row["digest"]) for row in rows)  # type: ignore[misc]


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32))
def test_results_do_not_depend_on_where_windows_are_cut(inline: Results, seed: int) -> None:
    random = CounterRandom(seed)

    def cut(low: int, high: int) -> int:
        # Most windows whole, some cut at a random place, so that a run does not take for ever.
        place = random.uniform("cut", str(low), high)
        return high if place < 0.7 else low + 1 + int((high - low - 1) * place)

    whole = [(row["entity"], row["bucket"], row["records"], row["digest"]) for row in inline.digests.to_pylist()]
    assert digests_with_cuts(cut) == sorted(whole)


def test_hosts_that_move_machines_in_lockstep_come_to_the_same_wherever_calls_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Machines of one kind tick in the same nanoseconds, so that a call's end falls among the events of one.
    scenario = Scenario.parse({
        "schema": 1, "name": "lockstep", "duration": "9 s",
        "hosts": [{"name": "host", "product": "Milan", "count": 3, "memory": "8 GiB"}],
        "vms": [{
            "name": "a", "generation": "PLAIN", "count": 8, "vcpus": 2, "memory": "256 MiB",
            "workload": "trace-player",
            "parameters": {"fragments": pack_runs([(60_000, 30)]), "step_ms": 100, "touches_per_step": 4},
        }],
        "migrations": [{"vm": "a", "at": "1 s", "times": 3, "pause": "100 ms"}],
    })  # fmt: skip
    usual = run(scenario, layout="inline")
    assert {one["outcome"] for one in usual.migrations.to_pylist()} == {"completed"}
    monkeypatch.setattr("cluster.slices.SLICE_EVENTS", 1)
    monkeypatch.setattr("cluster.together.CALL_S", 0.0)
    assert run(scenario, layout="inline").digest == usual.digest


def test_another_seed_gives_another_digest(inline: Results) -> None:
    assert run(small_fleet(), layout="inline", seed=2).digest != inline.digest


def test_a_second_run_in_the_same_session_starts_from_nothing(inline: Results) -> None:
    with Session("inline", None) as session:
        runs = [session.run(small_fleet(), None, None, None) for _ in range(2)]
    assert [one.digest for one in runs] == [inline.digest] * 2


def test_results_do_not_depend_on_the_hash_seed(inline: Results) -> None:
    program = (
        "import sys; from cluster import Scenario, run\n"
        "import tomllib; print(run(Scenario.parse(tomllib.loads(sys.stdin.read())), layout='inline').digest)"
    )
    answer = subprocess.run(  # this process has a seed of its own
        (sys.executable, "-c", program),
        input=small_fleet().to_toml(), env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == inline.digest


def test_every_machine_works_and_every_answer_is_right(inline: Results) -> None:
    for one in inline.vms.to_pylist():
        assert one["state"] in {"running", "ended"}, one
        assert one["faults"] == 0
        assert one["units_of_work"] > 0 or one["workload"] == "trace-player", one


def test_launch_digests_depend_on_generation_and_vcpus_not_on_the_host(inline: Results) -> None:
    digests = {name: row(inline, name)["launch_digest"] for name in ("kv-sev", "kv-snp", "random-snp", "build-snp")}
    assert digests["random-snp"] == digests["build-snp"]
    assert len({digests["kv-sev"], digests["kv-snp"], digests["random-snp"]}) == 3
    assert row(inline, "kv-plain")["launch_digest"] is None


def test_simultaneous_launches_wait_for_the_security_processor(inline: Results) -> None:
    first, second = row(inline, "kv-snp"), row(inline, "random-snp")
    assert first["psp_wait_ns"] + second["psp_wait_ns"] == 0 or second["arrival_ns"] > first["running_ns"] or (
        second["psp_wait_ns"] > 0
    )
    storm = small_fleet(
        vms=[vm("snp", "SEV_SNP", "random-access", count=4, host="milan")], trace=None, duration="20 s"
    )
    waits = [one["psp_wait_ns"] for one in run(storm, layout="inline").vms.to_pylist()]
    assert sum(wait > 0 for wait in waits) >= 3


def test_a_machine_whose_time_is_over_leaves_nothing_behind() -> None:
    leaving = small_fleet(
        vms=[
            vm("snp", "SEV_SNP", "key-value-store", host="milan", lifetime="1 min"),
            vm("sev", "SEV", "key-value-store", host="milan", lifetime="1 min"),
            vm("plain", "PLAIN", "key-value-store", host="milan", lifetime="1 min"),
        ],
        trace=None,
        duration="2 min",
    )  # fmt: skip
    results = run(leaving, layout="inline")
    host = next(one for one in results.hosts.to_pylist() if one["host"] == "milan")
    assert [one["state"] for one in results.vms.to_pylist()] == ["ended"] * 3
    assert host["memory_peak_bytes"] > 3 * (512 << 20)
    # One page of command buffers is the hypervisor's own.
    assert host["resident_bytes"] <= 4096


def test_a_fleet_without_room_says_so_and_runs_on() -> None:
    full = small_fleet(
        vms=[vm("big", "PLAIN", "stream", memory="10 GiB", count=5)], trace=None, duration="1 min"
    )
    states = sorted(one["state"] for one in run(full, layout="inline").vms.to_pylist())
    assert states == ["refused", "refused", "running", "running", "running"]


def test_a_run_that_is_stopped_has_partial_results() -> None:
    results = run(small_fleet(), layout="inline", should_stop=lambda: "enough")
    assert results.partial == "enough"
    assert results.vms.num_rows > 0


def test_vcpu_time_of_each_machine_is_the_sum_of_its_mechanisms(inline: Results) -> None:
    times: dict[str, float] = {}
    for one in inline.vm_time.to_pylist():
        times[one["vm"]] = times.get(one["vm"], 0.0) + one["time_ns"]
    for one in inline.vms.to_pylist():
        if one["workload"] != "trace-player":
            # Each batch of operations is rounded to a nanosecond.
            assert times[one["vm"]] == pytest.approx(one["active_ns"], rel=1e-6, abs=one["operations"] + 10)


def test_a_machine_on_an_svsm_works_as_without_and_pays_for_its_calls(inline: Results) -> None:
    (use,) = inline.svsms.to_pylist()
    assert use["vm"] == "kv-snp"
    # Two vCPUs, of which one boots the kernel: a query, what its GHCB and 512 MiB take, and the other vCPU.
    assert 4 <= use["calls"] <= 10
    times = {one["mechanism"]: one["time_ns"] for one in inline.vm_time.to_pylist() if one["vm"] == "kv-snp"}
    assert times["svsm"] == use["time_ns"] > 0
    assert times["acceptance"] < times["svsm"], "pages are accepted at VMPL0"
    assert row(inline, "kv-snp")["units_of_work"] > 0


def test_a_pair_s_parts_add_up_to_its_slowdown() -> None:
    paired = run(small_fleet(), layout="inline", pairs=True)
    slowdowns = {(one["vm"], one["generation"]): one["slowdown"] for one in paired.pairs.to_pylist()}
    assert {name for name, _ in slowdowns} >= {"kv-sev", "kv-snp", "random-snp", "build-snp"}
    sums = dict.fromkeys(slowdowns, 1.0)
    for one in paired.pair_parts.to_pylist():
        sums[one["vm"], one["generation"]] += one["share"]
    for key, slowdown in slowdowns.items():
        assert sums[key] == pytest.approx(slowdown)
        assert slowdown > 1.0


def test_without_costs_of_encryption_a_pair_is_no_slower() -> None:
    free = dict(without_encryption(load_cost_table()))
    paired = run(small_fleet(costs=free), layout="inline", pairs=True)
    for one in paired.pairs.to_pylist():
        svsm = 1e-3 if one["vm"] == "kv-snp" else 0.0  # Below that one is software of its own.
        assert one["slowdown"] == pytest.approx(1.0, abs=svsm, rel=1e-12), one


def test_time_lost_to_neighbours_adds_up_to_each_machine_s_own_books() -> None:
    machines = [vm(name, "PLAIN", "stream", host="milan", vcpus=2) for name in ("one", "two")]
    assert run(small_fleet(vms=machines, trace=None, duration="20 s"), layout="inline").neighbours.num_rows == 0
    results = run(
        small_fleet(vms=machines, trace=None, duration="20 s", attribute_neighbours=True), layout="inline"
    )
    lost = results.neighbours.to_pylist()
    assert {(one["vm"], one["neighbour"]) for one in lost} == {(a, b) for a in ("one", "two") for b in ("one", "two")}
    for row in results.vm_time.to_pylist():
        if row["mechanism"] in {"loaded_latency", "llc", "smt", "core_wait"}:
            parts = [one["time_ns"] for one in lost if (one["vm"], one["mechanism"]) == (row["vm"], row["mechanism"])]
            assert sum(parts) == pytest.approx(row["time_ns"], rel=1e-6, abs=1.0)


def _waits(fleet: Scenario, mechanism: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float], Results]:
    """By machine what it waited for whom, what its vCPUs' books say of that, and all of it."""
    results = run(fleet, layout="inline")
    own = {one["vm"]: one["time_ns"] for one in results.vm_time.to_pylist() if one["mechanism"] == mechanism}
    lost = {name: [] for name in own}
    for one in results.neighbours.to_pylist():
        if one["mechanism"] == mechanism:
            lost[one["vm"]].append(one)
    return lost, own, results


def test_waits_for_a_drive_are_those_whose_requests_it_served_meanwhile() -> None:
    builds = {"source_blocks": 64, "access_bytes": 4096, "instructions_per_unit": 500_000}
    build = vm("build", "PLAIN", "compile-job", count=3, host="milan", vcpus=2, start="running", parameters=builds)
    lost, own, _ = _waits(
        small_fleet(vms=[build], trace=None, duration="5 ms", attribute_neighbours=True), "disk_wait"
    )
    assert own.keys() == {"build-1", "build-2", "build-3"}
    assert sum(own.values()) > 0
    for name, rows in lost.items():
        assert sum(one["time_ns"] for one in rows) == pytest.approx(own[name], abs=1e-3)
    assert {one["neighbour"] for rows in lost.values() for one in rows} == own.keys()


@pytest.mark.parametrize(("start", "in_blocks_ns"), [("running", 8e6 + 16e6), ("launch", None)])
def test_waits_for_the_security_processor_are_those_whom_it_served_meanwhile(
    start: str, in_blocks_ns: float | None
) -> None:
    asking = vm("asks", "SEV_SNP", "attesting", count=3, host="milan", start=start, parameters={"stops": 1})
    storm = small_fleet(vms=[asking], trace=None, duration="5 s", attribute_neighbours=True)
    lost, own, results = _waits(storm, "psp_wait")
    waited = {one["vm"]: one["psp_wait_ns"] for one in results.vms.to_pylist()}
    served = {one["vm"]: one["time_ns"] for one in results.vm_time.to_pylist() if one["mechanism"] == "psp"}
    assert sum(waited.values()) > 0
    assert in_blocks_ns is None or sum(own.values()) == pytest.approx(in_blocks_ns, rel=1e-2)
    assert list(served.values()) == [pytest.approx(8e6, rel=3e-4)] * 3, "each asked for one report, by messages"
    for name, rows in lost.items():
        assert {one["phase"] for one in rows} <= {"launching", "running", "blocks"}
        assert sum(one["time_ns"] for one in rows) == waited[name]
        assert sum(one["time_ns"] for one in rows if one["phase"] == "blocks") == own[name]


def test_compare_shows_the_cipher_in_sev_and_the_rmp_only_in_snp() -> None:
    small = small_fleet(vms=[vm("random", "PLAIN", "random-access", host="milan")], trace=None, duration="2 min")
    comparison = compare(small, (Generation.PLAIN, Generation.SEV, Generation.SEV_SNP), layout="inline")
    by_generation = {pair.generation: pair for pair in comparison.pairs}
    assert set(by_generation) == {"SEV", "SEV_SNP"}
    sev, snp = by_generation["SEV"].parts, by_generation["SEV_SNP"].parts
    assert sev[Mechanism.ENCRYPTION] > 0
    assert sev[Mechanism.RMP] == pytest.approx(0, abs=1e-9)
    assert snp[Mechanism.ENCRYPTION] == pytest.approx(sev[Mechanism.ENCRYPTION], rel=0.01)
    assert snp[Mechanism.RMP] > 0
    assert by_generation["SEV_SNP"].slowdown > by_generation["SEV"].slowdown > 1.0


def test_a_fleet_of_es_machines_pays_the_cipher_and_the_ghcb_and_takes_asids_of_its_own() -> None:
    fleet = small_fleet(
        hosts=[{"name": "milan", "product": "Milan", "memory": "16 GiB", "min_sev_asid": 4}],
        vms=[vm("es", "SEV_ES", "key-value-store", count=3), vm("sev", "SEV", "key-value-store")],
        trace=None,
        duration="20 s",
    )
    results = run(fleet, layout="inline", pairs=True)
    rows = {one["vm"]: one for one in results.vms.to_pylist()}
    assert {one["state"] for one in rows.values()} == {"running"}
    assert sorted(one["asid"] for one in rows.values()) == [1, 2, 3, 4]
    pairs = {one["vm"]: one for one in results.pairs.to_pylist()}
    assert pairs["es-1"]["slowdown"] > pairs["sev"]["slowdown"] > 1.0
    pinned = [
        vm("es", "SEV_ES", "key-value-store", count=3, host="milan"),
        vm("snp", "SEV_SNP", "key-value-store", host="milan"),
    ]
    with pytest.raises(ScenarioError, match="at most 3 SEV_ES and SEV_SNP machines at once"):
        small_fleet(hosts=[{"name": "milan", "product": "Milan", "memory": "16 GiB", "min_sev_asid": 4}], vms=pinned)


def test_compare_shows_the_host_s_key_in_sme_and_what_a_guest_s_key_adds_to_it_under_tsme() -> None:
    def by_generation(mode: str) -> dict[str, Pair]:
        host = {"name": "milan", "product": "Milan", "memory": "16 GiB", "mode": mode}
        small = small_fleet(
            hosts=[host], vms=[vm("random", "PLAIN", "random-access")], trace=None, duration="1 min"
        )
        pairs = compare(small, (Generation.SME, Generation.SEV), layout="inline").pairs
        return {pair.generation: pair for pair in pairs}

    sme = by_generation("sme")
    costs = load_cost_table()
    host_key, guest_key = costs["dram.host_key_adder_ns"], costs["dram.encryption_adder_ns"]
    parts = {name: pair.parts[Mechanism.ENCRYPTION] for name, pair in sme.items()}
    assert parts["SME"] / parts["SEV"] == pytest.approx(host_key / guest_key, rel=0.01)
    assert sme["SME"].slowdown > 1.0
    tsme = by_generation("tsme")
    assert set(tsme) == {"SEV"}
    # The plain machine of the pair pays the host's key already.
    assert tsme["SEV"].parts[Mechanism.ENCRYPTION] == pytest.approx(parts["SEV"] - parts["SME"], rel=0.03)


def test_ciphertext_hiding_leaves_snp_guests_the_asids_that_the_scenario_names() -> None:
    hosts = [{"name": "turin", "product": "Turin", "memory": "16 GiB", "ciphertext_hiding": 1}]
    vms = [vm("first", "SEV_SNP", "stream"), vm("second", "SEV_SNP", "stream"), vm("third", "SEV", "stream")]
    results = run(small_fleet(hosts=hosts, vms=vms, trace=None, duration="1 min"), layout="inline")
    assert [row(results, name)["state"] for name in ("first", "second", "third")] == ["running", "refused", "running"]
    (host,) = results.hosts.to_pylist()
    assert (host["asids_es_snp"], host["asids_sev"], host["limit"]) == (1, 908, "SEV-ES/SNP ASIDs")


def test_a_migration_s_pages_wait_for_those_whom_the_security_processors_serve_meanwhile() -> None:
    """Two leave one host at once, and one is launched there and one on the other: all of their waits have a name.

    The pages of each are sent and received at the figure of a page, so a pass takes that and what it waits.
    """
    memory = {"memory": "64 MiB", "firmware": "auto"}
    idle = [vm(name, "SEV", "idle", start="running", host="one", **memory) for name in ("left", "right")]
    new = [vm(f"new-{host}", "SEV", "idle", arrival="9 s", host=host, **memory) for host in ("one", "two")]
    moves = [{"vm": name, "to": "two", "at": "1 s"} for name in ("left", "right")]
    hosts = [{"name": name, "product": "Milan", "memory": "4 GiB"} for name in ("one", "two")]
    lost, _, results = _waits(
        small_fleet(hosts=hosts, vms=idle + new, trace=None, duration="2 min", migrations=moves,
                    attribute_neighbours=True), "psp_wait"
    )  # fmt: skip
    assert {one["outcome"] for one in results.migrations.to_pylist()} == {"completed"}
    waited = {one["vm"]: one["psp_wait_ns"] for one in results.vms.to_pylist()}
    for name, rows in lost.items():
        # A machine's books travel when it has stopped, and its last page waits for a command of the other after that.
        assert 0 <= sum(one["time_ns"] for one in rows) - waited[name] <= 2e6 * name.startswith(("left", "right")), name
    pages = {(one["host"], one["vm"], one["neighbour"]): one["time_ns"]
             for rows in lost.values() for one in rows if one["phase"] == "pages"}  # fmt: skip
    by_other = pages["one", "left", "right"]
    assert by_other == pytest.approx(pages["one", "right", "left"], rel=0.01)
    # Alone a pass over what it sends takes as long as the other makes it wait, for they share the processor evenly.
    sent = [one["bytes"] for one in results.migrations.to_pylist()]
    page_ns = 4 * load_cost_table()["psp.send_update_ns_per_kib"]
    assert by_other == pytest.approx(max(sent) / 4096 * page_ns, rel=0.05)
    assert pages["one", "left", "new-one"] > 0
    assert pages["two", "left", "new-two"] > 0
    assert any(one["neighbour"] in {"left", "right"} for one in lost["new-one"])
