"""VMs on their way out of a host: dirty logging, statements of dirty rates, and the stop.

Whoever migrates a VM asks for it step by step. A refusal is typed and changes
nothing. Until ``finish`` the VM is whole here and can go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from node.contention import NEVER_NS
from node.device_notice import Told
from node.dirty_log import DirtyLog
from node.dirty_rates import LONGEST_LOOK_NS, LOOK_NS, DirtyRates, Pool, Reads
from node.event_log import ChainEnd
from node.guest import GONE, Guest, GuestState
from node.guest_books import GuestBooks
from node.host_events import HostEvent
from node.hypervisor_port import LaunchRefused
from node.hypervisor_tasks import HypervisorTask
from node.migration_refusal import MigrationRefusal
from node.page_swaps import with_metadata
from node.vcpu import VcpuState
from node.vcpu_throttle import Throttle, slow_down
from node.vm_state import VmState
from node.zero_pages import held_and_zero_bytes
from psp.commands import LegacyCommand, SnpCommand

if TYPE_CHECKING:
    from node.host import Host


_RUNNING, _PAUSED, _DEPARTED = GuestState.RUNNING, GuestState.PAUSED, GuestState.DEPARTED
_WAITING, _LEFT = VcpuState.WAITING, HostEvent.DEPARTED
"""As in ``node.vcpu_runner``, lest each move looks them up in their enumerations."""
_new = tuple.__new__
"""Makes a named tuple without the call of Python's that its class would add."""


def _never(why: str) -> None:
    raise AssertionError(why)


class Stopped(NamedTuple):
    """A VM that stands still, since ``stopped_ns``: what travels, its books, and pages written since a given time.

    ``unsent_pages`` are those that its firmware was told to send, and is not through with.
    """

    state: VmState
    books: GuestBooks
    written_pages: int
    stopped_ns: int
    unsent_pages: int = 0


class _Departure:
    """What stands at the class is how each begins."""

    interval_ns: int = LOOK_NS
    look_at_ns: int = -1
    """When the next look is due, -1 for none."""
    stopping: bool = False
    sealed: bool = False
    """Its firmware was told to send it."""
    promised: bool = False
    """What becomes of that is to be said."""
    chain: ChainEnd | None = None
    """Where its digest chain stood when it was handed over."""
    handed_on: bool = False
    let_go: Callable[[str | None], None] | None = None
    """Whom to tell that the guest has let its devices go, or that it has not."""
    asked: bool = False
    """Whether the guest knows that they are wanted."""

    rates: DirtyRates | None = None
    """None of one that slept when it began to leave, before somebody asks."""

    def __init__(self, guest: Guest, began_ns: int, restate: Callable[[tuple[Pool, ...]], None]) -> None:
        self.guest = guest
        self.began_ns = began_ns
        self.restate = restate


class _Stop:
    """A VM between its cores and whoever moves it, who hears what becomes of it."""

    stopped_ns: int = -1

    def __init__(
        self, host: Host, departure: _Departure, since_ns: int, done: Callable[[Stopped | None], None],
        failed: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._host = host
        self._departure = departure
        self._since_ns = since_ns
        self._done = done
        self._failed = failed

    def parked(self) -> None:
        """It stands still, or has powered itself off."""
        host, guest = self._host, self._departure.guest
        self.stopped_ns = host.clock.now_ns
        if guest.state is not _PAUSED:
            self._done(None)
            return
        if guest.spec.network and host.network.in_use(guest):
            self._failed(MigrationRefusal.NETWORK_CARD)
            return
        if guest.newcomer is not None:
            started = guest.newcomer.state.started
        else:
            started = tuple([vcpu.state is not _WAITING for vcpu in guest.vcpus])
        if not host.unlaid_moves.export(guest, started, self._read, self._refused):
            export = host.hypervisor.export(guest.spec.name, started, guest.boot_rips)
            host.tasks.run(export, guest, self._read, self._refused, paid=True)

    def _refused(self, refusal: LaunchRefused) -> None:
        departure = self._departure
        if self._host.departures.under_way.get(departure.guest.spec.name) is departure:
            self._failed(str(refusal))

    def _read(self, state: object) -> None:
        host, departure = self._host, self._departure
        guest, name = departure.guest, departure.guest.spec.name
        if host.departures.under_way.get(name) is not departure:
            return  # It was called off meanwhile and goes on.
        assert isinstance(state, VmState)
        assert guest.dirty_log is not None
        if guest.network is not None:
            host.network.settle(guest)
        departure.chain = host.departures.chains[name] = guest.chain.leave(host.clock.now_ns)
        written = guest.dirty_log.written_since(self._since_ns)
        books, unsent = GuestBooks.of(guest, departure.chain), host.tasks.uncopied(name)
        time_base = host.time_base
        if offset := host.board.events.tsc_offset(name):
            time_base = time_base[0], offset
        state = _new(VmState, (*state[:-1], time_base))
        self._done(_new(Stopped, (state, books, written, self.stopped_ns, unsent)))


class Departures:
    """The VMs of one host that somebody is moving away."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.under_way: dict[str, _Departure] = {}
        """By the names of the VMs."""
        self.chains: dict[str, ChainEnd] = {}
        """Where chains stood when they left with copies of VMs that neither went on here nor surely elsewhere."""

    def begin(self, name: str, restate: Callable[[tuple[Pool, ...]], None]) -> MigrationRefusal | tuple[Pool, ...]:
        """Turn dirty logging on; the VM's pools. ``restate`` is called when they have changed."""
        host = self._host
        guest = host.guests.get(name)
        refusal = self._refusal(guest)
        if refusal is not None:
            return refusal
        assert guest is not None
        if host.arrivals.settling:
            host.arrivals.settled_elsewhere(name)
        if guest.spec.moves_sealed:
            host.contention.advance(host.clock.now_ns)
        else:
            host.streams.begin(name)
            host.clock.settle()
        departure = self.under_way[name] = _Departure(guest, host.clock.now_ns, restate)
        guest.dirty_log = DirtyLog()
        guest.changed = lambda: self._changed(departure)
        newcomer, now_ns = guest.newcomer, host.clock.now_ns
        if newcomer is None:
            departure.rates = DirtyRates(guest.vcpus, guest.software.demands, host.contention, now_ns)
        elif newcomer.vcpus:
            departure.rates = DirtyRates(newcomer.vcpus, newcomer.demands, host.contention, now_ns)
        else:
            return newcomer.pools_at_rest
        return departure.rates.stated

    def ask_devices(self, name: str, within_ns: int, told: Callable[[str | None], None]) -> None:
        """Have the guest let its trusted devices go.

        Told is None when it says that it has, or what is wrong: that it has not, when that long has passed.
        """
        host, departure = self._host, self.under_way[name]
        departure.let_go, departure.asked = told, True
        host.tasks.run(host.hypervisor.ask_devices(name, True), departure.guest, lambda _: None)
        if departure.guest.devices_told[0] is Told.LET_GO:
            host.clock.after(0, lambda: self._through(departure, None))  # It has not taken them again since.
        else:
            host.clock.after(within_ns, lambda: self._through(departure, MigrationRefusal.DEVICES_KEPT))

    def let_go(self, name: str) -> None:
        """A guest says that it trusts none of its devices. Does nothing for one that was not asked."""
        departure = self.under_way.get(name)
        if departure is not None:
            self._host.clock.after(0, lambda: self._through(departure, None))

    def _through(self, departure: _Departure, wrong: str | None) -> None:
        told, departure.let_go = departure.let_go, None
        if told is not None:
            told(wrong)

    def statement(self, name: str) -> tuple[Pool, ...]:
        """The pools of a VM that is leaving, as they are now."""
        return self._rates(self.under_way[name]).stated

    def reads(self, name: str) -> Reads:
        """What a VM that is leaving reads all over, as it does now."""
        departure = self.under_way[name]
        self._host.contention.advance(self._host.clock.now_ns)
        return self._rates(departure).reads(departure.guest)

    def zero_pages(self, name: str) -> tuple[int, int]:
        """Bytes of a leaving VM's memory that are held, and how many of them are pages of zeros."""
        return held_and_zero_bytes(self._host.board, self.under_way[name].guest.spec)

    def seal(self, name: str, platform: bytes, told: Callable[[str | None, bytes], None]) -> None:
        """Have firmware agree on keys with the target's, whose certificates these are.

        Told is what was wrong, None for nothing, and what the target's firmware is to be given.
        """
        host, departure = self._host, self.under_way[name]
        guest = departure.guest
        departure.promised = True
        host.tasks.promise(guest, host.clock.now_ns)

        def sealing() -> HypervisorTask:
            session = yield from host.hypervisor.seal(name, platform)
            departure.sealed = self.under_way.get(name) is departure
            if not departure.sealed:
                # It was called off meanwhile, and the next move may be waiting for its turn.
                yield from host.hypervisor.unseal(name)
            return session

        def say(wrong: str | None, session: bytes) -> None:
            now = self.under_way.get(name)
            if now is departure:
                host.tasks.when_due(guest, lambda: told(wrong, session))
            elif now is None or not now.promised:
                host.tasks.promises.pop(name, None)  # Nobody wants to know any more.

        def sealed(session: object) -> None:
            assert isinstance(session, bytes)
            say(None, session)

        host.tasks.run(sealing(), guest, sealed, lambda refusal: say(str(refusal), b""))

    def copy(self, name: str, pages: int, done: Callable[[], None]) -> None:
        """Have firmware send pages, of those that a round copies."""
        guest = self.under_way[name].guest
        by_agent = guest.spec.machine.by_agents
        command = SnpCommand.PAGE_SWAP_OUT if by_agent else LegacyCommand.SEND_UPDATE_DATA
        self._host.tasks.copy(guest, command, with_metadata(pages) if by_agent else pages, done)

    def slow(self, name: str, standing_still: float, most_bytes_per_s: float) -> None:
        """Have its vCPUs stand still for a share of their time, and write no more than so much each (0: no limit)."""
        departure = self.under_way[name]
        guest = departure.guest
        if guest.state is _RUNNING:
            now_ns = self._host.clock.now_ns
            self._host.contention.advance(now_ns)
            self._rates(departure).begin_anew(now_ns)
            slow_down(self._host.vcpus, guest, Throttle(standing_still, most_bytes_per_s), now_ns)
            self._host.clock.settle()
            departure.interval_ns = LOOK_NS
            self._look_soon(departure)  # One that is due before has next to nothing to measure.

    def stop(
        self, name: str, since_ns: int, done: Callable[[Stopped | None], None],
        failed: Callable[[str], None] = _never,
    ) -> None:  # fmt: skip
        """Stop the VM and read it whole; None if it powered itself off before it could be stopped.

        Where firmware will not send it ``failed`` is told why; it stands still until it is cancelled.
        """
        departure = self.under_way[name]
        guest = departure.guest
        departure.stopping = True
        guest.changed = guest.throttle = None
        if guest.state is _RUNNING:
            self._host.pause(name, _Stop(self._host, departure, since_ns, done, failed).parked)
        else:
            done(None)

    def cancel(self, name: str) -> None:
        """The VM stays; it goes on if it was stopped. Does nothing for a VM that is not leaving."""
        departure = self.under_way.pop(name, None)
        if departure is None:
            return
        guest = departure.guest
        guest.dirty_log = guest.changed = departure.let_go = None
        self._host.streams.end(name)
        self._host.tasks.stop_copying(name)
        if departure.asked and guest.state not in GONE:
            self._host.tasks.run(self._host.hypervisor.ask_devices(name, False), guest, lambda _: None)
        if guest.throttle is not None:
            slow_down(self._host.vcpus, guest, None, self._host.now_ns)
        chain = departure.chain

        def goes_on(_: object = None) -> None:
            if chain is not None and self.chains.pop(name, None) is not None:
                self._host.log.enter(name, chain)
            if guest.state is _PAUSED:
                self._host.resume(name)

        by_another = guest.spec.migration_agent or guest.spec.migration_handler
        if by_another and guest.state is _PAUSED and departure.sealed:
            # Its agent has taken it out of the firmware, or is about to: there is nothing yet to go on with.
            departure.sealed = False

            def is_back(_: object) -> None:
                # Firmware has laid its memory down anew, behind another key.
                self._host.board.residents.settle(self._host.board.vmcb(name, 0))
                goes_on()

            def is_lost(refusal: LaunchRefused) -> None:
                # The agent alone had its context, and has been restarted.
                if guest.state not in GONE:
                    guest.reason = str(refusal)
                    self._host.destroy(name)

            self._host.tasks.run(self._host.hypervisor.unseal(name), guest, is_back, is_lost)
            return
        self._unseal(departure)
        goes_on()

    def forget(self, name: str) -> None:
        """The VM is lost with the host. Does nothing for one that is not leaving."""
        departure = self.under_way.pop(name, None)
        if departure is not None:
            departure.guest.dirty_log = departure.guest.changed = departure.let_go = None
            self._host.streams.end(name)
            self._host.tasks.stop_copying(name)

    def hand_on(self, name: str) -> None:
        """The VM runs elsewhere, and has its memory here still: what is left of it here besides is its name."""
        self._hand_on(self.under_way[name])

    def _hand_on(self, departure: _Departure) -> None:
        if departure.handed_on:
            return
        departure.handed_on = True
        guest = departure.guest
        self.chains.pop(guest.spec.name, None)
        guest.state = _DEPARTED
        # Its books and what they follow from are the next host's.
        if guest.newcomer is not None:
            guest.newcomer.leave()
        else:
            self._host.vcpus.let_go(guest)
            guest.vcpus, guest.phase_costs, guest.lost_ns, guest.row_ns = [], {}, {}, {}
            del guest.software
        self._take_off(guest)

    def crash(self, name: str) -> None:
        """The host crashes, and a copy of the VM may run elsewhere by now: its books here count if none does."""
        host, departure = self._host, self.under_way[name]
        if not departure.handed_on:
            departure.handed_on = True
            guest = departure.guest
            host.vcpus.stop(guest)
            guest.state, guest.ended_ns, guest.reason = GuestState.DESTROYED, host.clock.now_ns, "host crashed"
            self._take_off(guest)
        self.finish(name)

    def _take_off(self, guest: Guest) -> None:
        """What a VM that does not go on here had of the host, but for its memory."""
        host, spec = self._host, guest.spec
        guest.dirty_log = guest.changed = None
        if spec.network or spec.devices:
            host.interrupts.release_all(spec.name)
            host.network.unplug(guest)
        host.chain.record_octets(host.clock.now_ns, _LEFT, spec.name.encode())
        host.board.residents.leave(spec.name)

    def finish(self, name: str) -> None:
        """The VM runs elsewhere: give everything it had here back."""
        host, departure = self._host, self.under_way.pop(name)
        self._hand_on(departure)
        host.streams.end(name)
        if not host.unlaid_moves.depart(departure.guest):
            host.tasks.run(host.hypervisor.depart(name), departure.guest, lambda _: None)
        host.clock.settle()

    def has_books_elsewhere(self, name: str) -> bool:
        """Whether a VM's books have left, with a copy of it that may run."""
        departure = self.under_way.get(name)
        return departure is not None and departure.chain is not None

    def _unseal(self, departure: _Departure) -> None:
        if departure.sealed:
            departure.sealed = False
            name = departure.guest.spec.name
            self._host.tasks.run(self._host.hypervisor.unseal(name), departure.guest, lambda _: None)

    def earliest_output_ns(self, next_event_ns: int) -> int:
        """Before which no rate is stated anew and no stopped VM handed over."""
        earliest_ns = NEVER_NS
        for departure in self.under_way.values():
            if departure.stopping or departure.let_go is not None:
                return next_event_ns
            one_ns = departure.look_at_ns
            if one_ns < 0:
                # A look follows a change, and nothing changes before the next event.
                one_ns = next_event_ns + departure.interval_ns
            if one_ns < earliest_ns:
                earliest_ns = one_ns
        return earliest_ns

    def _refusal(self, guest: Guest | None) -> MigrationRefusal | None:
        if guest is None or guest.state in GONE:
            return MigrationRefusal.NO_SUCH_VM
        if guest.spec.stays is not None:
            return guest.spec.stays
        if guest.spec.name in self.under_way:
            return MigrationRefusal.UNDER_WAY
        if guest.state is not _RUNNING:
            return MigrationRefusal.NOT_RUNNING
        if guest.spec.network and self._host.network.in_use(guest):
            return MigrationRefusal.NETWORK_CARD
        return None

    def _rates(self, departure: _Departure) -> DirtyRates:
        if departure.rates is None:
            guest, contention = departure.guest, self._host.contention
            demands = guest.software.demands
            departure.rates = DirtyRates(guest.vcpus, demands, contention, departure.began_ns, slept=True)
        return departure.rates

    def _changed(self, departure: _Departure) -> None:
        if departure.look_at_ns < 0:
            self._look_soon(departure)

    def _look_soon(self, departure: _Departure) -> None:
        """Look after an interval, and at no other time that was meant before."""
        at_ns = departure.look_at_ns = self._host.clock.now_ns + departure.interval_ns
        self._host.clock.after(departure.interval_ns, lambda: self._look(departure, at_ns))

    def _look(self, departure: _Departure, meant_ns: int) -> None:
        if departure.look_at_ns != meant_ns:
            return
        departure.look_at_ns = -1
        host = self._host
        if departure.stopping or self.under_way.get(departure.guest.spec.name) is not departure:
            return
        host.contention.advance(host.clock.now_ns)
        rates = self._rates(departure)
        if rates.look(host.clock.now_ns):
            departure.interval_ns = LOOK_NS
            departure.restate(rates.stated)
        else:
            departure.interval_ns = min(2 * departure.interval_ns, LONGEST_LOOK_NS)
        if rates.is_stale():
            self._changed(departure)

