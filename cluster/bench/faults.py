"""``sevfleet bench faults``: schedules of moves and faults by chance, each judged from outside.

Two thousand small fleets and some more, in each of which a VM of one generation moves up to three times while hosts and
the control plane crash, links break and messages go astray. Whatever happens, at most one host runs it at any time; in
the end it runs in one place, whole and with all pages that it has validated, unless a host crashed that alone had it;
no other host has anything of it; and each move that did not complete says why. A schedule that fails is made smaller as
long as it fails, and named. Two of five have two faults at once besides that no scenario has a word for
(``cluster.bench.fault_pairs``). Then each fault comes at each point of a move (``cluster.bench.fault_grid``). Whoever
watches sees windows; every thirteenth schedule is played once more as users run fleets, without them, and has to tell
the same.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.bench import fault_grid
from cluster.bench.fault_pairs import Schedule, drawn, played, smallest
from cluster.bench.moving_machines import CHIPS, VM, moving
from cluster.bench.progress import bench_line
from cluster.errors import ToolError
from cluster.figure import Figure
from node.laboratory_firmware import build_image
from psp.system_bus import PAGE_BYTES

SCHEDULES = 2000
GENERATIONS = ("PLAIN", "SEV", "SEV_ES", "SEV_SNP")
BESIDES = {
    "SEV_SNP above an SVSM": 60, "SEV_SNP by its handler": 250, "SEV_SNP by its handler and agents": 60, "SEV_TIO": 60,
    "SEV_TIO by its handler": 60,
}  # fmt: skip
"""Other ways to move, and how many schedules of each are played besides."""
TWICE = 13
"""Of so many schedules one is played a second time, with nobody watching. It has no factor in common with the faults at
a point of any way to move, nor with how often a schedule is of post-copy, so that each has its turn."""
_QUICK = {"psp.send_update_ns_per_kib": 10240, "psp.receive_update_ns_per_kib": 10240}


def run() -> Iterator[Figure]:
    """Play every schedule. Raises ToolError for one after which a VM is lost, doubled or altered."""
    with tempfile.TemporaryDirectory() as folder:
        firmware = small_firmware(Path(folder))
        more = SCHEDULES % len(GENERATIONS)
        counts = dict.fromkeys(GENERATIONS, SCHEDULES // len(GENERATIONS)) | BESIDES
        counts[GENERATIONS[0]] += more
        for generation, count in counts.items():
            began = time.perf_counter()
            seeds = range(count)
            outcomes: Counter[str] = Counter()
            with bench_line("bench faults", f"schedules, {generation}") as tell:
                for seed in seeds:
                    one = whole_schedule(seed, generation, firmware)
                    found, moves = played(one, twice=seed % TWICE == 0)
                    if found is not None:
                        raise ToolError(f"bench faults: {generation}, seed {seed}: {found}; smallest: {smallest(one)}")
                    outcomes.update(move.outcome.value for move in moves)
                    tell(seed + 1, count)
            took_s = time.perf_counter() - began
            yield Figure(f"{len(seeds)} schedules, {generation}, none lost, doubled or altered", took_s, "s")
            for name, times in sorted(outcomes.items()):
                yield Figure(f"moves that ended as {name}, {generation}", times, "moves")
        yield from _aimed(firmware)


def _aimed(firmware: Path) -> Iterator[Figure]:
    """Every fault at every point of a move."""
    for way in fault_grid.GENERATIONS:
        cells, began = list(fault_grid.cells(way, firmware)), time.perf_counter()
        with bench_line("bench faults", f"faults at points of a move, {way}") as tell:
            for number, cell in enumerate(cells, start=1):
                found, _ = fault_grid.played(cell, firmware, 0, twice=number % TWICE == 0)
                if found is not None:
                    raise ToolError(f"bench faults: {way}: {cell.fault}, {cell.point}: {found}")
                tell(number, len(cells))
        took_s = time.perf_counter() - began
        yield Figure(f"{len(cells)} faults at points of a move, {way}, none lost, doubled or altered", took_s, "s")


def small_firmware(folder: Path) -> Path:
    """The smallest image there is: that of OVMF would be most of the memory."""
    firmware = folder / "laboratory.fd"
    firmware.write_bytes(build_image(PAGE_BYTES))
    return firmware


def whole_schedule(seed: int, generation: str, firmware: Path) -> Schedule:
    """The scenario of a seed, and in some of them two faults at once that no scenario has a word for."""
    return Schedule(schedule(seed, generation, firmware), drawn(seed, generation))


def schedule(seed: int, generation: str, firmware: Path) -> dict[str, Any]:
    """A scenario of moves and one to five faults, all by chance.

    What is lost of messages and where the VM goes follows from the scenario's own seed, all else from ``seed``.
    """
    dice = random.Random(seed)  # noqa: S311 - it need not be secret
    faults = [_fault(dice) for _ in range(dice.randint(1, 4))]
    moves: list[dict[str, Any]] = [
        {"vm": VM, "at": "1 s", "times": dice.randint(1, 3), "pause": f"{dice.randint(0, 80)} ms",
         "placement": "random"},
    ]  # fmt: skip
    if dice.random() < 0.3:
        moves.append({"vm": VM, "at": f"{dice.randint(1000, 1500)} ms", "to": "host-3"})
    if dice.random() < 0.3:
        moves[0]["cancel_after"] = f"{dice.randint(1, 900_000)} us"
    how: dict[str, Any] = {"answer_within": "20 ms", "answer_tries": 5}
    attested = "SNP" in generation or "TIO" in generation
    latest_us = 1_400_000
    if seed % 5 == 4:
        how["mode"], latest_us = "post-copy", 1_090_000
    if dice.random() < 0.4:
        faults.append({
            "kind": "link", "host": f"host-{dice.randint(1, 3)}", "at": f"{dice.randint(990_000, latest_us)} us",
            "lasts": f"{dice.choice((0, 5, 50, 500))} ms",
        })  # fmt: skip
        how["recover_after"] = f"{dice.choice((0, 30))} ms"
    body = moving(generation, firmware)
    return body | {
        "schema": 1, "name": "faults", "seed": seed % CHIPS if attested else seed, "duration": "8 s",
        "migrations": moves, "faults": faults, "costs": _QUICK | body["costs"], "migration": how,
    }  # fmt: skip


def _fault(dice: random.Random) -> dict[str, Any]:
    fault: dict[str, Any] = {"kind": dice.choice(("messages", "messages", "host-crash", "control-plane-crash"))}
    fault["at"] = f"{dice.randint(990_000, 1_900_000)} us"
    if fault["kind"] == "host-crash" or (fault["kind"] == "messages" and dice.random() < 0.8):
        fault["host"] = f"host-{dice.randint(1, 3)}"
    if fault["kind"] == "messages":
        fault |= {
            "lasts": f"{dice.choice((5, 50, 500, 1500))} ms", "direction": dice.choice(("both", "to", "from")),
            "lost": dice.choice((0.0, 0.3, 1.0)), "repeated": dice.choice((0.0, 0.5)),
            "late": f"{dice.choice((0, 3, 40))} ms",
        }  # fmt: skip
    return fault
