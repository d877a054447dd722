"""A card's end of its link: what comes down reaches its functions, what they ask for goes up and waits for answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from tio.completer import Completer
from tio.ide import Arrived, ArrivedCompletions, IdePort, Packet, Run, Taken, Tlp, Waiting, WaitingRequests

Wire = list[Packet | Run]
Upstream = Callable[[Wire], Wire]
"""Brings packets to the other end: what comes back for them."""
_MOST_LATE = 1024


class CardLink:
    """``upstream`` is handed in by whoever plugs the card; without it nothing goes up."""

    def __init__(self, port: IdePort, completer: Completer) -> None:
        self.port = port
        self.upstream: Upstream = _nowhere
        self.silent = False
        """It takes and answers nothing."""
        self.poisons = False
        """What functions write is marked as wrong."""
        self._completer = completer
        self._waiting = WaitingRequests(port)
        self._late: deque[Taken] = deque(maxlen=_MOST_LATE)
        """Requests that came while a function waited for answers: they are served with what comes next."""

    def receive(self, packets: Iterable[Packet | Run]) -> Wire:
        """Take packets that came down: what goes up for them."""
        if self.silent:
            return []
        self._late.extend(self.port.receive(packets))
        up: Wire = []
        for _ in range(_MOST_LATE):
            if not self._late:
                break
            up += self._served(self._late.popleft())
        return up + self.port.fail_messages()

    def ask(self, build: Sequence[Callable[[int], Tlp]], *, tee: bool) -> list[Waiting]:
        """Send requests, each made with its tag: what came of each. Raises IdeError and TlpError."""
        return self._waiting.ask(build, self.post, tee=tee)

    def post(self, wire: Iterable[Packet | Run]) -> None:
        """Send what is protected already, or needs not be."""
        for one in self.port.receive(self.upstream(list(wire))):
            if not self._waiting.take(one):
                self._late.append(one)

    def _served(self, one: Taken) -> list[Packet]:
        if self._waiting.take(one) or isinstance(one, ArrivedCompletions):
            return []
        answers = self._completer.serve(one)
        return self.port.send(answers, tee=one.tee, answers_on=one.stream_id) if isinstance(one, Arrived) else []


def _nowhere(_: Wire) -> Wire:
    return []
