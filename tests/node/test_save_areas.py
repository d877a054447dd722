"""Save areas: what a hypervisor sees of a guest's registers and can change, per generation (matrix rows 02 to 04)."""

import hashlib

import pytest
from toy_guests import GENERATIONS, MIX, SECOND, guest_spec, make_host, run, start

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.dram import Dram
from node.generation import Generation
from node.guest import GuestState
from node.host_instructions import VMEXIT_INVALID
from node.physical_port import PhysicalPort
from node.platform import Platform, Protection
from node.product import PRODUCTS
from node.save_area_seals import SaveAreaSeals
from node.vmexit import AUTOMATIC, ExitCode, Route, route
from node.vmsa import VMSA_FIELDS, read_field
from psp.legacy_guest import LegacyGuestState

ES, SNP = Generation.SEV_ES, Generation.SEV_SNP
IN_THE_CLEAR = (Generation.PLAIN, Generation.SEV)
UNSEALED = Platform(disabled=frozenset({Protection.SAVE_AREA_INTEGRITY}))


def paused(generation, until_ns=SECOND, platform=Platform()):  # noqa: B008  # frozen
    host = make_host(platform=platform)
    guest = start(host, "vm", generation, "busy", vcpus=2)
    host.clock.env.run(until=until_ns)
    host.pause("vm")
    return host, guest, guest.vcpus[0].save_area_spa


def by_host(host, one):
    (answer,) = host.board.execute_host((one,))
    return answer


def resumed(host, guest, until_ns=SECOND * 3 // 2):
    host.resume("vm")
    host.clock.env.run(until=until_ns)
    return guest.state, guest.shutdown_code


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_hypervisor_reads_registers_only_where_they_are_not_encrypted(generation):
    host, _, spa = paused(generation)
    page = by_host(host, op.HostRead(spa, 4096))
    assert (read_field(page, "RIP") == MIX) is (generation in IN_THE_CLEAR)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_store_to_saved_registers_is_taken_detected_or_refused(generation):
    host, guest, spa = paused(generation)
    done = guest.units_of_work
    stored = by_host(host, op.HostWrite(spa + VMSA_FIELDS["R13"].offset, (1 << 40).to_bytes(8, "little")))
    assert (stored is None) is (generation is not SNP)
    entered = by_host(host, op.VmRun("vm", 0))
    state, code = resumed(host, guest)
    if generation is ES:
        assert (entered, state, code) == (0x7F, GuestState.STOPPED, 0x7F)
    else:
        assert (entered, state) == (0, GuestState.RUNNING)
        changed = guest.vcpus[0].registers.r13 > 1 << 40
        assert changed is (generation in IN_THE_CLEAR)
    assert guest.units_of_work >= done


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_old_save_area_put_back_is_taken_detected_or_refused(generation):
    host, guest, spa = paused(generation)
    old = by_host(host, op.HostRead(spa, 4096))
    before = read_field(host.board.save_areas.load(host.board.vmcb("vm", 0)), "R13")
    resumed(host, guest)
    host.pause("vm")
    after = read_field(host.board.save_areas.load(host.board.vmcb("vm", 0)), "R13")
    assert after > before
    stored = by_host(host, op.HostWrite(spa, old))
    assert (stored is None) is (generation is not SNP)
    now = read_field(host.board.save_areas.load(host.board.vmcb("vm", 0)), "R13")
    assert now == (after if generation is SNP else before)
    state, code = resumed(host, guest, 2 * SECOND)
    assert state is (GuestState.STOPPED if generation is ES else GuestState.RUNNING)
    assert generation is not ES or code == 0x7F


def test_without_the_integrity_value_an_old_save_area_runs_again():
    host, guest, spa = paused(ES, platform=UNSEALED)
    old = by_host(host, op.HostRead(spa, 4096))
    before = read_field(host.board.save_areas.load(host.board.vmcb("vm", 0)), "R13")
    resumed(host, guest)
    host.pause("vm")
    by_host(host, op.HostWrite(spa, old))
    assert read_field(host.board.save_areas.load(host.board.vmcb("vm", 0)), "R13") == before
    assert resumed(host, guest, 2 * SECOND)[0] is GuestState.RUNNING


def test_the_exit_code_of_a_bad_save_area_is_the_platforms():
    host, _, spa = paused(ES, platform=Platform(save_area_refused=ExitCode.INVALID))
    assert by_host(host, op.VmRun("vm", 0)) == 0
    by_host(host, op.HostWrite(spa, bytes(16)))
    assert by_host(host, op.VmRun("vm", 0)) == VMEXIT_INVALID


def test_a_save_area_moved_to_another_page_does_not_fit():
    host, guest, spa = paused(ES)
    elsewhere = guest.vcpus[1].save_area_spa
    page = by_host(host, op.HostRead(spa, 4096))
    by_host(host, op.HostWrite(elsewhere, page))
    assert by_host(host, op.VmRun("vm", 1)) == ExitCode.SHUTDOWN
    vmcb = host.board.vmcb("vm", 0)
    other = op.VmcbWrite("vm", 0, vmcb.asid, ES.name, elsewhere)
    assert by_host(host, other) is None
    assert by_host(host, op.VmRun("vm", 0)) == ExitCode.SHUTDOWN


def test_a_store_while_the_vcpu_runs_is_found_when_it_is_entered_again():
    host = make_host()
    guest = start(host, "vm", ES, "busy")
    host.clock.env.run(until=SECOND)
    by_host(host, op.HostWrite(guest.vcpus[0].save_area_spa + VMSA_FIELDS["CR3"].offset, bytes(8)))
    host.pause("vm")
    assert resumed(host, guest) == (GuestState.STOPPED, 0x7F)


def test_save_areas_tampered_with_before_the_first_entry_stop_the_vm():
    host = make_host()
    host.launch(guest_spec("vm", ES, "busy", vcpus=2), lambda _: None)
    guest, guests = host.guests["vm"], host.board.psp.legacy.guests
    while not guests or guests[1].state is not LegacyGuestState.LSECRET:
        host.clock.env.step()
    assert not guest.vcpus  # they are measured, and nobody has run yet
    by_host(host, op.HostWrite(host.hypervisor.launched("vm").save_areas[1], bytes(16)))
    run(host, SECOND)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, 0x7F)


def test_a_value_is_of_one_key_one_address_and_the_newest_page():
    seals = SaveAreaSeals(Dram(1 << 22))
    seals.take_region(1 << 20, 1 << 20)
    seals.seal(1, 0x1000, b"old")
    seals.seal(1, 0x1000, b"new")
    seals.seal(2, 0x2000, b"other")
    fits = [seals.fits(1, 0x1000, b"old"), seals.fits(1, 0x1000, b"new"), seals.fits(2, 0x1000, b"new")]
    assert fits == [False, True, False]
    seals.forget(1)
    assert not seals.fits(1, 0x1000, b"new")
    assert seals.fits(2, 0x2000, b"other")


# APM volume 2, 15.35.5, table of automatic exits, written down once more.
FAILED = [-1, -2, -3, -4]
DIRECT = [*FAILED, 0x52, *range(0x60, 0x65), 0x77, 0x78, 0x7F, *range(0x8F, 0xA0), 0xA5, 0xA6, *range(0x400, 0x404)]


@pytest.mark.parametrize("code", sorted({*DIRECT, *map(int, ExitCode), 0x72, 0x7B, 0x7C, 0x81, 0x404}))
def test_an_exit_reaches_the_hypervisor_directly_or_through_the_guests_handler(code):
    for generation in GENERATIONS:
        direct = generation in IN_THE_CLEAR or code in DIRECT
        assert route(generation, code) is (Route.HYPERVISOR if direct else Route.VC_HANDLER)
    assert set(AUTOMATIC) == set(DIRECT)


def test_a_device_s_address_goes_through_the_handler():
    assert route(ES, ExitCode.NESTED_PAGE_FAULT, mmio=True) is Route.VC_HANDLER
    assert route(Generation.SEV, ExitCode.NESTED_PAGE_FAULT, mmio=True) is Route.HYPERVISOR


REGION = range(48 << 20, 49 << 20)


def sealed_board(product="Rome"):
    """A board whose region holds the value of one page, of ASID 1."""
    board = Board("board", PRODUCTS[product], 64 << 20, 50, CounterRandom(1))
    board.controller.install_key(1, bytes(16))
    board.controller.write(0x5000, b"registers".ljust(4096, b"."), 1)
    board.bus.take_trusted_region(REGION.start, len(REGION))
    board.bus.seal_save_area(0x5000, 1)
    return board


def test_values_are_bytes_of_the_trusted_region_and_of_nothing_else():
    board = sealed_board()
    value = hashlib.sha256(b"registers".ljust(4096, b".")).digest()
    found = [(at, data) for at, data in PhysicalPort(board.dram).dump_written() if value in data]
    assert len(found) == 1
    ((at, data),) = found
    assert at + data.index(value) in REGION
    # Poked at the modules it fits no more, and put back it does.
    PhysicalPort(board.dram).poke(at + data.index(value), bytes([value[0] ^ 1]))
    assert not board.bus.seals.fits(1, 0x5000, b"registers".ljust(4096, b"."))
    PhysicalPort(board.dram).poke(at + data.index(value), value[:1])
    assert board.bus.seals.fits(1, 0x5000, b"registers".ljust(4096, b"."))


def test_nothing_but_hardware_reaches_the_region_until_it_is_given_back():
    board = sealed_board()
    for spa, length in ((REGION.start, 16), (REGION.stop - 1, 1), (REGION.start - 8, 16), (REGION.start - 16, 4 << 20)):
        fault = op.Fault(op.FaultKind.MACHINE_CHECK, spa)
        for one in (op.HostRead(spa, length), op.HostWrite(spa, bytes(length)), op.HostRead(spa, length, True)):
            assert board.execute_host((one,))[0] in (fault, op.Fault(op.FaultKind.GENERAL_PROTECTION, spa))
    assert board.execute_host((op.HostClear(REGION.start, 4096),)) == (
        op.Fault(op.FaultKind.MACHINE_CHECK, REGION.start),
    )
    for spa in (REGION.start - 16, REGION.stop):
        assert board.execute_host((op.HostWrite(spa, bytes(16)), op.HostRead(spa, 16))) == (None, bytes(16))
    assert board.bus.seals.fits(1, 0x5000, b"registers".ljust(4096, b"."))
    board.bus.give_back_trusted_region()
    assert board.execute_host((op.HostRead(REGION.start, len(REGION)),)) == (bytes(len(REGION)),)
    assert not board.bus.seals.fits(1, 0x5000, b"registers".ljust(4096, b"."))


def test_a_set_that_is_full_takes_no_value_more_and_forgets_none():
    seals = SaveAreaSeals(Dram(1 << 22))
    seals.take_region(1 << 20, 1 << 20)
    # As many sets as pages of 1 KiB: save areas 1024 pages apart share one.
    spas = [one * 1024 * 4096 for one in range(1, 18)]
    for spa in spas:
        seals.seal(1, spa, b"page")
    assert [seals.fits(1, spa, b"page") for spa in spas] == [True] * 16 + [False]
    seals.forget(1)
    assert not any(seals.fits(1, spa, b"page") for spa in spas)
    seals.seal(2, spas[-1], b"page")
    assert seals.fits(2, spas[-1], b"page")


def test_a_region_whose_values_are_gone_takes_no_memory():
    board = sealed_board()
    before = board.dram.resident_pages
    board.bus.remove_key(1)
    assert board.dram.resident_pages == before - 1


@pytest.mark.parametrize("stores", [True, False])
def test_lines_that_cores_hold_of_the_region_do_not_come_back_to_it(stores):
    board = Board("board", PRODUCTS["Rome"], 64 << 20, 50, CounterRandom(1), Platform(caches=True))
    if stores:
        board.execute_host((op.HostWrite(REGION.start, b"dirty line"),))
    board.bus.take_trusted_region(REGION.start, len(REGION))
    assert board.execute_host((op.Wbinvd(),)) == (None,)
    assert PhysicalPort(board.dram).dump(REGION.start, 64) == bytes(64)
    fault = op.Fault(op.FaultKind.MACHINE_CHECK, REGION.start)
    assert board.execute_host((op.HostWrite(REGION.start, b"x"),)) == (fault,)
