"""Devices and orders that are not what they should be: a guest ends or is refused, its host goes on as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node import operations as op
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.device_window import bar_gpa
from node.firmware_image import laboratory_image
from node.frame_allocator import OutOfMemory
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.guest_functions import guest_device_id
from node.guest_tdi import GuestTdi, TdiRefused
from node.host import Host, HostSpec
from node.iommu_guest_table import LEVELS
from node.nae_event import TioAction
from node.pci_driver import enable
from node.physical_slots import PhysicalSlots
from node.platform import Platform
from node.product import PRODUCTS
from node.program import ProgramSpec
from node.tio_host import TioHost
from node.tio_memory import TioMemory
from tio.device_identity import CardKind
from workloads.device_work import NOT_TRUSTED
from workloads.library import PROGRAMS

SECOND = 10**9
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
PROPER = CardSlot(2, CardKind.GPU, "2")
COUNTERFEIT = CardSlot(4, CardKind.GPU, "4", maker=2)


def host_of(*cards: CardSlot) -> Host:
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=Platform(cards=cards))
    return Host(spec, PROGRAMS, {"auto": laboratory_image()}, COSTS)


def worked(host: Host, name: str = "vm", generation: Generation = Generation.SEV_TIO, **parameters: int) -> int:
    """Rounds of a guest with a GPU in a second."""
    work = ProgramSpec("device-work", tuple(sorted({"matrix_order": 8, **parameters}.items())))
    spec = GuestSpec(name, generation, 1, 128 << 20, work, 7, devices=(CardKind.GPU,))
    host.launch(spec, lambda _: None, running=True)
    host.clock.env.run(until=host.now_ns + SECOND)
    return 0 if host.guests[name].state is GuestState.REFUSED else host.guests[name].vcpus[0].registers.r13


@pytest.mark.parametrize("sealed", [0, 1])
@pytest.mark.parametrize("card", ["proper", "counterfeit", "in debug mode"])
def test_a_counterfeit_and_a_device_in_debug_mode_are_not_trusted(card: str, sealed: int) -> None:
    slot = COUNTERFEIT if card == "counterfeit" else PROPER
    host = host_of(slot)
    if card == "in debug mode":
        host.board.execute_host((op.CardDebug(slot.port),))
    done = worked(host, generation=Generation.SEV_SNP if sealed else Generation.SEV_TIO, sealed=sealed)
    guest = host.guests["vm"]
    if card == "proper":
        assert (guest.state, done > 2) == (GuestState.RUNNING, True)
    else:
        assert (guest.state, guest.shutdown_code, done) == (GuestState.STOPPED, NOT_TRUSTED.code, 0)


def test_a_device_that_is_put_in_the_place_of_the_one_that_was_judged_gets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders, run = [], TioHost.run

    def swapped(self: TioHost, given, gctx):
        if not orders:
            orders.append("swapped")
            other = next(one for one in self._interfaces if one.function.port.port == COUNTERFEIT.port)
            yield from self.unbind(given, gctx)
            given.interface = other
            function = other.function
            yield tuple(
                op.NestedMap("vm", bar_gpa(given.device, bar), spa, size, encrypted=True)
                for bar, spa, size in function.bars
            )
            yield from self._iommu.show(function.requester, self._domain(function), given.table.root, LEVELS)
            yield from enable(function, on=True)
            yield from self.bind(given, gctx)
        yield from run(self, given, gctx)

    monkeypatch.setattr(TioHost, "run", swapped)
    host = host_of(PROPER, COUNTERFEIT)
    assert worked(host) == 0
    assert orders == ["swapped"]
    assert (host.guests["vm"].state, host.guests["vm"].shutdown_code) == (GuestState.STOPPED, NOT_TRUSTED.code)
    assert not any(one.device.memory.any() for one in host.board.slots.by_port.values())


@pytest.fixture
def before_attaching(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """What a guest's kernel does first; each a function of its TDI that yields."""
    steps: list = []
    attach = GuestTdi.attach

    def after(self: GuestTdi, *arguments):
        for one in steps:
            try:
                yield from one(self)
            except TdiRefused:
                continue
        return (yield from attach(self, *arguments))

    monkeypatch.setattr(GuestTdi, "attach", after)
    return steps


def test_orders_in_a_wrong_order_are_refused_and_the_guest_goes_on(before_attaching: list) -> None:
    actions = TioAction.RUN, TioAction.STOP, TioAction.UNBIND, TioAction.BIND, TioAction.BIND, TioAction.UNBIND
    before_attaching += [lambda tdi, action=action: tdi._order(action) for action in actions]
    assert worked(host_of(PROPER)) > 2


def test_a_device_that_cannot_be_connected_costs_its_host_nothing(before_attaching: list) -> None:
    host, held = host_of(PROPER), []

    def pulled(_: GuestTdi):
        PhysicalSlots(host.board.root_complex, host.board.slots).pull(PROPER.port)
        yield from ()

    def bound(tdi: GuestTdi):
        held.append(host.hypervisor.figures().memory_bytes)
        yield from tdi._order(TioAction.BIND)

    before_attaching += [pulled, *[bound] * 4]
    assert worked(host) == 0
    assert len(set(held)) == 1
    host.destroy("vm")
    assert host.hypervisor.tio.given("vm", guest_device_id(0)) is None


@pytest.mark.parametrize("frame", [1, 2, 3, 4])
def test_a_host_without_memory_for_a_card_gives_it_to_the_next(frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host, taken, take = host_of(PROPER), [], TioMemory.take

    def none_left(self: TioMemory, count: int) -> tuple[int, ...]:
        taken.append(count)
        if len(taken) == frame:
            raise OutOfMemory(count << 12, 0)
        return take(self, count)

    monkeypatch.setattr(TioMemory, "take", none_left)
    worked(host, "a", Generation.PLAIN)
    host.destroy("a")
    assert worked(host, "b", Generation.PLAIN) > 2
