"""Requests of a port that wait for their completions, and what came of each.

Source: PCI Express base specification, 2.3.2 (what a requester does with completions) and 2.8 (timeouts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from tio.ide.link import Packet
from tio.ide.port import ArrivedCompletions, ArrivedWrites, IdePort, Taken
from tio.ide.requests import completion_status, remaining, span
from tio.ide.tlp import DWORD_BYTES, CompletionStatus, SubStream, Tlp, TlpKind


class Outcome(Enum):
    """What came of a request."""

    ANSWERED = "it was answered"
    MISSING = "no completion came, or not all"
    REFUSED = "its completer refused it"
    OTHER_T = "it was answered with another T bit"
    POISONED = "its answer is poisoned"
    MISFIT = "its completions do not fit together"


class Waiting:
    """One request; ``data`` is what it asked for, as far as it came."""

    __slots__ = ("_length", "_register", "_tee", "data", "outcome", "tag")

    def __init__(self, request: Tlp, *, tee: bool) -> None:
        self.tag = request.tag
        self.data = b""
        self.outcome = Outcome.MISSING
        self._tee = tee
        self._register: tuple[int, int] | None = None
        """Where in its double word a register is: of configuration space always whole ones come (2.2.9)."""
        at, self._length = span(request)
        if request.kind is TlpKind.CONFIG_WRITE:
            self._length = 0
        elif request.kind is TlpKind.CONFIG_READ:
            self._register, self._length = (at % DWORD_BYTES, self._length), DWORD_BYTES

    def take(self, answer: Tlp, *, tee: bool) -> None:
        """A completion came."""
        start, left = answer.header[11] & 0b11, self._length - len(self.data)
        if self.outcome is not Outcome.MISSING:
            return
        if completion_status(answer) != CompletionStatus.SUCCESSFUL:
            self.outcome = Outcome.REFUSED
        elif tee is not self._tee:
            self.outcome = Outcome.OTHER_T
        elif answer.poisoned:
            self.outcome = Outcome.POISONED
        elif left and remaining(answer) != left:
            self.outcome = Outcome.MISFIT
        else:
            self.data += answer.payload[start : start + left]
            if len(self.data) == self._length:
                self.outcome = Outcome.ANSWERED
                if self._register is not None:
                    first, width = self._register
                    self.data = self.data[first : first + width]


    def take_whole(self, data: bytes, *, tee: bool) -> None:
        """All of its completions came together."""
        if self.outcome is not Outcome.MISSING:
            return
        if tee is not self._tee:
            self.outcome = Outcome.OTHER_T
        elif self.data or len(data) != self._length or self._register is not None:
            self.outcome = Outcome.MISFIT
        else:
            self.data, self.outcome = data, Outcome.ANSWERED


class WaitingRequests:
    """Those of one port, by tag."""

    def __init__(self, port: IdePort) -> None:
        self._port = port
        self._by_tag: dict[int, Waiting] = {}

    def ask(
        self, build: Sequence[Callable[[int], Tlp]], carry: Callable[[list[Packet]], None], *, tee: bool
    ) -> list[Waiting]:
        """Send requests, each made with its tag, and say what came of each once ``carry`` is done.

        ``carry`` brings packets to the other end, and hands completions that come back to ``take``. What is not
        answered by then has timed out. Raises IdeError for more requests than there are tags, TlpError.
        """
        tags = self._port.free_tags(len(build))
        requests = [make(tag) for make, tag in zip(build, tags, strict=True)]
        waiting = [Waiting(one, tee=tee) for one in requests]
        self._by_tag.update(zip(tags, waiting, strict=True))
        try:
            carry(self._port.send(requests, tee=tee))
        finally:
            for one in waiting:
                del self._by_tag[one.tag]
                if one.outcome is not Outcome.ANSWERED:
                    self._port.time_out(one.tag)
        return waiting

    def take(self, arrived: Taken) -> bool:
        """Take completions; False for what is none."""
        if isinstance(arrived, ArrivedWrites):
            return False
        if isinstance(arrived, ArrivedCompletions):
            each = len(arrived.data) // len(arrived.tags)
            for number, tag in enumerate(arrived.tags):
                waits = self._by_tag.get(tag)
                if waits is not None:
                    waits.take_whole(bytes(arrived.data[number * each : (number + 1) * each]), tee=arrived.tee)
            return True
        if arrived.packet.sub_stream is not SubStream.CPL:
            return False
        found = self._by_tag.get(arrived.packet.tag)
        if found is not None:
            found.take(arrived.packet, tee=arrived.tee)
        return True
