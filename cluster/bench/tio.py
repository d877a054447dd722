"""How fast trusted I/O is: a device that proves itself, and protected packets over a link, both ends counted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from statistics import median

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.bench import card_dma, device_proofs, interface_host
from cluster.figure import Figure
from node.counter_random import CounterRandom
from tio.ide import Direction, IdeStream, StreamSettings, SubStream, receive_writes, send_writes
from tio.ide.keys import FIRST_INVOCATION, KEY_BYTES, vector
from tio.ide.write_run import HEAD_BYTES

MOVED_BYTES = 64 << 20
PAYLOAD_BYTES, TOGETHER = 256, 8
TARGET_SHARE = 0.4
_ROUNDS = 5


def run() -> Iterator[Figure]:
    """Attestations, mutated messages, and trusted writes of 64 MiB against the cipher alone on such records.

    Packets are of 256 bytes, eight under a MAC.
    """
    yield from device_proofs.figures()
    yield from interface_host.figures()
    data = CounterRandom(1).octets("bench", "packets", 0, MOVED_BYTES)
    sender, receiver = stream_ends()
    bare, moved = [], []
    for _ in range(_ROUNDS):
        bare.append(_cpu_s(lambda: cipher_alone(data)))
        moved.append(_cpu_s(lambda: over_the_link(sender, receiver, data)))
    share = median([one / other for one, other in zip(bare, moved, strict=True)])
    yield Figure("AES-256-GCM alone, records of 2 KiB sealed and opened", MOVED_BYTES / median(bare), "byte/s")
    name = "AES-256-GCM alone"
    per_s = MOVED_BYTES / median(moved)
    yield Figure("IDE writes, sent and received", per_s, "byte/s", MOVED_BYTES / median(bare), name)
    yield Figure("IDE writes, share of the cipher", share, "ratio", TARGET_SHARE, "the target")
    yield from card_dma.figures(data, median(bare))


def stream_ends() -> tuple[IdeStream, IdeStream]:
    """A stream that is Secure at both ports."""
    settings = StreamSettings(aggregation=dict.fromkeys(SubStream, TOGETHER))
    ends = IdeStream(1, settings), IdeStream(1, settings)
    for way in Direction:
        for sub_stream in SubStream:
            key = hashlib.sha256(bytes((way, sub_stream))).digest()
            for end, its_way in zip(ends, (way, Direction(1 - way)), strict=True):
                end.program(0, its_way, sub_stream, key, FIRST_INVOCATION)
                end.go(0, its_way, sub_stream)
    for end in ends:
        end.enable()
    return ends


def over_the_link(sender: IdeStream, receiver: IdeStream, data: bytes) -> None:
    """Send all of it and take it at the other end."""
    arrived = receive_writes(receiver, send_writes(sender, 0x0100, 0, data, PAYLOAD_BYTES))
    assert arrived is not None
    assert arrived[1] == data


def cipher_alone(data: bytes) -> None:
    """The same records without packets around them."""
    cipher, size, heads = AESGCM(bytes(KEY_BYTES)), PAYLOAD_BYTES * TOGETHER, bytes(HEAD_BYTES * TOGETHER)
    records = range(0, len(data), size)
    sealed = [cipher.encrypt(vector(at), data[at : at + size], heads) for at in records]
    opened = [cipher.decrypt(vector(at), record, heads) for at, record in zip(records, sealed, strict=True)]
    assert (opened[0], opened[-1]) == (data[:size], data[-size:])


def _cpu_s(act: Callable[[], None]) -> float:
    begin = time.process_time()
    act()
    return time.process_time() - begin
