"""Many completions of reads of the same length, protected and checked in one go, as ``write_run`` has it for writes.

What comes of a run is what ``IdeStream`` makes of its packets one by one. Each read is answered in packets of one size,
whole and in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tio.ide.keys import KeyUsedUp
from tio.ide.prefix import PREFIX_BYTES, IdePrefix, parse_prefix
from tio.ide.records import Heads, have_lengths, seal_records, single_packets, taken_records, with_macs
from tio.ide.stream import ALL_CHECKS, MOST_POSTED, Failure, IdeStream, IdeTlp
from tio.ide.tlp import SubStream, TlpKind, completion

HEADER_BYTES = 12
_COUNT, _REQUESTER, _TAG = PREFIX_BYTES + 6, PREFIX_BYTES + 8, PREFIX_BYTES + 10


@dataclass(frozen=True, slots=True)
class CompletionRun:
    """Protected completions on the link: of reads of ``length`` bytes each, in packets of ``payload_bytes``."""

    heads: Heads
    records: list[bytes]
    payload_bytes: int
    aggregation: int
    length: int

    @property
    def tags(self) -> list[int]:
        """Those of the reads, in their order."""
        found: list[int] = self.heads[:: self.length // self.payload_bytes, _TAG].tolist()
        return found

    def packets(self) -> Iterator[IdeTlp]:
        """The same packet by packet."""
        return single_packets(self.heads, self.records, self.payload_bytes, self.aggregation)


def send_completions(
    stream: IdeStream,
    completer: int,
    requester: int,
    tags: Sequence[int],
    data: bytes | bytearray | memoryview,
    payload_bytes: int,
    *,
    tee: bool,
) -> CompletionRun | None:
    """Protect the answers to reads of equal length, one behind the other in ``data``.

    None where they are not whole packets, or the stream tells or checks more than a run can. Raises IdeError while the
    stream is Insecure.
    """
    octets = memoryview(data).cast("B")
    length, rest = divmod(len(octets), len(tags))
    posted = stream.posted_to_tell(SubStream.CPL)
    plain = stream.checks == ALL_CHECKS and not stream.settings.reorder_check and posted <= MOST_POSTED
    if rest or length % payload_bytes or not plain:
        return None
    key_set, key = stream.sending_key(SubStream.CPL)
    together = stream.settings.aggregation[SubStream.CPL]
    ids = completer, requester
    heads = _heads(stream.stream_id, key_set, ids, tags, length, payload_bytes, together, posted, tee=tee)
    try:
        first = key.take(-(-len(heads) // together))
    except KeyUsedUp:
        stream.fail(Failure.KEY_USED_UP)
        return None
    stream.tell_posted(SubStream.CPL)
    records = seal_records(key, first, octets, heads, together * payload_bytes, together)
    return CompletionRun(heads, records, payload_bytes, together, length)


def receive_completions(stream: IdeStream, run: CompletionRun) -> tuple[bytearray, bool] | None:
    """Take a run: what it answers, and its T bit. None where it is not plain, or the stream does not take it.

    Callers that get None go on with ``packets``; of a stream that failed these are dropped.
    """
    found = stream.receiving_key(SubStream.CPL)
    if found is None:
        return None
    prefix = parse_prefix(run.heads[0, :PREFIX_BYTES].tobytes())
    if not _is_plain(stream, found[0], run, prefix):
        return None
    if not stream.take_told(SubStream.CPL, prefix.posted):
        stream.fail(Failure.ORDER)
        return None
    plain = taken_records(stream, found[1], run.records, run.heads, run.aggregation)
    return None if plain is None else (plain, prefix.tee)


def _heads(
    stream_id: int,
    key_set: int,
    ids: tuple[int, int],
    tags: Sequence[int],
    length: int,
    payload_bytes: int,
    together: int,
    posted: int,
    *,
    tee: bool,
) -> Heads:
    header = completion(*ids, 0, bytes(payload_bytes)).header
    each = length // payload_bytes
    rows = np.empty((each * len(tags), PREFIX_BYTES + HEADER_BYTES), np.uint8)
    prefix = IdePrefix(stream_id, SubStream.CPL, tee, key_set, False)
    rows[:] = np.frombuffer(prefix.pack() + header, np.uint8)
    with_macs(rows, IdePrefix(stream_id, SubStream.CPL, tee, key_set, True).pack(), together)
    rows[0, 2] = posted
    counts = (length - payload_bytes * np.arange(each)) & 0xFFF
    rows[:, _COUNT : _COUNT + 2] = np.tile(counts.astype(">u2").view(np.uint8).reshape(each, 2), (len(tags), 1))
    rows[:, _TAG] = np.repeat(np.array(tags, np.uint8), each)
    return rows


def _is_plain(stream: IdeStream, key_set: int, run: CompletionRun, prefix: IdePrefix) -> bool:
    """Whether a run is one that ``send_completions`` could have made for this stream with the keys in use."""
    packets, size, together, settings = len(run.heads), run.payload_bytes, run.aggregation, stream.settings
    if together > settings.aggregation[SubStream.CPL] or settings.reorder_check or stream.checks != ALL_CHECKS:
        return False
    if settings.tee_limited and not prefix.tee:
        return False
    head = run.heads[0].tobytes()
    if head[PREFIX_BYTES] != TlpKind.COMPLETION_DATA or run.length % size or packets % (run.length // size):
        return False
    ids = int.from_bytes(head[PREFIX_BYTES + 4 : PREFIX_BYTES + 6], "big"), int.from_bytes(
        head[_REQUESTER : _REQUESTER + 2], "big"
    )
    tags, posted = run.tags, prefix.posted
    expected = _heads(stream.stream_id, key_set, ids, tags, run.length, size, together, posted, tee=prefix.tee)
    return bool(np.array_equal(expected, run.heads)) and have_lengths(run.records, packets, size, together)

