"""Tables in a file or a pipe lose no figure, however many columns they have."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from cluster.whole_tables import print_table

FIGURES = [f"+{number}.25 %" for number in range(10_000, 10_030)]


def printed(table: Table, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=terminal, color_system=None)
    print_table(console, table)
    assert console.width == 100
    return stream.getvalue()


def figures() -> Table:
    table = Table(box=None, pad_edge=False)
    for number, _ in enumerate(FIGURES):
        table.add_column(f"column {number}", no_wrap=True)
    table.add_row(*FIGURES)
    return table


def test_a_table_wider_than_its_console_is_whole_in_a_file() -> None:
    heads, row = printed(figures()).rstrip("\n").split("\n")
    assert row.split("  ")[0] == FIGURES[0]
    assert all(figure in row for figure in FIGURES)
    assert "column 29" in heads


def test_a_terminal_keeps_its_width() -> None:
    assert max(map(len, printed(figures(), terminal=True).split("\n"))) == 100


@pytest.mark.parametrize("figures_before", [1, 20])
def test_words_that_may_go_on_in_the_next_line_do(figures_before: int) -> None:
    table = Table(box=None, pad_edge=False)
    for _ in range(figures_before):
        table.add_column("figure", no_wrap=True)
    table.add_column("reason")
    reason = "a machine that stood still for longer than anybody would have thought, and then moved on after all"
    table.add_row(*FIGURES[:figures_before], reason)
    text = printed(table)
    assert all(figure in text for figure in FIGURES[:figures_before])
    assert len(text.rstrip("\n").split("\n")) > 2
    assert all(word in text for word in reason.split())
