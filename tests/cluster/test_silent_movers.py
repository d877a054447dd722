"""An agent or a handler whose memory goes bad at the target says nothing: the move ends so, and its guest goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from test_agent_migration import above_svsm, fleet
from test_handler_migration import fleet as with_handler
from test_live_migration import move, outcomes, play, small_image  # noqa: F401 - the fixture

from node.agent_transfer import AGENT
from node.host import Host
from psp.system_bus import PAGE_BYTES

QUIET = {"its agent": "the migration agent does not answer", "its handler": "the migration handler does not answer"}


def spoil(host: Host, who: str) -> None:
    """The DIMM loses the page that its code begins in; an agent that was running is a new one, and begins there."""
    record = host.hypervisor.launched(AGENT if who == "its agent" else "vm")
    assert record.svsm is not None or who == "its agent"
    image = record.firmware if record.svsm is None else record.svsm
    host.board.dram.write(record.spa_of(image.gpa), bytes(PAGE_BYTES))
    host.board.agents.forget(AGENT)


def before(step: str, who: str) -> Callable[[Mapping[str, Host]], None]:
    """Spoil the target's as soon as it is asked for a step of the move."""

    def at_start(hosts: Mapping[str, Host]) -> None:
        host = hosts["host-2"]
        honest = getattr(host.arrivals, step)

        def later(*arguments: Any, **more: Any) -> None:
            spoil(host, who)
            honest(*arguments, **more)

        setattr(host.arrivals, step, later)

    return at_start


SCENES = {"its agent": fleet, "its agent, above an SVSM": above_svsm, "its handler": with_handler}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("step", "outcome"), [("open", "refused"), ("complete", "spoiled")])
def test_a_target_that_says_nothing_any_more_gets_no_guest(scene: str, step: str, outcome: str) -> None:
    who = scene.partition(",")[0]
    hosts: dict[str, Host] = {}

    def at_start(built: Mapping[str, Host]) -> None:
        hosts.update(built)
        before(step, who)(built)

    _, rows = play(SCENES[scene](migrations=[move(to="host-2")], duration="5 s"), at_start=at_start)
    assert outcomes(rows) == [(outcome, QUIET[who])]
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"], vm["faults"]) == ("host-1", "running", 0)
    assert "vm" not in hosts["host-2"].guests
    assert hosts["host-2"].board.vmcbs.get("vm", {}) == {}


def test_an_agent_that_is_silent_from_the_beginning_lets_no_place_be_kept() -> None:
    hosts: dict[str, Host] = {}

    def at_start(built: Mapping[str, Host]) -> None:
        hosts.update(built)
        spoil(built["host-2"], "its agent")

    _, rows = play(fleet(migrations=[move(to="host-2")], duration="2 s"), at_start=at_start)
    assert outcomes(rows) == [("refused", "AGENT_REFUSES")]
    assert [row["host"] for row in rows["vms"]] == ["host-1"]
    assert "vm" not in hosts["host-2"].guests


@pytest.mark.parametrize("who", QUIET)
def test_one_that_is_silent_at_the_source_lets_its_guest_stay(who: str) -> None:
    def at_start(built: Mapping[str, Host]) -> None:
        host = built["host-1"]
        honest = host.departures.stop

        def later(*arguments: Any, **more: Any) -> None:
            spoil(host, who)
            honest(*arguments, **more)

        host.departures.stop = later  # type: ignore[method-assign]

    _, rows = play(SCENES[who](migrations=[move(to="host-2")], duration="3 s"), at_start=at_start)
    assert outcomes(rows) == [("refused", "NOT_SENT")]
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"], vm["faults"]) == ("host-1", "running", 0)


def test_a_guest_whose_handler_has_sealed_it_and_is_silent_then_is_lost_for_nobody_else_can_enter_it() -> None:
    def at_start(built: Mapping[str, Host]) -> None:
        before("complete", "its handler")(built)
        host = built["host-1"]
        honest = host.departures.cancel

        def later(vm: str) -> None:
            spoil(host, "its handler")
            honest(vm)

        host.departures.cancel = later  # type: ignore[method-assign]

    _, rows = play(with_handler(migrations=[move(to="host-2")], duration="3 s"), at_start=at_start)
    assert outcomes(rows) == [("spoiled", QUIET["its handler"])]
    (vm,) = rows["vms"]
    assert (vm["host"], vm["state"], vm["reason"]) == ("host-1", "ended", QUIET["its handler"])
