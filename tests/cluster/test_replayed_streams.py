"""A stream that somebody sends a host again, whole and as it was, brings no VM there a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.entity import CONTROL, Message
from cluster.guest_body import guest_body
from cluster.hand_over import Command, Report
from cluster.migration_port import MigrationPort
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.host import Host, HostSpec
from node.product import PRODUCTS
from node.program import ProgramSpec
from workloads.library import PROGRAMS

GUEST = GuestSpec("vm", Generation.PLAIN, 1, 64 << 20, ProgramSpec("stream", ()), 7)
SECOND = 10**9


class Node:
    """A host that is told of moves, and says something of them."""

    def __init__(self, name: str) -> None:
        spec = HostSpec(name, PRODUCTS["Milan"], 1 << 30, 99, 1, 60 * SECOND)
        self.host = Host(spec, PROGRAMS, {"auto": laboratory_image()}, load_cost_table())
        self.said: list[tuple[str, tuple[Any, ...]]] = []
        self.port = MigrationPort(self.host, self.send, self.unheard)

    def send(self, kind: str, fields: tuple[Any, ...]) -> Message:
        """Where it says something."""
        self.said.append((kind, fields))
        return Message(self.host.now_ns, self.host.spec.name, len(self.said), CONTROL, kind, fields)

    def unheard(self, message: Message) -> None:
        """What is not of a move."""
        raise AssertionError(message)

    def told(self, kind: str, *fields: Any) -> tuple[str, tuple[Any, ...]]:
        """What it says to a command, once it has carried it out."""
        before = len(self.said)
        env = self.host.clock.env
        self.port.receive(Message(env.now, CONTROL, 0, self.host.spec.name, kind, fields))
        env.run(until=env.now + SECOND)
        assert len(self.said) == before + 1, self.said[before:]
        return self.said[-1]

    def state(self) -> object:
        """Its VM's, and what its memory holds."""
        guest = self.host.guests.get("vm")
        # A VM that runs goes on working meanwhile; that it is the same one its record says.
        return None if guest is None else (id(guest), guest.state, self.host.hypervisor.figures().memory_bytes)


def moved(number: int, here: Node, there: Node) -> tuple[Any, ...]:
    """Move the VM; what went to the target with the command to lay it down."""
    kind, _ = here.told(Command.BEGIN, number, "vm", there.host.spec.name, SECOND, False)
    assert kind == Report.READY
    kind, (_, wrong, *_) = there.told(Command.KEEP, number, "vm", here.host.spec.name, guest_body(GUEST))
    assert (kind, wrong) == (Report.PLACE, None)
    kind, (_, stream, digests, books, *_) = here.told(Command.STOP, number, "vm", 0, False)
    assert kind == Report.STOPPED
    sent = number, "vm", stream.made(), digests.made(), books
    assert there.told(Command.COME, *sent)[0] == Report.WHOLE
    assert there.told(Command.GO, number, "vm")[0] == Report.RUNS
    assert here.told(Command.LEAVE, number, "vm", True)[0] == Report.LEFT
    return sent


@pytest.fixture
def nodes() -> tuple[Node, Node]:
    here, there = Node("here"), Node("there")
    here.host.launch(GUEST, lambda _: None, running=True)
    here.host.clock.env.run(until=10**6)
    return here, there


def test_a_stream_that_comes_again_while_its_vm_runs_there_changes_nothing(nodes: tuple[Node, Node]) -> None:
    here, there = nodes
    sent = moved(3, here, there)
    before = there.state()
    assert there.told(Command.COME, *sent)[0] == Report.RUNS, "it was started under that number, which is all it hears"
    assert there.told(Command.COME, 4, *sent[1:])[0] == Report.NEVER
    assert there.state() == before
    assert there.host.guests["vm"].state is GuestState.RUNNING


@pytest.mark.parametrize("number", [lambda sent: sent, lambda _: 9], ids=["as it was", "under a new number"])
def test_a_stream_that_comes_again_after_its_vm_has_left_finds_no_place(
    nodes: tuple[Node, Node], number: Callable[[int], int]
) -> None:
    here, there = nodes
    sent = moved(3, here, there)
    moved(4, there, here)
    before = there.state()
    kind, _ = there.told(Command.COME, number(3), *sent[1:])
    assert kind in {Report.NEVER, Report.RUNS}
    assert there.state() == before
    assert there.host.guests["vm"].state is GuestState.DEPARTED
    # Nor is it what a place is kept for that the VM needs the next time it comes.
    there.told(Command.KEEP, 10, "vm", "here", guest_body(GUEST))
    there.told(Command.COME, 3, *sent[1:])
    assert there.host.guests["vm"].state is GuestState.ARRIVING
    assert not there.host.arrivals.is_whole("vm")
    kind, (_, why) = there.told(Command.COME, 10, *sent[1:])
    assert kind == Report.NEVER
    assert "session: expected" in why
