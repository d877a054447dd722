"""Two ends of a stream with the same keys, for tests."""

from __future__ import annotations

import hashlib

from tio.ide import Direction, IdeStream, StreamSettings, SubStream
from tio.ide.stream import ALL_CHECKS, StreamChecks


def key_of(way: Direction, sub_stream: SubStream, key_set: int = 0, seed: int = 0) -> bytes:
    return hashlib.sha256(f"{seed} {key_set} {way} {sub_stream}".encode()).digest()


def program(one: IdeStream, other: IdeStream, key_set: int = 0, seed: int = 0) -> None:
    """Give both ends the keys of a set: what one sends with the other receives with."""
    for way in Direction:
        for sub_stream in SubStream:
            one.program(key_set, way, sub_stream, key_of(way, sub_stream, key_set, seed), 1)
            other.program(key_set, Direction(1 - way), sub_stream, key_of(way, sub_stream, key_set, seed), 1)


def go(stream: IdeStream, key_set: int = 0) -> None:
    for way in Direction:
        for sub_stream in SubStream:
            stream.go(key_set, way, sub_stream)


def ends(
    aggregation: int = 1, stream_id: int = 7, checks: StreamChecks = ALL_CHECKS, **settings: bool
) -> tuple[IdeStream, IdeStream]:
    """A stream that is Secure at both ports."""
    both = StreamSettings(aggregation=dict.fromkeys(SubStream, aggregation), **settings)
    one, other = (IdeStream(stream_id, both, checks) for _ in range(2))
    program(one, other)
    for end in (one, other):
        go(end)
        end.enable()
    return one, other
