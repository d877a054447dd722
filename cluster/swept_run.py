"""What figures that nobody has published make of a run that is through: each in turn goes to the ends of its sweep.

The run is not repeated. What each machine did stays as it was; its phases are priced anew, what ran together on its
host is solved anew, and what its blocks took is scaled by the rows that they were priced by (the table ``vm_rows``). So
what a figure does to the order of things is left out: who waits for a drive or the security processor, and what work
is done by the end. Of a host there is one moment, in which each machine computes what it mostly does on as many vCPUs
as it had busy on average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.noted_costs import NotedCosts
from cluster.placed_orders import placed_orders
from cluster.results import Results
from cluster.scenario_costs import scenario_costs
from cluster.steady_host import SteadyHost, steady_host
from cluster.tornado import swept_rows
from node.card_cost import CardCost, CardTraffic
from node.contention import PhaseLoad
from node.cost_table import Cost
from node.generation import Generation
from node.guest import GuestSpec
from node.guest_backing import Backing
from node.host_kind import HostKind
from node.mechanism import MECHANISMS, Mechanism
from node.phase_cost import GenerationCost, PhaseCost
from node.product import Product
from node.program import Demand
from workloads.library import PROGRAMS

Times = Mapping[Mechanism, float]
"""Nanoseconds of a machine's vCPUs by mechanism."""
AS_IS = "", 0.0
"""No change of the costs."""
_Change = tuple[str, float]
_STEPS = 16
"""Of the shares of a backing, as hosts have them."""
_OF_BLOCKS = {
    "halt": Mechanism.OPERATIONS, "pcie": Mechanism.OPERATIONS, "cache": Mechanism.OPERATIONS,
    "rmp": Mechanism.ACCEPTANCE, "vmpl": Mechanism.SVSM, "disk": Mechanism.VMGEXIT, "psp": Mechanism.PSP,
    "upkeep": Mechanism.BOUNCE, "gpu": Mechanism.BOUNCE, "boot": Mechanism.BOOT, "svsm": Mechanism.SVSM,
    "attest": Mechanism.OPERATIONS, "core": Mechanism.VMGEXIT,
}  # fmt: skip
"""Where most of what blocks pay in proportion to rows of these names is booked."""


@dataclass(frozen=True, slots=True)
class SweptTimes:
    """One machine's books, and what they would be at both ends of each row that matters to them."""

    times: Times
    ends: Mapping[str, tuple[Times, Times]]

    def at(self, row: str, end: int) -> Times:
        """The books at one end of a row."""
        return self.ends[row][end] if row in self.ends else self.times

    def share_at(self, row: str, end: int) -> float:
        """All of the time at one end of a row, as a multiple of the time as it is."""
        return sum(self.at(row, end).values()) / sum(self.times.values())


@dataclass(slots=True)
class _Machine:
    """What the results say of one VM."""

    spec: GuestSpec
    generation: Generation
    times: dict[Mechanism, float]
    bytes_moved: int
    busy_ns: float = 0.0
    retired: dict[str, float] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    demands: tuple[Demand, ...] = ()
    backing: Backing = field(default_factory=Backing)

    @property
    def main(self) -> Demand | None:
        """The demand that most instructions were retired of."""
        return max(self.demands, key=lambda one: self.retired[one.name], default=None)


class _Prices:
    """Costs of one kind of host, as they are and with one figure replaced at a time. Each is worked out once."""

    def __init__(self, kind: HostKind, product: Product, costs: Mapping[str, float]) -> None:
        self.kind, self.product = kind, product
        self._noted = NotedCosts(costs)
        self._costs: dict[_Change, Mapping[str, float]] = {AS_IS: self._noted}
        self._phases: dict[tuple[_Change, Demand, Generation, Backing], PhaseCost] = {}
        self._own: dict[tuple[_Change, Generation], GenerationCost] = {}
        self._steady: dict[tuple[_Change, tuple[tuple[PhaseLoad, int], ...]], SteadyHost] = {}

    @property
    def read(self) -> set[str]:
        """Names of the figures that anything was priced by so far."""
        return self._noted.read

    def costs(self, change: _Change) -> Mapping[str, float]:
        """The figures."""
        found = self._costs.get(change)
        if found is None:
            row, value = change
            found = self._costs[change] = {**self._noted, row: value}
        return found

    def phase(self, change: _Change, demand: Demand, generation: Generation, backing: Backing) -> PhaseCost:
        """What a demand costs in a machine."""
        key = change, demand, generation, backing
        found = self._phases.get(key)
        if found is None:
            costs = self.costs(change)
            found = self._phases[key] = PhaseCost.of(demand, generation, self.kind, costs, backing)
        return found

    def generation(self, change: _Change, generation: Generation) -> GenerationCost:
        """The rows that apply to a machine."""
        found = self._own.get((change, generation))
        if found is None:
            found = self._own[change, generation] = GenerationCost.of(generation, self.costs(change), self.kind)
        return found

    def steady(self, change: _Change, loads: tuple[tuple[PhaseLoad, int], ...]) -> SteadyHost:
        """How loads do together."""
        found = self._steady.get((change, loads))
        if found is None:
            found = self._steady[change, loads] = steady_host(self.product, self.costs(change), loads)
        return found


class _Host:
    """One host's machines. ``present`` are they, what each mostly does, and on how many vCPUs."""

    def __init__(self, prices: _Prices, machines: Sequence[_Machine], duration_ns: int) -> None:
        self.prices = prices
        self._present = [
            (one, one.main, max(1, round(one.busy_ns / duration_ns))) for one in machines if one.main is not None
        ]

    def phases(self, machine: _Machine, change: _Change) -> Times:
        """Nanoseconds of a machine's phases by mechanism, without what it loses to others."""
        total = dict.fromkeys(MECHANISMS, 0.0)
        for demand in machine.demands:
            for mechanism, ns in self.prices.phase(change, demand, machine.generation, machine.backing).parts:
                total[mechanism] += machine.retired[demand.name] * ns
        return total

    def lost(self, machine: _Machine, change: _Change) -> Times:
        """Nanoseconds of an instruction of a machine's main demand that it loses to others, by mechanism."""
        loads: dict[PhaseLoad, int] = {}
        own = None
        for one, demand, count in self._present:
            load = self.prices.phase(change, demand, one.generation, one.backing).load
            loads[load] = loads.get(load, 0) + count
            own = load if one is machine else own
        if own is None:
            return {}
        return self.prices.steady(change, tuple(loads.items())).lost_ns[list(loads).index(own)]

    def infer_backing(self, machine: _Machine) -> None:
        """How its memory lay, from what its walks and its misses on other nodes took."""
        shares = []
        for mechanism, other in ((Mechanism.PAGE_WALK, Backing(1.0, 0.0)), (Mechanism.NUMA, Backing(0.0, 1.0))):
            machine.backing = Backing()
            least = self.phases(machine, AS_IS)[mechanism]
            machine.backing = other
            most = self.phases(machine, AS_IS)[mechanism]
            share = (machine.times[mechanism] - least) / (most - least) if most > least else 0.0
            shares.append(min(1.0, max(0.0, round(_STEPS * share) / _STEPS)))
        machine.backing = Backing(*shares)


class SweptRun:
    """The machines of one run."""

    def __init__(self, results: Results) -> None:
        scenario = results.scenario
        self._machines, on = _machines(results)
        self._hosts: dict[str, _Host] = {}
        table = scenario_costs(scenario)
        kinds: dict[tuple[HostKind, str], _Prices] = {}
        for host in scenario.host_instances:
            if host.name not in on:
                continue
            kind = HostKind.of(host.product, host.platform)
            prices = kinds.get((kind, host.product.name))
            if prices is None:
                prices = kinds[kind, host.product.name] = _Prices(
                    kind, host.product, table.of_product(host.product.name)
                )
            here = _Host(prices, [self._machines[vm] for vm in on[host.name]], scenario.duration)
            for vm in on[host.name]:
                here.infer_backing(self._machines[vm])
                self._hosts[vm] = here
        products = sorted({host.product for host in scenario.hosts})
        self._rows: Mapping[str, Sequence[Cost]] = {name: swept_rows(scenario, name) for name in products}
        self._found: dict[str, SweptTimes] = {}

    @property
    def vms(self) -> Sequence[str]:
        """Names of those that ran."""
        return list(self._machines)

    def of(self, vm: str) -> SweptTimes:
        """One machine's. Raises KeyError for one that never ran."""
        found = self._found.get(vm)
        if found is None:
            machine, before = self._machines[vm], _Books(self._hosts[vm], self._machines[vm])
            read = self._hosts[vm].prices.read | machine.rows.keys()
            ends = {}
            for row in self._rows[self._hosts[vm].prices.product.name]:
                if row.name in read and row.sweep is not None:
                    low, high = (before.under((row.name, end)) for end in row.sweep)
                    if not low == high == machine.times:
                        ends[row.name] = low, high
            found = self._found[vm] = SweptTimes(machine.times, ends)
        return found


class _Books:
    """A machine's books, to be worked out anew under other costs."""

    def __init__(self, host: _Host, machine: _Machine) -> None:
        self._host, self._machine = host, machine
        self._costs = host.prices.costs(AS_IS)
        self._phases = host.phases(machine, AS_IS)
        self._own = host.prices.generation(AS_IS, machine.generation)
        self._lost = host.lost(machine, AS_IS)
        self._link = _link_ns(self._costs)

    def under(self, change: _Change) -> Times:
        """The books with one figure replaced."""
        machine, (row, value) = self._machine, change
        times, old = dict(machine.times), self._costs[row]
        phases = self._host.phases(machine, change)
        if phases != self._phases:
            for mechanism in MECHANISMS:
                times[mechanism] += phases[mechanism] - self._phases[mechanism]
        own = self._host.prices.generation(change, machine.generation)
        if own != self._own:
            times[Mechanism.ENCRYPTION] += self._cipher_ns(own)
        for mechanism, ns in self._host.lost(machine, change).items():
            if self._lost[mechanism] > 0:
                times[mechanism] *= ns / self._lost[mechanism]
        link = _link_ns(self._host.prices.costs(change))
        for mechanism, ns, before in zip((Mechanism.LINK, Mechanism.IDE), link, self._link, strict=True):
            if before > 0:
                times[mechanism] *= ns / before
        if row in machine.rows and old:
            times[_OF_BLOCKS[row.partition(".")[0]]] += machine.rows[row] * (value / old - 1.0)
        return times

    def _cipher_ns(self, own: GenerationCost) -> float:
        """What its blocks' loads and stores pay more: those of their bytes, and the rest by the access."""
        blocks_ns = max(0.0, self._machine.times[Mechanism.ENCRYPTION] - self._phases[Mechanism.ENCRYPTION])
        byte_ns = 1e9 / self._costs["dram.copy_bytes_per_s"] * self._machine.bytes_moved
        before, after = (byte_ns * (1.0 / one.bandwidth_share - 1.0) for one in (self._own, own))
        if before >= blocks_ns:
            return blocks_ns * (after / before - 1.0) if before else 0.0
        access = own.encryption_ns / self._own.encryption_ns - 1.0 if self._own.encryption_ns else 0.0
        return (blocks_ns - before) * access + after - before


def _link_ns(costs: Mapping[str, float]) -> tuple[float, float]:
    """Of a byte that a card moves: on its link, and what IDE adds."""
    return CardCost(costs).transfer_ns(CardTraffic(trusted_bytes=1))


def _machines(results: Results) -> tuple[dict[str, _Machine], dict[str, list[str]]]:
    """Those that ran, by name, and by host who was there at last."""
    orders = placed_orders(results.scenario, {}, {})
    specs = {order.guest.name: order.guest for order in (*(one for one, _ in orders.running), *orders.arriving)}
    machines: dict[str, _Machine] = {}
    on: defaultdict[str, list[str]] = defaultdict(list)
    for row in _rows(results, "vms"):
        if row["running_ns"] is not None and row["vm"] in specs:
            moved = row["bytes_read"] + row["bytes_written"]
            times = dict.fromkeys(MECHANISMS, 0.0)
            machines[row["vm"]] = _Machine(specs[row["vm"]], Generation[row["generation"]], times, moved)
            on[row["host"]].append(row["vm"])
    for row in _rows(results, "vm_time"):
        if row["vm"] in machines:
            machines[row["vm"]].times[Mechanism(row["mechanism"])] = row["time_ns"]
    for row in _rows(results, "vm_rows"):
        if row["vm"] in machines:
            machines[row["vm"]].rows[row["row"]] = row["time_ns"]
    for row in _rows(results, "phases"):
        if row["vm"] in machines:
            machines[row["vm"]].retired[row["demand"]] = row["instructions"]
    for one in machines.values():
        spec = one.spec
        program = PROGRAMS[spec.program.name](spec.program, spec.memory.placement(spec.name, 0, spec.seed))
        one.demands = tuple([demand for demand in program.demands if demand.name in one.retired])
        one.busy_ns = sum(one.times.values())
    return machines, on


def _rows(results: Results, name: str) -> list[dict[str, Any]]:
    table = results.tables.get(name)
    return [] if table is None else table.to_pylist()
