"""The network of one host: a switch between the cards of its VMs, and a way out to other hosts.

The switch knows who is where and lets nobody send in another's name. It sees every
frame; what is in it is the guests' own affair. What frames take on their way through
host and guest is in the cost table; between hosts the way out adds the rest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node.contention import NEVER_NS
from node.guest import Guest, GuestState
from node.host_events import HostEvent
from node.mac_address import MAC_BYTES, mac_of
from node.network_books import NetworkBooks
from node.vcpu import VcpuState
from tio.nic_card import NicDevice

if TYPE_CHECKING:
    from node.host import Host

Uplink = Callable[[bytes, tuple[bytes, ...]], None]
"""Takes frames, at the present time, to an address that no card of this host has."""


class HostNetwork:
    """Cards of VMs on one host. ``uplink`` is the way out, None where there is none."""

    def __init__(self, host: Host, costs: Mapping[str, float]) -> None:
        self.uplink: Uplink | None = None
        self.lost = 0
        """Frames that came for a card that is not here."""
        self._host = host
        self._byte_ns = 1e9 / costs["net.bytes_per_s"]
        self._crossing_ns = round(2 * costs["net.crossing_ns"])
        """Out of one guest and into another."""
        self._cards: dict[bytes, tuple[Guest, int]] = {}
        self._wired: dict[str, NicDevice] = {}
        """Cards in slots that VMs have in the place of emulated ones, by VM."""
        self._counted: dict[str, tuple[int, int]] = {}
        """What cards had counted when it was last brought into the books."""
        self.guests: dict[str, Guest] = {}
        self._free_ns: dict[bytes, int] = {}
        """When each card's last frames have left it."""
        self._coming: list[int] = []
        """Times at which frames will be delivered here, soonest first."""

    def expect(self, guest: Guest) -> None:
        """A VM is being launched that will have cards, and may speak as soon as it runs."""
        self.guests[guest.spec.name] = guest

    def plug(self, guest: Guest) -> None:
        """Give each vCPU of a VM its card."""
        name = guest.spec.name
        guest.network = NetworkBooks()
        self.guests[name] = guest
        for vcpu in range(1 if name in self._wired else guest.spec.vcpus):
            mac = mac_of(name, vcpu)
            if name not in self._wired:
                self._host.board.plug_nic(name, vcpu, mac)
            self._cards[mac] = guest, vcpu
        self._counted[name] = self._counts(name) or (0, 0)

    def wire(self, guest: Guest, requester: int) -> None:
        """A VM has a card in a slot, which is to have its first vCPU's address and to be on this network."""
        name, board = guest.spec.name, self._host.board
        device = board.slots.device_of(requester)
        assert isinstance(device, NicDevice), f"{requester:#x}: expected a network card"
        device.nic.assign(mac_of(name, 0))
        device.sent = lambda frame: board.sent.append((name, 0, (frame,)))
        self._wired[name] = device

    def unplug(self, guest: Guest) -> None:
        """Nothing reaches a VM's cards any more, if it had some."""
        wired = self._wired.pop(guest.spec.name, None)
        if wired is not None:
            wired.sent = _unplugged
        if self.guests.pop(guest.spec.name, None) is None:
            return
        self.settle(guest)
        for vcpu in range(guest.spec.vcpus):
            mac = mac_of(guest.spec.name, vcpu)
            self._cards.pop(mac, None)
            self._free_ns.pop(mac, None)

    def in_use(self, guest: Guest) -> bool:
        """Whether a driver has begun with one of a VM's emulated cards, whose state moves nowhere.

        One that was reset, or that nobody has touched, has no state: its VM gets another like it elsewhere.
        """
        name = guest.spec.name
        return name not in self._wired and any(
            card.registers.status for card in self._host.board.nics.get(name, {}).values()
        )

    def settle(self, guest: Guest) -> None:
        """Bring what the cards counted themselves into the books."""
        counted = self._counts(guest.spec.name)
        if guest.network is not None and counted is not None:
            before = self._counted.get(guest.spec.name, (0, 0))
            guest.network.malformed += counted[0] - before[0]
            guest.network.errors += counted[1] - before[1]
            self._counted[guest.spec.name] = counted

    def _counts(self, name: str) -> tuple[int, int] | None:
        """Bad frames and errors that a VM's cards have counted, whoever had them before; None where it has none."""
        wired, emulated = self._wired.get(name), self._host.board.nics.get(name, {})
        cards = list(emulated.values()) if wired is None else [wired.nic]
        if not cards:
            return None
        return sum([card.counts.bad_frames for card in cards]), sum([card.counts.errors for card in cards])

    def flush(self) -> None:
        """Take what cards have sent, and see each frame on its way."""
        board = self._host.board
        sent, board.sent = board.sent, []
        for vm, vcpu, frames in sent:
            if vm in self.guests:
                self._send(self.guests[vm], mac_of(vm, vcpu), frames)

    def arrive(self, target: bytes, frames: tuple[bytes, ...], sent_ns: int) -> None:
        """Take frames from the way out; they were sent at ``sent_ns``."""
        self._deliver_after(self._crossing_ns, target, frames, sent_ns)

    def earliest_output_ns(self, next_event_ns: int) -> int:
        """Before which nothing will be sent, unless something is delivered first."""
        if not self.guests:
            return NEVER_NS
        earliest_ns = self._coming[0] if self._coming else NEVER_NS
        for guest in self.guests.values():
            # What a hypervisor does for a VM may wake it.
            if guest.state in _GOES_ON_BY_ITSELF or guest.spec.name in self._host.tasks.lines:
                return next_event_ns
            if guest.state is GuestState.RUNNING:
                for vcpu in guest.vcpus:
                    if vcpu.state is VcpuState.SLEEPING:
                        earliest_ns = min(earliest_ns, vcpu.slept_from_ns + vcpu.registers.r15)
                    elif vcpu.state not in _SILENT:
                        return next_event_ns
        return max(earliest_ns, next_event_ns)

    def _send(self, guest: Guest, own: bytes, frames: tuple[bytes, ...]) -> None:
        books, now_ns = guest.network, self._host.now_ns
        assert books is not None
        by_target: dict[bytes, list[bytes]] = {}
        for frame in frames:
            target = frame[:MAC_BYTES]
            if frame[MAC_BYTES : 2 * MAC_BYTES] != own or (target not in self._cards and self.uplink is None):
                books.refused += 1
            else:
                by_target.setdefault(target, []).append(frame)
        for target, some in by_target.items():
            size = sum(map(len, some))
            books.frames_sent += len(some)
            books.bytes_sent += size
            self._host.log.chain(guest.spec.name).record(now_ns, HostEvent.SENT, len(some), size)
            if target not in self._cards:
                assert self.uplink is not None
                self.uplink(target, tuple(some))
                continue
            # One card sends one frame after another.
            left_ns = max(now_ns, self._free_ns.get(own, 0)) + round(size * self._byte_ns)
            self._free_ns[own] = left_ns
            self._deliver_after(left_ns - now_ns + self._crossing_ns, target, tuple(some), now_ns)

    def _deliver_after(self, delay_ns: int, target: bytes, frames: tuple[bytes, ...], sent_ns: int) -> None:
        def deliver() -> None:
            heapq.heappop(self._coming)
            self._deliver(target, frames, sent_ns)

        heapq.heappush(self._coming, self._host.now_ns + delay_ns)
        self._host.clock.after(delay_ns, deliver)

    def _deliver(self, target: bytes, frames: tuple[bytes, ...], sent_ns: int) -> None:
        if target not in self._cards:
            self.lost += len(frames)
            return
        guest, vcpu = self._cards[target]
        books, now_ns = guest.network, self._host.now_ns
        assert books is not None
        emulated = self._host.board.nics.get(guest.spec.name, {}).get(vcpu)
        card = self._wired.get(guest.spec.name, emulated)
        # Nobody writes into the memory of a VM that stands still, nor for one whose hypervisor took its card.
        if card is None or guest.state is not GuestState.RUNNING:
            books.missed += len(frames)
            return
        taken = list(filter(card.receive, frames))
        books.missed += len(frames) - len(taken)
        if not taken:
            return
        size = sum(map(len, taken))
        books.frames_received += len(taken)
        books.bytes_received += size
        books.delay_ns += len(taken) * (now_ns - sent_ns)
        books.longest_ns = max(books.longest_ns, now_ns - sent_ns)
        self._host.log.chain(guest.spec.name).record(now_ns, HostEvent.RECEIVED, len(taken), size)
        self._host.vcpus.call(guest.vcpus[vcpu])


def _unplugged(_: bytes) -> None:
    """Nobody hears what a card sends that no VM has."""


_GOES_ON_BY_ITSELF = (GuestState.LAUNCHING, GuestState.PAUSED)
"""VMs that run as soon as something here is through: a launch, or a move that failed."""
_SILENT = (VcpuState.WAITING, VcpuState.IN_RESET, VcpuState.STOPPED)
"""vCPUs that another of their VM starts, or nobody. One that is held goes on when its hypervisor has seen to it."""
