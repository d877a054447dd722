"""What neighbours and generation make of each workload's time in a run, and the range that it takes on under sweeps.

A workload is stretched by what its machines' time is over what their program itself needs. The range is that of
``cluster.swept_run``: each figure that nobody has published goes to the ends of its sweep, one after another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.results import Results
from cluster.swept_run import SweptRun, SweptTimes, Times
from node.mechanism import Mechanism

OWN = (
    Mechanism.CORE, Mechanism.MEMORY, Mechanism.PAGE_WALK, Mechanism.EXITS, Mechanism.OPERATIONS, Mechanism.BOOT,
    Mechanism.LINK,
)  # fmt: skip
"""What a program costs as a plain guest alone on its host; slowdown is counted from here."""


@dataclass(frozen=True, slots=True)
class Stretched:
    """All machines of one workload and generation, ``value`` in the run and ``low`` to ``high`` under sweeps."""

    workload: str
    generation: str
    value: float
    low: float
    high: float
    swings: tuple[tuple[str, float, float], ...]
    """Each row that matters, with the value at both ends of its range; widest first."""

    def body(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "workload": self.workload, "generation": self.generation, "stretched": self.value,
            "swept": [self.low, self.high],
            "tornado": [{"row": row, "low": low, "high": high} for row, low, high in self.swings],
        }  # fmt: skip


def kinds_of(results: Results) -> Mapping[str, tuple[str, str]]:
    """By machine its workload and generation, with a word where an SVSM is below it."""
    on_svsm = {row["vm"] for row in results.tables["svsms"].to_pylist()}
    return {
        row["vm"]: (row["workload"], row["generation"] + (" on SVSM" if row["vm"] in on_svsm else ""))
        for row in results.tables["vms"].to_pylist()
    }


def stretched(results: Results) -> list[Stretched]:
    """Each workload and generation that used its vCPUs, in the order of their names."""
    swept, kinds = SweptRun(results), kinds_of(results)
    machines: defaultdict[tuple[str, str], list[SweptTimes]] = defaultdict(list)
    for vm in swept.vms:
        machines[kinds[vm]].append(swept.of(vm))
    found = []
    for kind, some in sorted(machines.items()):
        value = _over_own(one.times for one in some)
        if value is None:
            continue
        swings = []
        for row in sorted({row for one in some for row in one.ends}):
            low, high = (_over_own(one.at(row, end) for one in some) or value for end in (0, 1))
            if not low == high == value:
                swings.append((row, low, high))
        swings.sort(key=lambda one: (-abs(one[2] - one[1]), one[0]))
        ends = [value, *[end for _, *both in swings for end in both]]
        found.append(Stretched(*kind, value, min(ends), max(ends), tuple(swings)))
    return found


def _over_own(machines: Iterable[Times]) -> float | None:
    own = total = 0.0
    for times in machines:
        own += sum([times[mechanism] for mechanism in OWN])
        total += sum(times.values())
    return total / own if own > 0 else None
