"""A host's side of a move goes by the hand-over's rules, as they were tried out: also where it takes a shorter way."""

from itertools import product
from types import SimpleNamespace

import pytest

from cluster import hand_over, migration_port
from cluster.entity import Message
from cluster.hand_over import Command, Holding, Mine
from cluster.migration_port import MigrationPort
from node.guest import GuestState

NUMBERS = (-1, 1, 2, 3)
AT_REST = (Holding.RUNS, Holding.NOTHING)


def states():
    """Whatever a host may have of a VM, and remember of moves: numbers are only compared, so that few stand for all."""
    for holding, number, newest, started, stayed in product(Holding, NUMBERS, NUMBERS, NUMBERS, (-1, 0, 1, 2, 3)):
        if (number < 0) == (holding in AT_REST) and newest >= number:
            yield holding, number, newest, started, stayed


def state_of(mine):
    return mine.holding, mine.number, mine.newest, mine.started, mine.stayed


@pytest.fixture
def short_ways(monkeypatch):
    """Which rows were gone by without asking the rules, and for what they were asked; nothing is carried out."""
    short, asked = [], []
    steps = {
        case: (to, remembered, lambda *_, case=case: short.append(case), waits)
        for case, (to, remembered, _, waits) in migration_port._STEPS.items()
    }
    monkeypatch.setattr(migration_port, "_STEPS", steps)
    monkeypatch.setattr(MigrationPort, "_receive_otherwise", lambda *of: asked.append(of))
    return short, asked


def test_what_a_command_does_without_asking_the_rules_is_what_they_say(short_ways):
    short, asked = short_ways
    guests = {Holding.RUNS: {"vm": SimpleNamespace(state=GuestState.RUNNING)}}
    tried = set()
    for state in states():
        for command, number in product(Command, (1, 2, 3, 4)):
            host = SimpleNamespace(
                clock=SimpleNamespace(unsettled=()), guests=guests.get(state[0], {}),
                arrivals=SimpleNamespace(is_laying=lambda _: False),
            )  # fmt: skip
            port, known, rules = MigrationPort(host, None, None), migration_port._Known(), Mine(*state)
            known.holding, known.number, known.newest, known.started, known.stayed = state
            port._known["vm"] = known
            before = len(short), len(asked)
            port.receive(Message(0, "control", 1, "host", command.value, (number, "vm")))
            if len(asked) > before[1]:
                assert state_of(known) == state
                continue
            assert len(short) == before[0] + 1
            hand_over.told(rules, command, number)
            assert state_of(known) == state_of(rules), (state, command, number)
            tried.add(short[-1])
    assert tried == set(migration_port._STEPS)
