"""Firmware that fails in the middle of sending a guest: the guest goes on where it is, with all of its pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from test_agent_migration import above_svsm, fleet
from test_live_migration import move, outcomes, play, small_image  # noqa: F401 - the fixture
from test_silent_movers import spoil

from node.agent_messages import MOST_TRIES
from node.host import Host
from psp.commands import SnpCommand
from psp.status import PspError, Status

SCENES = {"by its agent": fleet, "by its agent, above an SVSM": above_svsm}
Pages = dict[int, tuple[bool, bool]]


def pages_of(host: Host) -> Pages:
    """Of each page of the guest's: whether it has validated it, and whether only firmware can let it go."""
    record = host.hypervisor.launched("vm")  # type: ignore[attr-defined]
    entries = {spa: host.board.bus.rmp_entry(spa) for _, first, length in record.ram for spa in
               range(first, first + length, 4096)}  # fmt: skip
    return {spa: (entry.validated, entry.immutable) for spa, entry in entries.items()}


def watched(host: Host, at_stop: Callable[[], None]) -> Pages:
    """Its pages when it is stopped, when something else begins."""
    before: Pages = {}
    honest = host.departures.stop

    def stop(*arguments: Any, **more: Any) -> None:
        if not before:
            before.update(pages_of(host))
            at_stop()
        honest(*arguments, **more)

    host.departures.stop = stop  # type: ignore[method-assign]
    return before


def fail(host: Host, command: int, number: int, back: bool = True) -> list[str]:
    """The number-th command of a kind is answered with an error, and not carried out; later no page comes ``back``.

    An agent sends its message again, so that of those as many fail.
    """
    psp, swap, said, left = host.board.psp, host.board.psp.snp.swap, list[str](), number
    honest, row, times = psp.submit, swap.row_out, MOST_TRIES if command == SnpCommand.GUEST_REQUEST else 1

    def fails() -> bool:
        nonlocal left
        left -= 1
        failed = -times < left <= 0
        said.extend(["failed"] * failed)
        return failed

    def submit(asked: int, buffer_spa: int = 0) -> Status:
        if (asked == command and fails()) or (asked == SnpCommand.PAGE_SWAP_IN and not back):
            return Status.HWERROR_PLATFORM
        return honest(asked, buffer_spa)

    def row_out(*arguments: Any, **more: Any) -> int:
        if command < 0 and fails():
            raise PspError(Status.HWERROR_PLATFORM)
        return row(*arguments, **more)

    psp.submit, swap.row_out = submit, row_out  # type: ignore[method-assign]
    return said


def played(scene: str, begin: Callable[[Host], object]) -> tuple[dict[str, Any], Mapping[str, Host], Pages]:
    """A move that is refused when its guest stands still: the guest's row, hosts, and its pages as they were."""
    built: dict[str, Host] = {}
    found: list[Any] = []

    def at_start(hosts: Mapping[str, Host]) -> None:
        built.update(hosts)
        host = hosts["host-1"]
        found.append(watched(host, lambda: found.append(begin(host))))

    _, rows = play(SCENES[scene](migrations=[move(to="host-2")], duration="3 s"), at_start=at_start)
    before, done = found
    assert done != []
    assert outcomes(rows) == [("refused", "NOT_SENT")]
    (vm,) = rows["vms"]
    return vm, built, before


def stays(scene: str, begin: Callable[[Host], object]) -> None:
    vm, hosts, before = played(scene, begin)
    assert (vm["host"], vm["state"], vm["faults"]) == ("host-1", "running", 0)
    after = pages_of(hosts["host-1"])
    lost = [spa for spa, (validated, _) in before.items() if validated and not after[spa][0]]
    assert (len(lost), sum(held for _, held in after.values())) == (0, 0)


ROWS = -1


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(
    ("command", "number"),
    [
        (SnpCommand.PAGE_MD_INIT, 1), (SnpCommand.PAGE_MD_INIT, 2), (SnpCommand.PAGE_MD_INIT, 3),
        (SnpCommand.PAGE_SWAP_OUT, 1), (SnpCommand.PAGE_SWAP_OUT, 7), (ROWS, 1), (ROWS, 3),
        (SnpCommand.GUEST_REQUEST, 1),
    ],
)  # fmt: skip
def test_a_guest_whose_firmware_fails_while_it_goes_stays_with_all_of_its_pages(
    scene: str, command: int, number: int
) -> None:
    stays(scene, lambda host: fail(host, command, number))


@pytest.mark.parametrize("scene", SCENES)
def test_so_does_one_whose_agent_says_nothing_when_it_is_out(scene: str) -> None:
    stays(scene, lambda host: spoil(host, "its agent"))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(
    "begin",
    [
        lambda host: fail(host, SnpCommand.PAGE_SWAP_OUT, 7, back=False),
        lambda host: fail(host, SnpCommand.GUEST_REQUEST, 1, back=False),
    ],
    ids=["in the middle", "at the end"],
)
def test_one_whose_pages_do_not_come_back_ends_and_says_why_and_leaves_nothing(
    scene: str, begin: Callable[[Host], object]
) -> None:
    vm, hosts, _ = played(scene, begin)
    assert (vm["host"], vm["state"], vm["reason"]) == ("host-1", "ended", "SNP_PAGE_SWAP_IN: HWERROR_PLATFORM")
    held, other = (hosts[name].hypervisor.figures() for name in ("host-1", "host-3"))
    assert (held.memory_bytes, held.asids_in_use) == (other.memory_bytes, other.asids_in_use)
