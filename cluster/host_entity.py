"""A real host as the coordinator sees it: an entity that takes messages and says when it could speak.

Commands to a host: ``launch``, ``destroy``, those of ``firmware_updates`` and of ``migration_port``; also ``frames``
of guests. What a host says is declared in advance: by a pending launch, a migration under way, or a VM with a
network card, a request for certificates; nothing else on a host can emit, so a host without them never will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import msgpack

from cluster.agent_certificates import agent_roots
from cluster.entity import Message
from cluster.event_table import PACKED, packed_events
from cluster.firmware_key import AUTO, firmware_image
from cluster.firmware_updates import COMMIT, UPDATE
from cluster.fleet_faults import CRASH
from cluster.guest_body import guest_body, guest_of
from cluster.guest_rows import guest_rows
from cluster.host_rows import digest_row, host_rows
from cluster.inbox import Inbox
from cluster.migration_port import MigrationPort
from cluster.outbox import Outbox
from cluster.platform_body import platform_body, platform_of
from cluster.resting_host import RestingHost, rests
from cluster.standing_vms import STANDING
from cluster.tables import EVENTS
from cluster.vmi_phases import phase_of_ended
from node.cost_table import load_cost_table
from node.event_log import BucketDigest
from node.guest import Guest, GuestSpec, GuestState
from node.host import Host, HostSpec
from node.hypervisor import Hypervisor
from node.hypervisor_port import HypervisorFactory
from node.migration_loads import StreamRates
from node.packing import packed
from node.product import PRODUCTS
from node.record_buffer import LogWish
from node.tenant import TenantFactory
from workloads.library import PROGRAMS

MACHINES = "machines/"
ENDED = "ended/"


@dataclass(frozen=True, slots=True)
class HostOrder:
    """All that a worker needs to build a host, as it crosses to it."""

    spec: HostSpec
    costs: tuple[tuple[str, float], ...]
    guests: tuple[GuestSpec, ...] = ()
    """VMs that run already at time zero."""
    firmware: tuple[str, ...] = (AUTO,)
    keys: tuple[int, str | None] | None = None
    """The laboratory of the key service that it fetches certificates from, and what that lies about; None for none."""

    def pack(self) -> bytes:
        """The order as msgpack."""
        spec = self.spec
        body = (
            (
                spec.name, spec.product.name, spec.memory_bytes, spec.min_sev_asid, spec.seed, spec.bucket_ns,
                spec.attributes, spec.streams,
            ),
            (spec.log.everything, sorted(spec.log.entities)),
            platform_body(spec.platform),
            self.costs,
            tuple(guest_body(guest) for guest in self.guests),
            self.firmware,
            self.keys,
            rests(self),
        )  # fmt: skip
        return packed(body)

    @classmethod
    def parse(cls, data: bytes) -> HostOrder:
        """The order back from msgpack."""
        own, log, platform, costs, guests, firmware, keys, _ = msgpack.unpackb(data, use_list=False)
        name, product, memory, min_sev, seed, bucket, attributes, streams = own
        wish = LogWish(log[0], frozenset(log[1]))
        spec = HostSpec(
            name, PRODUCTS[product], memory, min_sev, seed, bucket, wish, platform_of(platform), attributes,
            StreamRates(*streams),
        )  # fmt: skip
        return cls(spec, costs, tuple(guest_of(body) for body in guests), firmware, keys)


def build_host(order: bytes) -> HostEntity | RestingHost:
    """Entity factory of the layouts: a host from its order, which stays its order while nothing happens there."""
    own, *_, resting = msgpack.unpackb(order, use_list=False)
    return RestingHost(own[0], order, HostOrder.parse) if resting else HostEntity(HostOrder.parse(order))


@lru_cache(maxsize=64)
def _costs(product: str, changes: tuple[tuple[str, float], ...]) -> Mapping[str, float]:
    """A product's cost table with some values of its own: one object for all hosts that have the same."""
    return dict(load_cost_table().of_product(product).overridden(dict(changes)))


class HostEntity:
    """A ``node.host.Host`` between inbox and outbox; ``tenants`` and ``hypervisor`` as it takes them."""

    def __init__(
        self, order: HostOrder, tenants: TenantFactory | None = None, hypervisor: HypervisorFactory = Hypervisor
    ) -> None:
        self.name = order.spec.name
        images = {key: firmware_image(key) for key in order.firmware}
        costs = _costs(order.spec.product.name, order.costs)
        self.host = Host(order.spec, PROGRAMS, images, costs, tenants, hypervisor)
        clock, outbox = self.host.clock, Outbox(self.name, self.host.clock)
        self._send = outbox.say
        self._laboratory = 0 if order.keys is None else order.keys[0]
        self._migrations = MigrationPort(self.host, self._send, self._receive, self._laboratory)
        self._inbox = Inbox(clock.env, self._migrations.receive, outbox, self.host.earliest_output_ns)
        self.deliver = self._inbox.deliver
        """Takes a message for later."""
        self.advance = self._inbox.advance
        """Does the events before a horizon."""
        self.answer = self._inbox.answer
        """Takes a message before which nothing happens."""
        self.next_event_ns = self._inbox.next_event_ns
        """Time of the next event or delivery."""
        self.earliest_output_ns = self._inbox.earliest_output_ns
        """Of the first mail that is still to be opened, or what the host promises to say first."""
        self.host.network.uplink = self._send_frames
        if self._laboratory and order.spec.product.line.tcb is not None:
            board, roots = self.host.board, agent_roots(order.spec.product.line.name, self._laboratory)
            board.agents.roots, board.handlers.handler = roots, replace(board.handlers.handler, roots=roots)
        self._owners: Callable[[str, bytes], bytes | None] | None = None
        self.host.board.launch_owner = self._ask_launch_owner
        if order.keys is not None and order.spec.product.line.tcb is not None:
            from cluster.key_server.host_certificates import store_of  # noqa: PLC0415 - most hosts need none of it

            self.host.fetch_certificates(store_of(self.host, self._fetch, *order.keys))
        for guest in order.guests:
            self.host.launch(guest, lambda _: None, running=True)

    @property
    def events(self) -> int:
        """Events that it has done so far."""
        return self._inbox.events

    def collect(self, end_ns: int) -> dict[str, list[dict[str, object]]]:
        """Close the books at ``end_ns``; rows by table. A log is one row, its records packed."""
        self.host.close(end_ns)
        rows = host_rows(self.host, self.events, end_ns)
        for table, more in self.guests_rows().items():
            rows.setdefault(table, []).extend(more)
        if log := packed_events(self.host, end_ns):
            rows[EVENTS.name] = [{PACKED: log}]
        return rows

    def guests_rows(self) -> dict[str, list[dict[str, object]]]:
        """Rows of its VMs by table; of those that may run elsewhere by now, apart (``cluster.standing_vms``)."""
        rows: dict[str, list[dict[str, object]]] = {}
        for guest in self.host.guests.values():
            name, found = guest.spec.name, guest_rows(self.host, guest)
            chain = self.host.departures.chains.get(name)
            if found and chain is not None and chain.records:
                bucket = BucketDigest(name, chain.bucket, chain.records, chain.digest.hex())
                found["digests"] = [digest_row(bucket, self.host.spec.bucket_ns)]
            move = self._migrations.standing(name)
            if found and move >= 0:
                rows.setdefault(STANDING, []).append({"vm": name, "move": move, "rows": found})
                continue
            for table, more in found.items():
                rows.setdefault(table, []).extend(more)
        return rows

    def gauges(self) -> dict[str, float]:
        """Live figures of the host; the counts of machines are named ``machines/STATE/GENERATION``.

        Each that ended otherwise than by an order, and is not forgotten, is named ``ended/PHASE/NAME``.
        """
        host = self.host
        counts = Counter(f"{MACHINES}{one.state}/{one.spec.generation.name}" for one in host.guests.values())
        books = host.hypervisor.figures()
        return {
            "memory_assigned_bytes": float(books.memory_bytes),
            "psp_busy_ratio": host.tasks.psp_queue.busy_ns / max(1, host.now_ns, host.tasks.psp_queue.free_ns),
            "asids_in_use": float(books.asids_in_use),
            "memory_bandwidth_ratio": host.contention.utilisation,
            **{name: float(count) for name, count in sorted(counts.items())},
            **{
                f"{ENDED}{phase}/{name}": 1.0 for name, one in host.guests.items()
                if (phase := phase_of_ended(one)) is not None
            },
        }  # fmt: skip

    def _receive(self, message: Message) -> None:
        """One that is not of a move."""
        self.KINDS[message.kind](self, message)

    def _ask_launch_owner(self, vm: str, shown: bytes) -> bytes | None:
        if self._owners is None:
            from cluster.launch_owner import launch_owners  # noqa: PLC0415 - most hosts need none of it

            firmware, keys = self.host.spec.product.firmware_api, self.host.board.psp.legacy.keys
            self._owners = launch_owners(
                self._spec_of, self.host.images, firmware, lambda: keys.chip, self._laboratory
            )
        return self._owners(vm, shown)

    def _spec_of(self, vm: str) -> GuestSpec | None:
        guest = self.host.guests.get(vm)
        return None if guest is None else guest.spec

    def _launch(self, message: Message) -> None:
        self.host.launch(guest_of(message.payload), self._tell)

    def _destroy(self, message: Message) -> None:
        self.host.destroy(message.payload)

    def _update_firmware(self, message: Message) -> None:
        self.host.firmware.update(message.payload, commit=False)

    def _commit_firmware(self, _: Message) -> None:
        self.host.firmware.commit()

    def _crash(self, _: Message) -> None:
        self.host.crash()
        self._migrations.crash()

    def _frames(self, message: Message) -> None:
        self.host.network.arrive(*message.payload)

    def _certificates(self, message: Message) -> None:
        if self.host.certificates is not None:
            self.host.certificates.answered(message.payload)

    def _tell(self, guest: Guest) -> None:
        kind = "refused" if guest.state is GuestState.REFUSED else "launched"
        self._send(kind, (guest.spec.name, guest.reason))

    def _send_frames(self, target: bytes, frames: tuple[bytes, ...]) -> None:
        self._send("frames", (target, frames))

    def _fetch(self) -> None:
        self._send("fetch", ())

    KINDS: ClassVar[Mapping[str, Callable[[HostEntity, Message], None]]] = {
        "launch": _launch, "destroy": _destroy, "frames": _frames, "certificates": _certificates,
        UPDATE: _update_firmware, COMMIT: _commit_firmware, CRASH: _crash,
    }  # fmt: skip
    """What is done with messages that are not of moves."""
