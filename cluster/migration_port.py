"""A host's side of live migration in messages: commands from the control plane, answers to it.

What a migration needs besides the VM itself, its books and the digests of its
pages, travels beside the frames: frames cross the network, the rest is the control
plane's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster.guest_body import guest_of
from node.departures import Stopped
from node.dirty_rates import Pool
from node.guest_books import GuestBooks
from node.host import Host
from node.migration_frames import frames_of, page_digests
from node.migration_refusal import MigrationRefusal
from psp.system_bus import PAGE_BYTES

Send = Callable[[str, tuple[object, ...]], None]
"""Sends a message of a kind with these fields to the control plane."""


class MigrationPort:
    """Turns messages into calls of a host's departures and arrivals, and back."""

    def __init__(self, host: Host, send: Send) -> None:
        self._host = host
        self._send = send
        self.kinds: Mapping[str, Callable[..., None]] = {
            "migrate": self._migrate,
            "stop": self._stop,
            "stay": self._stay,
            "leave": self._leave,
            "keep-place": self._keep_place,
            "come": self._come,
            "give-place-back": self._give_place_back,
        }

    def receive(self, kind: str, fields: tuple[Any, ...]) -> None:
        """Do what a message asks."""
        self.kinds[kind](*fields)

    def _migrate(self, number: int, vm: str) -> None:
        found = self._host.departures.begin(vm, lambda pools: self._send("dirty", (number, _bodies(pools))))
        if isinstance(found, MigrationRefusal):
            self._send("stays", (number, found.name, found.value))
            return
        guest = self._host.guests[vm]
        image = self._host.images[guest.spec.firmware]
        memory_bytes = guest.spec.memory_bytes + -(-len(image.data) // PAGE_BYTES) * PAGE_BYTES
        self._send("ready", (number, memory_bytes, _bodies(found)))

    def _stop(self, number: int, vm: str, since_ns: int) -> None:
        def done(stopped: Stopped | None) -> None:
            if stopped is None:
                self._send("ended", (number,))
                return
            state = stopped.state
            self._send(
                "stopped",
                (
                    number, frames_of(state), page_digests(state.pages), stopped.books.body(),
                    stopped.written_pages, stopped.stopped_ns,
                ),
            )  # fmt: skip

        self._host.departures.stop(vm, since_ns, done)

    def _stay(self, vm: str) -> None:
        self._host.departures.cancel(vm)

    def _leave(self, vm: str) -> None:
        self._host.departures.finish(vm)

    def _keep_place(self, number: int, body: bytes) -> None:
        self._host.arrivals.prepare(guest_of(body), lambda wrong: self._send("place", (number, wrong)))

    def _come(self, number: int, vm: str, frames: tuple[bytes, ...], digests: bytes, books: tuple[Any, ...]) -> None:
        before = self._host.arrivals.pages_checked

        def told(wrong: str | None) -> None:
            self._send("came", (number, wrong, self._host.arrivals.pages_checked - before))

        self._host.arrivals.complete(vm, frames, digests, GuestBooks.parse(books), told)

    def _give_place_back(self, vm: str) -> None:
        self._host.arrivals.abandon(vm)


def _bodies(pools: tuple[Pool, ...]) -> tuple[tuple[int, float], ...]:
    return tuple((pool.working_set_bytes, pool.write_bytes_per_s) for pool in pools)
