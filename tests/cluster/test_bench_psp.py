"""The psp benchmark in small: guests go through the firmware to ends of every kind, and leave nothing."""

import pytest

from cluster.bench import psp as bench
from cluster.errors import ToolError
from node import operations as op
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.policy import LegacyPolicy
from psp.system_bus import PAGE_BYTES, RmpEntry

ASKED = [
    ("launch of a 4 MiB image on a host, the first", 0.060),
    ("launch of the same image again", 0.015),
    ("1,000 hosts without guests", 1.0),
    ("2,000 guests launched and destroyed, tables as before", None),
]
LEFT = 0x300_0000
"""A page that no guest of the bench has."""


def test_guests_that_end_in_any_state_leave_tables_as_they_were() -> None:
    bench.live_and_die(2 * 10)


def test_what_every_guest_leaves_is_found_by_a_host_without_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench._Laboratory.snp

    def forgetful(lab: bench._Laboratory, end: int) -> None:
        before(lab, end)
        lab._do(op.HostWrite(LEFT, b"!"))

    monkeypatch.setattr(bench._Laboratory, "snp", forgetful)
    with pytest.raises(ToolError, match=r"got other DRAM$"):
        bench.live_and_die(2)


def test_whatever_a_guest_leaves_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench._Laboratory.snp

    def forgetful(lab: bench._Laboratory, end: int) -> None:
        before(lab, end)
        page = RmpEntry(assigned=True, asid=bench._SNP_ASID)
        lab._do(op.RmpUpdate(LEFT, PAGE_BYTES, bench._FIRMWARE), op.RmpUpdate(LEFT + PAGE_BYTES, PAGE_BYTES, page))
        lab._call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(LEFT))
        lab._lent(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=LegacyPolicy.ES))
        lab.board.controller.install_key(77, bytes(16))

    monkeypatch.setattr(bench._Laboratory, "snp", forgetful)
    with pytest.raises(ToolError) as left:
        bench.live_and_die(2)
    found = str(left.value).partition("other ")[2].split(", ")
    assert found == ["DRAM", "RMP", "keys", "contexts", "guests", "pages of ASIDs", "states"]


def test_figures_are_those_asked_for_each_against_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (bench.IMAGE_BYTES, bench.HOSTS, bench.GUESTS) == (4 << 20, 1000, 2000)
    made, lived = [], []
    host = bench._host
    monkeypatch.setattr(bench, "_host", lambda name, image: made.append((name, len(image.data))) or host(name, image))
    monkeypatch.setattr(bench, "live_and_die", lived.append)
    for name, value in (("LAUNCHES", 2), ("HOSTS", 2)):
        monkeypatch.setattr(bench, name, value)
    figures = list(bench.run())
    assert [(figure.name, figure.reference) for figure in figures] == ASKED
    assert all(figure.value >= 0 and figure.unit == "s" for figure in figures)
    assert made == [("host", 4 << 20), ("host0", 4 << 20), ("host1", 4 << 20)]
    assert lived == [2000]
