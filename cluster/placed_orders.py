"""Who is wanted in a scenario, and where those are that run when it begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cluster.control_plane import Order
from cluster.firmware_key import AUTO, AUTO_ON_SVSM, VERIFIER
from cluster.placement import FIRMWARE_BYTES, FirstFit, HostAccount
from cluster.scenario import HOST_MODEL, MEMORY_DISK, HostInstance, Scenario, ScenarioError, instance_names
from cluster.scenario_costs import scenario_costs
from cluster.trace_orders import trace_orders
from node.agent_transfer import BY_AGENT
from node.boot_phases import BootPath
from node.generation import CAPABILITIES, Generation
from node.guest import GuestSpec
from node.guest_memory_map import SMALLEST_GUEST_BYTES
from node.sealed_transfer import SEALED
from psp.policy import LegacyPolicy


@dataclass(frozen=True, slots=True)
class PlacedOrders:
    """Every VM's order; ``placement`` has accounted for those that run."""

    placement: FirstFit
    running: tuple[tuple[Order, str], ...]
    """Up at time zero, each with its host."""
    arriving: tuple[Order, ...]


def placed_orders(scenario: Scenario, generations: Mapping[str, Generation], hosts: Mapping[str, str]) -> PlacedOrders:
    """The orders of a scenario, in which some VMs have another generation or another pin.

    Raises ScenarioError for a VM that must run already and fits nowhere, and for more
    machines than the trace has; TraceError for a broken trace.
    """
    placement = FirstFit(tuple(host_account(host, scenario) for host in scenario.host_instances))
    running: list[tuple[Order, str]] = []
    arriving: list[Order] = []
    for wanted, runs in _wanted(scenario):
        name = wanted.guest.name
        generation = generations.get(name, wanted.guest.generation)
        order = wanted if name not in hosts else replace(wanted, pin=hosts[name])
        svsm = wanted.guest.svsm and CAPABILITIES[generation].rmp
        policy = wanted.guest.sev_policy if generation in SEALED else 0
        if (generation, svsm, policy) != (wanted.guest.generation, wanted.guest.svsm, wanted.guest.sev_policy):
            agent = wanted.guest.migration_agent and generation in BY_AGENT
            handler = wanted.guest.migration_handler and svsm
            guest = replace(
                wanted.guest, generation=generation, svsm=svsm, sev_policy=policy, migration_agent=agent,
                migration_handler=handler,
            )  # fmt: skip
            order = replace(order, guest=guest)
        if not runs:
            arriving.append(order)
            continue
        host = placement.place(order.guest, order.pin)
        if host is None:
            raise ScenarioError(scenario.name, f"vms.{name}", "a host with room at time zero", "none")
        running.append((order, host))
    return PlacedOrders(placement, tuple(running), tuple(arriving))


def _wanted(scenario: Scenario) -> Iterator[tuple[Order, bool]]:
    for group in scenario.vms:
        # What all machines of a group have in common is worked out once, for there may be a hundred thousand.
        kernel, program, networked = group.kernel.settings, group.program, group.networked
        firmware = group.firmware
        if firmware == AUTO:
            firmware = AUTO_ON_SVSM if group.svsm else VERIFIER if kernel.boot is BootPath.DIRECT else AUTO
        disk, runs = "" if group.disk == MEMORY_DISK else group.disk, group.start == "running"
        policy = int(sum(LegacyPolicy[bit] for bit in set(group.sev_policy)))
        model = "" if group.cpu_model == HOST_MODEL else group.cpu_model
        for index, name in enumerate(instance_names(group.name, group.count)):
            guest = GuestSpec(
                name, group.generation, group.vcpus, group.memory, program, scenario.seed, firmware, disk, networked,
                svsm=group.svsm, kernel=kernel, owned=group.attest_to is not None, devices=group.devices,
                sev_policy=policy, migration_agent=group.migration_agent,
                migration_handler=group.migration_handler, cpu_model=model,
            )  # fmt: skip
            arrival = group.arrival + index * group.arrival_spacing
            yield Order(guest, arrival, group.lifetime, group.host), runs
    for order in trace_orders(scenario):
        yield order, False


def host_account(host: HostInstance, scenario: Scenario) -> HostAccount:
    """What a host without machines has to give."""
    product = host.product
    threads = product.sockets * product.cores * product.threads_per_core
    asids = {one: count for one in (Generation.SEV, Generation.SEV_SNP) if (count := host.asids(one)) is not None}
    # The RMP takes 16 bytes for each 4 KiB page; the first 2 MiB stay with the host.
    usable = host.memory_bytes - host.memory_bytes // 256 - FIRMWARE_BYTES
    agent = host.group.migration_agent
    if agent:
        usable -= SMALLEST_GUEST_BYTES + FIRMWARE_BYTES
        asids = {one: count - (one is Generation.SEV_SNP) for one, count in asids.items()}
    cards = dict(Counter([one.kind for one in host.cards for _ in range(one.assignable)]))
    twice = _held_twice(scenario) if host.group.double_backing else 0.0
    vcpus = threads * scenario.vcpu_overcommit
    return HostAccount(host.name, host.generations, usable, vcpus, asids, cards, twice, agent, product)


def _held_twice(scenario: Scenario) -> float:
    return scenario_costs(scenario)["memory.double_backing_factor"] - 1.0
