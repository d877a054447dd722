"""Arguments that several commands share, checked where they are read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.errors import UserError

if TYPE_CHECKING:
    from node.generation import Generation

LAYOUTS = ("inline", "packed", "host", "isolated")


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """The scenario to run, and with which random numbers."""
    parser.add_argument(
        "scenario",
        nargs="?",
        default="demo",
        metavar="SCENARIO",
        help="a scenario file, or the name of a bundled one (default: demo)",
    )
    parser.add_argument("--seed", type=whole_number("seed", 0, (1 << 63) - 1), metavar="N", help="replace the seed")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Where the hosts run; results never depend on it."""
    parser.add_argument(
        "--layout",
        type=one_of("layout", LAYOUTS),
        default="packed",
        metavar="L",
        help="inline: all in this process; packed: hosts shared out over Ray workers; "
        "host: a Ray worker for each host; isolated: one for each host, hypervisor and VM (default: packed)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number("workers", 1, 4096),
        metavar="N",
        help="Ray workers for layout packed (default: one per core)",
    )
    add_address(parser)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Where the workers run."""
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="run on the Ray cluster at this address, from one of its machines (default: a Ray of its own)",
    )


def look_at_address(arguments: argparse.Namespace) -> None:
    """Find out at once whether there is a cluster that may be joined: what a command needs takes seconds to load."""
    from cluster.cluster_address import look_at

    if arguments.address is not None and getattr(arguments, "layout", None) != "inline":
        look_at(arguments.address)


def whole_number(name: str, least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers within bounds."""

    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most:
            return int(text)
        raise UserError(f'--{name}: expected a whole number from {least} to {most}, got "{text}"')

    return read


def number(name: str, bits: int) -> Callable[[str], int]:
    """A reader of unsigned numbers of so many bits, decimal or with a prefix such as 0x."""

    def read(text: str) -> int:
        try:
            found = int(text, 0) if len(text) <= 80 else -1
        except ValueError:
            found = -1
        if 0 <= found < 1 << bits:
            return found
        raise UserError(f'--{name}: expected a number of at most {bits} bits, got "{text}"')

    return read


def one_of(name: str, words: Sequence[str]) -> Callable[[str], str]:
    """A reader of one of a few words."""

    def read(text: str) -> str:
        if text in words:
            return text
        raise UserError(f'--{name}: expected one of {", ".join(words)}, got "{text}"')

    return read


def duration_ns(name: str) -> Callable[[str], int]:
    """A reader of times such as "30 s"."""

    def read(text: str) -> int:
        from cluster.units import DURATION, UnitError

        try:
            return DURATION.parse(text)
        except UnitError as error:
            raise UserError(f"--{name}: {error}") from None

    return read


def decimal(name: str, least: float, most: float) -> Callable[[str], float]:
    """A reader of numbers within bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise UserError(f'--{name}: expected a number from {least:g} to {most:g}, got "{text}"')
        return value

    return read


def generation_list(text: str) -> tuple[Generation, ...]:
    """Generations with commas between, as ``--generations`` has them."""
    from node.generation import Generation

    known = {generation.name.lower().replace("_", "-"): generation for generation in Generation}
    chosen = []
    for word in text.split(","):
        generation = known.get(word.strip().lower().replace("_", "-"))
        if generation is None:
            raise UserError(f'--generations: expected some of {", ".join(known)}, got "{word.strip()}"')
        chosen.append(generation)
    return tuple(dict.fromkeys(chosen))


def moment(text: str) -> int:
    """The time to judge by, ``--at``, in seconds since 1970; without a zone it is UTC."""
    from datetime import UTC, datetime

    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        raise UserError(f'--at: expected a time such as 2026-01-31 or 2026-01-31T12:00:00Z, got "{text}"') from None
