"""A scenario turned into orders: what each host is built from, and what the control plane will be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

from cluster.control_plane import ControlPlane, Order
from cluster.fabric import Fabric
from cluster.host_entity import HostOrder
from cluster.migration_admission import Admission
from cluster.near_names import expected_name
from cluster.placement import FIRMWARE_BYTES, FirstFit, HostAccount
from cluster.precopy import PrecopySettings, RoundCap
from cluster.scenario import HostInstance, Scenario, ScenarioError, instance_names
from cluster.topology import leaf_spine, star
from cluster.trace_orders import trace_orders
from cluster.units import shown
from node.cost_table import load_cost_table
from node.counter_random import CounterRandom
from node.generation import Generation
from node.guest import GuestSpec
from node.host import HostSpec
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

    Raises ScenarioError for a VM that must run already and fits nowhere, and for a log of somebody unknown.
    """
    changed = changes or Changes()
    hosts = scenario.host_instances
    placement = FirstFit(tuple(_account(host, scenario) for host in hosts))
    running: list[Order] = []
    arriving: list[Order] = []
    for order, runs in _wanted(scenario):
        generation = changed.generations.get(order.guest.name, order.guest.generation)
        order = replace(  # noqa: PLW2901 - the order as it is wanted in this run
            order, guest=replace(order.guest, generation=generation), pin=changed.hosts.get(order.guest.name, order.pin)
        )
        (running if runs else arriving).append(order)
    resident: dict[str, list[GuestSpec]] = {host.name: [] for host in hosts}
    control = _control_plane(scenario, tuple(arriving), placement)
    for order in running:
        host = placement.place(order.guest, order.pin)
        if host is None:
            raise ScenarioError(scenario.name, f"vms.{order.guest.name}", "a host with room at time zero", "none")
        resident[host].append(order.guest)
        control.adopt(order, host)
    _enter_plans(scenario, control)
    firmware = tuple(sorted({order.guest.firmware for order in (*running, *arriving)}))
    costs = tuple(sorted(scenario.costs.items()))
    orders = tuple(
        HostOrder(_host_spec(host, scenario, log), costs, tuple(resident[host.name]), firmware) for host in hosts
    )
    wanted = {order.guest.name: order for order in (*running, *arriving)}
    known = [*(host.name for host in hosts), *wanted]
    for name in sorted(log.entities - set(known)):
        raise ScenarioError(scenario.name, "log", expected_name(name, known), shown(name))
    return Fleet(orders, control, wanted)


def _control_plane(scenario: Scenario, arriving: tuple[Order, ...], placement: FirstFit) -> ControlPlane:
    fabric, moving = scenario.fabric, scenario.migration
    links = {host.name: float(fabric.link) for host in scenario.host_instances}
    topology = (
        star(links) if fabric.topology == "star" else leaf_spine(links, fabric.rack_hosts, fabric.oversubscription)
    )
    costs = load_cost_table().overridden(scenario.costs)
    precopy = PrecopySettings(
        downtime_limit_ns=moving.downtime_limit,
        max_rounds=moving.max_rounds,
        at_round_cap=RoundCap(moving.at_round_cap),
        round_ns_per_gib=costs["migration.round_ns_per_gib"],
        fixed_downtime_ns=costs["migration.stop_ns"] + costs["migration.resume_ns"],
        connection_bytes_per_s=costs["migration.connection_bytes_per_s"],
    )
    return ControlPlane(
        arriving, placement, scenario.control_plane_latency, Fabric(topology, fabric.reshare_grid),
        Admission(moving.per_host, moving.per_fleet), precopy, CounterRandom(scenario.seed),
    )  # fmt: skip


def _enter_plans(scenario: Scenario, control: ControlPlane) -> None:
    groups = {group.name: instance_names(group.name, group.count) for group in scenario.vms}
    for plan in scenario.migrations:
        control.plans.add(plan, tuple(groups.get(plan.vm, (plan.vm,))))
    for drain in scenario.drains:
        control.plans.add_drain(drain)


def _wanted(scenario: Scenario) -> list[tuple[Order, bool]]:
    wanted = [
        (
            Order(
                GuestSpec(
                    vm.name, vm.group.generation, vm.group.vcpus, vm.group.memory,
                    vm.group.program, scenario.seed, vm.group.firmware,
                ),
                vm.arrival_ns,
                vm.group.lifetime,
                vm.group.host,
            ),
            vm.group.start == "running",
        )
        for vm in scenario.vm_instances
    ]  # fmt: skip
    return wanted + [(order, False) for order in trace_orders(scenario)]


def _host_spec(host: HostInstance, scenario: Scenario, log: LogWish) -> HostSpec:
    return HostSpec(host.name, host.product, host.memory_bytes, host.min_sev_asid, scenario.seed, BUCKET_NS, log)


def _account(host: HostInstance, scenario: Scenario) -> HostAccount:
    product = host.product
    threads = product.sockets * product.cores * product.threads_per_core
    asids = {one: count for one in (Generation.SEV, Generation.SEV_SNP) if (count := host.asids(one)) is not None}
    # The RMP takes 16 bytes for each 4 KiB page; the first 2 MiB stay with the host.
    usable = host.memory_bytes - host.memory_bytes // 256 - FIRMWARE_BYTES
    return HostAccount(host.name, product.generations, usable, threads * scenario.vcpu_overcommit, asids)
