"""What a host records: the codes, and for each the names of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum


class HostEvent(IntEnum):
    """One kind of record. Codes from 100 on are kept in logs only and are no part of a digest."""

    ORDERED = 1
    ENTERED = 2
    REFUSED = 3
    DESTROYED = 4
    BATCH = 5
    PHASE = 6
    PAUSED = 7
    STOPPED = 8
    DEPARTED = 9
    ARRIVED = 10
    SENT = 11
    RECEIVED = 12
    FIRMWARE = 13
    DEVICES = 14
    PSP_COMMAND = 100
    PHASE_CUT = 101
    EXITS = 102
    SLOWED = 103


class Octets(Enum):
    """What the octets of a record are."""

    NONE = "none"
    VM = "name of the VM that the record is about"
    TEXT = "text"
    DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class EventKind:
    """How records of one kind are read.

    ``first`` and ``second`` name the two figures, "" for one that says nothing; a name that
    ends in ``_ns`` is a virtual time. ``text`` names what is said of a record in words.
    """

    word: str
    first: str = ""
    second: str = ""
    text: str = ""
    octets: Octets = Octets.NONE
    takes_time: bool = False
    """Whether the record ends something that took time."""


EVENT_KINDS: Mapping[HostEvent, EventKind] = {
    HostEvent.ORDERED: EventKind("ordered", octets=Octets.VM),
    HostEvent.ENTERED: EventKind("entered", text="launch digest", octets=Octets.DIGEST),
    HostEvent.REFUSED: EventKind("refused", text="reason", octets=Octets.TEXT),
    HostEvent.DESTROYED: EventKind("destroyed", octets=Octets.VM),
    HostEvent.BATCH: EventKind("batch", "operations", "units of work", takes_time=True),
    HostEvent.PHASE: EventKind("phase", "", "instructions", "demand", takes_time=True),
    HostEvent.PAUSED: EventKind("paused"),
    HostEvent.STOPPED: EventKind("stopped", "shutdown code"),
    HostEvent.DEPARTED: EventKind("departed", octets=Octets.VM),
    HostEvent.ARRIVED: EventKind("arrived", octets=Octets.VM),
    HostEvent.SENT: EventKind("sent", "frames", "bytes"),
    HostEvent.RECEIVED: EventKind("received", "frames", "bytes"),
    HostEvent.FIRMWARE: EventKind("firmware", text="what came of it", octets=Octets.TEXT),
    HostEvent.DEVICES: EventKind("devices", "1 let go, 2 settled", "trusted, a bit for each"),
    HostEvent.PHASE_CUT: EventKind("phase cut", "", "instructions", "demand", takes_time=True),
    HostEvent.EXITS: EventKind("exits", "batches of the hypervisor", takes_time=True),
    HostEvent.SLOWED: EventKind("slowed", "millionths of its time standing still", "bytes a second a vCPU may write"),
    HostEvent.PSP_COMMAND: EventKind("psp command", "", "waited_ns", "command", takes_time=True),
}
"""Every kind of record. To add a kind, add a line: logs, what is printed of them and traces follow it."""
