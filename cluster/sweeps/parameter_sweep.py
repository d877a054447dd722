"""Run a scenario with many seeds and settings: whole simulations side by side, and one table of what they found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from cluster.progress import ShouldStop
from cluster.scenario import Scenario
from cluster.sweeps.figures import chosen_figures
from cluster.sweeps.folder import SweepFolder
from cluster.sweeps.plan import DEFAULT_SEEDS, Run, SweepPlan
from cluster.sweeps.progress import OnSweepProgress, Pace
from cluster.sweeps.run import RunOrder, RunOutcome
from cluster.sweeps.tables import sweep_tables
from cluster.sweeps.workers import finished_runs, workers_for
from node.program import Scalar


@dataclass(frozen=True)
class SweepResults:
    """What a sweep found, as pyarrow tables (columns: cluster/sweeps/tables.py).

    ``table`` has a row per grid point, figure and what it is of, with mean and
    confidence interval; ``runs`` a row per run; ``points`` every value.
    ``partial`` is why the sweep ended early, None for a whole one.
    """

    plan: SweepPlan = field(repr=False)
    table: pa.Table = field(repr=False)
    runs: pa.Table = field(repr=False)
    points: pa.Table = field(repr=False)
    failures: Mapping[Run, str]
    """Runs without a result, and why."""
    partial: str | None = None


def sweep(
    scenario: Scenario,
    *,
    seeds: int | Iterable[int] = DEFAULT_SEEDS,
    grid: Mapping[str, Iterable[Scalar]] | None = None,
    figures: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnSweepProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> SweepResults:
    """Run ``scenario`` with every combination of the values in ``grid`` and every seed.

    ``grid`` has values by path (``cluster/sweeps/scenario_paths.py``), written as in a
    scenario file; a number of ``seeds`` counts from the scenario's own. With
    ``out``, each run is kept there as it ends, and a sweep that was cut off goes
    on where it was. As many simulations run at once as there are ``workers``:
    Ray actors, one a core where nobody says; 0 is one after another in this
    process. They may be actors of the Ray cluster at ``address`` (HOST:PORT).
    Tables are the same in any case. Raises UserError before anything is
    begun for what cannot be; ToolError where Ray or the disk fails.

    >>> from cluster import Scenario, sweep
    >>> swept = sweep(Scenario.load("fleet.toml"), grid={"costs.core.vmgexit_ns": [2000, 3000]})  # doctest: +SKIP
    """
    chosen = chosen_figures(figures)
    plan = SweepPlan.of(scenario, seeds, grid)
    pairs = any(figure.pairs for figure in chosen)
    played = played_runs(
        plan, lambda outcomes: sweep_tables(plan, outcomes, chosen), pairs=pairs, out=out, workers=workers,
        address=address, on_progress=on_progress, should_stop=should_stop,
    )  # fmt: skip
    tables = played.tables
    return SweepResults(plan, tables["sweep"], tables["runs"], tables["points"], played.failures, played.partial)


@dataclass(frozen=True, slots=True)
class PlayedRuns:
    """The runs of a plan that are over, as tables, and why some have no result."""

    tables: Mapping[str, pa.Table]
    failures: Mapping[Run, str]
    partial: str | None


def played_runs(
    plan: SweepPlan,
    tables_of: Callable[[Mapping[Run, RunOutcome]], Mapping[str, pa.Table]],
    *,
    pairs: bool,
    out: str | Path | None,
    workers: int | None,
    address: str | None,
    on_progress: OnSweepProgress | None,
    should_stop: ShouldStop | None,
) -> PlayedRuns:
    """Play what is not yet kept in ``out``; ``tables_of`` the outcomes are kept there once all runs are over."""
    workers_for(workers, len(plan.runs), address)  # refused before anything is written
    stop = should_stop or _never
    with contextlib.ExitStack() as stack:
        folder = None if out is None else stack.enter_context(SweepFolder.opened(out, plan, pairs=pairs))
        outcomes = _kept(plan, folder)
        todo = [run for run in plan.runs if run not in outcomes]
        pace = Pace(len(plan.runs), len(outcomes), on_progress)
        orders = [RunOrder(run.described(plan.axes), run.point.text, run.seed, pairs) for run in todo]
        finished = stack.enter_context(
            contextlib.closing(
                finished_runs(
                    orders, workers_for(workers, len(todo), address), pace.under_way, stop, address, pace.happened
                )
            )
        )
        for index, outcome in finished:
            outcomes[todo[index]] = outcome
            if folder is not None:
                folder.keep(todo[index], outcome)
            pace.finished(failed=outcome.reason is not None)
        partial = None if len(outcomes) == len(plan.runs) else stop() or "stopped"
        tables = tables_of(outcomes)
        if folder is not None and partial is None:
            folder.keep_tables(tables)
    failures = {run: outcomes[run].reason or "" for run in plan.runs if run in outcomes and outcomes[run].reason}
    return PlayedRuns(tables, failures, partial)


def _never() -> str | None:
    return None


def _kept(plan: SweepPlan, folder: SweepFolder | None) -> dict[Run, RunOutcome]:
    found = {} if folder is None else {run: folder.read(run) for run in plan.runs}
    return {run: outcome for run, outcome in found.items() if outcome is not None}

