"""The hand-over's tables, tried out whole: every order of messages, losses, repeats and crashes there can be.

The network is the set of all that was ever said: what is in it may come at any time, again and again, or never. So
loss, delay, repetition and reordering are all in it, and the states stay few enough to visit every one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from cluster import hand_over
from cluster.hand_over import (
    ANSWERED_BY,
    FINAL,
    TO_SOURCE,
    Command,
    Event,
    Holding,
    Mine,
    Phase,
    Record,
    Report,
    Step,
    crashed,
    gave_up,
)

RUNNING = {Holding.RUNS, Holding.LEAVING}
OF_ITSELF = (Event.ROUNDS_DONE, Event.CARRIED, Event.FAILED)
"""Events that no message brings."""
WORDS: tuple[Command | Report, ...] = (*Command, *Report)
BITS = {(number, word): 1 << number * len(WORDS) + at for number in range(2) for at, word in enumerate(WORDS)}
TWO, OLD, NONE = "two run it", "a host went on with an old copy", "the last copy was thrown away"
BACK = "what was lost with a crash is there again"
ALIVE = "a source that let go, or goes on, was said to have lost it"


class Move(NamedTuple):
    source: int
    destination: int
    phase: Phase
    record: Record | None


class Had(NamedTuple):
    """What a host has of the VM and remembers, as ``Mine`` has it, for good."""

    holding: Holding
    number: int = -1
    newest: int = -1
    started: int = -1
    stayed: int = -1

    def after(self, act: Callable[[Mine], Report | None]) -> tuple[Had, Report | None]:
        mine = Mine(*self)
        report = act(mine)
        return Had(mine.holding, mine.number, mine.newest, mine.started, mine.stayed), report


class World(NamedTuple):
    moves: tuple[Move, ...]
    hosts: tuple[Had, ...]
    said: int
    """One bit for each word of each move."""
    resumed: frozenset[int]
    """Moves whose source went on after it had stopped; no host knows this set."""
    crashes: frozenset[int]
    """Hosts by number that crashed already, and the authority as -1."""
    ahead: bool = False
    """Every move is one by post-copy."""


def start(hosts: int, *, ahead: bool = False) -> World:
    had = (Had(Holding.RUNS), *[Had(Holding.NOTHING)] * (hosts - 1))
    return World((), had, 0, frozenset(), frozenset(), ahead)


def copies(world: World) -> list[int]:
    """The hosts that hold the VM as it is: no old copy of it, and all of it."""
    found = []
    for name, (holding, number, *_) in enumerate(world.hosts):
        if holding is Holding.STANDS:
            fresh = world.hosts[world.moves[number].destination].started < number
        else:
            fresh = holding in RUNNING or (holding is Holding.WHOLE and number not in world.resumed)
            fresh = fresh and not (world.ahead and is_apart(world, name))
        found += [name] if fresh else []
    return found


def is_apart(world: World, name: int) -> bool:
    """Whether what a host has lives by a source that does not have its part any more."""
    had = world.hosts[name]
    number = had.number if had.holding is Holding.WHOLE else had.started
    return number >= 0 and world.moves[number].phase is not Phase.DESTINATION and not sends(world, number)


def sends(world: World, number: int) -> bool:
    """Whether a source can bring over what is left: it stands still there."""
    return world.hosts[world.moves[number].source][:2] == (Holding.STANDS, number)


def on_its_way(world: World) -> bool:
    """Whether all of the VM was carried over, and may come yet to a destination that has not looked at it."""
    return not world.ahead and any(world.said & BITS[number, Command.COME] for number in range(len(world.moves)))


def at_authority(world: World, number: int, event: Event) -> World | None:
    move = world.moves[number]
    step = hand_over.AUTHORITY.get((move.phase, event))
    if step is None:
        return None
    moved = move._replace(phase=step.to, record=step.record or move.record)
    said = world.said
    for command in step.told:
        said |= BITS[number, command]
    return world._replace(moves=(*world.moves[:number], moved, *world.moves[number + 1 :]), said=said)


def at_host(world: World, number: int, command: Command, *, spoiled: bool = False) -> World:
    move = world.moves[number]
    name = move.source if command in TO_SOURCE else move.destination
    before = world.hosts[name]
    after, report = before.after(gave_up if spoiled else lambda mine: hand_over.told(mine, command, number))
    if report is Report.LOST:
        assert name in world.crashes or move.phase is Phase.DESTINATION or not copies(world), ALIVE
    if after == before and (report is None or world.said & BITS[number, report]):
        return world
    if after.holding is Holding.RUNS and before.holding not in RUNNING:
        # Nobody can know yet, when one that is to run ahead is started, that its source has just crashed.
        assert name in copies(world) or (world.ahead and command is Command.GO), OLD
    resumed = before.holding is Holding.STANDS and after.holding is Holding.RUNS
    return world._replace(
        hosts=(*world.hosts[:name], after, *world.hosts[name + 1 :]),
        said=world.said | (BITS[number, report] if report else 0),
        resumed=world.resumed | ({number} if resumed else set()),
    )


def following(world: World, most_moves: int, most_crashes: int) -> Iterator[tuple[bool, World]]:
    """Every world that may come next, and whether by a crash."""
    for (number, word), bit in BITS.items():
        if not world.said & bit:
            continue
        if isinstance(word, Command):
            yield False, at_host(world, number, word)
            here = world.hosts[world.moves[number].destination]
            if word is Command.COME and (here.holding, here.number) == (Holding.KEEPS, number):
                yield False, at_host(world, number, word, spoiled=True)
        elif (after := word in ANSWERED_BY and at_authority(world, number, ANSWERED_BY[word])):
            if word is Report.RUNS and world.ahead:
                after = at_authority(world, number, Event.RUNS_AHEAD) or after
            yield False, after
    for number in range(len(world.moves)):
        for event in OF_ITSELF:
            if event is Event.CARRIED and not sends(world, number):
                continue
            if (after := at_authority(world, number, event)) is not None:
                yield False, after
    if len(world.moves) < most_moves and all(move.phase in FINAL for move in world.moves):
        source = 0
        for move in world.moves:
            source = move.destination if move.phase is Phase.DESTINATION else source
        for destination in range(len(world.hosts)):
            if destination != source:
                moves = (*world.moves, Move(source, destination, Phase.SOURCE, None))
                begun = at_authority(world._replace(moves=moves), len(world.moves), Event.ADMITTED)
                assert begun is not None
                yield False, begun
    if len(world.crashes) == most_crashes:
        return
    for name, had in enumerate(world.hosts):
        if name not in world.crashes:
            hosts = (*world.hosts[:name], had.after(crashed)[0], *world.hosts[name + 1 :])
            yield True, world._replace(hosts=hosts, crashes=world.crashes | {name})
    if -1 not in world.crashes:
        yield True, restarted(world)


def restarted(world: World) -> World:
    """The authority came back with its record and says again what follows from that."""
    moves = tuple(move._replace(phase=hand_over.AFTER_RESTART[move.record]) for move in world.moves if move.record)
    said = world.said
    for number, move in enumerate(moves):
        for command in hand_over.REPEATS[move.phase]:
            said |= BITS[number, command]
    return world._replace(moves=moves, said=said, crashes=world.crashes | {-1})


def good(world: World) -> bool:
    """It runs in one place if anybody has it, the others have nothing, and nothing is under way."""
    held = [had.holding for had in world.hosts]
    at_rest = all(move.phase in FINAL for move in world.moves)
    running = held.count(Holding.RUNS)
    return at_rest and running == bool(copies(world)) and held.count(Holding.NOTHING) == len(held) - running


def explore(hosts: int, most_moves: int, most_crashes: int, *, ahead: bool = False) -> dict[World, list[World]]:
    """Every world there can be, checked, with those that it may come from without a crash."""
    first = start(hosts, ahead=ahead)
    before: dict[World, list[World]] = {first: []}
    todo = [first]
    while todo:
        world = todo.pop()
        had = copies(world)
        for by_crash, after in following(world, most_moves, most_crashes):
            if after is world:
                continue
            ways = before.get(after)
            if ways is None:
                ways = before[after] = []
                todo.append(after)
                assert sum(had.holding in RUNNING for had in after.hosts) <= 1, TWO
            if not by_crash:
                assert not had or copies(after), NONE
                assert had or on_its_way(world) or not (copies(after) or on_its_way(after)), BACK
                ways.append(world)
    return before


def stuck(before: dict[World, list[World]]) -> list[World]:
    """The worlds from which no way leads to a good one that holds the VM if they do.

    Nothing but a crash throws the last copy away, so a way without one does not lead from one kind to the other.
    """
    todo = [world for world in before if good(world)]
    fine = set(todo)
    while todo:
        for world in before[todo.pop()]:
            if world not in fine:
                fine.add(world)
                todo.append(world)
    return [world for world in before if world not in fine]


@pytest.mark.parametrize(
    ("hosts", "most_moves", "most_crashes", "ahead"),
    [
        pytest.param(2, 1, 3, False, id="one move, and a crash of each of the three"),
        pytest.param(2, 2, 1, False, id="there and back or there again, and one crash"),
        pytest.param(3, 2, 0, False, id="two targets one after the other"),
        pytest.param(2, 1, 3, True, id="one move by post-copy, and a crash of each of the three"),
        pytest.param(2, 2, 1, True, id="two moves by post-copy, and one crash"),
    ],
)
def test_a_vm_runs_in_one_place_and_is_lost_only_with_the_last_host_that_holds_it(
    hosts: int, most_moves: int, most_crashes: int, ahead: bool
) -> None:
    before = explore(hosts, most_moves, most_crashes, ahead=ahead)
    assert not stuck(before)
    ways = {move.phase for world in before for move in world.moves}
    assert ways == set(Phase) - {Phase.SOURCE} - (set() if ahead else {Phase.DRAINING, Phase.ORPHANED})


Table = Mapping[Any, Any]


def without(*rows: object) -> Callable[[Table], Table]:
    return lambda table: {key: value for key, value in table.items() if key not in rows}


def changed(row: object, to: object) -> Callable[[Table], Table]:
    return lambda table: {**table, row: to}


BOTH = (Command.STAY, Command.GIVE_BACK)
SENT, WHOLE = Phase.SENT, Event.WHOLE


@pytest.mark.parametrize(
    ("table", "change"),
    [
        pytest.param("AUTHORITY", changed((SENT, Event.FAILED), Step(Phase.ABORTED, Record.ABORTED, BOTH)),
                     id="the destination forgets before the source is known to go on"),
        pytest.param("AUTHORITY", changed((SENT, WHOLE), Step(Phase.COMMITTED, None, (Command.GO,))),
                     id="nothing is written down"),
        pytest.param("AUTHORITY", changed((SENT, WHOLE), Step(Phase.COMMITTED, Record.COMMITTED,
                     (Command.GO, Command.LEAVE))), id="the source lets go before the VM is known to run"),
        pytest.param("AUTHORITY", changed((Phase.COMMITTED, Event.FAILED), Step(Phase.ABORTED, None, BOTH)),
                     id="called off after the commit point"),
        pytest.param("AUTHORITY", changed((Phase.STOPPED, Event.CARRIED), Step(SENT, None,
                     (Command.COME, Command.GO))), id="started at the destination before the commit point"),
        pytest.param("AFTER_RESTART", changed(Record.COMMITTED, Phase.ABORTED), id="the record is not believed"),
        pytest.param("AFTER_RESTART", changed(Record.BEGUN, Phase.ABORTED), id="aborted at once after a restart"),
    ],
)  # fmt: skip
def test_what_is_unsafe_is_found(
    monkeypatch: pytest.MonkeyPatch, table: str, change: Callable[[Table], Table]
) -> None:
    monkeypatch.setattr(hand_over, table, change(getattr(hand_over, table)))
    with pytest.raises(AssertionError, match=f"{TWO}|{OLD}|{NONE}|{ALIVE}"):
        explore(2, 1, 3)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        pytest.param("PASSED", without(Command.GO, Command.COME), id="a destination that lost it says nothing"),
        pytest.param("PASSED", without(Command.STAY, Command.STOP), id="a source that lost it says nothing"),
        pytest.param("HOST", without((Holding.STANDS, Command.STAY)), id="the source does not go on"),
        pytest.param("HOST", without((Holding.WHOLE, Command.GIVE_BACK)), id="the destination keeps it"),
        pytest.param("AUTHORITY", without((Phase.COMMITTED, Event.NEVER)), id="the authority waits for ever"),
    ],
)
def test_what_gets_stuck_is_found(
    monkeypatch: pytest.MonkeyPatch, table: str, change: Callable[[Table], Table]
) -> None:
    monkeypatch.setattr(hand_over, table, change(getattr(hand_over, table)))
    assert stuck(explore(2, 1, 3))


def test_a_source_that_sends_on_after_its_crash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "sends", lambda _, __: True)
    with pytest.raises(AssertionError, match=BACK):
        explore(2, 1, 1)


def test_a_machine_that_runs_on_without_its_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the authority does not have it ended, and where its target says so and does not."""
    monkeypatch.setattr(hand_over, "AUTHORITY", without((Phase.DRAINING, Event.LOST))(hand_over.AUTHORITY))
    assert stuck(explore(2, 1, 1, ahead=True))
    monkeypatch.undo()
    monkeypatch.setattr(hand_over, "HOST", without((Holding.RUNS, Command.DESTROY))(hand_over.HOST))
    with pytest.raises(AssertionError, match=BACK):
        explore(2, 1, 1, ahead=True)


@pytest.mark.parametrize("heard_stay", [False, True])
def test_a_source_that_let_a_vm_go_later_does_not_say_that_it_lost_it_before(*, heard_stay: bool) -> None:
    """Whether it heard that it was to keep it, or not; what it has just let go for, it has lost otherwise."""
    mine = Mine(Holding.RUNS)
    for number in (3, 5, 8):
        for command in (Command.BEGIN, *[Command.STAY] * (heard_stay and number < 8)):
            hand_over.told(mine, command, number)
    for command in (Command.STOP, Command.LEAVE):
        hand_over.told(mine, command, 8)
    assert mine.holding is Holding.NOTHING
    said = [hand_over.told(mine, Command.STAY, number) for number in (3, 5, 8)]
    assert said == [Report.STAYED, Report.STAYED, Report.LOST]


def test_without_numbers_what_is_late_takes_the_vm_away_where_it_came_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(mine: Mine, command: Command, number: int) -> Report | None:
        row = hand_over.HOST.get((mine.holding, command))
        if row is None:
            return None
        mine.holding, mine.number = row.to, number
        return row.report

    monkeypatch.setattr(hand_over, "told", told)
    with pytest.raises(AssertionError):
        explore(2, 2, 0)
