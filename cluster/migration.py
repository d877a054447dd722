"""One live migration, from the wish to its end: what is asked for, what became of it, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from cluster.fabric import Flow, Path
from cluster.hand_over import Phase, Report
from cluster.precopy import Precopy
from node.dirty_rates import Pool
from node.frame_allocator import OutOfMemory
from node.guest import GuestSpec


class Due(IntEnum):
    """What a move waits for in time; what is due at one time is done in this order."""

    LOG_READ = 0
    DEADLINE = 1
    WAY_BACK = 2
    SILENCE = 3
    NOTHING = 4


class Outcome(StrEnum):
    """How a migration ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    """The source will not or cannot move the VM."""
    NO_ROOM = "no room"
    """No host has room, or one of the two had no more memory in the middle, and the VM went on at the source."""
    CANCELLED = "cancelled"
    ROUND_CAP = "round cap"
    SPOILED = "spoiled"
    """What came was not what was sent; the VM went on at the source."""
    ENDED = "VM ended"
    TIMED_OUT = "timed out"
    """A host was not heard of; the VM went on at the source."""
    RESTARTED = "control plane restarted"
    """The control plane crashed before the commit point; the VM went on at the source."""
    TARGET_LOST = "target lost"
    """The target crashed before it had started the VM, which went on at the source."""
    LOST = "lost"
    """The source crashed, and no target had all of the VM."""
    LINK_DOWN = "link down"
    """The connection between the two hosts broke; the VM went on at the source."""
    UNFINISHED = "unfinished"
    """The run was over first."""


def outcome_of(wrong: str, otherwise: Outcome) -> Outcome:
    """How a move ends that a host broke off and said why: where its memory did not do there was no room."""
    return Outcome.NO_ROOM if wrong.startswith(OutOfMemory.SAYS) else otherwise


class MigrationOrder(NamedTuple):
    """A wish: which VM, where to (None: wherever there is room), and for which drain."""

    vm: str
    to: str | None = None
    drain: str | None = None
    first_host: int = 0
    """Where in the fleet the search for room begins."""


_SOURCE, _UNFINISHED = Phase.SOURCE, Outcome.UNFINISHED
"""At hand: every move begins with them."""
_NOTHING: Mapping[str, tuple[Any, ...]] = MappingProxyType({})


class Migration:
    """One migration. Times are virtual nanoseconds, -1 for not yet."""

    __slots__ = (
        "__dict__", "certificates", "destination", "ended_ns", "final_bytes", "flow", "flow_bytes", "frame_bytes",
        "guest", "history", "luggage", "number", "order", "ordered_ns", "outcome", "over", "pages_checked", "path",
        "phase", "precopy", "ready", "reason", "resumed_ns", "source", "started_ns", "stopped_ns", "wire_bytes",
    )  # fmt: skip
    # What most moves never come to stands here, and not in each of them.
    platforms: Mapping[str, tuple[Any, ...]] = _NOTHING
    """What both hosts say of themselves where firmware carries the VM, by name of the host."""
    agreed: bool = False
    """Both firmwares have the same keys."""
    unserved: tuple[str, ...] = ()
    """Hosts whose security processor is not through with what a round copies."""
    rounds_told: int = 0
    private_pages: int = 0
    """Of the present round, that go through firmware."""
    told_bytes: int = 0
    """Of what is left of a round that was broken off, what both firmwares were told of, and go on with."""
    ahead: bool = False
    """The VM is to run at the target before all of its memory is there: post-copy."""
    pulled_bytes: int = 0
    """What it has to get from its source then."""
    faults: int = 0
    """Pages of that which it touched before they came."""
    ran_ahead_ns: int = 0
    """How long it ran so."""
    came_bytes: int = 0
    """Of that, what came before a connection broke."""
    faulted: float = 0.0
    """And pages that were waited for before that."""
    owed_ns: float = 0.0
    """What its vCPUs have waited for, and not yet waited."""
    touched_ns: float = 0.0
    """How long the machine had run by then, but for its waits."""
    pulling: tuple[int, int, float] = (0, 1, 0.0)
    """When the present connection began, how long it would take for the rest, and the share of waits."""
    pace: tuple[int, float] = (-1, 0.0)
    """The share of its time for which the target was told last that it stands still; the later, the higher number."""
    broken_ns: int = -1
    """Since when nothing comes, for want of a link."""
    pauses: int = 0
    paused_ns: int = 0
    slowed: tuple[float, float] = (0.0, 0.0)
    """What the source was told last of standing still, and of the most that a vCPU may write."""
    zero_bytes: int = 0
    """Of its memory, pages of zeros, of which only the news goes over the network."""
    unsent_zero_bytes: int = 0
    """Of those, what no round had sent when the VM was stopped."""
    silence: int = 0
    """How often something was said again in the present phase."""
    unanswered: frozenset[Report] = frozenset()
    """What a final phase still waits for, and one in which the machine runs ahead."""
    source_lost: bool = False
    """The source crashed, or has nothing of the VM any more."""
    target_lost: bool = False
    """The target crashed after it had kept a place."""
    devices_free_ns: int = -1
    """When its guest had let its devices go."""
    devices_settled_ns: int = -1
    """When it had made what it could of those that it found."""
    trusted: tuple[int, int] = (0, 0)
    """How many of them it trusts, and of how many."""

    def __init__(
        self, number: int, order: MigrationOrder, ordered_ns: int, over: Callable[[Migration, int], None] | None = None
    ) -> None:
        self.number = number
        self.order = order
        self.ordered_ns = ordered_ns
        self.over = over
        """Told when it has ended."""
        self.history: list[tuple[Phase, int]] = []
        """Every phase that it entered, and when."""
        self.guest: GuestSpec | None = None
        self.source = ""
        self.destination = ""
        self.path: Path = ()
        """Between the two."""
        self.phase = _SOURCE
        self.flow: Flow | None = None
        """Its bytes that are under way on the fabric."""
        self.outcome = _UNFINISHED
        self.reason = ""
        self.started_ns = -1
        self.ended_ns = -1
        self.stopped_ns = -1
        self.resumed_ns = -1
        self.precopy: Precopy | None = None
        self.ready: tuple[int, tuple[Pool, ...]] | None = None
        """The source's memory and pools, once it has said so."""
        self.certificates: bytes | None = None
        """The target's platform's, for the source's firmware, or none of them: known once the target keeps a place."""
        self.wire_bytes = 0
        """Put on the network, compressed."""
        self.flow_bytes = 0
        """Memory that the present flow brings."""
        self.final_bytes = 0
        self.frame_bytes = 0
        self.pages_checked = 0
        self.luggage: tuple[Any, ...] = ()
        """Frames, digests and books between the two hosts."""

    def let_go(self, at_ns: int) -> None:
        """The guest trusts none of its devices any more."""
        self.devices_free_ns = at_ns

    def settled(self, at_ns: int, trusted: int, devices: int) -> None:
        """The guest has made what it could of the devices that it found; the move is over by then."""
        self.devices_settled_ns, self.trusted = at_ns, (trusted, devices)

    @property
    def wire_ratio(self) -> float:
        """Bytes on the network for each of memory, in what is under way."""
        assert self.flow is not None
        return max(_LEAST_RATIO, self.flow.size / self.flow_bytes if self.flow_bytes else 0.0)

    @property
    def has_place(self) -> bool:
        """Whether the target keeps a place."""
        return self.certificates is not None

    @property
    def is_over(self) -> bool:
        """Whether the VM may move again."""
        return self.ended_ns >= 0

    @property
    def expected_downtime_ns(self) -> int | None:
        """By its last round; the fixed part alone of one that runs ahead of its memory without any."""
        if self.precopy is None:
            return None
        by_rounds = self.precopy.expected_downtime_ns
        return self.precopy.fixed_downtime_ns if by_rounds is None and self.ahead else by_rounds

    @property
    def can_be_called_off(self) -> bool:
        """Whether the VM surely goes on at its source when the move fails now."""
        return self.phase in _BEFORE_SENT


_LEAST_RATIO = 1e-6
"""Of bytes on the wire to bytes of memory, so that one can be told from the other."""
_BEFORE_SENT = frozenset({Phase.SOURCE, Phase.PRE, Phase.PAUSED, Phase.STOPPED})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the control plane waits for an answer before it says a thing again, and how often.

    With 0 it never does: its messages are not lost.
    """

    again_after_ns: int = 0
    most_times: int = 10
