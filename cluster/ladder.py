"""Rung by rung: what each generation adds to the one before it, workload by workload, over seeds and products.

The ladder is PLAIN, SME, SEV, SEV_ES, SEV_SNP, SEV_TIO, as far as it is asked for and a host has it. Each rung
comes from pairs: every VM against itself run as PLAIN, on the same host, with the same
neighbours and seed. What a rung adds is the difference of two such pairs, and so are its
parts, which add up to it. Over several seeds there are means with 95 % confidence intervals. Beside them
stands the range that a rung takes on while each figure that nobody has published goes through its sweep, worked out
from the runs that there are (``cluster.swept_run``), or where that is asked for from runs of their own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from cluster.compare import Pair, compare, compare_in
from cluster.progress import OnProgress, Progress
from cluster.scenario import Scenario
from cluster.session import Session
from cluster.sweeps.confidence import Interval, interval_of
from cluster.tornado import Range, Slowdowns, Swing, range_of, swept_rows, tornado
from node.generation import Generation
from node.mechanism import Mechanism
from node.product import PRODUCTS

LEAST_SHARE = 0.00005
"""A share that would be shown as nothing."""
BETWEEN_NEIGHBOURS = (Mechanism.LOADED_LATENCY, Mechanism.LLC, Mechanism.SMT, Mechanism.CORE_WAIT, Mechanism.DISK_WAIT)
"""What machines cost each other: of SNP guests nobody has measured it."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A workload in one generation; intervals are over seeds, ``added`` and its parts against the rung below."""

    product: str
    """The product that all hosts were made; empty where they are as the scenario has them."""
    workload: str
    generation: Generation
    vms: int
    slowdown: Interval
    below: Generation
    added: Interval
    """Vcpu time per instruction on top of the rung below, as a share of PLAIN's."""
    parts: Mapping[Mechanism, Interval]
    swept: Range | None = None
    """Of the first seed, while unpublished figures are swept one at a time; None where nothing was."""
    swings: tuple[tuple[str, float, float], ...] = ()
    """The slowdown at both ends of each row that matters, widest first."""

    @property
    def model_only(self) -> str:
        """What of it nobody has measured on hardware; empty where somebody has."""
        if self.generation is Generation.SEV_TIO:
            return "model only"
        beside = self.generation is Generation.SEV_SNP and any(
            abs(self.parts[one].mean) >= LEAST_SHARE for one in BETWEEN_NEIGHBOURS
        )
        return "model only: neighbours" if beside else ""

    def body(self) -> dict[str, object]:
        """As JSON has it; shares in per cent."""
        return {
            "product": self.product, "workload": self.workload, "generation": self.generation.name, "vms": self.vms,
            "seeds": self.slowdown.n, "slowdown": self.slowdown.mean, "slowdown_half_width": self.slowdown.half_width,
            "below": self.below.name, "added_percent": 100 * self.added.mean,
            "added_half_width_percent": None if self.added.half_width is None else 100 * self.added.half_width,
            **{f"{one.value}_percent": 100 * part.mean for one, part in self.parts.items()},
            "slowdown_swept": None if self.swept is None else list(self.swept.slowdown),
            "added_swept_percent": None if self.swept is None else [100 * end for end in self.swept.added],
            "tornado": [{"row": row, "slowdown_low": low, "slowdown_high": high} for row, low, high in self.swings],
            "model_only": self.model_only or None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Mean:
    """One workload and generation under one seed: means over its VMs."""

    vms: int
    slowdown: float
    parts: Mapping[Mechanism, float]
    ends: Mapping[str, tuple[float, float]]
    """The slowdown at both ends of each row that matters."""


_Means = Mapping[tuple[str, Generation], _Mean]
_PLAIN = _Mean(0, 1.0, dict.fromkeys(Mechanism, 0.0), {})


def climb(
    scenario: Scenario,
    generations: Sequence[Generation],
    *,
    seeds: int = 1,
    products: Sequence[str] = (),
    layout: str = "packed",
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnProgress | None = None,
) -> list[Rung]:
    """All rungs of all workloads, for the scenario's hosts as they are or made each of ``products`` in turn.

    Seeds are the scenario's own and those after it. Raises ScenarioError for a product that cannot take the scenario.
    """
    rungs: list[Rung] = []
    for product in products or ("",):
        chosen = on_product(scenario, product) if product else scenario
        means: list[_Means] = []
        for number in range(seeds):
            compared = compare(
                chosen.with_seed(chosen.seed + number), generations, layout=layout, workers=workers, address=address,
                on_progress=_noted(on_progress, product, number, seeds),
            )  # fmt: skip
            means.append(_means(compared.pairs))
        rungs += _with_swings(rungs_of(product, means), _swings(means[0]))
    return rungs


def with_ranges(
    rungs: Sequence[Rung],
    scenario: Scenario,
    generations: Sequence[Generation],
    *,
    layout: str = "packed",
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnProgress | None = None,
) -> list[Rung]:
    """The rungs with the ranges that unpublished figures give them: a pair of comparisons for each that matters."""
    found: list[Rung] = []
    for product in dict.fromkeys(rung.product for rung in rungs):
        chosen = on_product(scenario, product) if product else scenario
        with Session(layout, workers, address) as session:
            predict = _predictor(session, chosen, generations, on_progress, product)
            swings = tornado(swept_rows(chosen), predict)
        found += _with_swings([rung for rung in rungs if rung.product == product], swings)
    return found


def _swings(means: _Means) -> list[Swing]:
    """Of the sweep of one seed's runs."""
    rows = sorted({row for mean in means.values() for row in mean.ends})
    return [
        Swing(row, {key: mean.ends.get(row, (mean.slowdown, mean.slowdown)) for key, mean in means.items()})
        for row in rows
    ]


def _with_swings(rungs: Sequence[Rung], swings: Sequence[Swing]) -> list[Rung]:
    found = []
    for rung in rungs:
        own = rung.workload, rung.generation
        mine = [(swing.row, *swing.ends[own]) for swing in swings if own in swing.ends]
        mine = [one for one in mine if one[1] != one[2]]
        mine.sort(key=lambda one: (-abs(one[2] - one[1]), one[0]))
        swept = range_of(swings, *own, rung.below, rung.slowdown.mean, rung.added.mean)
        found.append(replace(rung, swept=swept, swings=tuple(mine)))
    return found


def _predictor(
    session: Session, scenario: Scenario, generations: Sequence[Generation], on_progress: OnProgress | None,
    product: str,
) -> Callable[[Mapping[str, float]], Slowdowns]:
    asked = 0

    def predict(changes: Mapping[str, float]) -> Slowdowns:
        nonlocal asked
        asked += 1
        note = " ".join([*([product] if product else []), f"sweep {asked}", *list(changes)[:1]])
        changed = scenario.model_copy(update={"costs": {**scenario.costs, **changes}})
        compared = compare_in(session, changed, generations, _with_note(on_progress, note))
        return {key: mean.slowdown for key, mean in _means(compared.pairs).items()}

    return predict


def on_product(scenario: Scenario, product: str) -> Scenario:
    """The scenario with all hosts of one product; machines of generations that it does not have are PLAIN.

    What a host group says of another product's firmware and ASIDs is left out, and so are orders to its firmware.
    """
    values = tomllib.loads(scenario.to_toml())
    known = {one.name for one in PRODUCTS[product].generations}
    values.pop("firmware_updates", None)
    for host in values["hosts"]:
        host["product"] = product
        for name in _OF_A_PRODUCT & host.keys():
            del host[name]
    for vm in values.get("vms", ()):
        if vm["generation"] not in known:
            vm["generation"] = Generation.PLAIN.name
            for name in _OF_THE_PROTECTED & vm.keys():
                del vm[name]
    if "trace" in values:
        mix = values["trace"]["generations"]
        values["trace"]["generations"] = {name: share for name, share in mix.items() if name in known} or {"PLAIN": 1}
    return Scenario.parse(values, scenario.name)


_OF_A_PRODUCT = {"firmware", "min_sev_asid", "ciphertext_hiding"}
_OF_THE_PROTECTED = {"svsm", "attest_to", "kernel"}


def rungs_of(product: str, means: Sequence[_Means]) -> list[Rung]:
    """Rungs from what each seed gave; a workload's rung counts where every seed has it."""
    keys = sorted(set.intersection(*map(set, means)), key=lambda key: (key[0], _HEIGHT[key[1]])) if means else []
    return [_rung(product, means, keys, workload, generation) for workload, generation in keys]


def _rung(
    product: str, means: Sequence[_Means], keys: Sequence[tuple[str, Generation]], workload: str, generation: Generation
) -> Rung:
    lower = [one for name, one in keys if name == workload and _HEIGHT[one] < _HEIGHT[generation]]
    below = lower[-1] if lower else Generation.PLAIN
    pairs = [(seed[workload, generation], seed.get((workload, below), _PLAIN)) for seed in means]
    return Rung(
        product,
        workload,
        generation,
        pairs[0][0].vms,
        interval_of([here.slowdown for here, _ in pairs]),
        below,
        interval_of([here.slowdown - there.slowdown for here, there in pairs]),
        {one: interval_of([here.parts[one] - there.parts[one] for here, there in pairs]) for one in Mechanism},
    )


_HEIGHT = {generation: height for height, generation in enumerate(Generation)}


def _means(pairs: Sequence[Pair]) -> _Means:
    groups: dict[tuple[str, Generation], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.workload, Generation[pair.generation]), []).append(pair)
    return {
        key: _Mean(
            len(some), fmean(pair.slowdown for pair in some),
            {part: fmean(pair.parts[part] for pair in some) for part in Mechanism},
            {
                row: (low, high)
                for row in sorted({row for pair in some for row in pair.ends})
                for low, high in [[fmean(_end(pair, row, end) for pair in some) for end in (0, 1)]]
            },
        )
        for key, some in groups.items()
    }  # fmt: skip


def _end(pair: Pair, row: str, end: int) -> float:
    return pair.ends[row][end] if row in pair.ends else pair.slowdown


def _noted(on_progress: OnProgress | None, product: str, number: int, seeds: int) -> OnProgress | None:
    where = " ".join([*([product] if product else []), *([f"seed {number + 1} of {seeds}"] if seeds > 1 else [])])
    return _with_note(on_progress, where)


def _with_note(on_progress: OnProgress | None, where: str) -> OnProgress | None:
    if on_progress is None:
        return None
    tell = on_progress

    def show(progress: Progress) -> None:
        tell(replace(progress, note=f"{where}: {progress.note}" if where else progress.note))

    return show
