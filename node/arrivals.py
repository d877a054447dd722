"""VMs on their way into a host: a place kept for them, their frames laid down and read back, and the start.

A VM runs here only after its frames were whole and every page was read back
from this host's DRAM as the source had it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from node.disk import blocks_of
from node.event_log import ChainEnd
from node.guest import Guest, GuestSpec, GuestState
from node.guest_books import GuestBooks
from node.host_events import HostEvent
from node.hypervisor_port import Entered, LaunchRefused
from node.migration_frames import DIGEST_BYTES, FrameError, page_digests, state_of
from node.phase_cost import MECHANISMS
from node.vcpu import VcpuState
from node.vm_state import VmState
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.host import Host

Told = Callable[[str | None], None]
"""Called with None when all is well, else with what was wrong."""


class Arrivals:
    """The VMs that somebody is moving to one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.pages_checked = 0
        self._ready: set[str] = set()

    def prepare(self, spec: GuestSpec, told: Told) -> None:
        """Keep a place: frames of memory, and the nested page table over them."""
        host = self._host
        host.check_name(spec.name)
        guest = Guest(spec, host.now_ns, lost_ns=dict.fromkeys(MECHANISMS, 0.0), state=GuestState.ARRIVING)
        host.guests[spec.name] = guest
        host.want_certificates(spec)
        host.tasks.promise(guest, host.now_ns)

        def refused(refusal: LaunchRefused) -> None:
            del host.guests[spec.name]
            host.tasks.when_due(guest, lambda: told(str(refusal)))

        def ready(_: object) -> None:
            self._ready.add(spec.name)
            host.tasks.when_due(guest, lambda: told(None))
            if guest.unwanted:
                self.abandon(spec.name)

        host.tasks.run(host.with_disk(spec, host.hypervisor.receive(spec.machine)), guest, ready, refused)

    def complete(self, name: str, frames: Sequence[bytes], digests: bytes, books: GuestBooks, told: Told) -> None:
        """Lay the VM down and let it run; anything wrong with what came is told, and changes nothing."""
        host = self._host
        guest = host.guests[name]
        try:
            state = state_of(frames, name, self._memory_of(guest.spec), blocks_of(host.board.disk_files.get(name)))
        except FrameError as error:
            told(str(error))
            return
        if len(state.started) != guest.spec.vcpus:
            told(f"frame 0: vcpus: expected {guest.spec.vcpus}, got {len(state.started)}")
            return
        host.tasks.promise(guest, host.now_ns)

        def laid(result: object) -> None:
            assert isinstance(result, tuple)
            entered, back = result
            wrong = self._difference(state, back, digests)
            if wrong is None:
                self._start(guest, entered, state, books)
            host.tasks.when_due(guest, lambda: told(wrong))

        def refused(refusal: LaunchRefused) -> None:
            host.tasks.when_due(guest, lambda: told(str(refusal)))

        host.tasks.run(host.hypervisor.fill(guest.spec.machine, state), guest, laid, refused)

    def abandon(self, name: str) -> None:
        """The VM does not come: give its place back. Does nothing for one that is not awaited."""
        host = self._host
        guest = host.guests.get(name)
        if guest is None or guest.state is not GuestState.ARRIVING:
            return
        if name not in self._ready:
            guest.unwanted = True
            return
        self._ready.discard(name)
        del host.guests[name]
        host.tasks.run(host.hypervisor.destroy(name), guest, lambda _: None)

    def _memory_of(self, spec: GuestSpec) -> Callable[[int, int], bool]:
        image = self._host.images[spec.firmware]
        spans = [(one.gpa, one.gpa + one.length) for one in spec.memory.ram]
        spans.append((image.gpa, image.gpa - -len(image.data) // PAGE_BYTES * PAGE_BYTES))
        return lambda gpa, length: any(start <= gpa and gpa + length <= end for start, end in spans)

    def _difference(self, state: VmState, back: bytes, digests: bytes) -> str | None:
        """Compare every page as it lies here now with the source's; what differs first, None if nothing."""
        found = page_digests([(0, back)])
        if found == digests:
            self.pages_checked += len(digests) // DIGEST_BYTES
            return None
        pages = [gpa for first, data in state.pages for gpa in range(first, first + len(data), PAGE_BYTES)]
        if len(digests) != len(found):
            return f"pages: expected {len(digests) // DIGEST_BYTES}, got {len(pages)}"
        starts = range(0, len(found), DIGEST_BYTES)
        wrong = next(at for at in starts if found[at : at + DIGEST_BYTES] != digests[at : at + DIGEST_BYTES])
        return f"page {pages[wrong // DIGEST_BYTES]:#x}: expected the source's bytes, got others"

    def _start(self, guest: Guest, entered: Entered, state: VmState, books: GuestBooks) -> None:
        host = self._host
        name = guest.spec.name
        guest.state = GuestState.PAUSED
        self._ready.discard(name)
        host.put_up(guest, entered, state.reset_rips)
        books.open(guest)
        for vcpu, started in zip(guest.vcpus, state.started, strict=True):
            if started:
                vcpu.state = VcpuState.PAUSED  # Its registers are loaded when it goes on.
            else:
                host.vcpus.load(vcpu)
        host.log.enter(name, ChainEnd(*books.chain))
        host.log.chain(host.spec.name).record_octets(host.now_ns, HostEvent.ARRIVED, name.encode())
        host.resume(name)
