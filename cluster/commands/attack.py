"""``sevfleet attack``: published attacks against every generation, and what they come to."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, TypeVar

from cluster.commands.arguments import one_of
from cluster.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cluster.laboratory.protection import Column
    from cluster.oracle.verdict import Verdict
    from node.platform import Platform

NAME = "attack"
HELP = "carry out published attacks and see what stops them"
DESCRIPTION = """\
Carries out each attack as operations on an emulated host of its own, once for each
generation, and prints what it came to. An oracle judges, from what the hardware answered
and the victim's secrets alone:

    leaked, corrupted, side channel    the attack succeeded
    detected, blocked                  it did not; --why says what stopped it
    dos                                the victim stands still, and lost nothing else
    n/a                                there is no such interface

--without NAME switches one mechanism off in the chip, to see what it alone stops. Each column is
the newest product that has the generation, or --product. All rows take about a minute."""
EXAMPLE = """\
sevfleet attack 12 35a --generations sev,sev-snp --why
  sevfleet attack --without gpa-match --product Milan"""

PRODUCTS = ("Naples", "Rome", "Milan", "Genoa", "Turin")
T = TypeVar("T", bound=str)
_NOT_APPLICABLE = "not_applicable"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help="rows of the matrix, such as 12 or 35a (default: all)")
    add("--generations", metavar="NAMES", help="some of plain, sme, tsme, sev, sev-es, sev-snp, sev-tio (default: all)")
    add("--product", type=one_of("product", PRODUCTS), metavar="NAME", help=f"one of {', '.join(PRODUCTS)}")
    add("--without", action="append", default=[], metavar="NAME", help="a mechanism to switch off; may be given again")
    add("--why", action="store_true", help="say of each outcome what it rests on")
    add("--json", action="store_true", help="print one JSON object a line")


def execute(arguments: argparse.Namespace) -> int:
    """Carry the attacks out, a line for each as it is done."""
    from cluster.laboratory.titles import TITLES

    columns, platform = _columns(arguments.generations), _platform(arguments.without)
    rows = _rows(arguments.rows)
    if not arguments.json:
        print(_line("row", "attack", [column.value for column in columns]))
    for row in rows:
        found = {column: _tried(row, column, arguments.product, platform) for column in columns}
        if arguments.json:
            for column, (product, verdicts) in found.items():
                _tell(row, TITLES[row], column, product, verdicts)
            continue
        print(_line(row, TITLES[row], [_word(verdicts) for _, verdicts in found.values()]), flush=True)
        if arguments.why:
            for column, (product, verdicts) in found.items():
                for one in verdicts:
                    print(f"       {column.value} on {product}: {_shown(one)}: {one.evidence}")
    if not arguments.json:
        print(f"\non {_hosts(columns, arguments.product)}; --product tries another, --why says what stopped an attack")
    return 0


def _hosts(columns: Sequence[Column], wanted: str | None) -> str:
    """Which products were tried."""
    from cluster.laboratory.protection import products

    return wanted or ", ".join(sorted({products(column)[-1] for column in columns}))


def _tried(row: str, column: Column, wanted: str | None, platform: Platform) -> tuple[str, Sequence[Verdict]]:
    """The product that a row was tried on, and what came of it; nothing on a product without the column."""
    from cluster.laboratory.protection import products
    from cluster.laboratory.rows import verdicts
    from cluster.laboratory.scene import Setting

    have = products(column)
    product = wanted or have[-1]
    return product, verdicts(row, Setting(column, product, platform)) if product in have else ()


def _word(verdicts: Sequence[Verdict]) -> str:
    """All that the ways of a row came to, or a dash where there was none."""
    return "/".join(dict.fromkeys(map(_shown, verdicts))) or "-"


def _shown(verdict: Verdict) -> str:
    outcome = verdict.outcome.value
    return "n/a" if outcome == _NOT_APPLICABLE else outcome.replace("_", " ")


def _line(row: str, title: str, words: Sequence[str]) -> str:
    return f"{row:<4} {title:<56} {'  '.join([f'{word:<12}' for word in words])}".rstrip()


def _tell(row: str, title: str, column: Column, product: str, verdicts: Sequence[Verdict]) -> None:
    for one in verdicts:
        told = {"row": row, "attack": title, "generation": column.value, "product": product}
        print(json.dumps(told | {"outcome": one.outcome.value, "evidence": one.evidence}), flush=True)


def _rows(asked: Sequence[str]) -> list[str]:
    from cluster.laboratory.rows import ROWS
    from cluster.near_names import nearest

    for name in asked:
        if name not in ROWS:
            raise UserError(f'ROW: expected {nearest(name, sorted(ROWS))}, got "{name}"')
    return list(dict.fromkeys(asked)) or sorted(ROWS)


def _columns(text: str | None) -> list[Column]:
    from cluster.laboratory.protection import Column

    return list(_named("generations", text.split(","), list(Column))) if text is not None else list(Column)


def _platform(names: Sequence[str]) -> Platform:
    from node.platform import Platform, Protection

    return Platform(disabled=frozenset(_named("without", names, list(Protection))))


def _named(option: str, words: Sequence[str], known: Sequence[T]) -> Iterator[T]:
    """Members by the words that users type."""
    by_word = {str(one).lower().replace("_", "-").replace(" ", "-"): one for one in known}
    for word in dict.fromkeys(words):
        found = by_word.get(word.strip().lower().replace("_", "-"))
        if found is None:
            raise UserError(f'--{option}: expected some of {", ".join(by_word)}, got "{word.strip()}"')
        yield found
