"""The psp benchmark in small: guests go through the firmware to ends of every kind, and leave nothing."""

import pytest

from cluster.bench import psp as bench
from cluster.errors import ToolError
from psp.guest_context import GuestContext


def test_guests_that_end_in_any_state_leave_tables_as_they_were() -> None:
    bench.live_and_die(2 * 10)


def test_what_a_guest_leaves_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench._Laboratory.snp

    def forgetful(lab: bench._Laboratory, end: int) -> None:
        before(lab, end)
        if end == 3:
            lab.board.psp.snp.guests.pages.write(0x300_0000, GuestContext())

    monkeypatch.setattr(bench._Laboratory, "snp", forgetful)
    with pytest.raises(ToolError, match="got other DRAM"):
        bench.live_and_die(10)


def test_figures_are_held_against_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LAUNCHES", 2), ("HOSTS", 2), ("GUESTS", 2), ("IMAGE_BYTES", 64 << 10)):
        monkeypatch.setattr(bench, name, value)
    figures = list(bench.run())
    assert [figure.reference for figure in figures] == [0.060, 0.015, 1.0, None]
    assert all(figure.value > 0 for figure in figures)
