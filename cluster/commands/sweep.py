"""``sevfleet sweep``: a scenario with many seeds and settings."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from cluster.commands.arguments import add_address, look_at_address, whole_number
from cluster.errors import ToolError, UserError

if TYPE_CHECKING:
    from cluster.progress import ShouldStop
    from cluster.sweeps.parameter_sweep import SweepResults
    from cluster.sweeps.unpublished import UnpublishedSweep
    from node.program import Scalar

NAME = "sweep"
HELP = "run seeds and settings side by side"
DESCRIPTION = """\
Runs a scenario with every combination of settings and every seed, whole simulations
side by side on all cores, and prints one table: for each grid point and figure the
mean over the seeds with its 95 % confidence interval.

A setting is a path and values as a scenario has them: vms.database.memory="1 GiB,2 GiB",
vms.*.generation=PLAIN,SEV_SNP, costs.core.vmgexit_ns=2000,3000, trace.vms=1..4.

With --unpublished, instead: the scenario as it is, and with each row of the cost table that
nobody has published at both ends of its sweep, one at a time (some 130 runs a seed).
Prints the range of every figure, launches, migrations and waits among them, and which
rows matter. Ranges of `sevfleet run` are quicker, and of stretched alone.

Each run is kept in --out as it ends. After Ctrl-C or a crash the same command goes on;
more seeds and values may be added. Figures, those without an asterisk on request:
  stretched* launch_ns* psp_wait_ns* psp_longest_wait_ns migration_ns* downtime_ns*
  not_migrated* not_as_asked* work slowdown encryption_share rmp_share numa_share vmgexit_share
  acceptance_share bounce_share ide_share svsm_share psp_share psp_wait_share disk_wait_share
  loaded_latency_share llc_share smt_share core_wait_share migration_share core_ratio
  bandwidth_ratio memory_peak_bytes

Exit code 1: some runs have no result; the table says why."""
EXAMPLE = """\
sevfleet sweep quiet --seeds 8 --set costs.core.vmgexit_ns=2000,4000 --out sweep/
  sevfleet sweep launch-storm --unpublished --out ranges/"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("scenario", metavar="SCENARIO", help="a scenario file, or the name of a bundled one")
    parser.add_argument(
        "--seeds", type=_seeds, metavar="SEEDS",
        help="how many, from the scenario's own on, or which: 8, or 1..20, or 3,5,8 (default: 5; 1 with --unpublished)",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], type=_setting, metavar="PATH=VALUES",
        help="a setting to vary; may be given again, for every combination",
    )  # fmt: skip
    parser.add_argument(
        "--unpublished", action="store_true",
        help="instead of settings: each row of the cost table that nobody has published, at both ends of its sweep",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", help="keep runs and tables in this folder (new, empty, or of this sweep)"
    )
    parser.add_argument(
        "--workers", type=whole_number("workers", 0, 4096), metavar="N",
        help="simulations at once, each in a process of Ray; 0: one after another, without Ray (default: one per core)",
    )  # fmt: skip
    add_address(parser)
    parser.add_argument(
        "--figure", dest="figures", action="append", metavar="NAME", help="show this figure; may be given again"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the table as JSON, one object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Run, show, say what is missing."""
    look_at_address(arguments)

    from cluster.commands.stopping import Stopping

    with Stopping() as stopping:
        try:
            results = _sweep(arguments, stopping.requested)
        except ToolError as error:
            raise ToolError(f"{error} ({_kept(arguments)})") from None
    _show(arguments, results)
    if stopping.exit_code and results.partial is not None:
        done = f"{results.runs.num_rows:,} of {len(results.plan.runs):,} runs are done"
        print(f"sevfleet: {results.partial}, {done} ({_kept(arguments)})", file=sys.stderr)
        return stopping.exit_code
    if results.failures:
        run, reason = next(iter(results.failures.items()))
        count = f"{len(results.failures):,} of {len(results.plan.runs):,} runs have no result"
        raise ToolError(f"{count}, first {run.described(results.plan.axes)}: {reason}")
    return 0


def _sweep(arguments: argparse.Namespace, should_stop: ShouldStop) -> SweepResults | UnpublishedSweep:
    from cluster.bundled_scenarios import load_scenario
    from cluster.sweeps.figures import UnknownFigureError
    from cluster.sweeps.parameter_sweep import sweep
    from cluster.sweeps.plan import DEFAULT_SEEDS, GridError, SeedsError
    from cluster.sweeps.progress import sweep_line
    from cluster.sweeps.scenario_paths import PathError
    from cluster.sweeps.unpublished import sweep_unpublished
    from cluster.sweeps.workers import WorkersError

    if arguments.unpublished and arguments.settings:
        raise UserError("--set: expected without --unpublished, which takes one row at a time")
    scenario = load_scenario(arguments.scenario)
    with contextlib.ExitStack() as stack:
        shown = None if arguments.quiet else stack.enter_context(sweep_line(f"sweep {scenario.name}"))
        try:
            if arguments.unpublished:
                return sweep_unpublished(
                    scenario, seeds=arguments.seeds or 1, figures=arguments.figures, out=arguments.out,
                    workers=arguments.workers, address=arguments.address, on_progress=shown, should_stop=should_stop,
                )  # fmt: skip
            return sweep(
                scenario, seeds=DEFAULT_SEEDS if arguments.seeds is None else arguments.seeds,
                grid=_grid(arguments.settings), figures=arguments.figures, out=arguments.out,
                workers=arguments.workers, address=arguments.address, on_progress=shown, should_stop=should_stop,
            )  # fmt: skip
        except (PathError, GridError) as error:
            asked = "--unpublished:" if arguments.unpublished else "--set"
            raise UserError(f"{asked} {error}") from None
        except (SeedsError, WorkersError) as error:
            raise UserError(f"--{error}") from None
        except UnknownFigureError as error:
            raise UserError(f"--figure: {error}") from None


def _grid(settings: list[tuple[str, tuple[Scalar, ...]]]) -> dict[str, tuple[Scalar, ...]]:
    grid: dict[str, tuple[Scalar, ...]] = {}
    for path, values in settings:
        if path in grid:
            raise UserError(f"--set {path}: expected once, with all its values, got it twice")
        grid[path] = values
    return grid


def _show(arguments: argparse.Namespace, results: SweepResults | UnpublishedSweep) -> None:
    from cluster.sweeps.parameter_sweep import SweepResults
    from cluster.sweeps.report import print_ranges, print_rows_as_json, print_sweep

    if arguments.quiet:
        return
    if arguments.json:
        # Rows of half a sweep would pass for those of a whole one.
        if results.partial is None:
            print_rows_as_json(results.table if isinstance(results, SweepResults) else results.ranges)
        return
    if isinstance(results, SweepResults):
        print_sweep(results)
    else:
        print_ranges(results)
    if arguments.out is not None and results.partial is None:
        print(f"tables in {arguments.out}")


def _kept(arguments: argparse.Namespace) -> str:
    if arguments.out is None:
        return "nothing was kept: there is no --out"
    return f"kept in {arguments.out}; the same command goes on from there"


def _setting(text: str) -> tuple[str, tuple[Scalar, ...]]:
    from cluster.sweeps.values import ValuesError, setting_of

    try:
        return setting_of(text)
    except ValuesError as error:
        raise UserError(f"--set {error}") from None


def _seeds(text: str) -> int | tuple[int, ...]:
    from cluster.sweeps.values import ValuesError, seeds_of

    try:
        return seeds_of(text)
    except ValuesError as error:
        raise UserError(f"--seeds: {error}") from None
