"""A port that protects what belongs to its streams, and takes nothing else for them.

Association decides: a request belongs to the stream that holds its address, or else its requester's; a completion to
the stream of its request. Source: PCI Express base specification, 6.33.3 and 6.33.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from tio.ide.completion_run import CompletionRun, receive_completions, send_completions
from tio.ide.keys import KeyUsedUp
from tio.ide.link import Packet, Run
from tio.ide.requests import is_last
from tio.ide.stream import (
    ALL_CHECKS,
    FAIL,
    Failure,
    IdeError,
    IdeStream,
    IdeTlp,
    StreamChecks,
    StreamState,
    fail_message,
)
from tio.ide.tlp import SubStream, Tlp, TlpError, TlpKind
from tio.ide.write_run import WriteRun, receive_writes, send_writes

TAGS = 256


@dataclass(frozen=True, slots=True)
class Association:
    """What belongs to a stream: requester ids and addresses, each from a first to a last.

    ``sent_alone``: it says where packets go that are sent, and nothing of those that come, as a Default Stream.
    """

    stream_id: int
    requesters: tuple[int, int]
    addresses: tuple[tuple[int, int], ...] = ()
    sent_alone: bool = False

    def holds(self, packet: Tlp) -> bool:
        """Whether a request of memory belongs here; others never do."""
        if packet.kind not in (TlpKind.MEMORY_READ, TlpKind.MEMORY_WRITE):
            return False
        address = packet.address
        if any(first <= address <= last for first, last in self.addresses):
            return True
        return self.requesters[0] <= packet.requester <= self.requesters[1]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet that passed: its T bit, and on which stream it came; None in the clear."""

    packet: Tlp
    tee: bool = False
    stream_id: int | None = None


@dataclass(frozen=True, slots=True)
class ArrivedWrites:
    """A run of trusted writes that passed whole."""

    address: int
    data: bytearray
    requester: int
    stream_id: int


@dataclass(frozen=True, slots=True)
class ArrivedCompletions:
    """The answers to reads of equal length, which passed whole: ``data`` has them one behind the other."""

    tags: list[int]
    data: bytearray
    tee: bool
    stream_id: int


Taken = Arrived | ArrivedWrites | ArrivedCompletions


class IdePort:
    """Streams by id, and the associations that lead to them.

    ``tag_fence``: the tag of a request that timed out is not used again before its completion has come, which then
    is thrown away; without it a stale completion answers the next request of that tag (CVE-2025-9613, as told
    from memory in the sheet). ``checks`` are what its streams look at.
    """

    def __init__(self, *, tag_fence: bool = False, checks: StreamChecks = ALL_CHECKS) -> None:
        self.checks = checks
        self.streams: dict[int, IdeStream] = {}
        self.associations: list[Association] = []
        self.unsent = 0
        """Packets that belong to a stream that was Insecure."""
        self.unexpected = 0
        """Completions without a request."""
        self._tag_fence = tag_fence
        self._outstanding: dict[int, int | None] = {}
        """Streams of requests that wait, by tag."""
        self._fenced: set[int] = set()

    def stream_of(self, request: Tlp, *, tee: bool = True, came: bool = False) -> IdeStream | None:
        """The stream to which a request belongs that is sent, or that ``came``; None for one in the clear.

        To a TEE-limited stream only trusted requests belong (6.33.3).
        """
        for one in self.associations:
            if not (came and one.sent_alone) and one.holds(request):
                stream = self.streams[one.stream_id]
                if tee or not stream.settings.tee_limited:
                    return stream
        return None

    def free_tag(self) -> int:
        """A tag that no request waits with. Raises IdeError where there is none."""
        return self.free_tags(1)[0]

    def free_tags(self, count: int) -> list[int]:
        """So many of them, the lowest. Raises IdeError."""
        taken = self._outstanding.keys() | self._fenced
        found = list(islice((tag for tag in range(TAGS) if tag not in taken), count))
        if len(found) < count:
            raise IdeError("expected a free tag")
        return found

    def send(self, packets: Iterable[Tlp], *, tee: bool = True, answers_on: int | None = None) -> list[Packet]:
        """What goes on the wire. ``answers_on`` is the stream of the requests that completions answer.

        Packets of a stream that is Insecure are not sent at all. Raises TlpError and, for a tag in use, IdeError.
        """
        out: list[Packet] = []
        answered = None if answers_on is None else self.streams.get(answers_on)
        placed = []
        for one in packets:
            sub_stream = one.checked().sub_stream
            stream = answered if sub_stream is SubStream.CPL else self.stream_of(one, tee=tee)
            gone = stream is None and sub_stream is SubStream.CPL and answers_on is not None
            if gone or (stream is not None and stream.state is StreamState.INSECURE):
                self.unsent += 1
                continue
            if sub_stream is SubStream.NPR:
                if one.tag in self._outstanding or one.tag in self._fenced:
                    raise IdeError(f"expected a free tag, found {one.tag}")
                self._outstanding[one.tag] = None if stream is None else stream.stream_id
            placed.append((stream, one))
        for stream, some in groupby(placed, lambda one: one[0]):
            together = [one for _, one in some]
            out += together if stream is None else self._protected(stream, together, tee=tee)
        return out

    def _protected(self, stream: IdeStream, packets: list[Tlp], *, tee: bool) -> list[Packet]:
        try:
            return list(stream.send(packets, tee=tee))
        except IdeError:
            self.unsent += len(packets)
            return []

    def send_writes(
        self, requester: int, address: int, data: bytes | bytearray | memoryview, payload_bytes: int = 256
    ) -> WriteRun | None:
        """A run of writes that all belong to one stream; None where that is Insecure, or there is none."""
        found = [one for one in self.associations if one.requesters[0] <= requester <= one.requesters[1]]
        stream = self.streams[found[0].stream_id] if found else None
        if stream is None or stream.state is StreamState.INSECURE:
            self.unsent += stream is not None
            return None
        try:
            return send_writes(stream, requester, address, data, payload_bytes)
        except KeyUsedUp:
            self.unsent += 1
            return None

    def send_completions(
        self, completer: int, requests: Sequence[Tlp], data: bytes, payload_bytes: int, *, tee: bool, answers_on: int
    ) -> CompletionRun | None:
        """The answers to reads of one requester and of equal length, in one go; None where that is not possible."""
        stream = self.streams.get(answers_on)
        if stream is None or stream.state is StreamState.INSECURE or (stream.settings.tee_limited and not tee):
            return None
        tags = [one.tag for one in requests]
        return send_completions(stream, completer, requests[0].requester, tags, data, payload_bytes, tee=tee)

    def fail_messages(self, requester: int = 0) -> list[Packet]:
        """What tells the partner of streams that failed here, once (6.33.4)."""
        failed = [one for one in self.streams.values() if one.untold]
        for one in failed:
            one.untold = False
        return [fail_message(requester, one.stream_id) for one in failed]

    def time_out(self, tag: int) -> None:
        """Nobody waits for the request of a tag any more."""
        if self._outstanding.pop(tag, self) is not self and self._tag_fence:
            self._fenced.add(tag)

    def forget_requests(self) -> None:
        """The link was reset: no completion of before comes any more."""
        self._outstanding.clear()
        self._fenced.clear()

    def receive(self, packets: Iterable[Packet | Run]) -> list[Taken]:
        """What of it passed."""
        out: list[Taken] = []
        for one in packets:
            if isinstance(one, WriteRun):
                out += self._receive_run(one)
            elif isinstance(one, CompletionRun):
                out += self._receive_completions(one)
            elif isinstance(one, IdeTlp):
                out += self._receive_protected(one)
            else:
                out += self._receive_clear(one)
        return out

    def _receive_completions(self, run: CompletionRun) -> list[Taken]:
        stream, tags = self.streams.get(int(run.heads[0, 3])), run.tags
        if stream is None or not self._wait_on(stream, tags):
            return self.receive(run.packets())
        taken = receive_completions(stream, run)
        if taken is None:
            return self.receive(run.packets())
        for tag in tags:
            del self._outstanding[tag]
        return [ArrivedCompletions(tags, *taken, stream.stream_id)]

    def _wait_on(self, stream: IdeStream, tags: Sequence[int]) -> bool:
        """Whether requests of these tags, each once, wait for what comes on a stream."""
        waiting = self._outstanding
        return len(set(tags)) == len(tags) and all(
            tag in waiting and waiting[tag] == stream.stream_id and tag not in self._fenced for tag in tags
        )

    def _receive_run(self, run: WriteRun) -> list[Taken]:
        stream = self.streams.get(int(run.heads[0, 3]))
        taken = None if stream is None else receive_writes(stream, run)
        if stream is None or taken is None:
            return self.receive(run.packets())
        requester = int.from_bytes(run.heads[0, 8:10].tobytes(), "big")
        return [ArrivedWrites(taken[0], taken[1], requester, stream.stream_id)]

    def _receive_protected(self, packet: IdeTlp) -> list[Arrived]:
        stream = self.streams.get(packet.prefix[3]) if len(packet.prefix) == 4 else None
        if stream is None:
            return []
        out = []
        for one, tee in stream.receive(packet):
            if one.sub_stream is not SubStream.CPL or self._answers(one, stream.stream_id):
                out.append(Arrived(one, tee, stream.stream_id))
            elif stream.state is StreamState.INSECURE:
                break
        return out

    def _receive_clear(self, packet: Tlp) -> list[Arrived]:
        try:
            request = packet.checked().sub_stream is not SubStream.CPL
            if packet.kind is TlpKind.IDE_MESSAGE:
                self._receive_message(packet)
                return []
        except (TlpError, IndexError):
            return []
        if not request:
            return [Arrived(packet)] if self._answers(packet, None) else []
        stream = self.stream_of(packet, tee=False, came=True)
        if stream is None:
            return [Arrived(packet)]
        stream.receive_clear(packet)
        return []

    def _receive_message(self, packet: Tlp) -> None:
        """The partner says that a stream failed there. Anybody on the link can say so: that stops work, no more."""
        stream = self.streams.get(packet.header[15])
        if packet.header[7] == FAIL and stream is not None:
            stream.fail(Failure.PARTNER)

    def _answers(self, completion: Tlp, stream_id: int | None) -> bool:
        """Whether a completion answers a request that waits; on another stream than the request's both fail."""
        tag = completion.tag
        if tag in self._fenced:
            if is_last(completion):
                self._fenced.discard(tag)
            return False
        if tag not in self._outstanding:
            self.unexpected += 1
            return False
        asked_on = self._outstanding[tag]
        if is_last(completion) or asked_on != stream_id:
            del self._outstanding[tag]
        if asked_on != stream_id:
            for one in {asked_on, stream_id} - {None}:
                self.streams[one].fail(Failure.OTHER_STREAM)  # type: ignore[index]  # None was taken out
            return False
        return True
