"""The fleet's control plane: it places VMs when they arrive, moves them, and takes them down when their time is over.

It runs in the coordinator, at virtual times of its own, and reaches hosts only
by messages that take the control plane's latency.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from cluster import broken_links
from cluster.agenda import Agenda, Turn
from cluster.entity import CONTROL, Message
from cluster.fabric import Fabric
from cluster.firmware_updates import FirmwareUpdates
from cluster.fleet_faults import CRASH, FleetFaults
from cluster.guest_body import guest_body
from cluster.guest_traffic import GuestTraffic, networked
from cluster.key_server.key_desk import KeyDesk
from cluster.live_migration import ANSWERS, LiveMigrations
from cluster.migration import Migration, Outcome
from cluster.migration_admission import Admission
from cluster.migration_plans import MigrationPlans
from cluster.placement import FirstFit
from cluster.precopy import PrecopySettings
from node.counter_random import CounterRandom
from node.guest import GuestSpec

_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add."""


@dataclass(frozen=True, slots=True)
class Order:
    """A VM that is wanted: when, for how long, and where if it is pinned."""

    guest: GuestSpec
    arrival_ns: int
    lifetime_ns: int | None = None
    pin: str | None = None


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The network as guests' frames find it: one way between two hosts, and what a network card moves at most."""

    latency_ns: int
    card_bytes_per_s: float


@dataclass(slots=True)
class ControlPlane:
    """What is done at times of the control plane's own, and the answers of hosts."""

    orders: tuple[Order, ...]
    placement: FirstFit
    latency_ns: int
    fabric: Fabric
    admission: Admission
    precopy: PrecopySettings
    random: CounterRandom
    network: NetworkSettings
    keys: KeyDesk | None = None
    faults: FleetFaults | None = None
    """What goes wrong; None in a fleet where nothing does."""
    unplaced: dict[str, str] = field(default_factory=dict)
    """VMs that no host took, with the reason."""
    assigned: dict[str, str] = field(default_factory=dict)
    """The host of each VM that was sent somewhere."""
    launching: set[str] = field(default_factory=set)
    """VMs that a host was told to launch, and that no host said to run; some have no place any more."""
    agenda: Agenda = field(default_factory=Agenda)
    _by_name: dict[str, Order] = field(default_factory=dict)
    _tried: dict[str, frozenset[str]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    """Of what is sent."""
    _now_ns: int = 0
    _next_ns: int = 0
    """``next_event_ns`` after the last step; 0 before the first."""
    _out: list[Message] = field(default_factory=list)
    traffic: GuestTraffic = field(init=False)
    migrations: LiveMigrations = field(init=False)
    plans: MigrationPlans = field(init=False)
    updates: FirmwareUpdates = field(init=False)

    def __post_init__(self) -> None:
        self.traffic = GuestTraffic(
            self.fabric, self.placement, self.network.card_bytes_per_s, self._send_frames,
            lambda: networked(order.guest for order in self._by_name.values()),
        )  # fmt: skip
        self.migrations = LiveMigrations(
            self.fabric, self.placement, self.admission, self.precopy, self._send
        )
        self.plans = MigrationPlans(self.migrations, self.random, self.agenda)
        self.updates = FirmwareUpdates(self.agenda, self._send)
        for order in self.orders:
            self._by_name[order.guest.name] = order
            self.agenda.enter(order.arrival_ns, Turn.TENANTS, self._arrive, order.guest.name)

    def adopt(self, order: Order, host: str) -> None:
        """A VM that runs since before time zero: its departure is ours to see to."""
        self._by_name[order.guest.name] = order
        self.assigned[order.guest.name] = host
        self._see_off(order)

    def next_event_ns(self) -> int:
        """Time of the next arrival, departure, order to a host, or step of a migration."""
        return min(self.agenda.entries[0][0], self.migrations.next_event_ns())

    def step(self, now_ns: int, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """Answer the messages that arrived by ``now_ns``, then do what the agenda has for it."""
        migrations, faults = self.migrations, self.faults
        self._now_ns = now_ns
        if self._next_ns <= now_ns:
            # What the network brought at this instant came before what is said of it.
            migrations.advance(now_ns)
            if faults is not None:
                self.agenda.advance(now_ns, Turn.LATE)
        for message in messages:
            answered = ANSWERS.get(message.kind)
            if answered is None:
                self._hear_of_others(message, now_ns)
            elif faults is None:
                number, *said = message.payload
                answered(migrations, migrations.all[number], now_ns, *said)
            else:
                self._hear(message, faults)
        # As ``next_event_ns`` says. What comes of what is due may be due, too.
        agenda = self.agenda
        while (next_ns := min(agenda.entries[0][0], self.fabric.next_event_ns, migrations.due[0][0])) <= now_ns:
            agenda.advance(now_ns)
            migrations.advance(now_ns)
        self._next_ns = next_ns
        out, self._out = self._out, []
        return out, next_ns

    def _hear_of_others(self, message: Message, now_ns: int) -> None:
        """What a host says of other things than moves."""
        if message.kind == "frames":
            target, frames = message.payload
            self.traffic.take(message.sender, target, frames, now_ns)
        elif message.kind == "launched":
            self.launching.discard(message.payload[0])
        elif message.kind == "refused":
            self._refused(message.sender, *message.payload)
        elif message.kind == "fetch" and self.keys is not None:
            delay_ns, retry_ns = self.keys.ask(message.sender, now_ns)
            self._send_after(self.latency_ns + delay_ns, message.sender, "certificates", retry_ns)

    def _arrive(self, name: str, _: int) -> None:
        self._send_to_a_host(name, "no host has room")

    def _refused(self, host: str, name: str, reason: str) -> None:
        if self.placement.release(name) is None:
            return  # Its time was over meanwhile.
        self._tried[name] = self._tried.get(name, frozenset()) | {host}
        self._send_to_a_host(name, reason)

    def _send_to_a_host(self, name: str, reason: str) -> None:
        order = self._by_name[name]
        host = self.placement.place(order.guest, order.pin, self._tried.get(name, frozenset()))
        if host is None:
            self.unplaced[name] = reason
            return
        first = name not in self.assigned
        self.assigned[name] = host
        self.launching.add(name)
        self._send(host, "launch", guest_body(order.guest))
        if first:
            self._see_off(order)

    def without_place(self, now_ns: int) -> Iterator[tuple[str, bool]]:
        """VMs that are there now and nobody took, and whether a host was told to launch each.

        The control plane may be ahead of ``now_ns``, and know already of those that come later.
        """
        for name in self.unplaced:
            order = self._by_name[name]
            since_ns = now_ns - order.arrival_ns
            if since_ns >= 0 and (order.lifetime_ns is None or since_ns < order.lifetime_ns):
                yield name, name in self._tried

    def _see_off(self, order: Order) -> None:
        if order.lifetime_ns is not None:
            self.agenda.enter(order.arrival_ns + order.lifetime_ns, Turn.TENANTS, self._depart, order.guest.name)

    def _depart(self, name: str, _: int) -> None:
        """A VM's time is over. One that is just coming to another host goes as soon as it is there."""
        migration = self.migrations.of(name)
        if migration is not None:
            if not migration.can_be_called_off:
                before = migration.over

                def over(one: Migration, now_ns: int) -> None:
                    if before is not None:
                        before(one, now_ns)
                    self._destroy(name)

                migration.over = over
                return
            self.migrations.fail(migration, Outcome.ENDED, self._now_ns, "its time was over")
        self._destroy(name)

    def _destroy(self, name: str) -> None:
        host = self.placement.release(name)
        if host is not None:
            self._send(host, "destroy", name)

    def crash(self, host: str) -> None:
        """Switch a host off and on."""
        self._send(host, CRASH, ())
        self.traffic.crash(host, self._now_ns, self._now_ns + self.latency_ns)
        broken_links.crash(self.migrations, host, self._now_ns)

    def link(self, host: str, up: bool, now_ns: int) -> None:
        """A host's link goes down, or is back."""
        (broken_links.mend_link if up else broken_links.break_link)(self.migrations, host, now_ns)

    def command(self, host: str, kind: str, body: object) -> None:
        """Tell a host something of a move, as far as it comes through."""
        assert self.faults is not None
        for delay_ns in self.faults.delays(host, "to", self._now_ns):
            self._send_after(self.latency_ns + delay_ns, host, kind, body)

    def _hear(self, message: Message, faults: FleetFaults) -> None:
        """An answer of a host, as far as it comes through."""
        for delay_ns in faults.delays(message.sender, "from", self._now_ns):
            if not delay_ns:
                self.migrations.receive(message.kind, message.payload, self._now_ns)
                continue
            self.agenda.enter(self._now_ns + delay_ns, Turn.LATE, self._hear_late, message)

    def _hear_late(self, message: Message, now_ns: int) -> None:
        self.migrations.receive(message.kind, message.payload, now_ns)

    def _send(self, host: str, kind: str, body: object) -> None:
        # What ``_send_after`` does, which most of what is sent need not pass through.
        sent = (self._now_ns + self.latency_ns, CONTROL, next(self._numbers), host, kind, body)
        self._out.append(_new(Message, sent))

    def _send_frames(self, host: str, fields: tuple[object, ...]) -> None:
        self._send_after(self.network.latency_ns, host, "frames", fields)

    def _send_after(self, latency_ns: int, host: str, kind: str, body: object) -> None:
        sent = (self._now_ns + latency_ns, CONTROL, next(self._numbers), host, kind, body)
        self._out.append(_new(Message, sent))
