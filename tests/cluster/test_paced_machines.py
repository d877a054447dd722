"""A host slows a machine that awaits its memory on the word of the move that it runs under, and of no other."""

from __future__ import annotations

import pytest

from cluster.entity import CONTROL, Message
from cluster.hand_over import Holding, Report
from cluster.migration_port import MigrationPort, _Known
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec
from node.host import Host, HostSpec
from node.product import PRODUCTS
from node.program import ProgramSpec
from workloads.library import PROGRAMS

STARTED = 3
"""The move that the machine was started under."""


@pytest.fixture
def port() -> tuple[MigrationPort, Host, list[tuple[str, tuple[object, ...]]]]:
    spec = HostSpec("here", PRODUCTS["Milan"], 1 << 30, 99, 1, 60 * 10**9)
    host = Host(spec, PROGRAMS, {"auto": laboratory_image()}, load_cost_table())
    host.launch(
        GuestSpec("vm", Generation.PLAIN, 1, 64 << 20, ProgramSpec("stream", ()), 7), lambda _: None, running=True
    )
    host.clock.env.run(until=10**6)
    said: list[tuple[str, tuple[object, ...]]] = []

    def send(kind: str, fields: tuple[object, ...]) -> Message:
        said.append((kind, fields))
        return Message(host.now_ns, "here", len(said), CONTROL, kind, fields)

    def unheard(message: Message) -> None:
        raise AssertionError(message)

    port = MigrationPort(host, send, unheard)
    known = port._known["vm"] = _Known()
    known.holding, known.newest, known.started = Holding.RUNS, 4, STARTED
    return port, host, said


def stall(*fields: object) -> Message:
    return Message(1, CONTROL, 1, "here", "stall", fields)


@pytest.mark.parametrize("number", [0, STARTED - 1, STARTED, STARTED + 1])
def test_only_the_move_that_it_was_started_under_slows_it_and_each_that_asks_is_answered(
    port: tuple[MigrationPort, Host, list[tuple[str, tuple[object, ...]]]], number: int
) -> None:
    one, host, said = port
    one.receive(stall(number, "vm", 10, 0.5, True))
    assert (host.guests["vm"].throttle is not None) is (number == STARTED)
    assert said == [(Report.PACED, (number, 10))]
    one.receive(stall(number, "vm", 20, 0.0, False))
    assert (host.guests["vm"].throttle, said) == (None, [(Report.PACED, (number, 10))])


def test_what_was_found_before_what_was_told_last_is_passed_over(
    port: tuple[MigrationPort, Host, list[tuple[str, tuple[object, ...]]]],
) -> None:
    one, host, _ = port
    for since, standing_still in ((20, 0.0), (10, 0.5), (20, 0.5)):
        one.receive(stall(STARTED, "vm", since, standing_still, False))
        assert host.guests["vm"].throttle is None
    one.receive(stall(STARTED, "vm", 21, 0.5, False))
    throttle = host.guests["vm"].throttle
    assert throttle is not None
    assert throttle.standing_still == 0.5


@pytest.mark.parametrize("holding", [Holding.LEAVING, Holding.STANDS])
def test_one_that_is_to_leave_again_and_one_that_is_gone_are_left_alone(
    port: tuple[MigrationPort, Host, list[tuple[str, tuple[object, ...]]]], holding: Holding
) -> None:
    one, host, said = port
    known = one._known["vm"]
    known.holding, known.number = holding, STARTED + 1
    one.receive(stall(STARTED, "vm", 10, 0.5, True))
    assert host.guests["vm"].throttle is None
    one.receive(stall(STARTED, "another", 10, 0.5, True))
    assert said == [(Report.PACED, (STARTED, 10))] * 2
