"""A scenario turned into orders: what each host is built from, and what the control plane will be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from cluster.control_plane import ControlPlane, NetworkSettings, Order
from cluster.fabric import Fabric
from cluster.fleet_faults import FleetFaults
from cluster.host_entity import HostOrder
from cluster.key_server.key_desk import KeyDesk
from cluster.migration import Patience
from cluster.migration_admission import Admission
from cluster.near_names import expected_name
from cluster.placed_orders import placed_orders
from cluster.placement import FirstFit
from cluster.precopy import PrecopySettings, RoundCap
from cluster.scenario import HostInstance, Scenario, ScenarioError, instance_names
from cluster.scenario_costs import changes_for, scenario_costs
from cluster.topology import leaf_spine, star
from cluster.units import shown
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import GuestSpec
from node.host import HostSpec
from node.migration_loads import StreamRates
from node.record_buffer import NO_LOG, LogWish

BUCKET_NS = 60_000_000_000
"""Digest chains are kept per minute of virtual time."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How a paired run differs: VMs that run as another generation, and where each VM must go."""

    generations: Mapping[str, Generation] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything a run is started from."""

    orders: tuple[HostOrder, ...]
    control: ControlPlane
    wanted: Mapping[str, Order]
    """Every VM of the scenario, by name."""

    @property
    def vms_at_once(self) -> int:
        """How many VMs are there at once at most, as they are ordered; a launch that waits shifts that a little."""
        ends = [order.arrival_ns + order.lifetime_ns for order in self.wanted.values() if order.lifetime_ns is not None]
        changes = sorted([*((order.arrival_ns, 1) for order in self.wanted.values()), *((end, -1) for end in ends)])
        return max(accumulate((change for _, change in changes), initial=0))


def build_fleet(scenario: Scenario, changes: Changes | None = None, log: LogWish = NO_LOG) -> Fleet:
    """Lay out a scenario, its hosts with the log that is wished for.

    Raises ScenarioError as ``placed_orders`` does, and for a log of somebody unknown.
    """
    changed = changes or Changes()
    hosts = scenario.host_instances
    orders = placed_orders(scenario, changed.generations, changed.hosts)
    resident: dict[str, list[GuestSpec]] = {host.name: [] for host in hosts}
    control = _control_plane(scenario, orders.arriving, orders.placement)
    for order, host in orders.running:
        resident[host].append(order.guest)
        control.adopt(order, host)
    _enter_plans(scenario, control)
    wanted = {order.guest.name: order for order in (*(order for order, _ in orders.running), *orders.arriving)}
    firmware = tuple(sorted({order.guest.firmware for order in wanted.values()}))
    table = scenario_costs(scenario)
    costs = {product: changes_for(table, product) for product in {host.product.name for host in hosts}}
    service = scenario.key_service
    keys = None if service is None else (service.laboratory, service.lie)
    streams = _streams(scenario)
    built = tuple(
        HostOrder(
            _host_spec(host, scenario, log, streams),
            costs[host.product.name],
            tuple(resident[host.name]),
            firmware,
            keys,
        )
        for host in hosts
    )
    known = [*(host.name for host in hosts), *wanted]
    for name in sorted(log.entities - set(known)):
        raise ScenarioError(scenario.name, "log", expected_name(name, known), shown(name))
    return Fleet(built, control, wanted)


def _streams(scenario: Scenario) -> StreamRates:
    """How migrations load the hosts that they leave and come to."""
    moving, costs = scenario.migration, scenario_costs(scenario)
    packed = costs["migration.compression_bytes_per_s"] * (moving.compression or 0.0)
    caps = [
        moving.connections * costs["migration.connection_bytes_per_s"], float(moving.bandwidth or 0),
        moving.connections * packed,
    ]  # fmt: skip
    return StreamRates(float(scenario.fabric.link), min(cap for cap in caps if cap))


def _key_desk(scenario: Scenario, costs: Mapping[str, float]) -> KeyDesk | None:
    """The key service, which gives a host its chain and its chip's certificate at once."""
    if scenario.key_service is None:
        return None
    return KeyDesk.of(scenario.key_service, costs["attest.fetch_chain_ns"] + costs["attest.fetch_vcek_ns"])


def _control_plane(scenario: Scenario, arriving: tuple[Order, ...], placement: FirstFit) -> ControlPlane:
    fabric, moving = scenario.fabric, scenario.migration
    links = {host.name: float(fabric.link) for host in scenario.host_instances}
    topology = (
        star(links) if fabric.topology == "star" else leaf_spine(links, fabric.rack_hosts, fabric.oversubscription)
    )
    costs = scenario_costs(scenario)
    precopy = PrecopySettings(
        downtime_limit_ns=moving.downtime_limit,
        max_rounds=moving.max_rounds,
        at_round_cap=RoundCap(moving.at_round_cap),
        round_ns_per_gib=costs["migration.round_ns_per_gib"],
        fixed_downtime_ns=costs["migration.stop_ns"] + costs["migration.resume_ns"],
        connection_bytes_per_s=costs["migration.connection_bytes_per_s"],
        connections=moving.connections,
        post_copy_at_once=moving.mode == "post-copy",
        fault_ns=costs["migration.post_copy_fault_ns"],
        fresh_miss_share=costs["migration.fresh_miss_share"],
        # The source turns its dirty log on while the target touches memory.
        setup_ns_per_gib=max(
            costs["migration.start_log_ns_per_gib"], costs["migration.prefault_ns_per_gib"] if moving.prefault else 0.0
        ),
        bandwidth_bytes_per_s=float(moving.bandwidth or 0),
        compression_ratio=moving.compression or 1.0,
        compression_bytes_per_s=costs["migration.compression_bytes_per_s"] if moving.compression else 0.0,
        timeout_ns_per_gib=moving.timeout_per_gib,
        at_timeout=RoundCap(moving.at_timeout),
        progress_timeout_ns=moving.progress_timeout,
        downtime_steps=moving.downtime_steps,
        downtime_step_ns_per_gib=moving.downtime_step_per_gib,
        throttle_first=moving.throttle_initial if moving.auto_converge else 0.0,
        throttle_more=moving.throttle_increment,
        throttle_most=moving.throttle_max,
        dirty_limit_bytes_per_s=float(moving.dirty_limit or 0),
        zero_share=moving.zero_pages,
        zero_page_wire_bytes=costs["migration.zero_page_wire_bytes"],
        zero_scan_bytes_per_s=costs["migration.zero_scan_bytes_per_s"],
        recover_after_ns=moving.recover_after,
        let_go_within_ns=moving.let_go_within,
        dirty_fault_ns=costs["migration.dirty_fault_ns"],
        handler_bytes_per_s=costs["migration.handler_bytes_per_s"],
        handler_believes_log=moving.handler_believes_log,
    )
    return ControlPlane(
        arriving, placement, scenario.control_plane_latency, Fabric(topology, fabric.reshare_grid),
        Admission(moving.per_host, moving.per_fleet), precopy, CounterRandom(scenario.seed),
        NetworkSettings(scenario.network_latency, costs["net.bytes_per_s"]),
        _key_desk(scenario, costs),
    )  # fmt: skip


def _enter_plans(scenario: Scenario, control: ControlPlane) -> None:
    groups = {group.name: instance_names(group.name, group.count) for group in scenario.vms}
    control.migrations.record.most_bytes = scenario.migration.record or 0
    for plan in scenario.migrations:
        control.plans.add(plan, tuple(groups.get(plan.vm, (plan.vm,))))
    for drain in scenario.drains:
        control.plans.add_drain(drain)
    hosts = {host.name: host.product for host in scenario.host_instances}
    if scenario.faults:
        moving = scenario.migration
        control.migrations.send = control.command
        control.migrations.patience = Patience(moving.answer_within, moving.answer_tries)
        random = CounterRandom(scenario.seed)
        control.faults = FleetFaults(random, control.agenda, control.crash, control.migrations.restart, control.link)
    for fault in scenario.faults:
        assert control.faults is not None
        groups_of_hosts = {group.name: instance_names(group.name, group.count) for group in scenario.hosts}
        chosen = list(hosts) if fault.host is None else groups_of_hosts.get(fault.host, [fault.host])
        control.faults.add(fault, tuple(chosen))
    members = {group.name: instance_names(group.name, group.count) for group in scenario.hosts}
    for update in scenario.firmware_updates:
        for host in members.get(update.host, [update.host]):
            control.updates.add(update, host, hosts[host])


def _host_spec(host: HostInstance, scenario: Scenario, log: LogWish, streams: StreamRates) -> HostSpec:
    return HostSpec(
        host.name, host.product, host.memory_bytes, host.min_sev_asid, scenario.seed, BUCKET_NS, log, host.platform,
        scenario.attribute_neighbours, streams,
    )
