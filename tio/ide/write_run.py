"""Many posted writes at addresses that follow each other, protected and checked in one go.

What comes of a run is what ``IdeStream`` makes of its packets one by one: heads, invocations, ciphertext and MACs. A
link on which somebody looks takes it apart; whatever is not a whole and plain run any more goes that way too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tio.ide.keys import MAC_BYTES, TAG_BYTES, KeyUsedUp, vector
from tio.ide.prefix import PREFIX_BYTES, IdePrefix
from tio.ide.stream import ALL_CHECKS, Failure, IdeStream, IdeTlp
from tio.ide.tlp import SubStream, TlpKind, memory_write

HEADER_BYTES = 16
HEAD_BYTES = PREFIX_BYTES + HEADER_BYTES
_ADDRESS = PREFIX_BYTES + 8

Heads = NDArray[np.uint8]
"""Prefix and header of each packet, one a row."""


@dataclass(frozen=True, slots=True)
class WriteRun:
    """Protected writes on the link: ``records`` hold the ciphertext of each aggregate and its MAC."""

    heads: Heads
    records: list[bytes]
    payload_bytes: int
    aggregation: int

    def packets(self) -> Iterator[IdeTlp]:
        """The same packet by packet."""
        size, together = self.payload_bytes, self.aggregation
        for row, head in enumerate(self.heads):
            octets, at = head.tobytes(), row % together * size
            record = self.records[row // together]
            end = len(record) - MAC_BYTES
            last = at + size == end
            mac = record[end:] if last else b""
            yield IdeTlp(octets[:PREFIX_BYTES], octets[PREFIX_BYTES:], record[at : at + size], mac)


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
    encrypt, additional = key.aead.encrypt, heads.data.cast("B")
    step, width, cut = together * payload_bytes, together * HEAD_BYTES, MAC_BYTES - TAG_BYTES
    stream.count_posted(packets)
    if not stream.checks.ciphers:
        plain = [octets[at : at + step].tobytes() + bytes(MAC_BYTES) for at in range(0, len(octets), step)]
        return WriteRun(heads, plain, payload_bytes, together)
    records = [
        encrypt(vector(first + number), octets[at : at + step], additional[number * width : (number + 1) * width])[:cut]
        for number, at in enumerate(range(0, len(octets), step))
    ]
    return WriteRun(heads, records, payload_bytes, together)


def receive_writes(stream: IdeStream, run: WriteRun) -> tuple[int, bytearray] | None:
    """Take a run: the address and what is written there. None where it is not plain, or the stream does not take it.

    Of a run whose checks fail nothing counts, and the stream is Insecure as after the first packet that fails.
    Callers that get None go on with ``packets``; of a stream that failed these are dropped.
    """
    found = stream.receiving_key(SubStream.PR)
    if found is None or not _is_plain(stream, found[0], run):
        return None
    packets, together = len(run.heads), run.aggregation
    try:
        first = found[1].take(len(run.records))
    except KeyUsedUp:
        stream.fail(Failure.KEY_USED_UP)
        return None
    size = packets * run.payload_bytes
    plain, scratch = bytearray(size + TAG_BYTES), bytearray(together * run.payload_bytes + TAG_BYTES)
    into, back = memoryview(plain), memoryview(scratch)
    encrypt, additional = found[1].aead.encrypt_into, run.heads.data.cast("B")
    width, at = together * HEAD_BYTES, 0
    for number, record in enumerate(run.records):
        iv, some = vector(first + number), additional[number * width : (number + 1) * width]
        end = len(record) - MAC_BYTES
        # The tag that lands behind the text gives way to the next record's.
        encrypt(iv, record[:end], some, into[at : at + end + TAG_BYTES])
        encrypt(iv, into[at : at + end], some, back[: end + TAG_BYTES])
        if back[end : end + MAC_BYTES] != record[end:]:
            stream.fail(Failure.MAC)
            return None
        at += end
    del into, plain[size:]
    stream.count_arrived(packets)
    return int.from_bytes(run.heads[0, _ADDRESS:].tobytes(), "big"), plain


def _heads(
    stream_id: int, key_set: int, requester: int, address: int, packets: int, payload_bytes: int, together: int
) -> Heads:
    header = memory_write(requester, address, bytes(payload_bytes)).header
    rows = np.empty((packets, HEAD_BYTES), np.uint8)
    rows[:] = np.frombuffer(IdePrefix(stream_id, SubStream.PR, True, key_set, False).pack() + header, np.uint8)
    with_mac = np.frombuffer(IdePrefix(stream_id, SubStream.PR, True, key_set, True).pack(), np.uint8)
    rows[together - 1 :: together, :PREFIX_BYTES] = with_mac
    rows[-1, :PREFIX_BYTES] = with_mac
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
    whole = [together * size + MAC_BYTES] * (packets // together)
    rest = packets % together
    lengths = [*whole, rest * size + MAC_BYTES] if rest else whole
    return bool(np.array_equal(expected, run.heads)) and list(map(len, run.records)) == lengths
