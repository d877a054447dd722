"""VMs on their way into a host: a place kept for them, their frames laid down and read back, and the start.

A VM is whole here only after its frames were and every page was read back
from this host's DRAM as the source had it. Then it stands still until whoever
moves it says that it is to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from node.disk import blocks_of
from node.firmware_image import FirmwareImage
from node.generation import CAPABILITIES, Generation
from node.guest import GONE, Guest, GuestSpec, GuestState
from node.guest_books import GuestBooks
from node.guest_memory_map import memory_map
from node.host_events import HostEvent
from node.hypervisor_port import LaunchRefused
from node.identity_cache import RecordsById
from node.migration_frames import (
    DIGEST_BYTES,
    NO_SESSION,
    Expected,
    FrameError,
    PageDigests,
    Stream,
    StreamName,
    page_digests,
    state_of,
)
from node.newcomer import Newcomer
from node.page_swaps import with_metadata
from node.svsm_memory import laboratory_svsm
from node.vcpu import VcpuState
from node.vcpu_throttle import Throttle, slow_down
from node.vm_state import VmState
from psp.commands import LegacyCommand, SnpCommand
from psp.system_bus import PAGE_BYTES

if TYPE_CHECKING:
    from node.host import Host

Told = Callable[[str | None], None]
"""Called with None when all is well, else with what was wrong."""
Shown = Callable[[str | None, bytes], None]
"""The same, and the certificates of the platform where its firmware is to receive the VM."""


_ARRIVING, _RUNNING, _PAUSED = GuestState.ARRIVING, GuestState.RUNNING, GuestState.PAUSED
_PLAIN, _OUT, _CAME = Generation.PLAIN, VcpuState.PAUSED, HostEvent.ARRIVED
"""As in ``node.vcpu_runner``, lest each move looks them up in their enumerations."""
_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add."""
_octets = itemgetter(1)
"""Of a run of pages."""
_LIVES = (_RUNNING, _PAUSED)


@dataclass(frozen=True, slots=True)
class _Spans:
    """Ranges of GPAs, (from, to). Two VMs with the same expect the same."""

    spans: tuple[tuple[int, int], ...]

    def __call__(self, gpa: int, length: int) -> bool:
        """Whether a range lies in one of them."""
        for start, end in self.spans:  # noqa: SIM110 - a generator would cost more than all of it
            if start <= gpa and gpa + length <= end:
                return True
        return False


@lru_cache(maxsize=256)
def _spans(memory_bytes: int, vcpus: int, first: int, firmware_bytes: int) -> _Spans:
    ram = [(one.gpa, one.gpa + one.length) for one in memory_map(memory_bytes, vcpus).ram]
    return _Spans((*ram, (first, first - -firmware_bytes // PAGE_BYTES * PAGE_BYTES)))


_known = RecordsById[tuple[GuestSpec, FirmwareImage, Expected]]()
_SESSION = Expected._fields.index("session")


def _expected(spec: GuestSpec, image: FirmwareImage) -> Expected:
    """What comes of a VM, but for its stream's name and the size of a disk that is a file."""
    found = _known.get(id(spec))
    if found is None or found[1] is not image:
        expected = Expected(
            spec.name, _memory_of(spec, image), blocks_of(None), NO_SESSION, spec.vcpus, spec.moves_sealed,
            CAPABILITIES[spec.generation].encrypted_registers, spec.migration_agent or spec.migration_handler,
            spec.svsm and spec.machine.by_agents,
        )  # fmt: skip
        found = _known.keep((spec, image, expected))
    return found[2]


def _memory_of(spec: GuestSpec, image: FirmwareImage) -> _Spans:
    first, length = image.gpa, len(image.data)
    if spec.svsm and spec.machine.by_agents:
        # Agents move the SVSM's image, which lies below; where a handler moves the guest it is there already.
        svsm = laboratory_svsm(image.gpa)
        first, length = svsm.gpa, image.gpa - svsm.gpa + length
    return _spans(spec.memory_bytes, spec.vcpus, first, length)


class _Laying(NamedTuple):
    """A VM that is being laid down, what is to be compared then, and who hears of it."""

    guest: Guest
    state: VmState
    digests: PageDigests | bytes
    books: GuestBooks
    told: Told


class Arrivals:
    """The VMs that somebody is moving to one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.pages_checked = 0
        self._ready: set[str] = set()
        self._laying: set[str] = set()
        self._next: dict[str, tuple[GuestSpec, Shown]] = {}
        """Places to keep as soon as an older one is given back."""
        self._whole: dict[str, Newcomer] = {}
        self.settling: dict[str, Callable[[int], None]] = {}
        """Whom to tell what became of the devices of VMs that have come."""

    def prepare(self, spec: GuestSpec, told: Shown) -> None:
        """Keep a place: frames of memory, the nested page table over them, and an ASID for who needs one."""
        host = self._host
        before = host.guests.get(spec.name)
        if before is not None and before.state is _ARRIVING and before.unwanted:
            self._next[spec.name] = (spec, told)  # What was kept for it before is still being given back.
            return
        if before is not None and before.state not in GONE:
            host.check_name(spec.name)
        host.departures.chains.pop(spec.name, None)
        guest = Guest(spec, host.clock.now_ns, _ARRIVING)
        host.guests[spec.name] = guest
        if host.certificates is not None:
            host.want_certificates(spec)
        if spec.generation is _PLAIN and not (spec.disk or spec.network or spec.devices):
            if spec.name not in host.tasks.lines:  # Else what it had here before is still being cleared.
                host.board.unlaid.expect(spec.name)
            if spec.name not in host.tasks.promises and host.unlaid_moves.receive(guest):
                self._is_ready(guest)
                told(None, b"")
                return
        self._keep(guest, told)

    def _keep(self, guest: Guest, told: Shown) -> None:
        """Have the hypervisor do so."""
        host, spec = self._host, guest.spec
        host.tasks.promise(guest, host.clock.now_ns)

        def refused(refusal: LaunchRefused) -> None:
            del host.guests[spec.name]
            host.tasks.when_due(guest, lambda: told(str(refusal), b""))
            if spec.name in self._next:
                self.prepare(*self._next.pop(spec.name))

        def ready(shown: object) -> None:
            assert isinstance(shown, bytes)
            self._is_ready(guest)
            host.tasks.when_due(guest, lambda: told(None, shown))
            if guest.unwanted:
                self._give_back(guest)

        host.tasks.run(host.with_disk(spec, host.hypervisor.receive(spec.machine)), guest, ready, refused)

    def _is_ready(self, guest: Guest) -> None:
        """A place is kept; the stream to it begins, where that loads the host."""
        host, spec = self._host, guest.spec
        self._ready.add(spec.name)
        if not spec.moves_sealed:
            host.streams.begin(spec.name)
            host.clock.settle()

    def open(self, name: str, session: bytes, told: Told) -> None:
        """Have firmware take what the source's has sealed for it."""
        host = self._host
        guest = host.guests[name]
        host.tasks.promise(guest, host.clock.now_ns)
        self._laying.add(name)
        task = host.hypervisor.open_session(guest.spec.machine, session)
        through = partial(self._is_through, guest, told)
        host.tasks.run(task, guest, lambda _: through(None), lambda refusal: through(str(refusal)))

    def copy(self, name: str, pages: int, done: Callable[[], None]) -> None:
        """Have firmware receive pages, of those that a round copies."""
        guest = self._host.guests[name]
        by_agent = guest.spec.machine.by_agents
        command = SnpCommand.PAGE_SWAP_IN if by_agent else LegacyCommand.RECEIVE_UPDATE_DATA
        self._host.tasks.copy(guest, command, with_metadata(pages) if by_agent else pages, done)

    def complete(
        self, name: str, frames: Stream | Sequence[bytes], digests: PageDigests | bytes, books: GuestBooks,
        told: Told, session: bytes | StreamName = NO_SESSION,
    ) -> None:  # fmt: skip
        """Lay the VM down and read it back; anything wrong with what came is told, and changes nothing."""
        host = self._host
        host.streams.end(name)
        guest = host.guests[name]
        expected = _expected(guest.spec, host.images[guest.spec.firmware])
        if guest.spec.disk:
            expected = expected._replace(disk_blocks=blocks_of(host.board.disk_files.get(name)))
        try:
            state = state_of(frames, _new(Expected, (*expected[:_SESSION], session, *expected[_SESSION + 1 :])))
        except FrameError as error:
            told(str(error))
            return
        host.tasks.promise(guest, host.clock.now_ns)
        self._laying.add(name)
        one = _new(_Laying, (guest, state, digests, books, told))
        laid, refused = partial(self._laid, one), partial(self._refused, one)
        if not host.unlaid_moves.fill(guest, state, laid, refused):
            host.tasks.run(host.hypervisor.fill(guest.spec.machine, state), guest, laid, refused, paid=True)

    def _laid(self, one: _Laying, result: object) -> None:
        assert isinstance(result, tuple)
        entered, back = result
        wrong = self._difference(one.state, back, one.digests)
        if wrong is None:
            self._whole[one.state.vm] = Newcomer(self._host, one.guest, entered, one.state, one.books)
        self._is_through(one.guest, one.told, wrong)

    def _refused(self, one: _Laying, why: LaunchRefused) -> None:
        self._is_through(one.guest, one.told, str(why))

    def _is_through(self, guest: Guest, told: Told, wrong: str | None) -> None:
        """The hypervisor is through with what came, and what it says may be said."""
        self._laying.discard(guest.spec.name)
        self._host.tasks.when_due(guest, partial(told, wrong))
        if guest.unwanted:
            self._give_back(guest)

    def is_laying(self, name: str) -> bool:
        """Whether a VM's frames are here, and not yet read back."""
        return name in self._laying

    def is_whole(self, name: str) -> bool:
        """Whether all of a VM is here and was read back."""
        return name in self._whole

    def placed(self, name: str, areas: tuple[int, ...]) -> None:
        """Where a VM's save areas are, which nobody had asked for when it was laid down."""
        if name in self._whole:
            one = self._whole[name]
            one.entered = one.entered._replace(save_areas=areas)

    def start(self, name: str) -> None:
        """Let a VM that is whole run."""
        host = self._host
        guest, one = host.guests[name], self._whole.pop(name)
        self._ready.discard(name)
        host.chain.record_octets(host.clock.now_ns, _CAME, name.encode())
        guest.state = _RUNNING
        if not one.goes_on():
            self._put_up(guest, one)
        if host.clock.unsettled:
            host.clock.settle()

    def await_devices(self, name: str, told: Callable[[int], None]) -> None:
        """Be told which devices a VM that has come trusts, a bit for each, when it has made of them what it can."""
        self.settling[name] = told

    def settled(self, name: str, trusted: int) -> None:
        """A guest says so. Does nothing for one of which nobody wants to know."""
        told = self.settling.get(name)

        def tell() -> None:
            # Until now it stands there, for something is to be said.
            if told is not None and self.settling.get(name) is told and self._lives(name):
                del self.settling[name]
                told(trusted)

        if told is not None:
            self._host.clock.after(0, tell)

    def settled_elsewhere(self, name: str) -> None:
        """A VM moves on before it has: nobody wants to know any more."""
        self.settling.pop(name, None)

    def says_something(self) -> bool:
        """Whether something may be said of any VM's devices at any time."""
        return any(map(self._lives, self.settling))

    def _lives(self, name: str) -> bool:
        guest = self._host.guests.get(name)
        return guest is not None and guest.state in _LIVES

    def slow(self, name: str, standing_still: float) -> None:
        """Have the vCPUs of one that has come stand still for a share of their time, 0 for none: they await pages."""
        guest = self._host.guests[name]
        if guest.state is _RUNNING:
            self._host.contention.advance(self._host.clock.now_ns)
            throttle = Throttle(standing_still, 0.0) if standing_still else None
            slow_down(self._host.vcpus, guest, throttle, self._host.clock.now_ns)
            self._host.clock.settle()

    def abandon(self, name: str) -> None:
        """The VM does not come: give its place back. Does nothing for one that is not awaited."""
        host = self._host
        guest = host.guests.get(name)
        if guest is None or guest.state is not _ARRIVING:
            return
        if guest.unwanted and self._next.pop(name, None) is not None:
            return
        if name not in self._ready or name in self._laying:
            guest.unwanted = True
            return
        self._give_back(guest)

    def _give_back(self, guest: Guest) -> None:
        host, name = self._host, guest.spec.name
        self._ready.discard(name)
        host.streams.end(name)
        if self._whole.pop(name, None) is not None:
            host.board.leave(name, 0)  # It was entered, and its save area is in use till then.
        host.tasks.stop_copying(name)
        del host.guests[name]
        host.tasks.run(host.hypervisor.destroy(name), guest, lambda _: None)
        if name in self._next:
            self.prepare(*self._next.pop(name))

    def _difference(self, state: VmState, back: bytes, digests: PageDigests | bytes) -> str | None:
        """Compare every page as it lies here now with the source's; what differs first, None if nothing."""
        if isinstance(digests, PageDigests):
            # The source's pages themselves are here: where all bytes are equal, so are all digests.
            same = b"".join(map(_octets, digests.pages)) == back
            digests = b"" if same else digests.made()
        else:
            same = page_digests([(0, back)]) == digests
        if same:
            # Of packets the firmware has checked the MAC.
            self.pages_checked += len(back) // PAGE_BYTES + len(state.packets)
            return None
        found = page_digests([(0, back)])
        pages = [gpa for first, data in state.pages for gpa in range(first, first + len(data), PAGE_BYTES)]
        if len(digests) != len(found):
            return f"pages: expected {len(digests) // DIGEST_BYTES}, got {len(pages)}"
        starts = range(0, len(found), DIGEST_BYTES)
        wrong = next(at for at in starts if found[at : at + DIGEST_BYTES] != digests[at : at + DIGEST_BYTES])
        return f"page {pages[wrong // DIGEST_BYTES]:#x}: expected the source's bytes, got others"

    def _put_up(self, guest: Guest, one: Newcomer) -> None:
        """Let a VM go on that has to be put up for that."""
        vcpus = self._host.vcpus
        guest.state = _PAUSED
        one.put_up()
        if one.state.time_base != self._host.time_base:
            self._host.keep_time(guest, one.state.time_base)
        for vcpu, started in zip(guest.vcpus, one.state.started, strict=True):
            if started:
                vcpu.state = _OUT  # Its registers are loaded when it goes on.
            else:
                vcpus.load(vcpu)
        guest.state = _RUNNING
        vcpus.start_paused(guest)
