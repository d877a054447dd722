"""Toy hosts on SimPy and a toy control plane: small enough to be simulated a second time in another way.

A toy host ticks by itself, speaks to the control plane now and then, and
answers letters. All times lie on a grid of 10 ns, so that letters and local
events meet in the same nanosecond often. Every choice is drawn from names and
numbers, never from the order in which anything ran.
"""

import hashlib
import heapq
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import simpy

from cluster.coordinator import UNBOUNDED, Coordinator, CoordinatorResult
from cluster.entity import NEVER, Advance, Message
from cluster.inbox import Inbox
from cluster.layout import Layout
from cluster.shard import EntityFactory

CONTROL = "control"
LOOKAHEAD_NS = 100
END_NS = 20_000


def draw(*key: object) -> int:
    """A number below 2^32 that follows from ``key``."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest())


@dataclass(frozen=True, slots=True)
class Toy:
    """A toy host. ``tick`` and ``speak`` are the means of the gaps between its events; 0: none."""

    name: str
    peers: tuple[str, ...] = ()
    seed: int = 1
    tick: int = 60
    speak: int = 400
    hops: int = 2
    lie: bool = False
    """Promises silence and speaks all the same."""

    def pack(self) -> bytes:
        return bytes(msgpack.packb((self.name, self.peers, self.seed, self.tick, self.speak, self.hops, self.lie)))

    def tick_gap(self, number: int) -> int:
        return 10 + 10 * (draw(self.seed, self.name, "tick", number) % (2 * self.tick // 10))

    def speak_gap(self, number: int) -> int:
        return 10 + 10 * (draw(self.seed, self.name, "speak", number) % (2 * self.speak // 10))

    def peer(self, what: str, number: int) -> str:
        return self.peers[draw(self.seed, self.name, what, number) % len(self.peers)]

    def thinks(self, number: int) -> int:
        """From letter to answer; often no time at all."""
        return 10 * max(0, draw(self.seed, self.name, "think", number) % 12 - 3)


class ToyHost:
    """An entity that lives a ``Toy``."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.env = simpy.Environment(initial_time=0)
        self._outbox: list[Message] = []
        self.inbox = Inbox(self.env, self._receive, self._outbox, lambda _: self.earliest_output_ns())
        self.log: list[tuple[int, str, str]] = []
        self._sequence = 0
        self._received = 0
        self._due: list[int] = []
        if toy.tick:
            self.env.process(self._ticks())
        if toy.speak:
            self.env.process(self._speaks())

    @property
    def name(self) -> str:
        return self.toy.name

    def _ticks(self) -> Any:
        number = 0
        while True:
            yield self.env.timeout(self.toy.tick_gap(number))
            self.log.append((self.env.now, "tick", str(number)))
            number += 1

    def _speaks(self) -> Any:
        number = 0
        while True:
            gap = self.toy.speak_gap(number)
            heapq.heappush(self._due, self.env.now + gap)
            yield self.env.timeout(gap)
            heapq.heappop(self._due)
            self._say(self.toy.peer("speak", number), self.toy.hops)
            number += 1

    def _say(self, to: str, hops: int) -> None:
        self._sequence += 1
        self.log.append((self.env.now, "said", f"{self._sequence} {to} {hops}"))
        body = msgpack.packb((to, hops))
        self._outbox.append(Message(self.env.now, self.name, self._sequence, CONTROL, "relay", body))

    def _receive(self, message: Message) -> None:
        origin, hops = msgpack.unpackb(message.payload)
        self.log.append((self.env.now, "got", f"{message.sender} {message.sequence} {origin} {hops}"))
        number = self._received
        self._received += 1
        if hops == 0:
            return
        delay = self.toy.thinks(number)
        if delay == 0:
            self._say(self.toy.peer("answer", number), hops - 1)
            return
        heapq.heappush(self._due, self.env.now + delay)

        def answer(_: simpy.Event) -> None:
            heapq.heappop(self._due)
            self._say(self.toy.peer("answer", number), hops - 1)

        self.env.timeout(delay).callbacks.append(answer)

    @property
    def events(self) -> int:
        return self.inbox.events

    def deliver(self, message: Message) -> None:
        self.inbox.deliver(message)

    def next_event_ns(self) -> int:
        return self.inbox.next_event_ns()

    def earliest_output_ns(self) -> int:
        if self.toy.lie:
            return NEVER
        due = self._due[0] if self._due else NEVER
        if self.toy.speak and not self.env.now and not self._due:
            due = 0  # its process has not begun
        return min(due, self.inbox.next_ns)

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        advance = self.inbox.advance(horizon_ns, event_budget)
        assert self.env.now < horizon_ns
        return advance

    def answer(self, message: Message) -> tuple[int, int, tuple[Message, ...]]:
        return self.inbox.answer(message)

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        return {"log": [{"host": self.name, "time": at, "what": what, "text": text} for at, what, text in self.log]}

    def gauges(self) -> dict[str, float]:
        return {"lines": float(len(self.log))}


def build_toy(spec: bytes) -> ToyHost:
    name, peers, *rest = msgpack.unpackb(spec)
    return ToyHost(Toy(name, tuple(peers), *rest))


class RestingToy(ToyHost):
    """A toy host that nobody hears of before it gets a letter; then it does what it would have done."""

    woken = goes_on = False

    def deliver(self, message: Message) -> None:
        self.woken = True
        super().deliver(message)

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        if not self.woken:
            return Advance(horizon_ns, NEVER, 0)
        self.goes_on = True
        return super().advance(horizon_ns, event_budget)

    def answer(self, message: Message) -> tuple[int, int, tuple[Message, ...]]:
        if self.goes_on:
            return super().answer(message)
        self.deliver(message)
        return message.time_ns, 0, ()

    def next_event_ns(self) -> int:
        return super().next_event_ns() if self.woken else NEVER

    def earliest_output_ns(self) -> int:
        return super().earliest_output_ns() if self.woken else NEVER

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        self.woken = True
        while self.next_event_ns() < end_ns:
            self.advance(end_ns, 1 << 16)
        return super().collect(end_ns)


class FrailHost(ToyHost):
    """A toy host whose process naps, or ends, at its first event after a virtual time."""

    nap_s = 0.0
    from_ns = 1000

    def advance(self, horizon_ns: int, event_budget: int) -> Advance:
        if horizon_ns > self.from_ns:
            if not self.nap_s:
                os._exit(1)
            time.sleep(self.nap_s)
            self.from_ns = NEVER
        return super().advance(horizon_ns, event_budget)


class SleepyHost(FrailHost):
    """One that naps."""

    nap_s = 1.5


def build_resting(spec: bytes) -> ToyHost:
    """All rest."""
    name, peers, *rest = msgpack.unpackb(spec)
    return RestingToy(Toy(name, tuple(peers), *rest))


def build_sleepy(spec: bytes) -> ToyHost:
    """All sleepy but the second."""
    return _built(spec, SleepyHost)


def build_mortal(spec: bytes) -> ToyHost:
    """All die but the second, every time again."""
    return _built(spec, FrailHost)


def _built(spec: bytes, kind: type[ToyHost]) -> ToyHost:
    name, peers, *rest = msgpack.unpackb(spec)
    return (ToyHost if name.endswith("-1") else kind)(Toy(name, tuple(peers), *rest))


class TwoWordsError(Exception):
    """Can be pickled, but not made again from that."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}")


def build_badly(spec: bytes) -> ToyHost:
    raise TwoWordsError("cores", spec.decode())


@dataclass
class ToyControl:
    """Relays what hosts say, and calls on hosts at times of its own."""

    names: tuple[str, ...]
    lookahead_ns: int = LOOKAHEAD_NS
    calls: tuple[int, ...] = ()
    undercut: int = 0
    """How much too soon its letters arrive."""

    def __post_init__(self) -> None:
        self.log: list[tuple[int, str, str]] = []
        self._sequence = 0
        self._left = sorted(self.calls, reverse=True)

    def next_event_ns(self) -> int:
        return self._left[-1] if self._left else NEVER

    def delay(self, sequence: int) -> int:
        return self.lookahead_ns - self.undercut + 10 * (draw("relay", sequence) % 3)

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        out = []
        for message in messages:
            assert message.time_ns == now_ns
            to, hops = msgpack.unpackb(message.payload)
            out.append(self._letter(now_ns, to, message.sender, hops))
        while self._left and self._left[-1] <= now_ns:
            self._left.pop()
            out.append(self._letter(now_ns, self.names[draw("call", self._sequence) % len(self.names)], CONTROL, 1))
        return out, self.next_event_ns()

    def _letter(self, now_ns: int, to: str, origin: str, hops: int) -> Message:
        self._sequence += 1
        self.log.append((now_ns, "sent", f"{self._sequence} {to} {origin} {hops}"))
        body = msgpack.packb((origin, hops))
        return Message(now_ns + self.delay(self._sequence), CONTROL, self._sequence, to, "letter", body)


Log = dict[str, list[tuple[int, str, str]]]


def toys(count: int = 6, seed: int = 1, **changes: Any) -> list[Toy]:
    """Toy hosts that know each other."""
    names = tuple(f"toy-{number}" for number in range(count))
    return [replace(Toy(name, names, seed), **changes) for name in names]


def calls_of(seed: int) -> tuple[int, ...]:
    """When the control plane calls on hosts."""
    return tuple(sorted(10 * (draw(seed, "calls", number) % (END_NS // 10)) for number in range(12)))


def run_toys(
    layout: Layout,
    hosts: list[Toy],
    *,
    control: ToyControl | None = None,
    end_ns: int = END_NS,
    lookahead_ns: int = LOOKAHEAD_NS,
    windows: bool = False,
    cut: Callable[[int, int], int] | None = None,
    event_budget: int = UNBOUNDED,
    build: EntityFactory = build_toy,
) -> tuple[Log, CoordinatorResult]:
    """The log of every host and of the control plane."""
    plane = control or ToyControl(tuple(toy.name for toy in hosts), lookahead_ns, calls_of(hosts[0].seed))
    layout.start(build, [(toy.name, toy.pack()) for toy in hosts])
    coordinator = Coordinator(
        layout, plane, lookahead_ns, end_ns, windows=windows, cut=cut, event_budget=event_budget
    )  # fmt: skip
    result = coordinator.run()
    log: Log = {toy.name: [] for toy in hosts}
    log[CONTROL] = plane.log
    rows: Iterable[Any] = layout.collect(end_ns).get("log", [])
    for row in rows:
        log[row["host"]].append((row["time"], row["what"], row["text"]))
    return log, result


def digest(log: Log) -> str:
    return hashlib.sha256(repr(sorted(log.items())).encode()).hexdigest()


if __name__ == "__main__":
    from cluster.inline_layout import InlineLayout

    print(digest(run_toys(InlineLayout(), toys(seed=int(sys.argv[1])))[0]))
