"""``sevfleet trace``: what happened to one host or VM, in virtual time."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.arguments import duration_ns, whole_number
from cluster.errors import ToolError, UserError

if TYPE_CHECKING:
    from cluster.entity_trace import EntityTrace

NAME = "trace"
HELP = "show what happened to one host or VM"
DESCRIPTION = """\
Prints the event log of a host or VM of a saved run, and writes it as a trace that
https://ui.perfetto.dev and chrome://tracing open: vCPUs, security processor, stays
on hosts. Where the run was made without --log, its scenario is run again as far as
needed, and the digests of all hosts and VMs say whether it was the same run.

Exit code 1: the run made again was another one."""
EXAMPLE = 'sevfleet trace out/ --entity database-snp --from "1 min" --to "2 min"'


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", metavar="DIR", help="a results folder")
    parser.add_argument("--entity", required=True, metavar="NAME", help="the host or VM")
    parser.add_argument(
        "--from", dest="from_ns", type=duration_ns("from"), default=0, metavar="T",
        help='virtual time to begin at, such as "10 s" (default: the beginning)',
    )  # fmt: skip
    parser.add_argument(
        "--to", dest="to_ns", type=duration_ns("to"), metavar="T", help="virtual time to end at (default: the end)"
    )
    parser.add_argument(
        "--limit", type=whole_number("limit", 0, 10**9), default=200, metavar="N",
        help="most lines to print, 0 for all (default: 200); the trace file has everything",
    )  # fmt: skip
    parser.add_argument(
        "--perfetto", metavar="FILE", help="the trace file (default: NAME.trace.json in the current folder)"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def execute(arguments: argparse.Namespace) -> int:
    """Find or make the log, print it, write the trace."""
    from cluster.commands.stopping import Stopping
    from cluster.entity_trace import entity_trace
    from cluster.progress_line import progress_line

    into = Path(arguments.perfetto).parent if arguments.perfetto else Path()
    _check_target(into, arguments)
    with Stopping() as stopping, contextlib.ExitStack() as stack:
        trace = entity_trace(
            arguments.folder, arguments.entity, from_ns=arguments.from_ns, to_ns=arguments.to_ns,
            on_progress=None if arguments.quiet else stack.enter_context(progress_line("running again")),
            should_stop=stopping.requested,
        )  # fmt: skip
    file = Path(arguments.perfetto or f"{trace.entity}.trace.json")
    if not arguments.quiet:
        _print(trace, arguments.limit)
    count = _write(trace, file)
    if not arguments.quiet:
        print(f"{file}: {count:,} events for https://ui.perfetto.dev")
    if trace.stopped is not None:
        print(f"sevfleet: {trace.stopped}", file=sys.stderr)
        return stopping.exit_code
    if trace.parted is not None:
        print(f"sevfleet: {_parted(arguments.folder, trace)}", file=sys.stderr)
        return 1
    return 0


def _check_target(into: Path, arguments: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, or that would make a results folder something else."""
    if not into.is_dir():
        raise UserError(f"--perfetto: expected a file in a folder that exists, got {arguments.perfetto}")
    if arguments.perfetto and Path(arguments.perfetto).is_dir():
        raise UserError(f"--perfetto: expected a file, got the folder {arguments.perfetto}")
    if into.resolve() == Path(arguments.folder).resolve():
        raise UserError(f"--perfetto: expected a file outside of the results folder {arguments.folder}")


def _print(trace: EntityTrace, limit: int) -> None:
    from cluster.event_lines import event_lines, seconds

    source = "run again" if trace.run_again else "from the log"
    total = trace.events.num_rows
    print(f"{trace.entity}, {seconds(trace.from_ns)} to {seconds(trace.to_ns)}, {total:,} records, {source}")
    shown = trace.events if limit == 0 else trace.events.slice(0, limit)
    for line in event_lines(shown, trace.entity):
        print(line)
    if shown.num_rows < total:
        print(f"... and {total - shown.num_rows:,} more; --limit 0 prints all, --from and --to choose")


def _write(trace: EntityTrace, file: Path) -> int:
    """Write the trace file whole or not at all."""
    from cluster.trace_events import write_trace_events

    new = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        with new.open("w", encoding="utf-8") as stream:
            count = write_trace_events(stream, trace)
        new.replace(file)
    except OSError as error:
        raise ToolError(f"{file}: the trace could not be written: {error.strerror or error}") from None
    finally:
        new.unlink(missing_ok=True)
    return count


def _parted(folder: str, trace: EntityTrace) -> str:
    from cluster.units import DURATION

    assert trace.parted is not None
    since = DURATION.format(trace.parted.start_ns)
    versions = f"; other versions of {', '.join(trace.other_versions)}" if trace.other_versions else ""
    return f"{folder}: run again, this is another run from {since} on, first in {trace.parted.entities[0]}{versions}"
