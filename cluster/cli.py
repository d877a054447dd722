"""The command ``sevfleet``.

Exit codes: 0 done; 1 sevfleet or its machine failed (and ``diff`` found a
difference); 2 the user asked for something that cannot be; 130, 143 and 129
stopped with Ctrl-C, by SIGTERM and by SIGHUP. Errors are one line on standard error. Each command is one file under
``cluster/commands`` that imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cluster.commands import COMMANDS
from cluster.commands.stopping import ASKED, Interrupted, interruptible
from cluster.errors import ToolError, UserError, user_errors

_EPILOG = """\
examples:
  sevfleet run                             the demo: four hosts, twelve guests, one hour of virtual time
  sevfleet run fleet.toml --out out/       a scenario of your own, results kept
  sevfleet COMMAND --help                  more about a command, with an example
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        with interruptible():
            arguments = _parser().parse_args(argv)
            code: int = arguments.execute(arguments)
    except Interrupted as stopped:
        return _fail(str(stopped), 128 + stopped.number)
    except KeyboardInterrupt:
        return _fail(ASKED[signal.SIGINT], 130)
    except BrokenPipeError:
        # Whoever read our output went away; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        return _fail(str(error), 2)
    except ToolError as error:
        return _fail(str(error), 1)
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and the rest to a file
        return _last_resort(error)
    return code


def _last_resort(error: Exception) -> int:
    if isinstance(error, user_errors()):
        return _fail(str(error), 2)
    if isinstance(error, OSError) and error.strerror:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1)
    with tempfile.NamedTemporaryFile("w", prefix="sevfleet-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    return _fail(f"internal error: {type(error).__name__}: {error} (traceback in {log.name})", 1)


def _fail(message: str, code: int) -> int:
    print("sevfleet: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sevfleet",
        description="A laboratory of confidential clouds: AMD SEV fleets in virtual time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        inner = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=f"example:\n  {command.EXAMPLE}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(inner)
        inner.set_defaults(execute=command.execute)
    return parser


if __name__ == "__main__":
    sys.exit(main())
