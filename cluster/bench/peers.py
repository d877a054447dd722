"""``sevfleet bench peers``: the star of ``bench migrations`` once more, and the same moves on SimGrid.

SimGrid (Debian's ``libsimgrid-dev`` and a C++ compiler) runs ``simgrid_star.cpp``, a program of ours on its
live-migration plugin: the same hosts, links and machines, the same pauses and targets, one migration of a host at a
time. Guests are idle: with guests that write the two do not model the same thing (on SimGrid their dirty rate follows
the speed of the migration, and rounds have no end). Its network is set to plain max-min shares, ``CM02`` without
cross-traffic, as the fabric here has.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cluster.bench.migrations import HOSTS, Timed, fleet, migrate
from cluster.errors import ToolError
from cluster.figure import Figure
from cluster.migration import Migration
from cluster.scenario import Scenario
from node.laboratory_firmware import build_image
from psp.system_bus import PAGE_BYTES

AGREEMENT = 0.05
"""How far apart the two may be where both model the same thing, as a share."""
_PROGRAM = Path(__file__).with_name("simgrid_star.cpp")
_SETTINGS = ("--log=root.thres:warning", "--cfg=network/model:CM02", "--cfg=network/crosstraffic:0")
_MOST_S = 600
_NS = 1e9


class NoSimGridError(ToolError):
    """The machine has no SimGrid, or nothing to compile a program for it with."""


@dataclass(frozen=True, slots=True)
class Star:
    """What came of the moves: seconds of virtual time as means, the end of the last, and what running them took."""

    moved: int
    lasted_s: float
    waited_s: float
    ended_s: float
    wall_s: float
    memory_bytes: int = 0

    def times(self) -> tuple[tuple[str, float], ...]:
        """Virtual times by name. A wait alone is not among them: it is the lengths of others, more or less."""
        return (
            ("mean length of a migration", self.lasted_s),
            ("mean time from order to end", self.waited_s + self.lasted_s),
            ("end of the last migration", self.ended_s),
        )

    def disagreements(self, other: Star) -> list[str]:
        """One line for each virtual time in which the two are further apart than ``AGREEMENT``."""
        pairs = [(name, mine, its) for (name, mine), (_, its) in zip(self.times(), other.times(), strict=True)]
        found = [f"{name}: {ours:.4f} s and {theirs:.4f} s" for name, ours, theirs in pairs if _apart(ours, theirs)]
        return found if self.moved == other.moved else [f"migrations: {self.moved} and {other.moved}", *found]


def run() -> Iterator[Figure]:
    """Run the star here and on SimGrid. Raises ToolError where their virtual times do not agree."""
    with tempfile.TemporaryDirectory() as folder:
        firmware = Path(folder) / "laboratory.fd"
        firmware.write_bytes(build_image(PAGE_BYTES))
        scenario = fleet(HOSTS, writing=False, firmware=firmware)
        timed = migrate(scenario)
        ours = sevfleet_star(timed)
        try:
            theirs = simgrid_star(compiled(Path(folder)), plan_of(scenario, timed.moves))
        except NoSimGridError as error:
            print(f"bench peers: {error}; no more than sevfleet's own figures", file=sys.stderr)
            yield Figure(f"{ours.moved:,} idle migrations on sevfleet", ours.wall_s, "s")
            yield Figure("mean length of a migration on sevfleet", ours.lasted_s, "virtual s")
            return
    yield Figure(f"{ours.moved:,} idle migrations on sevfleet", ours.wall_s, "s", theirs.wall_s, "SimGrid's time")
    yield Figure(f"{theirs.moved:,} idle migrations on SimGrid", theirs.wall_s, "s")
    yield Figure("memory of the process on SimGrid", theirs.memory_bytes, "byte")
    for (name, mine), (_, its) in zip(ours.times(), theirs.times(), strict=True):
        yield Figure(name, mine, "virtual s", its, "SimGrid's")
    apart = ours.disagreements(theirs)
    if apart:
        raise ToolError(f"bench peers: expected sevfleet and SimGrid within {AGREEMENT:.0%}, got {'; '.join(apart)}")


def sevfleet_star(timed: Timed) -> Star:
    """What a run of ``bench migrations`` was."""
    moves = timed.moves
    return Star(
        len(moves),
        fmean(one.ended_ns - one.started_ns for one in moves) / _NS,
        fmean(one.started_ns - one.ordered_ns for one in moves) / _NS,
        max(one.ended_ns for one in moves) / _NS,
        timed.run_s,
    )


def plan_of(scenario: Scenario, moves: Sequence[Migration]) -> str:
    """What the program reads: links and machines of a scenario, and the pauses and targets of a run of it.

    A path crosses two links, so each has half of the network's latency.
    """
    hosts = {name: number for number, name in enumerate(sorted({host for one in moves for host in _ends(one)}))}
    by_vm: dict[str, list[Migration]] = {}
    for one in moves:
        by_vm.setdefault(one.order.vm, []).append(one)
    memory = scenario.vms[0].memory
    head = f"{len(hosts)} {scenario.fabric.link} {scenario.network_latency / 2 / _NS} {memory} {len(by_vm)}"
    lines = [head]
    for name, own in sorted(by_vm.items()):
        own.sort(key=lambda one: one.ordered_ns)
        ended = [0, *(one.ended_ns for one in own)]
        pauses = [one.ordered_ns - end for one, end in zip(own, ended, strict=False)]
        steps = [f"{pause / _NS:.9f} {hosts[one.destination]}" for pause, one in zip(pauses, own, strict=True)]
        lines.append(f"{name} {hosts[own[0].source]} {len(own)} {' '.join(steps)}")
    return "\n".join(lines) + "\n"


def compiled(folder: Path) -> Path:
    """The program, built in a folder. Raises NoSimGridError."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NoSimGridError("expected a C++ compiler, found none")
    program = folder / "simgrid-star"
    build = (compiler, "-O2", "-std=c++17", "-o", str(program), str(_PROGRAM), "-lsimgrid")
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if built.returncode:
        said = next((line for line in built.stderr.splitlines() if "error" in line), "no reason given")
        raise NoSimGridError(f"expected SimGrid (Debian's libsimgrid-dev), got {said}")
    return program


def simgrid_star(program: Path, plan: str) -> Star:
    """Carry out a plan on SimGrid. Raises ToolError where the program ends badly."""
    try:
        ran = subprocess.run(
            (str(program), *_SETTINGS), input=plan, capture_output=True, text=True, check=True, timeout=_MOST_S
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise ToolError(f"bench peers: the program on SimGrid failed: {error}") from None
    *moves, wall, memory = ran.stdout.splitlines()
    times = [tuple(map(float, line.split()[1:])) for line in moves]
    return Star(
        len(times),
        fmean(ended - began for _, began, ended in times),
        fmean(began - asked for asked, began, _ in times),
        max(ended for *_, ended in times),
        float(wall.split()[1]),
        int(memory.split()[1]) << 10,
    )


def _ends(one: Migration) -> tuple[str, str]:
    return one.source, one.destination


def _apart(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) > AGREEMENT * theirs
