"""A guest with trusted devices moves by the handler in its SVSM: they stay, and others are proved where it comes.

And above an SVSM by agents, too. Whatever ends a move, devices are trusted where the guest runs and nowhere else.
"""

from __future__ import annotations

import pytest
from test_departures_and_arrivals import stopped, until
from test_device_moves import (
    BOTH,
    CARDS,
    COSTS,
    DEVICES,
    IMAGE,
    MARK,
    MIB,
    PHASES,
    SECOND,
    WORK,
    agreed,
    asked,
    fails,
    marked,
    moved,
    nothing_of_devices,
    read,
    settled,
    trusted,
)
from test_sealed_transfer import laid

from node.card_slot import CardSlot
from node.device_notice import Told
from node.generation import Generation
from node.guest import Guest, GuestSpec, GuestState
from node.handler_transfer import handler_greets
from node.host import Host, HostSpec
from node.migration_refusal import MigrationRefusal
from node.platform import Platform
from node.product import PRODUCTS
from workloads.library import PROGRAMS

QUICK = COSTS | {"psp.guest_request_ns": 100_000}
BY = pytest.mark.parametrize("by", ["its handler", "agents"])


def host_of(name: str, cards: tuple[CardSlot, ...] = CARDS) -> Host:
    platform = Platform(cards=cards, migration_agent=True)
    spec = HostSpec(name, PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=platform)
    return Host(spec, PROGRAMS, {"auto": IMAGE}, QUICK)


def started(host: Host, by: str) -> Guest:
    spec = GuestSpec(
        "vm", Generation.SEV_TIO, 2, 64 * MIB, WORK, 7, devices=DEVICES, svsm=True, migration_agent=by == "agents",
        migration_handler=by != "agents",
    )  # fmt: skip
    host.launch(spec, lambda _: None, running=True)
    settled(host, BOTH)
    return host.guests["vm"]


def pair(by: str) -> tuple[Host, Host]:
    here, there = host_of("here"), host_of("there")
    started(here, by)
    return here, there


@pytest.fixture(scope="module")
def two() -> tuple[Host, Host]:
    """Such a pair for tests after which the guest is where it was."""
    return pair("its handler")


@BY
def test_devices_stay_and_others_are_proved_where_it_comes_and_again_when_it_moves_back(by: str) -> None:
    here, there = pair(by)
    guest = here.guests["vm"]
    asid, gpa = guest.asid, marked(here)
    assert asked(here) is None
    # It works on, over bounce buffers, and nothing is locked for it.
    assert trusted(here) == [False, False]
    before, bounced = guest.vcpus[0].units_of_work, guest.bytes_bounced
    until(lambda: guest.vcpus[0].units_of_work > before + 1, here)
    assert guest.bytes_bounced > bounced
    moved(here, there)
    assert nothing_of_devices(here)
    assert not here.board.controller.has_key(asid)
    arrived = there.guests["vm"]
    bounced, before = arrived.bytes_bounced, arrived.vcpus[0].units_of_work
    settled(there, BOTH)
    assert trusted(there) == [True, True]
    assert (arrived.bytes_bounced > bounced, arrived.vcpus[0].units_of_work > before) == (True, True)
    assert read(there, gpa) == MARK
    bounced, before = arrived.bytes_bounced, arrived.vcpus[0].units_of_work
    until(lambda: arrived.vcpus[0].units_of_work > before + 1, there)
    assert (arrived.state, arrived.bytes_bounced) == (GuestState.RUNNING, bounced)
    assert asked(there) is None
    moved(there, here)
    assert nothing_of_devices(there)
    settled(here, BOTH)
    assert trusted(here) == [True, True]


@pytest.mark.parametrize("phase", PHASES)
def test_a_move_that_fails_leaves_devices_trusted_at_the_source_and_none_at_the_target(
    two: tuple[Host, Host], phase: str
) -> None:
    fails(*two, phase)


def test_a_guest_that_keeps_its_devices_is_not_touched(two: tuple[Host, Host]) -> None:
    here, _ = two
    until(lambda: trusted(here) == [True, True], here)
    assert asked(here, within_ns=1) is MigrationRefusal.DEVICES_KEPT
    assert trusted(here) == [True, True]
    here.departures.cancel("vm")


def test_one_that_says_so_and_has_not_is_not_sent_and_its_handler_hands_nothing_over(two: tuple[Host, Host]) -> None:
    here, there = two
    until(lambda: trusted(here) == [True, True], here)
    assert here.departures.begin("vm", lambda _: None) == ()
    here.board.devices_told("vm", Told.LET_GO)
    agreed(here, there)
    refused: list[str] = []
    here.departures.stop("vm", 0, lambda _: None, refused.append)
    until(lambda: refused, here)
    assert (refused, trusted(here)) == ([MigrationRefusal.DEVICES_KEPT], [True, True])
    # Not handed over: the handler greets others still.
    assert here.tasks.at_once(handler_greets(here.hypervisor, "vm", here.hypervisor.launched("vm")))
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    guest = here.guests["vm"]
    before = guest.vcpus[0].units_of_work
    until(lambda: guest.vcpus[0].units_of_work > before + 1, here)
    assert trusted(here) == [True, True]


def test_a_target_whose_cards_were_taken_meanwhile_does_not_take_the_guest() -> None:
    here = host_of("here")
    there = host_of("there", CARDS[:1])
    started(here, "its handler")
    assert asked(here) is None
    agreed(here, there)
    what = stopped(here, "vm")
    there.clock.env.run(until=max(there.now_ns, here.now_ns) + 1)
    assert laid(there, "vm", what) == "devices: no free gpu on this host"
    there.arrivals.abandon("vm")
    here.departures.cancel("vm")
    settled(here, BOTH)
    assert trusted(here) == [True, True]
