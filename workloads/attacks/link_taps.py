"""What somebody on a link does with the packets that come by: let them pass, alter, drop, repeat, hold them.

A tap looks at what is in the clear of every packet, protected or not: what kind it is, how long, and where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tio.ide import IdeTlp, Packet, Tlp, TlpError, TlpKind
from tio.ide.link import Way
from tio.ide.prefix import parse_prefix

Wanted = Callable[[Way, Tlp], bool]
_FLIPPED = 0xA5
_POSTED = (TlpKind.MEMORY_WRITE, TlpKind.IDE_MESSAGE)


def kind_of(packet: Packet) -> TlpKind | None:
    """What a packet is by its header; None for what nobody knows."""
    try:
        return as_tlp(packet).kind
    except (TlpError, IndexError):
        return None


def as_tlp(packet: Packet) -> Tlp:
    """Header and payload as they crossed the link."""
    return Tlp(packet.header, packet.payload)


def written_to(first: int, length: int) -> Wanted:
    """Writes of the device to a range of addresses."""

    def wanted(way: Way, packet: Tlp) -> bool:
        return way is Way.UP and packet.kind is TlpKind.MEMORY_WRITE and first <= packet.address < first + length

    return wanted


def listen(_: Way, packet: Packet) -> Iterable[Packet]:
    """Let everything pass."""
    return (packet,)


class OnChosen:
    """Does something with packets that are wanted, and lets the rest pass."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def __call__(self, way: Way, packet: Packet) -> Iterable[Packet]:
        """What goes on in a packet's place."""
        if kind_of(packet) is not None and self._wanted(way, as_tlp(packet)):
            return self.chosen(packet)
        return (packet,)

    def chosen(self, packet: Packet) -> Iterable[Packet]:
        """What goes on in the place of a wanted one."""
        raise NotImplementedError


class Alter(OnChosen):
    """Flips bits of what a packet carries."""

    def chosen(self, packet: Packet) -> Iterable[Packet]:
        """The same with another payload."""
        payload = bytes([octet ^ _FLIPPED for octet in packet.payload])
        return (replace(packet, payload=payload),)


class Drop(OnChosen):
    """Lets none of them pass."""

    def chosen(self, packet: Packet) -> Iterable[Packet]:
        """Nothing."""
        return ()


class Repeat(OnChosen):
    """Keeps the first of them, and lets it follow each later one."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self._first: Packet | None = None

    def chosen(self, packet: Packet) -> Iterable[Packet]:
        """The packet, and the one of before."""
        before, self._first = self._first, self._first or packet
        return (packet,) if before is None else (packet, before)


class AnswerLater:
    """Holds the first completion that comes from the device until the next, and lets both go then."""

    def __init__(self) -> None:
        self._held: Packet | None = None
        self._done = False

    def __call__(self, way: Way, packet: Packet) -> Iterable[Packet]:
        """What goes on in a packet's place."""
        if self._done or way is not Way.UP or kind_of(packet) is not TlpKind.COMPLETION_DATA:
            return (packet,)
        if self._held is None:
            self._held = packet
            return ()
        self._done = True
        return (self._held, packet)


class Overtake:
    """From the first wanted write on, holds what the device posts until it has answered a load.

    That answer has then overtaken what was sent before it, which goes on before whatever comes next.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._held: list[Packet] = []
        self._answered = False

    def __call__(self, way: Way, packet: Packet) -> Iterable[Packet]:
        """What goes on in a packet's place."""
        kind = kind_of(packet)
        if way is not Way.UP or kind is None:
            return (packet,)
        if kind in _POSTED and not self._answered and (self._held or self._wanted(way, as_tlp(packet))):
            self._held.append(packet)
            return ()
        if kind is TlpKind.COMPLETION_DATA and self._held and not self._answered:
            self._answered = True
            return (packet,)
        held, self._held = self._held, []
        return (*held, packet)


class Delay:
    """From the first wanted write on, holds what the device posts, until it is ``due`` and the device posts more.

    Under other keys nobody would take it any more, and it would tell of itself: the prefix says under which set a
    packet is sealed, so that what is of another set is thrown away.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.due = False
        self._wanted = wanted
        self._held: list[Packet] = []

    def __call__(self, way: Way, packet: Packet) -> Iterable[Packet]:
        """What goes on in a packet's place."""
        kind = kind_of(packet)
        if way is not Way.UP or kind not in _POSTED or not (self._held or self._wanted(way, as_tlp(packet))):
            return (packet,)
        if self.due and kind is TlpKind.MEMORY_WRITE:
            held, self._held = self._held, []
            return (*[one for one in held if _key_set(one) == _key_set(packet)], packet)
        self._held.append(packet)
        return ()


def _key_set(packet: Packet) -> int | None:
    """Under which keys a packet is sealed; None in the clear."""
    return parse_prefix(packet.prefix).key_set if isinstance(packet, IdeTlp) else None
