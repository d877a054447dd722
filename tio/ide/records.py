"""Records of a run: aggregates of equal packets, sealed and opened with nothing made for each packet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tio.ide.keys import MAC_BYTES, TAG_BYTES, KeyUsedUp, SubStreamKey, vector
from tio.ide.prefix import PREFIX_BYTES
from tio.ide.stream import Failure, IdeStream, IdeTlp

Heads = NDArray[np.uint8]
"""Prefix and header of each packet, one a row."""


def seal_records(
    key: SubStreamKey, first: int, octets: memoryview, heads: Heads, step: int, together: int
) -> list[bytes]:
    """Ciphertext and MAC of each ``step`` bytes, which are ``together`` packets, from invocation ``first`` on."""
    encrypt, additional = key.aead.encrypt, heads.data.cast("B")
    width, cut = together * heads.shape[1], MAC_BYTES - TAG_BYTES
    return [
        encrypt(vector(first + number), octets[at : at + step], additional[number * width : (number + 1) * width])[:cut]
        for number, at in enumerate(range(0, len(octets), step))
    ]


def taken_records(
    stream: IdeStream, key: SubStreamKey, records: list[bytes], heads: Heads, together: int
) -> bytearray | None:
    """What records of a stream hold that came under its next invocations; None where it has failed by them."""
    try:
        first = key.take(len(records))
    except KeyUsedUp:
        stream.fail(Failure.KEY_USED_UP)
        return None
    plain = open_records(key, first, records, heads, together)
    if plain is None:
        stream.fail(Failure.MAC)
    return plain


def open_records(key: SubStreamKey, first: int, records: list[bytes], heads: Heads, together: int) -> bytearray | None:
    """What the records hold; None where a MAC is another."""
    size = sum(map(len, records)) - MAC_BYTES * len(records)
    plain, scratch = bytearray(size + TAG_BYTES), bytearray(len(records[0]) - MAC_BYTES + TAG_BYTES)
    into, back = memoryview(plain), memoryview(scratch)
    encrypt, additional = key.aead.encrypt_into, heads.data.cast("B")
    width, at = together * heads.shape[1], 0
    for number, record in enumerate(records):
        iv, some = vector(first + number), additional[number * width : (number + 1) * width]
        end = len(record) - MAC_BYTES
        # The tag that lands behind the text gives way to the next record's.
        encrypt(iv, record[:end], some, into[at : at + end + TAG_BYTES])
        encrypt(iv, into[at : at + end], some, back[: end + TAG_BYTES])
        if back[end : end + MAC_BYTES] != record[end:]:
            return None
        at += end
    del into, plain[size:]
    return plain


def have_lengths(records: list[bytes], packets: int, size: int, together: int) -> bool:
    """Whether records are those of so many packets of ``size`` bytes."""
    whole = [together * size + MAC_BYTES] * (packets // together)
    rest = packets % together
    return list(map(len, records)) == ([*whole, rest * size + MAC_BYTES] if rest else whole)


def with_macs(heads: Heads, prefix: bytes, together: int) -> None:
    """Give the last packet of each aggregate the prefix that says so."""
    octets = np.frombuffer(prefix, np.uint8)
    heads[together - 1 :: together, :PREFIX_BYTES] = octets
    heads[-1, :PREFIX_BYTES] = octets


def single_packets(heads: Heads, records: list[bytes], size: int, together: int) -> Iterator[IdeTlp]:
    """The same packet by packet."""
    for row, head in enumerate(heads):
        octets, at = head.tobytes(), row % together * size
        record = records[row // together]
        end = len(record) - MAC_BYTES
        mac = record[end:] if at + size == end else b""
        yield IdeTlp(octets[:PREFIX_BYTES], octets[PREFIX_BYTES:], record[at : at + size], mac)
