"""A guest with trusted devices moves: nothing of them is left where it was, others are proved to it where it comes.

And whatever ends a move, devices are trusted at the source again and nobody's at the target.
"""

from __future__ import annotations

import pytest
from test_agent_transfer import certified
from test_departures_and_arrivals import stopped, until
from test_sealed_transfer import certificates, laid, opened, sealed

from node import operations as op
from node.asid_fence import DmaFence
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.device_notice import DeviceNotice, Told, told_of
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import Guest, GuestSpec, GuestState
from node.guest_functions import guest_device_id
from node.host import Host, HostSpec
from node.migration_refusal import MigrationRefusal
from node.platform import Platform
from node.product import PRODUCTS
from node.program import ProgramSpec
from tio.device_identity import CardKind
from tio.ide import StreamState
from tio.tdisp import TdiState
from workloads.device_work import NOT_TRUSTED
from workloads.library import PROGRAMS

MIB, SECOND = 1 << 20, 10**9
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
WORK = ProgramSpec("device-work", (("block_bytes", 4096), ("matrix_order", 8), ("pause_ms", 20)))
CARDS = (CardSlot(1, CardKind.NVME), CardSlot(2, CardKind.GPU))
DEVICES = (CardKind.NVME, CardKind.GPU)
BOTH = 0b11
MARK = bytes(range(256))
IMAGE = laboratory_image()


def host_of(name: str, cards: tuple[CardSlot, ...] = CARDS) -> Host:
    platform = Platform(cards=cards, migration_agent=True)
    spec = HostSpec(name, PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=platform)
    return Host(spec, PROGRAMS, {"auto": IMAGE}, COSTS)


def started(host: Host, work: ProgramSpec = WORK, generation: Generation = Generation.SEV_TIO) -> Guest:
    spec = GuestSpec("vm", generation, 1, 64 * MIB, work, 7, devices=DEVICES, migration_agent=True)
    host.launch(spec, lambda _: None, running=True)
    settled(host, BOTH if generation is Generation.SEV_TIO else 0)
    return host.guests["vm"]


def settled(host: Host, trusted: int) -> None:
    until(lambda: host.guests["vm"].devices_told == (Told.SETTLED, trusted), host)


def asked(here: Host, within_ns: int = 10 * SECOND) -> str | None:
    """The source's first step; what was wrong."""
    told: list[str | None] = []
    assert here.departures.begin("vm", lambda _: None) == ()
    here.departures.ask_devices("vm", within_ns, told.append)
    until(lambda: told, here)
    return told[0]


def agreed(here: Host, there: Host) -> None:
    """Both agents believe each other."""
    wrong, hello = sealed(here, "vm", certified(there, certificates(there, here.guests["vm"].spec)))
    assert wrong is None
    assert opened(there, "vm", certified(here, hello)) is None


def marked(host: Host) -> int:
    """Write where no program does, as the guest does it, and say where."""
    gpa = 48 * MIB
    assert host.board.execute_guest(host.board.vmcb("vm", 0), (op.Write(gpa, MARK),)) == (None,)
    return gpa


def read(host: Host, gpa: int) -> op.Answer:
    (data,) = host.board.execute_guest(host.board.vmcb("vm", 0), (op.Read(gpa, len(MARK)),))
    return data


def nothing_of_devices(host: Host) -> bool:
    """No context of a device or TDI with the firmware, no entry or fence of a guest's, no link with keys."""
    board, there = host.board, host.board.slots.by_port
    return (
        not board.psp.snp.tsm.contexts.devices
        and not any(board.trusted_dma.binding(slot.requester) for slot in CARDS)
        and {board.trusted_dma.fences.status(asid) for asid in range(1, 100)} == {DmaFence.DEFAULT}
        and all(one.card.tdi.state is TdiState.CONFIG_UNLOCKED for one in there.values())
        and not any(
            stream.state is StreamState.SECURE for one in there.values() for stream in one.card.port.streams.values()
        )
        and not any(one.root_port.port.streams and one.root_port.is_secure(port) for port, one in there.items())
        and not any(host.hypervisor.tio.given("vm", guest_device_id(device)) for device in range(2))
    )


def trusted(host: Host) -> list[bool]:
    """Whether each of the guest's devices is locked for it, and runs."""
    given = [host.hypervisor.tio.given("vm", guest_device_id(device)) for device in range(2)]
    return [one is not None and one.bound and one.ran for one in given]


def pair() -> tuple[Host, Host]:
    """A host with a guest whose devices it trusts, and another."""
    here, there = host_of("here"), host_of("there")
    started(here)
    return here, there


@pytest.fixture(scope="module")
def two() -> tuple[Host, Host]:
    """Such a pair for tests after which the guest is where it was."""
    return pair()


def moved(here: Host, there: Host) -> None:
    """From a guest that has let its devices go to one that runs elsewhere."""
    agreed(here, there)
    what = stopped(here, "vm")
    there.clock.env.run(until=max(there.now_ns, here.now_ns) + 1)
    assert laid(there, "vm", what) is None
    there.arrivals.start("vm")
    here.departures.finish("vm")
    here.clock.env.run(until=here.now_ns + SECOND)


PHASES = ("asked", "let go", "agreed", "stopped", "laid down", "changed on the way")


def fails(here: Host, there: Host, phase: str) -> None:
    """A move fails when it has come so far: devices are trusted at the source then, and none is at the target."""
    guest, step = here.guests["vm"], PHASES.index(phase)
    assert trusted(here) == [True, True]
    assert here.departures.begin("vm", lambda _: None) == ()
    told: list[str | None] = []
    here.departures.ask_devices("vm", SECOND, told.append)
    if step > 0:
        until(lambda: told, here)
        assert (told, trusted(here)) == ([None], [False, False])
    if step > 1:
        agreed(here, there)
    if step > 2:
        what = stopped(here, "vm")
        there.clock.env.run(until=max(there.now_ns, here.now_ns) + 1)
    if step > 3:
        (name, header, _), *others = what.state.packets
        spoilt = what.state._replace(packets=((name, header, bytes(4096)), *others))
        wrong = laid(there, "vm", what, spoilt if step > 4 else None)
        assert (wrong is None) == (step == 4)
    guest.devices_told = (Told.NOTHING, 0)
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    there.clock.env.run(until=there.now_ns + SECOND)
    assert nothing_of_devices(there)
    if step:
        settled(here, BOTH)
    before = guest.vcpus[0].units_of_work
    until(lambda: guest.vcpus[0].units_of_work > before + 1, here)
    assert trusted(here) == [True, True]


@pytest.mark.parametrize("phase", PHASES)
def test_a_move_that_fails_leaves_devices_trusted_at_the_source_and_none_at_the_target(
    two: tuple[Host, Host], phase: str
) -> None:
    fails(*two, phase)


def test_devices_stay_and_others_are_proved_where_it_comes_and_again_when_it_moves_back() -> None:
    here, there = pair()
    guest = here.guests["vm"]
    asid, gpa = guest.asid, marked(here)
    assert asked(here) is None
    # It works on, over bounce buffers, and nothing is locked for it.
    assert trusted(here) == [False, False]
    before, bounced = guest.vcpus[0].registers.r13, guest.bytes_bounced
    until(lambda: guest.vcpus[0].registers.r13 > before + 1, here)
    assert guest.bytes_bounced > bounced
    moved(here, there)
    assert nothing_of_devices(here)
    assert not here.board.controller.has_key(asid)
    arrived = there.guests["vm"]
    # Straight on, over bounce buffers, until the others are proved.
    bounced, before = arrived.bytes_bounced, arrived.vcpus[0].registers.r13
    settled(there, BOTH)
    assert trusted(there) == [True, True]
    assert (arrived.bytes_bounced > bounced, arrived.vcpus[0].registers.r13 > before) == (True, True)
    assert read(there, gpa) == MARK
    bounced, before = arrived.bytes_bounced, arrived.vcpus[0].registers.r13
    until(lambda: arrived.vcpus[0].registers.r13 > before + 1, there)
    assert (arrived.state, arrived.bytes_bounced) == (GuestState.RUNNING, bounced)
    assert asked(there) is None
    moved(there, here)
    assert nothing_of_devices(there)
    settled(here, BOTH)
    assert read(here, gpa) == MARK


def test_a_guest_that_keeps_its_devices_is_not_touched(two: tuple[Host, Host]) -> None:
    here, _ = two
    assert asked(here, within_ns=1) is MigrationRefusal.DEVICES_KEPT
    assert trusted(here) == [True, True]
    here.departures.cancel("vm")


def test_one_that_says_so_and_has_not_is_not_sent(two: tuple[Host, Host]) -> None:
    here, there = two
    guest = here.guests["vm"]
    until(lambda: trusted(here) == [True, True], here)
    assert here.departures.begin("vm", lambda _: None) == ()
    here.board.devices_told("vm", Told.LET_GO)
    agreed(here, there)
    refused: list[str] = []
    here.departures.stop("vm", 0, lambda _: None, refused.append)
    until(lambda: refused, here)
    assert (refused, trusted(here)) == ([MigrationRefusal.DEVICES_KEPT], [True, True])
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    before = guest.vcpus[0].registers.r13
    until(lambda: guest.vcpus[0].registers.r13 > before + 1, here)
    assert trusted(here) == [True, True]


def test_a_guest_whose_devices_are_said_to_be_others_while_it_trusts_them_ends() -> None:
    here, _ = pair()
    guest = here.guests["vm"]
    here.hypervisor.launched("vm").notice.arrivals += 1
    until(lambda: guest.state is not GuestState.RUNNING, here)
    assert guest.shutdown_code == NOT_TRUSTED.code


def test_the_register_and_what_a_guest_writes_there() -> None:
    assert DeviceNotice(True, 0x1_0002).word == 0x2_0001
    assert told_of(BOTH << 16 | Told.SETTLED) == (Told.SETTLED, BOTH)
    assert told_of(0xFFFF) == (Told.NOTHING, 0)
