"""One file per command of ``sevfleet``.

A command has NAME, HELP (a line in the list), DESCRIPTION, EXAMPLE,
``configure(parser)`` and ``execute(arguments)``, which returns the exit code.
Its file imports heavy things inside ``execute``, so that the others start at once.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from cluster.commands import (
    attack,
    attest,
    bench,
    calibrate,
    check,
    compare,
    device,
    diff,
    init,
    keyserver,
    measure,
    owner,
    plan,
    run,
    scenarios,
    sweep,
    trace,
    validate,
    verify,
    version,
)


class Command(Protocol):
    """What every file here offers."""

    NAME: str
    HELP: str
    DESCRIPTION: str
    EXAMPLE: str

    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def execute(self, arguments: argparse.Namespace) -> int: ...


COMMANDS: tuple[Command, ...] = (
    run, compare, sweep, plan, calibrate, validate, check, scenarios, init, diff, trace, measure, owner, attack, attest,
    verify, keyserver, device, bench, version,
)  # fmt: skip
