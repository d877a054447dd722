"""Who carries a session that only authenticates hears the keys of a link in it, and opens what crosses the link.

Firmware that wants encryption connects no such device, and a device that wants it hears no keys there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from node.tio_carrier import TioRefused
from tio.ide import Direction, IdeStream, IdeTlp, Packet, StreamSettings, SubStream
from tio.ide.key_messages import KeyMessage, parse_key_message
from tio.ide.link import Way
from tio.ide.stream import MOST_AGGREGATED
from workloads.attacks.claims import WorkedOut
from workloads.attacks.own_session import carried
from workloads.attacks.slot_operations import LinkLeave, LinkTap
from workloads.attacks.target import LET_IT_RUN, Attack, Target

_KEY_PROG = re.compile(rb"\x00(\x02\x00{2}.\x00...{32}\x00{4}\x01\x00{3})", re.DOTALL)
"""As it stands behind the protocol's number: a key, and an initial value of 1."""
_HELD = {Way.DOWN: Direction.RX, Way.UP: Direction.TX}
"""The keys of each way, as the device that was given them sees it."""


class Listener:
    """A tap that lets everything pass, and keeps it."""

    def __init__(self) -> None:
        self.packets: list[tuple[Way, Packet]] = []

    def __call__(self, way: Way, packet: Packet) -> Iterable[Packet]:
        """The packet itself."""
        self.packets.append((way, packet))
        return (packet,)


def overhear_keys(target: Target) -> Attack:
    """Carry the firmware's words to the device, listen on its link for a round, and say what can be made of both."""
    device, objects, listener = target.device, list[bytes](), Listener()
    yield (LinkTap(device.port, listener, tells=False),)
    try:
        yield from carried(device.tio.bind(device.given, device.gctx), [], objects)
        yield from device.tio.unbind(device.given, device.gctx)
    except TioRefused:
        objects.clear()
    yield LET_IT_RUN
    yield LET_IT_RUN
    yield (LinkLeave(device.port),)
    keys = keys_in(b"".join(objects))
    if keys:
        yield (WorkedOut(opened(listener.packets, keys)),)


def keys_in(octets: bytes) -> list[KeyMessage]:
    """Every key that somebody was given in what was carried, once, in order."""
    return [parse_key_message(one) for one in dict.fromkeys(_KEY_PROG.findall(octets))]


def opened(packets: Iterable[tuple[Way, Packet]], keys: Sequence[KeyMessage]) -> bytes:
    """Payloads of a link's protected packets, seen from the first on, to who knows its keys: those down, those up."""
    ends = {way: _end(keys, held) for way, held in _HELD.items()}
    found: dict[Way, list[bytes]] = {way: [] for way in Way}
    for way, packet in packets:
        if isinstance(packet, IdeTlp):
            found[way] += [arrived.payload for arrived, _ in ends[way].receive(packet)]
    return b"".join([payload for way in Way for payload in found[way]])


def _end(keys: Sequence[KeyMessage], held: Direction) -> IdeStream:
    """An end of the stream that takes what goes one way."""
    end = IdeStream(keys[0].stream_id, StreamSettings(aggregation=dict.fromkeys(SubStream, MOST_AGGREGATED)))
    for one in keys:
        if one.slot.direction is held:
            sub_stream = SubStream(one.slot.sub_stream)
            for direction in Direction:  # It is Secure with keys to send as well.
                end.program(one.slot.key_set, direction, sub_stream, one.key, one.initial)
                end.go(one.slot.key_set, direction, sub_stream)
    end.enable()
    return end
