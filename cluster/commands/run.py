"""``sevfleet run``: a scenario in virtual time."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING

from cluster.commands.arguments import add_layout, add_scenario, duration_ns, look_at_address, whole_number
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.progress import OnProgress, Progress, ShouldStop
    from cluster.results import Results
    from cluster.scenario import Scenario

NAME = "run"
HELP = "run a scenario in virtual time"
DESCRIPTION = """\
Runs a scenario and prints what it found: each workload's slowdown by generation
and mechanism, what waited on the security processors, memory and ASIDs in use,
and what limits the fleet. Without a scenario, the demo.

Ctrl-C ends a run early; what is known by then is shown, and kept where --out is
given, marked as partial."""
_MOST_MACHINES = 2000
EXAMPLE = "sevfleet run launch-storm --out out/ --seed 7"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_scenario(parser)
    parser.add_argument("--out", metavar="DIR", help="keep the results in this folder (new, empty, or earlier results)")
    add_layout(parser)
    parser.add_argument(
        "--metrics-port",
        type=whole_number("metrics-port", 0, 65535),
        metavar="P",
        help="serve metrics for Prometheus on 127.0.0.1 while it runs (0: any free port)",
    )
    parser.add_argument(
        "--time-limit",
        type=duration_ns("time-limit"),
        metavar="T",
        help='end early after this much wall time, such as "60 s"; results are then partial',
    )
    parser.add_argument(
        "--pairs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also run each VM again as PLAIN and show what its generation cost it (default: for the demo)",
    )
    parser.add_argument(
        "--log", action="store_true", help="keep every record of every host and VM, for sevfleet trace; needs --out"
    )
    parser.add_argument(
        "--log-entity", action="append", default=[], metavar="NAME",
        help="as --log, but of this host or VM only; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", action=argparse.BooleanOptionalAction, default=None,
        help=f"the ranges that figures which nobody has published give it (default: up to {_MOST_MACHINES:,} machines)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of tables")


def execute(arguments: argparse.Namespace) -> int:
    """Run, show, keep."""
    look_at_address(arguments)

    from cluster.bundled_scenarios import load_scenario
    from cluster.commands.stopping import Stopping
    from cluster.errors import RunFailedError, ToolError
    from cluster.results import check_room_for

    scenario = load_scenario(arguments.scenario)
    if arguments.out is not None:
        check_room_for(arguments.out)
    elif arguments.log or arguments.log_entity:
        raise UserError("--log: expected --out DIR beside it, where the log is kept")
    with Stopping() as stopping:
        try:
            results = _run(arguments, scenario, stopping.requested)
        except RunFailedError as error:
            if error.partial is None:
                raise
            _deliver(arguments, error.partial)
            raise ToolError(f"{error} ({_kept(arguments)})") from None
    _deliver(arguments, results)
    if results.partial is None or not stopping.exit_code:
        return 0  # also where an end was asked for when all was done
    print(f"sevfleet: {results.partial} ({_kept(arguments)})", file=sys.stderr)
    return stopping.exit_code


def _run(arguments: argparse.Namespace, scenario: Scenario, should_stop: ShouldStop) -> Results:
    from cluster.bundled_scenarios import DEMO, in_file_of
    from cluster.progress_line import progress_line
    from cluster.simulation import run

    with contextlib.ExitStack() as stack:
        shows: list[OnProgress] = []
        if arguments.metrics_port is not None:
            from cluster.metrics import MetricsServer

            server = stack.enter_context(MetricsServer(arguments.metrics_port))
            shows.append(server.show)
            if not arguments.quiet:
                print(f"metrics on http://127.0.0.1:{server.port}/metrics", file=sys.stderr, flush=True)
        if not arguments.quiet:
            shows.append(stack.enter_context(progress_line(scenario.name)))

        def on_progress(progress: Progress) -> None:
            for show in shows:
                show(progress)

        stack.enter_context(in_file_of(arguments.scenario))
        return run(
            scenario,
            layout=arguments.layout,
            workers=arguments.workers,
            address=arguments.address,
            seed=arguments.seed,
            on_progress=on_progress,
            should_stop=should_stop,
            time_limit_s=None if arguments.time_limit is None else arguments.time_limit / 1e9,
            log=arguments.log or arguments.log_entity,
            pairs=arguments.pairs if arguments.pairs is not None else arguments.scenario == DEMO,
        )


def _deliver(arguments: argparse.Namespace, results: Results) -> None:
    """Show first: a full disk must not swallow what was found."""
    from cluster.errors import ToolError
    from cluster.stretched import stretched

    wanted = arguments.sweep if arguments.sweep is not None else results.vms.num_rows <= _MOST_MACHINES
    ranges = stretched(results) if wanted and (arguments.json or not arguments.quiet) else []
    if arguments.json:
        swept = {"stretched": [one.body() for one in ranges]} if ranges else {}
        print(json.dumps(results.summary | swept, indent=2, sort_keys=True), flush=True)
    elif not arguments.quiet:
        from cluster.report import print_summary

        print_summary(results, ranges=ranges)
    if arguments.out is None:
        return
    try:
        results.save(arguments.out)
    except OSError as error:
        raise ToolError(f"{arguments.out}: the results could not be written: {error.strerror or error}") from None
    if not arguments.quiet and not arguments.json:
        print(f"results in {arguments.out}")


def _kept(arguments: argparse.Namespace) -> str:
    return f"partial results in {arguments.out}" if arguments.out is not None else "partial results were not kept"
