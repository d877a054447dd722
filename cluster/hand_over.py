"""The hand-over of a VM from one host to another: who may run it, after whatever happens. Data, and nothing that acts.

One authority decides, the control plane, and what it decided is in a record that outlives it
(``cluster.commit_record``). Its rules:

  - The commit point is that record. Before it, any doubt ends in ABORTED and the source goes on; after it
    the source never does, unless the destination swears that it did not start and never will.
  - A move has a number, higher than all before it, and every message carries it. Hosts remember the newest
    number that they heard of each VM, also over a restart, and begin nothing for one that is not newer. So what is
    late, repeated or out of order finds nobody whom it concerns.
  - Whoever waits may ask, and whoever is not answered says it again (``REPEATS``).
  - The record is written before anything is said that rests on it.

What follows from the tables, with any number of lost, repeated, delayed and reordered messages and a crash of each of
the three, tests/cluster/test_hand_over.py finds by trying everything: never do two hosts run the VM; never does
a host go on with an old copy of it; nothing but the crash of the host that holds the last whole copy loses it; and from
wherever it got to, it comes to run in one place and leaves nothing in the other.
The design is two-phase commit with presumed abort (Mohan, Lindsay and Obermarck, ACM TODS 11 (4), 1986).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class _Word(StrEnum):
    """A word that is looked up in tables again and again: its hash is its value's, which no Python code computes."""

    __hash__ = str.__hash__


class Phase(_Word):
    """Where the authority has got to with one move."""

    SOURCE = "source"
    """Asked for; nobody was told."""
    PRE = "pre"
    """Both hosts were told; memory is copied while the VM runs at its source."""
    PAUSED = "paused"
    """The source was told to stop it."""
    STOPPED = "stopped"
    """It stands still at the source; what is left of it is on its way."""
    SENT = "sent"
    """The destination has what was left, and may hold it whole."""
    DOUBTED = "doubted"
    """The source was told to go on, if it can: where it has lost the VM, the destination may still hold it."""
    COMMITTED = "committed"
    """It belongs to the destination, which was told to start it."""
    DRAINING = "draining"
    """It runs there, and gets pages that it has not yet from the source."""
    ORPHANED = "orphaned"
    """It runs there without all of its memory, which is lost with the source; the destination was told to end it."""
    DESTINATION = "destination"
    """It runs there, or is lost; the source was told to let go."""
    ABORTED = "aborted"
    """It belongs to the source, and the destination was told to forget it."""


class Event(_Word):
    """What happens to a move at the authority."""

    ADMITTED = "admitted"
    ROUNDS_DONE = "rounds done"
    STOPPED = "stopped"
    CARRIED = "carried"
    """The network has brought over what was left."""
    WHOLE = "whole"
    """The destination holds all of it and has read it back."""
    RUNS = "runs"
    RUNS_AHEAD = "runs ahead"
    """It runs at the destination before all of its memory is there."""
    NEVER = "never"
    """The destination does not hold it, did not start it, and never will under this number."""
    STAYED = "stayed"
    """It goes on at the source."""
    LOST = "lost"
    """The source does not hold it any more."""
    DESTROYED = "destroyed"
    """The destination has ended it."""
    FAILED = "failed"
    """Refused, called off, out of time, or the VM is over."""


class Command(_Word):
    """What the authority tells a host; the values are the kinds of messages."""

    BEGIN = "migrate"
    STOP = "stop"
    STAY = "stay"
    LEAVE = "leave"
    KEEP = "keep-place"
    COME = "come"
    GO = "go"
    DESTROY = "destroy-ahead"
    GIVE_BACK = "give-place-back"


class Record(_Word):
    """What the authority writes down before it goes on."""

    BEGUN = "begun"
    COMMITTED = "committed"
    AHEAD = "ahead"
    MOVED = "moved"
    ABORTED = "aborted"


class Step(NamedTuple):
    """One row: where to, what is written down first, and what is told after that."""

    to: Phase
    record: Record | None = None
    told: tuple[Command, ...] = ()


_ABORT = Step(Phase.ABORTED, Record.ABORTED, (Command.STAY, Command.GIVE_BACK))
_COMMIT = Step(Phase.COMMITTED, Record.COMMITTED, (Command.GO,))
_NEVER = Step(Phase.ABORTED, Record.ABORTED, (Command.STAY,))

AUTHORITY: Mapping[tuple[Phase, Event], Step] = {
    (Phase.SOURCE, Event.ADMITTED): Step(Phase.PRE, Record.BEGUN, (Command.BEGIN, Command.KEEP)),
    (Phase.SOURCE, Event.FAILED): Step(Phase.ABORTED),
    (Phase.PRE, Event.ROUNDS_DONE): Step(Phase.PAUSED, None, (Command.STOP,)),
    (Phase.PRE, Event.FAILED): _ABORT,
    (Phase.PRE, Event.LOST): _ABORT,
    (Phase.PAUSED, Event.STOPPED): Step(Phase.STOPPED),
    (Phase.PAUSED, Event.FAILED): _ABORT,
    (Phase.PAUSED, Event.LOST): _ABORT,
    (Phase.STOPPED, Event.CARRIED): Step(Phase.SENT, None, (Command.COME,)),
    (Phase.STOPPED, Event.FAILED): _ABORT,
    # What was left of it is gone with the source.
    (Phase.STOPPED, Event.LOST): _ABORT,
    (Phase.SENT, Event.WHOLE): _COMMIT,
    (Phase.SENT, Event.NEVER): _NEVER,
    (Phase.SENT, Event.FAILED): Step(Phase.DOUBTED, None, (Command.STAY,)),
    (Phase.DOUBTED, Event.STAYED): Step(Phase.ABORTED, Record.ABORTED, (Command.GIVE_BACK,)),
    (Phase.DOUBTED, Event.LOST): _COMMIT,
    (Phase.DOUBTED, Event.NEVER): _NEVER,
    # It was still being laid down when it was told to start.
    (Phase.COMMITTED, Event.WHOLE): Step(Phase.COMMITTED, None, (Command.GO,)),
    (Phase.COMMITTED, Event.RUNS): Step(Phase.DESTINATION, Record.MOVED, (Command.LEAVE,)),
    (Phase.COMMITTED, Event.RUNS_AHEAD): Step(Phase.DRAINING, Record.AHEAD),
    (Phase.COMMITTED, Event.NEVER): _NEVER,
    (Phase.DRAINING, Event.CARRIED): Step(Phase.DESTINATION, Record.MOVED, (Command.LEAVE,)),
    # Not written down: after a restart the source is found to have lost it again.
    (Phase.DRAINING, Event.LOST): Step(Phase.ORPHANED, None, (Command.DESTROY,)),
    (Phase.ORPHANED, Event.DESTROYED): Step(Phase.DESTINATION, Record.MOVED, (Command.LEAVE,)),
}
"""The authority's rows. An event that has none in a phase is late or repeated, and is passed over."""

REPEATS: Mapping[Phase, tuple[Command, ...]] = {
    Phase.PRE: (Command.BEGIN, Command.KEEP),
    Phase.PAUSED: (Command.STOP,),
    Phase.SENT: (Command.COME,),
    Phase.DOUBTED: (Command.STAY,),
    Phase.COMMITTED: (Command.GO,),
    Phase.DRAINING: (),
    Phase.ORPHANED: (Command.DESTROY,),
    Phase.DESTINATION: (Command.LEAVE,),
    Phase.ABORTED: (Command.STAY, Command.GIVE_BACK),
}
"""What the authority says again when it hears nothing, when it is asked, and when it comes back from a crash."""

AFTER_RESTART: Mapping[Record, Phase] = {
    Record.BEGUN: Phase.DOUBTED,
    Record.COMMITTED: Phase.COMMITTED,
    Record.AHEAD: Phase.DRAINING,
    Record.MOVED: Phase.DESTINATION,
    Record.ABORTED: Phase.ABORTED,
}
"""Where an authority that lost everything but its record takes a move up again, by the last entry."""

FINAL = frozenset({Phase.DESTINATION, Phase.ABORTED})
"""Phases after which the VM may move again."""

TO_SOURCE = frozenset({Command.BEGIN, Command.STOP, Command.STAY, Command.LEAVE})
"""The commands that go to the source; the others go to the destination."""


class Holding(_Word):
    """What a host has of a VM."""

    NOTHING = "nothing"
    RUNS = "runs"
    LEAVING = "leaving"
    """It runs, and what it writes is logged."""
    STANDS = "stands still"
    KEEPS = "keeps a place"
    WHOLE = "whole"
    """All of it is here and has been read back; it does not run."""


class Report(_Word):
    """What a host tells the authority; the values are the kinds of messages."""

    READY = "ready"
    STOPPED = "stopped"
    STAYED = "stayed"
    LOST = "lost"
    LEFT = "left"
    PLACE = "place"
    WHOLE = "came"
    RUNS = "runs"
    NEVER = "never"
    GIVEN = "given"
    DESTROYED = "destroyed"
    PACED = "paced"


class HostStep(NamedTuple):
    """One row of a host: what it has then, and what it says."""

    to: Holding
    report: Report


HOST: Mapping[tuple[Holding, Command], HostStep] = {
    (Holding.RUNS, Command.BEGIN): HostStep(Holding.LEAVING, Report.READY),
    (Holding.LEAVING, Command.STOP): HostStep(Holding.STANDS, Report.STOPPED),
    (Holding.LEAVING, Command.STAY): HostStep(Holding.RUNS, Report.STAYED),
    (Holding.STANDS, Command.STAY): HostStep(Holding.RUNS, Report.STAYED),
    (Holding.STANDS, Command.LEAVE): HostStep(Holding.NOTHING, Report.LEFT),
    (Holding.NOTHING, Command.KEEP): HostStep(Holding.KEEPS, Report.PLACE),
    (Holding.KEEPS, Command.COME): HostStep(Holding.WHOLE, Report.WHOLE),
    (Holding.WHOLE, Command.GO): HostStep(Holding.RUNS, Report.RUNS),
    # The source lost it before all of it was here.
    (Holding.KEEPS, Command.GO): HostStep(Holding.NOTHING, Report.NEVER),
    (Holding.KEEPS, Command.GIVE_BACK): HostStep(Holding.NOTHING, Report.GIVEN),
    (Holding.WHOLE, Command.GIVE_BACK): HostStep(Holding.NOTHING, Report.GIVEN),
    # It is in no move by then; what it was started under is what counts.
    (Holding.RUNS, Command.DESTROY): HostStep(Holding.NOTHING, Report.DESTROYED),
    # What was done already is said again.
    (Holding.LEAVING, Command.BEGIN): HostStep(Holding.LEAVING, Report.READY),
    (Holding.STANDS, Command.STOP): HostStep(Holding.STANDS, Report.STOPPED),
    (Holding.KEEPS, Command.KEEP): HostStep(Holding.KEEPS, Report.PLACE),
    (Holding.WHOLE, Command.COME): HostStep(Holding.WHOLE, Report.WHOLE),
}
"""A host's rows, for commands of the move it is in. A command that has none is passed over."""

BEGINNINGS = frozenset({Command.BEGIN, Command.KEEP})
"""Commands that begin something: only for a number that is newer than every other."""

PASSED: Mapping[Command, Report] = {
    Command.STOP: Report.STAYED,
    Command.STAY: Report.STAYED,
    Command.LEAVE: Report.LEFT,
    Command.COME: Report.NEVER,
    Command.GO: Report.NEVER,
    Command.GIVE_BACK: Report.GIVEN,
    Command.DESTROY: Report.DESTROYED,
}
"""What a host says to a command of a move it is not in; with that it remembers the number as heard of.

Instead of STAYED it says LOST where it has nothing and did not go on after that move or a later one, instead of NEVER
it says RUNS where it started the VM under that number.
"""

ANSWERED_BY: Mapping[Report, Event] = {
    Report.STOPPED: Event.STOPPED,
    Report.WHOLE: Event.WHOLE,
    Report.RUNS: Event.RUNS,
    Report.NEVER: Event.NEVER,
    Report.STAYED: Event.STAYED,
    Report.LOST: Event.LOST,
    Report.DESTROYED: Event.DESTROYED,
}
"""Reports that are events of the authority's table; READY and PLACE only let the copying begin.

PACED answers what is said between the rows to a destination whose VM runs ahead of its memory.
"""


@dataclass(slots=True)
class Mine:
    """A host and one VM: what it has, under which move, and what it remembers, which no restart takes away."""

    holding: Holding
    number: int = -1
    """Of the move that it is in; -1 for none."""
    newest: int = -1
    """The newest move that it heard of."""
    started: int = -1
    """The last that it started it under."""
    stayed: int = -1
    """The last that it went on after; it went on after all that were before one by which it was to leave."""


def _keeps(mine: Mine, number: int) -> None:
    mine.number = mine.newest = number


def _is_to_leave(mine: Mine, number: int) -> None:
    mine.number = mine.newest = number
    # Who is asked to let it go, and has it, went on after whatever was before.
    mine.stayed = max(mine.stayed, number - 1)


def _starts(mine: Mine, number: int) -> None:
    mine.number, mine.started = -1, number


def _goes_on(mine: Mine, number: int) -> None:
    mine.number, mine.stayed = -1, number


def _is_out(mine: Mine, _: int) -> None:
    mine.number = -1


REMEMBERED: Mapping[Report, Callable[[Mine, int], None]] = {
    Report.READY: _is_to_leave,
    Report.PLACE: _keeps,
    Report.RUNS: _starts,
    Report.STAYED: _goes_on,
    Report.LEFT: _is_out,
    Report.NEVER: _is_out,
    Report.GIVEN: _is_out,
    Report.DESTROYED: _is_out,
}
"""What becomes of the move that a host is in, and of what it remembers, with a row by which it has something else."""


def told(mine: Mine, command: Command, number: int) -> Report | None:
    """What a host says after a command, None for silence. It remembers before it says anything."""
    row = HOST.get((mine.holding, command))
    if row is None:
        return _passed(mine, command, number)
    to, report = row
    if mine.number == number or (command is Command.DESTROY and mine.started == number):
        if to is mine.holding:
            return report
    elif number <= mine.newest or command not in BEGINNINGS:
        return _passed(mine, command, number)
    mine.holding = to
    if (remembered := REMEMBERED.get(report)) is not None:
        remembered(mine, number)
    return report


def _passed(mine: Mine, command: Command, number: int) -> Report | None:
    """The same for a command that has no row, or is not of the move that the VM is in."""
    if command not in PASSED or mine.number == number:
        return None
    mine.newest = max(mine.newest, number)
    report = PASSED[command]
    if report is Report.NEVER and mine.started == number:
        return Report.RUNS
    if report is Report.STAYED and mine.holding is Holding.NOTHING and mine.stayed < number:
        return Report.LOST
    return report


def gave_up(mine: Mine) -> Report:
    """What a destination says after what came was not whole."""
    mine.holding, mine.number = Holding.NOTHING, -1
    return Report.NEVER


def crashed(mine: Mine) -> None:
    """A host has crashed: its memory is gone, what it wrote down is not."""
    mine.holding, mine.number = Holding.NOTHING, -1
