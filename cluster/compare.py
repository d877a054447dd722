"""Each VM paired with itself run as PLAIN: same host, neighbours, arrival and seed.

A pair is two runs that differ in nothing but the generation of the VM under
test. Hosts share nothing but the control plane, so one run may test one VM on
every host at once; a fleet needs as many runs as its fullest host has VMs. Of VMs
that talk to each other over the network one run tests one.
Slowdown is vCPU time per retired instruction against the pair's plain run, and
its parts are the same difference mechanism by mechanism.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.fleet import Changes
from cluster.progress import OnProgress, Progress, ShouldStop
from cluster.results import Results
from cluster.scenario import Scenario
from cluster.session import Session
from cluster.swept_run import SweptRun
from cluster.tables import TABLES
from node.generation import Generation
from node.mechanism import Mechanism


@dataclass(frozen=True, slots=True)
class Pair:
    """One VM in one generation against itself as PLAIN. ``parts`` add up to ``slowdown - 1``."""

    vm: str
    workload: str
    generation: str
    host: str
    slowdown: float
    parts: Mapping[Mechanism, float]
    ends: Mapping[str, tuple[float, float]]
    """The slowdown at both ends of each row of costs that nobody has published, as far as it changes."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs, and the results of the run in which every VM was as the scenario wants it."""

    results: Results
    pairs: tuple[Pair, ...]


def compare(
    scenario: Scenario,
    generations: Sequence[Generation],
    *,
    layout: str = "packed",
    workers: int | None = None,
    address: str | None = None,
    seed: int | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Every VM in each of ``generations`` that its host has, each paired with itself as PLAIN."""
    chosen = scenario if seed is None else scenario.with_seed(seed)
    with Session(layout, workers, address) as session:
        return compare_in(session, chosen, generations, on_progress)


def compare_in(
    session: Session, scenario: Scenario, generations: Sequence[Generation], on_progress: OnProgress | None = None
) -> Comparison:
    """The same in a session that somebody keeps for more of them."""
    base = session.run(scenario, None, _noted(on_progress, "as the scenario wants it"), None)
    return Comparison(base, _pairs(session, scenario, base, tuple(generations), on_progress, None))


def with_pairs(
    session: Session,
    scenario: Scenario,
    base: Results,
    on_progress: OnProgress | None,
    should_stop: ShouldStop | None,
) -> Results:
    """The results of a run with its VMs' pairs beside them, each VM in its own generation."""
    began = time.monotonic()
    try:
        pairs = _pairs(session, scenario, base, None, on_progress, should_stop)
    except _StoppedError as stopped:
        return replace(base, partial=str(stopped))
    rows: list[dict[str, object]] = [
        {
            "vm": pair.vm, "generation": pair.generation, "workload": pair.workload,
            "host": pair.host, "slowdown": pair.slowdown,
        }
        for pair in pairs
    ]  # fmt: skip
    parts: list[dict[str, object]] = [
        {"vm": pair.vm, "generation": pair.generation, "mechanism": mechanism.value, "share": share}
        for pair in pairs
        for mechanism, share in pair.parts.items()
    ]
    swings: list[dict[str, object]] = [
        {"vm": pair.vm, "generation": pair.generation, "row": row, "low": low, "high": high}
        for pair in pairs
        for row, (low, high) in pair.ends.items()
    ]
    built = {"pairs": rows, "pair_parts": parts, "pair_swings": swings}
    tables = {**base.tables, **{name: TABLES[name].build(some) for name, some in built.items()}}
    return replace(base, tables=tables, run={**base.run, "pairs_s": time.monotonic() - began})


class _StoppedError(Exception):
    """A paired run was told to stop."""


def _pairs(
    session: Session,
    scenario: Scenario,
    base: Results,
    generations: tuple[Generation, ...] | None,
    on_progress: OnProgress | None,
    should_stop: ShouldStop | None,
) -> tuple[Pair, ...]:
    rows = {row["vm"]: row for row in base.tables["vms"].to_pylist() if row["running_ns"] is not None}
    hosts = {vm: row["host"] for vm, row in rows.items()}
    offered = {host.name: host.generations for host in scenario.host_instances}
    pairs: list[Pair] = []
    wanted = {vm: host for vm, host in hosts.items() if generations or rows[vm]["generation"] != Generation.PLAIN.name}
    base_swept = SweptRun(base)
    rounds = _rounds(wanted, frozenset(vm.name for vm in scenario.vm_instances if vm.group.networked))
    for number, tested in enumerate(rounds, start=1):
        runs: dict[Generation, Results] = {}

        def as_generation(
            generation: Generation,
            tested: tuple[str, ...] = tested,
            runs: dict[Generation, Results] = runs,
            number: int = number,
        ) -> Results:
            if generation not in runs:
                changes = Changes({vm: generation for vm in tested if generation in offered[hosts[vm]]}, hosts)
                note = f"pair {number} of {len(rounds)}, as {generation.name}"
                run = session.run(scenario, changes, _noted(on_progress, note), should_stop)
                if run.partial is not None:
                    raise _StoppedError(run.partial)
                runs[generation] = run
            return runs[generation]

        swept: dict[Generation, SweptRun] = {}
        for vm in tested:
            own = Generation[rows[vm]["generation"]]
            for generation in (own,) if generations is None else generations:
                if generation is Generation.PLAIN or generation not in offered[hosts[vm]]:
                    continue
                there = base if generation is own else as_generation(generation)
                plain = as_generation(Generation.PLAIN)
                pair = _pair(vm, generation, there, plain)
                if pair is None:
                    continue
                for one, results in ((generation, there), (Generation.PLAIN, plain)):
                    if one not in swept and results is not base:
                        swept[one] = SweptRun(results)
                here = base_swept if there is base else swept[generation]
                other = base_swept if plain is base else swept[Generation.PLAIN]
                pairs.append(replace(pair, ends=_ends(pair, here, other)))
    return tuple(pairs)


def _rounds(hosts: Mapping[str, str], talking: frozenset[str]) -> list[tuple[str, ...]]:
    """VMs in rounds with at most one of each host, and at most one of those that are ``talking``."""
    rounds: list[list[str]] = []
    next_of_host: dict[str, int] = {}
    next_talking = 0
    for vm in sorted(hosts):
        host = hosts[vm]
        number = next_of_host.get(host, 0)
        if vm in talking:
            number = next_talking = max(number, next_talking)
            next_talking += 1
        next_of_host[host] = number + 1
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(vm)
    return [tuple(vms) for vms in rounds if vms]


def _pair(vm: str, generation: Generation, there: Results, plain: Results) -> Pair | None:
    """None where either run retired nothing, so that there is nothing to pair."""
    own, other = _per_instruction(vm, there), _per_instruction(vm, plain)
    if not own or not other:
        return None
    whole = sum(other.values())
    parts = {one: (own[one] - other[one]) / whole for one in Mechanism}
    row = next(row for row in there.tables["vms"].to_pylist() if row["vm"] == vm)
    return Pair(vm, row["workload"], generation.name, row["host"], sum(own.values()) / whole, parts, {})


def _ends(pair: Pair, there: SweptRun, plain: SweptRun) -> Mapping[str, tuple[float, float]]:
    """The pair's slowdown while its time and that of its plain run are swept together."""
    own, other = there.of(pair.vm), plain.of(pair.vm)
    ends: dict[str, tuple[float, float]] = {}
    for row in sorted(own.ends.keys() | other.ends.keys()):
        low, high = (pair.slowdown * own.share_at(row, end) / other.share_at(row, end) for end in (0, 1))
        if not low == high == pair.slowdown:
            ends[row] = low, high
    return ends


def _per_instruction(vm: str, results: Results) -> dict[Mechanism, float]:
    row = next((row for row in results.tables["vms"].to_pylist() if row["vm"] == vm), None)
    if row is None or not row["instructions"]:
        return {}
    times = {
        Mechanism(one["mechanism"]): one["time_ns"] for one in results.tables["vm_time"].to_pylist() if one["vm"] == vm
    }
    return {one: times.get(one, 0.0) / row["instructions"] for one in Mechanism}


def _noted(on_progress: OnProgress | None, note: str) -> OnProgress | None:
    if on_progress is None:
        return None
    tell = on_progress

    def show(progress: Progress) -> None:
        tell(replace(progress, note=note))

    return show
