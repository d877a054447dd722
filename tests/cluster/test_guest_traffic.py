"""Guests of different hosts talk over the links that migrations use; nothing of it depends on layout or windows."""

from __future__ import annotations

import random
from typing import Any

import pytest
from talking_guests import CLIENT, SERVER, scenario, vm

from cluster.compare import _rounds
from cluster.coordinator import Coordinator
from cluster.fabric import Fabric, Flow, Path
from cluster.firmware_key import firmware_image
from cluster.fleet import Fleet, build_fleet
from cluster.guest_traffic import GuestTraffic, networked
from cluster.host_entity import HostEntity, HostOrder, build_host
from cluster.inline_layout import InlineLayout
from cluster.layout import Rows
from cluster.placement import FirstFit, HostAccount
from cluster.scenario import Scenario, ScenarioError
from cluster.topology import star
from cluster.traffic_rows import traffic_rows
from node.generation import Generation
from node.guest import GuestSpec
from node.hypervisor_server import HypervisorServer
from node.mac_address import mac_of
from node.program import ProgramSpec
from node.remote_hypervisor import RemoteHypervisor
from node.remote_tenant import RemoteTenant
from node.tenant_server import TenantServer
from workloads.key_value_messages import Answer, Kind, parse
from workloads.library import PROGRAMS


def play(body: dict[str, Any], cut: Any = None, wire: Any = None) -> tuple[Fleet, Rows]:
    chosen = Scenario.parse(body)
    fleet = build_fleet(chosen)
    if wire is not None:
        fleet.control.traffic.wire = wire
    layout = InlineLayout()
    layout.start(build_host, [(order.spec.name, order.pack()) for order in fleet.orders])
    Coordinator(layout, fleet.control, chosen.lookahead, chosen.duration, cut=cut).run()
    rows = layout.collect(chosen.duration)
    rows["traffic"] = traffic_rows(fleet.control.traffic)
    return fleet, rows


def row_of(rows: Rows, table: str, name: str) -> dict[str, Any]:
    (row,) = (row for row in rows[table] if row["vm"] == name)
    return row


@pytest.fixture(scope="module")
def played() -> Rows:
    return play(scenario())[1]


def test_clients_get_their_records_from_another_host(played: Rows) -> None:
    for name in ("near", "far", "other"):
        row = row_of(played, "vms", name)
        assert (row["state"], row["reason"]) == ("running", None)
        assert row["units_of_work"] > 16 + 8
    asked = sum(row_of(played, "vms", name)["units_of_work"] for name in ("near", "far", "other"))
    assert row_of(played, "vms", "store")["units_of_work"] >= asked


def test_a_frame_to_another_host_takes_the_network_s_latency_and_one_to_a_neighbour_does_not(played: Rows) -> None:
    near, far = (row_of(played, "networks", name)["delay_mean_ns"] for name in ("near", "far"))
    assert 200_000 <= far - near <= 202_000


def test_what_left_one_host_came_to_the_other(played: Rows) -> None:
    pairs = {(row["source"], row["destination"]): row for row in played["traffic"]}
    assert set(pairs) == {("host-1", "host-2"), ("host-2", "host-1"), ("host-1", "host-3"), ("host-3", "host-1")}
    far = row_of(played, "networks", "far")
    assert pairs["host-2", "host-1"]["bytes"] == far["bytes_sent"]
    under_way = pairs["host-1", "host-2"]["frames"] - far["frames_received"]
    assert 0 <= under_way <= 4
    assert all(row["lost"] == 0 for row in pairs.values())


def test_window_cuts_change_nothing(played: Rows) -> None:
    dice = random.Random(5)
    _, cut = play(scenario(), cut=lambda start, horizon: dice.randint(start + 1, horizon))
    assert cut == {**played, "hosts": cut["hosts"]}
    assert [{**row, "events": 0} for row in cut["hosts"]] == [{**row, "events": 0} for row in played["hosts"]]


def test_guests_and_a_migration_share_links_honestly(played: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    moving = vm("batch", "host-2", "stream", "PLAIN")
    moving["memory"] = "512 MiB"
    body = scenario(vms=[*scenario()["vms"], moving], migrations=[{"vm": "batch", "at": "100 ms", "to": "host-1"}])
    sent: list[float] = []
    start = Fabric.start

    def counted(self: Fabric, path: Path, size: float, *rest: Any) -> Flow:
        sent.append(size)
        return start(self, path, size, *rest)

    monkeypatch.setattr(Fabric, "start", counted)
    fleet, rows = play(body)
    assert fleet.control.migrations.all[0].outcome == "completed"
    # Where the link is full a frame waits for its share, at most until the next point of the grid.
    longest = {row["source"]: row["transfer_longest_ns"] for row in rows["traffic"] if row["destination"] == "host-1"}
    alone = {row["source"]: row["transfer_longest_ns"] for row in played["traffic"] if row["destination"] == "host-1"}
    assert alone["host-2"] < 10_000
    assert 100_000 < longest["host-2"] <= 1_010_000
    # The network was given exactly what was counted.
    frames = sum(row["bytes"] + 24 * row["frames"] for row in rows["traffic"])
    moved = sum(round_.size_bytes for round_ in fleet.control.migrations.all[0].precopy.rounds)
    moved += fleet.control.migrations.all[0].final_bytes
    assert sum(sent) == pytest.approx(frames + moved, rel=1e-6)


def test_whoever_taps_the_network_sees_records_and_is_noticed_when_he_changes_them() -> None:
    seen: list[bytes] = []

    def wire(source: str, destination: str, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
        assert (source, destination) in {("host-1", "host-2"), ("host-2", "host-1")}
        seen.extend(frames)
        message = parse(frames[0])
        assert message is not None
        if message.kind is Kind.GET and message.answer is Answer.DONE:
            return tuple(frame[:-1] + bytes([frame[-1] ^ 1]) for frame in frames)
        return frames

    vms = [scenario()["vms"][0], vm("far", "host-2", "key-value-client", "SEV_SNP", **CLIENT)]
    _, rows = play(scenario(vms=vms), wire=wire)
    row = row_of(rows, "vms", "far")
    assert (row["state"], row["reason"]) == ("failed", "shutdown code 1")
    assert seen


def test_a_network_that_drops_everything_silences_a_client() -> None:
    client = vm("far", "host-2", "key-value-client", **{**CLIENT, "timeout_us": 10_000, "most_resends": 5})
    _, rows = play(scenario(vms=[scenario()["vms"][0], client]), wire=lambda _, __, ___: ())
    assert row_of(rows, "vms", "far")["reason"] == "shutdown code 3"


def test_frames_for_nobody_are_lost_and_counted() -> None:
    vms = [vm("late", "host-1", "key-value-server", **SERVER), vm("far", "host-2", "key-value-client", **CLIENT)]
    vms[1]["parameters"]["server"] = "late"
    vms[0] |= {"start": "launch", "arrival": "500 ms"}
    _, rows = play(scenario(vms=vms))
    lost = {row["destination"]: row["lost"] for row in rows["traffic"] if row["source"] == "host-2"}
    assert lost[""] > 0


def burst(sender: str, target: str, octets: int) -> tuple[bytes, tuple[bytes, ...]]:
    address = mac_of(target, 0)
    return address, ((address + mac_of(sender, 0)).ljust(octets, b"\0"),)


def talking(sent: list[tuple[str, int]]) -> tuple[GuestTraffic, Fabric]:
    """Hosts a, b and c with links of 1 GB/s, and a machine on each; what comes to a host is noted."""
    accounts = [HostAccount(name, frozenset({Generation.PLAIN}), 1 << 40, 8.0, {}) for name in ("a", "b", "c")]
    placement, fabric = FirstFit(tuple(accounts)), Fabric(star(dict.fromkeys("abc", 1e9)), 1)
    vms = {"first": "a", "second": "b", "third": "c"}
    for name, host in vms.items():
        placement.place(GuestSpec(name, Generation.PLAIN, 1, 1 << 30, ProgramSpec("idle"), 1, network=True), host)
    traffic = GuestTraffic(
        fabric, placement, 1e9, lambda host, fields: sent.append((host, len(fields[1]))),  # type: ignore[arg-type]
        lambda: networked(placement.guest(name) for name in vms),
    )  # fmt: skip
    return traffic, fabric


def test_a_card_that_has_left_a_host_before_that_crashed_sends_on() -> None:
    sent: list[tuple[str, int]] = []
    traffic, fabric = talking(sent)
    traffic.take("b", *burst("second", "third", 10**6), now_ns=0)
    traffic.take("a", *burst("second", "third", 10**6), now_ns=1)  # Its machine is there by now.
    traffic.crash("b", 10**5, heard_ns=10**5)
    assert list(traffic._frames.values()) == [1]
    ends_ns = fabric.next_event_ns
    assert ends_ns == pytest.approx(1.1e6, rel=0.001)
    (flow,) = fabric.advance(ends_ns)
    flow.arrived(flow.about, ends_ns)
    assert (sent, len(fabric)) == ([("c", 1)], 0)
    assert not traffic._frames
    assert (traffic.pairs["b", "c"].lost, traffic.pairs["a", "c"].lost) == (1, 0)


def test_what_a_crashed_host_s_cards_had_to_send_is_lost_and_others_get_its_share() -> None:
    """Two hosts send a megabyte each into a link of 1 GB/s; the second crashes when half of all is over."""
    sent: list[tuple[str, int]] = []
    traffic, fabric = talking(sent)
    for name, host in (("first", "a"), ("second", "b")):
        traffic.take(host, *burst(name, "third", 10**6), now_ns=0)
    traffic.take("b", *burst("second", "third", 1000), now_ns=1)  # waits behind the other
    assert not fabric.advance(10**6)
    traffic.crash("b", 10**6, heard_ns=2 * 10**6)
    traffic.take("b", *burst("second", "third", 1000), now_ns=2 * 10**6)  # It had not heard so.
    assert not fabric.advance(10**6)
    # Half of the first host's megabyte is over after 1 ms, and the rest has the link to itself.
    assert fabric.next_event_ns == pytest.approx(1.5e6, rel=0.001)
    ends_ns = fabric.next_event_ns
    (flow,) = fabric.advance(ends_ns)
    assert flow.about == mac_of("first", 0)
    flow.arrived(flow.about, ends_ns)
    assert len(fabric) == 0
    assert sent == [("c", 1)]
    assert (traffic.pairs["b", "c"].lost, traffic.pairs["b", "c"].delivered) == (3, 0)
    traffic.take("b", *burst("second", "third", 1000), now_ns=2 * 10**6 + 1)  # A machine that came since speaks.
    assert len(fabric) == 1


def test_nothing_comes_from_a_host_once_it_has_crashed() -> None:
    heard: list[tuple[str, str]] = []

    def wire(source: str, destination: str, frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
        heard.append((source, destination))
        return frames

    fault = {"kind": "host-crash", "host": "host-2", "at": "300 ms"}
    fleet, rows = play(scenario(faults=[fault]), wire=wire)
    assert (row_of(rows, "vms", "far")["state"], row_of(rows, "vms", "far")["reason"]) == ("ended", "host crashed")
    assert row_of(rows, "vms", "other")["state"] == row_of(rows, "vms", "store")["state"] == "running"
    assert ("host-2", "host-1") in heard
    assert not any("host-2" in {burst.source for burst in one} for one in fleet.control.traffic._waiting.values())
    away = fleet.control.traffic.pairs["host-2", "host-1"]
    assert away.frames == away.lost + away.delivered


def test_a_client_that_is_launched_meanwhile_speaks_when_it_runs_whatever_the_windows() -> None:
    late = vm("far", "host-2", "key-value-client", "PLAIN", **CLIENT) | {"start": "launch", "arrival": "300 ms"}
    body = scenario(vms=[scenario()["vms"][0], late])
    dice = random.Random(7)
    runs = [play(body)[1], play(body, cut=lambda start, horizon: dice.randint(start + 1, horizon))[1]]
    assert runs[0]["networks"] == runs[1]["networks"]
    assert row_of(runs[0], "networks", "far")["frames_received"] >= 16


def test_a_vm_with_a_card_stays_where_it_is() -> None:
    body = scenario(migrations=[{"vm": "far", "at": "100 ms", "to": "host-3"}], duration="200 ms")
    fleet, rows = play(body)
    (one,) = fleet.control.migrations.all
    assert (one.outcome, one.reason) == ("refused", "NETWORK_CARD")
    assert row_of(rows, "vms", "far")["state"] == "running"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fabric": {"latency": "0 s"}}, "fabric.latency"),
        ({"vms": [vm("far", "host-2", "key-value-client", server="nobody")]}, 'vms[0].parameters.server of "far"'),
        ({"vms": [vm("far", "host-2", "key-value-client", server="far")]}, 'vms[0].parameters.server of "far"'),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.parse(scenario(**change))
    assert caught.value.field == field


def test_the_lookahead_is_shorter_only_where_somebody_talks() -> None:
    quiet = scenario(vms=[vm("a", "host-1", "key-value-store")])
    assert (Scenario.parse(scenario()).lookahead, Scenario.parse(quiet).lookahead) == (200_000, 1_000_000)
    del quiet["fabric"]
    assert Scenario.parse({**scenario(), "fabric": {}}).network_latency == 1_000_000


def test_a_round_of_pairs_tests_one_vm_of_a_host_and_one_of_those_that_talk() -> None:
    hosts = {"a": "1", "b": "1", "c": "2", "d": "2", "e": "3"}
    assert _rounds(hosts, frozenset()) == [("a", "c", "e"), ("b", "d")]
    rounds = _rounds(hosts, frozenset({"a", "c", "e"}))
    assert sorted(vm for some in rounds for vm in some) == sorted(hosts)
    for some in rounds:
        assert len({hosts[vm] for vm in some}) == len(some)
        assert len({"a", "c", "e"} & set(some)) <= 1


def test_hypervisors_and_tenants_behind_bytes_have_the_same_history() -> None:
    """As in layout ``isolated``, without its processes."""
    vms = [scenario()["vms"][0], scenario()["vms"][1]]
    fleet = build_fleet(Scenario.parse(scenario(vms=vms, duration="300 ms")))
    order = HostOrder.parse(fleet.orders[0].pack())
    hypervisor = HypervisorServer(firmware_image)
    remote = HostEntity(
        order,
        lambda spec: RemoteTenant(spec, TenantServer(PROGRAMS).exchange, lambda: None),
        lambda *wanted: RemoteHypervisor(hypervisor.exchange, *wanted),
    )
    found = []
    for entity in (HostEntity(order), remote):
        while entity.next_event_ns() < 300_000_000:
            entity.advance(300_000_000, 1000)
        found.append(entity.collect(300_000_000))
    assert found[0] == found[1]
    assert found[0]["networks"][1]["frames_received"] > 16
