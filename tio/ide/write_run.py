"""Many posted writes at addresses that follow each other, protected and checked in one go.

What comes of a run is what ``IdeStream`` makes of its packets one by one: heads, invocations, ciphertext and MACs. A
link on which somebody looks takes it apart; whatever is not a whole and plain run any more goes that way too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tio.ide.keys import MAC_BYTES, KeyUsedUp
from tio.ide.prefix import PREFIX_BYTES, IdePrefix
from tio.ide.records import Heads, have_lengths, seal_records, single_packets, taken_records, with_macs
from tio.ide.stream import ALL_CHECKS, Failure, IdeStream, IdeTlp
from tio.ide.tlp import SubStream, TlpKind, memory_write

HEADER_BYTES = 16
HEAD_BYTES = PREFIX_BYTES + HEADER_BYTES
_ADDRESS = PREFIX_BYTES + 8


@dataclass(frozen=True, slots=True)
class WriteRun:
    """Protected writes on the link: ``records`` hold the ciphertext of each aggregate and its MAC."""

    heads: Heads
    records: list[bytes]
    payload_bytes: int
    aggregation: int

    def packets(self) -> Iterator[IdeTlp]:
        """The same packet by packet."""
        return single_packets(self.heads, self.records, self.payload_bytes, self.aggregation)


def send_writes(
    stream: IdeStream, requester: int, address: int, data: bytes | bytearray | memoryview, payload_bytes: int = 256
) -> WriteRun:
    """Protect writes of ``data`` from ``address`` on, whole packets of ``payload_bytes``.

    Raises IdeError while the stream is Insecure, TlpError for writes that are none.
    """
    octets = memoryview(data).cast("B")
    packets, rest = divmod(len(octets), payload_bytes)
    if rest or not packets or address % payload_bytes:
        raise ValueError(f"run: expected whole packets of {payload_bytes} bytes, found {len(octets)} at {address:#x}")
    key_set, key = stream.sending_key(SubStream.PR)
    together = stream.settings.aggregation[SubStream.PR]
    heads = _heads(stream.stream_id, key_set, requester, address, packets, payload_bytes, together)
    try:
        first = key.take(-(-packets // together))
    except KeyUsedUp:
        stream.fail(Failure.KEY_USED_UP)
        raise
    stream.count_posted(packets)
    step = together * payload_bytes
    if not stream.checks.ciphers:
        plain = [octets[at : at + step].tobytes() + bytes(MAC_BYTES) for at in range(0, len(octets), step)]
        return WriteRun(heads, plain, payload_bytes, together)
    return WriteRun(heads, seal_records(key, first, octets, heads, step, together), payload_bytes, together)


def receive_writes(stream: IdeStream, run: WriteRun) -> tuple[int, bytearray] | None:
    """Take a run: the address and what is written there. None where it is not plain, or the stream does not take it.

    Of a run whose checks fail nothing counts, and the stream is Insecure as after the first packet that fails.
    Callers that get None go on with ``packets``; of a stream that failed these are dropped.
    """
    found = stream.receiving_key(SubStream.PR)
    if found is None or not _is_plain(stream, found[0], run):
        return None
    plain = taken_records(stream, found[1], run.records, run.heads, run.aggregation)
    if plain is None:
        return None
    stream.count_arrived(len(run.heads))
    return int.from_bytes(run.heads[0, _ADDRESS:].tobytes(), "big"), plain


def _heads(
    stream_id: int, key_set: int, requester: int, address: int, packets: int, payload_bytes: int, together: int
) -> Heads:
    header = memory_write(requester, address, bytes(payload_bytes)).header
    rows = np.empty((packets, HEAD_BYTES), np.uint8)
    rows[:] = np.frombuffer(IdePrefix(stream_id, SubStream.PR, True, key_set, False).pack() + header, np.uint8)
    with_macs(rows, IdePrefix(stream_id, SubStream.PR, True, key_set, True).pack(), together)
    addresses = np.arange(packets, dtype=np.uint64) * np.uint64(payload_bytes) + np.uint64(address)
    rows[:, _ADDRESS:] = addresses.astype(">u8").view(np.uint8).reshape(packets, 8)
    return rows


def _is_plain(stream: IdeStream, key_set: int, run: WriteRun) -> bool:
    """Whether a run is one that ``send_writes`` could have made for this stream with the keys in use."""
    packets, size, together = len(run.heads), run.payload_bytes, run.aggregation
    if not packets or together > stream.settings.aggregation[SubStream.PR] or stream.checks != ALL_CHECKS:
        return False
    head = run.heads[0].tobytes()
    if head[PREFIX_BYTES] != TlpKind.MEMORY_WRITE:
        return False
    requester = int.from_bytes(head[PREFIX_BYTES + 4 : PREFIX_BYTES + 6], "big")
    address = int.from_bytes(head[_ADDRESS:], "big")
    if address % size:
        return False
    expected = _heads(stream.stream_id, key_set, requester, address, packets, size, together)
    return bool(np.array_equal(expected, run.heads)) and have_lengths(run.records, packets, size, together)
