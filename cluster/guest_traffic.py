"""Frames of guests between hosts: they take their share of the same links as migrations, and the network's latency.

What one network card sends at once is a flow of the fabric, one after another: a
card's frames stay in order. Frames are lost where nobody has the address, and where
a card has too much waiting for its turn. Whoever runs the network sees every byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cluster.fabric import Fabric, Flow, Path
from cluster.placement import FirstFit
from node.guest import GuestSpec
from node.mac_address import MAC_BYTES, mac_of

Wire = Callable[[str, str, tuple[bytes, ...]], tuple[bytes, ...]]
"""What the network does to frames from one host to another; the tap of attackers and faults."""

FRAMING_BYTES = 24
"""What a frame takes on a cable beside its bytes: preamble, check sequence and gap (IEEE 802.3, sections 3 and 4.4)."""
MOST_WAITING_FRAMES = 1000
"""Of one card (Linux: txqueuelen of an Ethernet device); what comes on top is dropped."""


def networked(guests: Iterable[GuestSpec]) -> Mapping[bytes, str]:
    """The addresses of all network cards, and whose they are."""
    return {
        mac_of(guest.name, vcpu): guest.name for guest in guests if guest.network for vcpu in range(guest.vcpus)
    }  # fmt: skip


@dataclass(slots=True)
class _Burst:
    """Frames that leave together."""

    source: str
    destination: str
    target: bytes
    frames: tuple[bytes, ...]
    sent_ns: int


@dataclass(slots=True)
class PairOfHosts:
    """What went from one host to another."""

    frames: int = 0
    bytes: int = 0
    lost: int = 0
    delivered: int = 0
    transfer_ns: int = 0
    longest_ns: int = 0


@dataclass(slots=True)
class GuestTraffic:
    """All frames of a run that leave their host. ``card_bytes_per_s`` is what one card moves at most."""

    fabric: Fabric
    placement: FirstFit
    card_bytes_per_s: float
    send: Callable[[str, tuple[object, ...]], None]
    """Sends frames to a host, which they reach when the network's latency has passed."""
    owners: Callable[[], Mapping[bytes, str]]
    """Whose card an address is."""
    wire: Wire = lambda _, __, frames: frames
    pairs: dict[tuple[str, str], PairOfHosts] = field(default_factory=dict)
    """By source and destination, in the order of their first frames."""
    _waiting: dict[bytes, deque[_Burst]] = field(default_factory=dict)
    """By sending card; the first of each is on its way."""
    _flows: dict[bytes, Flow] = field(default_factory=dict)
    """That of each card that sends."""
    _paths: dict[tuple[str, str], Path] = field(default_factory=dict)
    """Between hosts that have sent frames to each other."""
    _frames: dict[bytes, int] = field(default_factory=dict)
    _off_ns: dict[str, int] = field(default_factory=dict)
    """Until when each host that crashed may still speak: it has not heard so yet."""
    _owners: Mapping[bytes, str] | None = None

    def take(self, source: str, target: bytes, frames: tuple[bytes, ...], now_ns: int) -> None:
        """Frames of one card leave a host."""
        if self._owners is None:
            self._owners = self.owners()
        destination = self.placement.host_of(self._owners.get(target, ""))
        pair = self.pairs.setdefault((source, destination or ""), PairOfHosts())
        pair.frames += len(frames)
        pair.bytes += sum(map(len, frames))
        card = frames[0][MAC_BYTES : 2 * MAC_BYTES]
        waiting = self._frames.get(card, 0)
        unsent = bool(self._off_ns) and now_ns <= self._off_ns.get(source, -1)
        if unsent or destination is None or destination == source or waiting + len(frames) > MOST_WAITING_FRAMES:
            pair.lost += len(frames)
            return
        queue = self._waiting.setdefault(card, deque())
        queue.append(_Burst(source, destination, target, frames, now_ns))
        self._frames[card] = waiting + len(frames)
        if len(queue) == 1:
            self._start(card, now_ns)

    def crash(self, host: str, now_ns: int, heard_ns: int) -> None:
        """A host crashes: what its cards have not sent is lost, also what they would send until it hears of it."""
        self._off_ns[host] = heard_ns
        for card, queue in list(self._waiting.items()):
            left = deque([burst for burst in queue if burst.source != host])
            if len(left) == len(queue):
                continue
            is_first = queue[0].source == host
            if is_first:
                self.fabric.cancel(self._flows[card], now_ns)
            for burst in queue:
                if burst.source == host:
                    self.pairs[burst.source, burst.destination].lost += len(burst.frames)
                    self._frames[card] -= len(burst.frames)
            if not left:
                del self._waiting[card], self._frames[card], self._flows[card]
                continue
            self._waiting[card] = left
            if is_first:
                self._start(card, now_ns)

    def _arrived(self, card: bytes, now_ns: int) -> None:
        """The last byte of a burst has left; the card's next one begins."""
        queue = self._waiting[card]
        burst = queue.popleft()
        self._frames[card] -= len(burst.frames)
        pair = self.pairs[burst.source, burst.destination]
        took_ns = now_ns - burst.sent_ns
        pair.delivered += len(burst.frames)
        pair.transfer_ns += took_ns * len(burst.frames)
        pair.longest_ns = max(pair.longest_ns, took_ns)
        frames = self.wire(burst.source, burst.destination, burst.frames)
        if frames:
            self.send(burst.destination, (burst.target, frames, burst.sent_ns))
        if queue:
            self._start(card, now_ns)
        else:
            del self._waiting[card], self._frames[card], self._flows[card]

    def _start(self, card: bytes, now_ns: int) -> None:
        burst = self._waiting[card][0]
        size = sum(map(len, burst.frames)) + FRAMING_BYTES * len(burst.frames)
        way = burst.source, burst.destination
        path = self._paths.get(way)
        if path is None:
            path = self._paths[way] = self.fabric.path(*way)
        self._flows[card] = self.fabric.start(path, size, now_ns, self.card_bytes_per_s, self._arrived, card)
