"""How many hosts a fleet needs in each generation for the same service level, and what runs out first.

The machines of a scenario are spread over hosts like its first, each to the one with the
most free vCPUs that takes it. Every vCPU then computes its program's heaviest demand
without a pause, and each host's contention is solved for that, by the same prices and
the same equations as in a run: that says how much longer an instruction takes, on average
over the machines, than in a plain machine alone on a host.

The service level is either such a mean, which a generation must stay within; or, where
none is given, the work that the fleet does as PLAIN on the fewest hosts that hold it:
machines that are slower are joined by more of their kind until they do the same.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

from cluster.errors import UserError
from cluster.firmware_key import VERIFIER, firmware_image
from cluster.noted_costs import NotedCosts
from cluster.placed_orders import host_account, placed_orders
from cluster.scenario import HostInstance, Scenario
from cluster.scenario_costs import scenario_costs
from cluster.steady_host import OF_HOSTS, steady_host
from node.asid_pool import ASID_KINDS
from node.firmware_image import FirmwareImage
from node.generation import Generation
from node.guest import GuestSpec
from node.host_kind import HostKind
from node.launch_promise import least_launch_ns
from node.mechanism import Mechanism
from node.operation_cost import HostOperationCost
from node.phase_cost import PhaseCost
from node.program import Demand
from workloads.library import PROGRAMS

MOST_HOSTS = 100_000


class PlanError(UserError):
    """A fleet that no number of hosts serves; says what is missing."""


@dataclass(frozen=True, slots=True)
class Need:
    """One generation's hosts."""

    generation: Generation
    hosts: int
    machines: int
    """With those that joined to do the same work."""
    against_plain: float
    """Hosts as a multiple of those that PLAIN needs."""
    slowdown: float
    """Mean over the machines, against a plain one alone."""
    limit: str
    """What one host fewer would be short of."""
    memory_share: float
    vcpu_share: float
    asid_share: float
    """Of the fullest host; 0 where none are needed."""
    bandwidth_share: float
    """Of the busiest host."""
    launch_all_s: float
    """Until a host's security processor has launched its machines, one after another."""
    most_machines: int
    """On one host."""


@dataclass(frozen=True, slots=True)
class _Load:
    """How one spread over hosts does."""

    slowdown: float
    limit: str
    memory: float
    vcpus: float
    asids: float
    bandwidth: float
    most_machines: int


_Who = tuple[tuple[Demand | None, int], ...]
"""How many compute each demand, in the order of their names."""


def _by_name(who: Counter[Demand | None]) -> _Who:
    return tuple(sorted(who.items(), key=lambda one: "" if one[0] is None else one[0].name))


@dataclass(frozen=True, slots=True)
class _Spread:
    """Machines on hosts, without what it costs: by machines and vCPUs of each demand, how many hosts have those."""

    hosts: tuple[tuple[tuple[_Who, _Who], int], ...]
    memory: float
    vcpus: float
    asids: float
    most_machines: int


class _Fleet:
    """The machines, and what one of each kind costs alone and in company."""

    def __init__(self, scenario: Scenario, generation: Generation, firmware: FirmwareImage) -> None:
        self.generation = generation
        self.host: HostInstance = scenario.host_instances[0]
        self.account = host_account(self.host, scenario)
        self.costs = NotedCosts(scenario_costs(scenario).of_product(self.host.product.name))
        self.firmware = firmware
        self._scenario = scenario
        self._kind = HostKind.of(self.host.product, self.host.platform)
        self._demands: dict[tuple[object, ...], Demand | None] = {}
        self._solved: dict[_Who, tuple[dict[Demand | None, float], float, str]] = {}
        self._spreads: dict[tuple[int, int], _Spread | str] = {}
        orders = placed_orders(_anywhere(scenario), {}, {})
        guests = [order.guest for order in (*(order for order, _ in orders.running), *orders.arriving)]
        self.guests = sorted(
            [replace(guest, generation=generation, svsm=False) for guest in guests],
            key=_largest_first,
        )

    def under(self, changes: Mapping[str, float]) -> _Fleet:
        """The same machines, each with its heaviest demand as it is, with some figures of the costs replaced."""
        other = copy(self)
        other.pay(changes)
        return other

    def pay(self, changes: Mapping[str, float]) -> None:
        """Go by costs in which some figures are replaced, from now on."""
        self.costs = NotedCosts({**self.costs, **changes})
        self._solved = {}
        scenario = self._scenario.model_copy(update={"costs": {**self._scenario.costs, **changes}})
        account = host_account(self.host, scenario)
        if account != self.account:
            self.account, self._spreads = account, {}

    def paces_as(self, other: _Fleet) -> bool:
        """Whether all phases go as in another: then so many hosts do what they do there."""
        same = self.account == other.account and all(self.costs[name] == other.costs[name] for name in OF_HOSTS)
        return same and all(self._cost(one) == other._cost(one) for one in self._demands.values() if one is not None)

    def _cost(self, demand: Demand) -> tuple[PhaseCost, ...]:
        return tuple([
            PhaseCost.of(demand, one, self._kind, self.costs) for one in (Generation.PLAIN, self.generation)
        ])  # fmt: skip

    def same_work(self, hosts: int, plain: float) -> tuple[_Load | str, int]:
        """So many machines that they do on so many hosts what the fleet does at PLAIN's slowdown, and how they do it.

        Where more machines do not do more, for what they share is used up, that is what is missing.
        """
        count, load = len(self.guests), self.spread(hosts)
        for _ in range(_MOST_STEPS):
            if isinstance(load, str):
                return load, count
            wanted = max(len(self.guests), -int(-len(self.guests) * load.slowdown / (plain * (1 + _SAME)) // 1))
            if wanted <= count:
                return load, count
            count, load = wanted, self.spread(hosts, wanted)
        return load.limit if isinstance(load, _Load) else load, count

    def _machines(self, count: int) -> list[GuestSpec]:
        """So many machines: the fleet's own, and more of their kinds in equal shares."""
        own = self.guests
        more = [own[number * len(own) // (count - len(own))] for number in range(count - len(own))]
        return own if not more else sorted([*own, *more], key=_largest_first)

    def spread(self, hosts: int, count: int = 0) -> _Load | str:
        """All machines, or so many of their kinds, on so many hosts; what is missing, where one finds no place."""
        key = hosts, max(count, len(self.guests))
        found = self._spreads.get(key)
        if found is None:
            found = self._spreads[key] = self._placed(*key)
        return found if isinstance(found, str) else self._load(found)

    def _placed(self, hosts: int, count: int) -> _Spread | str:
        accounts = [replace(self.account, free_asids=dict(self.account.free_asids)) for _ in range(hosts)]
        order = [(-one.free_vcpus, number) for number, one in enumerate(accounts)]
        heapq.heapify(order)
        on: list[list[GuestSpec]] = [[] for _ in range(hosts)]
        for guest in self._machines(count):
            passed = []
            while order and not accounts[order[0][1]].takes(guest):
                passed.append(heapq.heappop(order))
            if not order:
                return self._missing(guest, accounts[passed[0][1]])
            _, number = heapq.heappop(order)
            accounts[number].charge(guest, 1)
            on[number].append(guest)
            for one in (*passed, (-accounts[number].free_vcpus, number)):
                heapq.heappush(order, one)
        return self._summed(on)

    def _missing(self, guest: GuestSpec, emptiest: object) -> str:
        """What the host with the most free vCPUs is short of."""
        account = emptiest
        assert isinstance(account, type(self.account))
        if guest.generation not in account.generations:
            return "generation"
        if guest.vcpus > account.free_vcpus:
            return "vCPUs"
        if account.needed_bytes(guest) > account.free_bytes:
            return "memory"
        return "ASIDs"

    def _summed(self, on: Sequence[Sequence[GuestSpec]]) -> _Spread:
        """What a load follows from: hosts with the same machines are one."""
        alike: Counter[tuple[_Who, _Who]] = Counter()
        for guests in on:
            machines = Counter(map(self._demand, guests))
            vcpus = Counter(demand for guest in guests for demand in [self._demand(guest)] * guest.vcpus)
            if any(vcpus):
                alike[_by_name(machines), _by_name(vcpus)] += 1
        full = self.account
        kind = ASID_KINDS.get(self.generation)
        asids = full.free_asids.get(kind, 0) if kind is not None else 0
        return _Spread(
            tuple(alike.items()),
            max(sum(full.needed_bytes(one) for one in some) for some in on) / full.free_bytes,
            max(sum(one.vcpus for one in some) for some in on) / full.free_vcpus,
            max(map(len, on)) / asids if asids else 0.0, max(map(len, on)),
        )  # fmt: skip

    def _load(self, spread: _Spread) -> _Load:
        slowed, computing = 0.0, 0
        limits: Counter[str] = Counter()
        bandwidth = 0.0
        for (machines, vcpus), hosts in spread.hosts:
            spans, used, limit = self._solved.get(vcpus) or self._solve(vcpus)
            self._solved[vcpus] = spans, used, limit
            bandwidth = max(bandwidth, used)
            for demand, count in machines:
                limits[limit] += hosts * count
                if demand is not None:
                    slowed += hosts * count * spans[demand] / self._alone(demand)
                    computing += hosts * count
        return _Load(
            slowed / computing if computing else 1.0, limits.most_common(1)[0][0] if limits else "nothing",
            spread.memory, spread.vcpus, spread.asids, bandwidth, spread.most_machines,
        )  # fmt: skip

    def _demand(self, guest: GuestSpec) -> Demand | None:
        """The heaviest demand of a machine's program: the one with the longest instruction that it does not cap."""
        key = (guest.program, guest.memory_bytes, guest.vcpus)
        if key not in self._demands:
            program = PROGRAMS[guest.program.name](guest.program, guest.memory.placement(guest.name, 0, guest.seed))
            free = [one for one in program.demands if not one.max_instructions_per_s] or list(program.demands)[-1:]
            self._demands[key] = max(free, key=self._alone, default=None)
        return self._demands[key]

    def _alone(self, demand: Demand) -> float:
        """Nanoseconds of an instruction in a plain machine that has a host to itself."""
        return sum(ns for _, ns in PhaseCost.of(demand, Generation.PLAIN, self._kind, self.costs).parts)

    def _solve(self, who: _Who) -> tuple[dict[Demand | None, float], float, str]:
        """Nanoseconds of an instruction by demand, bandwidth in use, and what most of the lost time goes to."""
        loads = [
            (demand, PhaseCost.of(demand, self.generation, self._kind, self.costs).load, count)
            for demand, count in who
            if demand is not None
        ]
        host = steady_host(self.host.product, self.costs, [(load, count) for _, load, count in loads])
        spans: dict[Demand | None, float] = {}
        lost = dict.fromkeys(_SHARED.values(), 0.0)
        for (demand, _, count), span_ns, parts in zip(loads, host.spans_ns, host.lost_ns, strict=True):
            spans[demand] = span_ns
            for mechanism, ns in parts.items():
                lost[_SHARED[mechanism]] += count * ns / span_ns
        return spans, host.utilisation, max(sorted(lost), key=lambda name: lost[name])

    def launch_s(self, machines: int) -> float:
        """Of the security processor, for so many launches of the fleet's machines as they come."""
        cost = HostOperationCost(self.costs)
        ways = Counter(guest.machine.small_monitor for guest in self.guests)
        whole_ns = sum([
            count * least_launch_ns(
                firmware_image(VERIFIER) if small else self.firmware, self.generation, cost, small_monitor=small
            )
            for small, count in ways.items()
        ])  # fmt: skip
        return machines * whole_ns / len(self.guests) / 1e9


def _largest_first(one: GuestSpec) -> tuple[int, int, str]:
    return -one.vcpus, -one.memory_bytes, one.name


_SHARED = {
    Mechanism.LOADED_LATENCY: "memory bandwidth", Mechanism.LLC: "caches", Mechanism.SMT: "cores",
    Mechanism.CORE_WAIT: "cores",
}  # fmt: skip
_MOST_STEPS = 12
_SAME = 0.001
"""A level that is missed by less is met: machines and hosts are whole ones."""


def _anywhere(scenario: Scenario) -> Scenario:
    """The scenario with machines that want no host of their own and none at time zero: their places are to be found."""
    vms = tuple(vm.model_copy(update={"host": None, "start": "launch"}) for vm in scenario.vms)
    return scenario.model_copy(update={"vms": vms})


class Planner:
    """Plans of one scenario's fleet for one service level. Raises PlanError for a fleet without machines.

    ``changes`` replace figures of the costs; spreads of machines over hosts are worked out once for all of them.
    """

    def __init__(self, scenario: Scenario, firmware: FirmwareImage, level: float | None = None) -> None:
        self.generations = scenario.host_instances[0].generations
        self._new = partial(_Fleet, scenario, firmware=firmware)
        self._level = level
        self._fleets = {Generation.PLAIN: self._new(Generation.PLAIN)}
        if not self._plain.guests:
            raise PlanError("plan: expected a scenario with machines, got none")
        self._base = _fewest(self._plain, None, None)

    @property
    def _plain(self) -> _Fleet:
        return self._fleets[Generation.PLAIN]

    @property
    def read(self) -> set[str]:
        """Names of the figures of costs that plans so far were made by."""
        of_accounts = {"memory.double_backing_factor"} if self._plain.host.group.double_backing else set()
        return of_accounts.union(*[fleet.costs.read for fleet in self._fleets.values()])

    def need(self, generation: Generation) -> Need:
        """One generation's hosts. Raises PlanError."""
        fleet = self._fleets.get(generation)
        if fleet is None:
            fleet = self._fleets[generation] = self._new(generation)
        return self._need(fleet, self._plain, self._base)

    def need_under(self, changes: Mapping[str, float], was: Need) -> Need:
        """The same with some figures of the costs replaced, where it ``was`` that. Raises PlanError."""
        fleet, plain = self._fleets[was.generation].under(changes), self._plain.under(changes)
        if fleet.paces_as(self._fleets[was.generation]) and plain.paces_as(self._plain):
            return replace(was, launch_all_s=fleet.launch_s(was.most_machines))
        return self._need(fleet, plain, _fewest(plain, None, None, near=self._base[0]), near=was.hosts)

    def _need(self, fleet: _Fleet, plain: _Fleet, base: tuple[int, int, _Load], near: int = 0) -> Need:
        level = self._level
        at_plain = base[0] if level is None else _fewest(plain, level, None, near=near)[0]
        work = base[2].slowdown if level is None else None
        hosts, machines, load = _fewest(fleet, level, work, near=near)
        need = Need(
            fleet.generation, hosts, machines, hosts / at_plain, load.slowdown, "", load.memory, load.vcpus, load.asids,
            load.bandwidth, fleet.launch_s(load.most_machines), load.most_machines,
        )  # fmt: skip
        return replace(need, limit=_limit(fleet, hosts, level, work, shares(need)))


def plan(
    scenario: Scenario, generations: Sequence[Generation], firmware: FirmwareImage, level: float | None = None
) -> list[Need]:
    """Hosts by generation, those that the scenario's first host does not have left out. Raises PlanError."""
    planner = Planner(scenario, firmware, level)
    return [planner.need(one) for one in generations if one in planner.generations]


def _tried(fleet: _Fleet, hosts: int, level: float | None, work: float | None) -> tuple[_Load | str, int]:
    """How so many hosts do, or what they are short of."""
    if work is not None:
        return fleet.same_work(hosts, work)
    load = fleet.spread(hosts)
    if isinstance(load, _Load) and level is not None and load.slowdown > level:
        return load.limit, len(fleet.guests)
    return load, len(fleet.guests)


def _fewest(fleet: _Fleet, level: float | None, work: float | None, near: int = 0) -> tuple[int, int, _Load]:
    """The fewest hosts that serve, their machines and how they do, found by doubling and halving.

    A guess that is ``near`` saves most of that; the answer is the same, for what more hosts cannot serve fewer cannot.
    """
    most = min(MOST_HOSTS, 4 * len(fleet.guests))
    low, high, step = max(0, min(near, most) - 1), max(1, min(near, most)), 1
    while low and not isinstance(_tried(fleet, low, level, work)[0], str):
        low, high, step = max(0, low - step), low, 2 * step
    step = max(1, high - low)
    while isinstance(short := _tried(fleet, high, level, work)[0], str):
        if high >= most:
            raise _no_host(fleet, short, level)
        low, high, step = high, min(high + step, most), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if isinstance(_tried(fleet, middle, level, work)[0], str) else (low, middle)
    load, machines = _tried(fleet, high, level, work)
    assert isinstance(load, _Load)
    return high, machines, load


def _no_host(fleet: _Fleet, short: str, level: float | None) -> PlanError:
    alone = fleet.spread(len(fleet.guests))
    if isinstance(alone, str) or level is None:
        return PlanError(f"plan: {fleet.generation.name}: no host has enough of: {short}")
    return PlanError(
        f"plan: {fleet.generation.name}: expected a level that a host for each machine reaches, "
        f"which is {alone.slowdown:.4f}, got {level}"
    )


def _limit(
    fleet: _Fleet, hosts: int, level: float | None, work: float | None, full: Mapping[str, float]
) -> str:  # fmt: skip
    """What runs out first: what one host fewer would be short of, and on a single one what is fullest."""
    if hosts == 1:
        return max(full, key=lambda name: full[name])
    short = _tried(fleet, hosts - 1, level, work)[0]
    return short if isinstance(short, str) else "nothing"


def shares(need: Need) -> Mapping[str, float]:
    """How full the fullest host is, by resource."""
    return {
        "memory": need.memory_share, "vCPUs": need.vcpu_share, "ASIDs": need.asid_share,
        "memory bandwidth": need.bandwidth_share,
    }  # fmt: skip
