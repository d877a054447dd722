"""A guest with an SVSM moves by agents: every VMPL of every vCPU, each page's rights, and what the SVSM remembers."""

import dataclasses
import hashlib

import pytest
from svsm_guests import HANDS_OFF, PAGES
from test_agent_transfer import UNITS, WITH_AGENT, agree, context, hosts, move
from test_departures_and_arrivals import leftovers, stopped, until
from test_handler_transfer import EXTENDS, lends, look_at_svsm, measures
from test_sealed_transfer import kept, laid
from test_tpm import DIGEST
from toy_guests import COSTS, SECOND, guest_spec, look, make_host, run, script

from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.hypervisor_port import LaunchRefused
from node.measured_launch import VMSA_GPA
from node.moved_areas import MovedArea, areas_in
from node.svsm_memory import GUEST_VMPL, SECRETS_GPA, SVSM, TPM_GPA, save_area_gpa
from node.vm_state import VmState
from psp.page_swap import MdataEntry
from psp.system_bus import PAGE_BYTES

SNP = Generation.SEV_SNP
QUICK = dict(COSTS) | {"psp.guest_request_ns": 100_000}
SPEC = dataclasses.replace(guest_spec("vm", SNP, "ledger", vcpus=2, units=UNITS), svsm=True, migration_agent=True)
IN_THE_MIDDLE = 7_000_000


def started(host, spec=SPEC):
    host.launch(spec, lambda _: None, running=True)
    guest = host.guests["vm"]
    assert guest.state is GuestState.RUNNING, guest.reason
    return guest


@pytest.fixture(scope="module")
def expected():
    """What a guest that stays ends with."""
    stayed = make_host(platform=WITH_AGENT, costs=QUICK)
    guest = started(stayed)
    run(stayed)
    return kept(stayed, guest)


@pytest.fixture
def on_its_way():
    here, there = hosts()
    started(here)
    run(here, IN_THE_MIDDLE)
    agree(here, there, "vm")
    assert all(0 < one.registers.r13 < UNITS for one in here.guests["vm"].vcpus)
    return here, there


def ends_well(host, expected):
    guest = host.guests["vm"]
    run(host, host.now_ns + 100 * SECOND)
    assert (guest.faults, kept(host, guest)) == (0, expected)


def entries(host):
    """What the RMP says of each page of the guest, but for where it lies: rights of all VMPLs, and save areas."""
    record, rmp = host.hypervisor.launched("vm"), host.board.rmp
    found = {}
    for gpa, spa, length in record.ram:
        for at in range(0, length, PAGE_BYTES):
            entry = rmp.entry(spa + at)
            found[gpa + at] = entry.validated, entry.vmsa, entry.vmpl_permissions
    return found


# While only its SVSM runs, while its second vCPU waits there for a save area, and when all work.
@pytest.mark.parametrize(("after_ns", "areas"), [(400_000, 2), (1_000_000, 3), (IN_THE_MIDDLE, 4)])
def test_a_guest_that_moves_there_and_back_ends_as_one_that_stayed(expected, after_ns, areas):
    here, there = hosts()
    empty = leftovers(there)[0]
    started(here)
    run(here, after_ns)
    assert len(here.hypervisor.launched("vm").vmpls.areas) == areas
    digest = context(here, here.hypervisor.launched("vm").gctx).digest
    for _ in range(2):
        move(here, there, "vm")
        assert leftovers(here)[0] == empty
        here, there = there, here
        run(here, here.now_ns + 200_000)
    assert context(here, here.hypervisor.launched("vm").gctx).digest == digest
    ends_well(here, expected)


def test_every_page_comes_with_the_rights_of_each_vmpl_and_every_save_area_to_its_own(on_its_way):
    here, there = on_its_way
    before, tpm, book = entries(here), look_at_svsm(here, TPM_GPA), here.hypervisor.launched("vm").vmpls
    what = stopped(here, "vm")
    assert laid(there, "vm", what) is None
    assert entries(there) == before
    assert sum(vmsa for _, vmsa, _ in before.values()) == 2
    assert before[SECRETS_GPA][2][GUEST_VMPL] == 0 != before[PAGES[0]][2][GUEST_VMPL]
    assert look_at_svsm(there, TPM_GPA) == tpm
    record = there.hypervisor.launched("vm")
    assert record.vmpls.areas.keys() == book.areas.keys() == {(0, 0), (1, 0), (0, 2), (1, 2)}
    assert record.vmpls.running == book.running == {0: GUEST_VMPL, 1: GUEST_VMPL}
    there.arrivals.start("vm")
    # What its kernel could not reach it cannot reach here.
    (answer,) = there.board.execute_guest(there.board.vmcb("vm", 0), (op.Read(SVSM.gpa, 16),))
    assert isinstance(answer, op.Fault)


@pytest.mark.parametrize("was_stopped", [False, True])
def test_a_guest_that_stays_after_all_is_laid_back_whole(on_its_way, expected, was_stopped):
    here, there = on_its_way
    before = entries(here)
    if was_stopped:
        stopped(here, "vm")
    here.departures.cancel("vm")
    there.arrivals.abandon("vm")
    until(lambda: here.guests["vm"].state is GuestState.RUNNING, here)
    if was_stopped:
        assert entries(here) == before
    ends_well(here, expected)


def test_a_guest_that_is_on_its_way_nobody_enters(on_its_way):
    here, _ = on_its_way
    stopped(here, "vm")
    assert here.board.enter("vm", 0) != 0


def swapped(state, one, other):
    """The pages of two save areas in each other's places."""
    areas = list(state.sealed_areas)
    areas[one], areas[other] = (*areas[one][:2], areas[other][2]), (*areas[other][:2], areas[one][2])
    return state._replace(sealed_areas=tuple(areas))


def said(state, number, **change):
    """With something else said of a save area."""
    areas = list(state.sealed_areas)
    name, header, page = areas[number]
    areas[number] = name, dataclasses.replace(MovedArea.parse(header), **change).pack(), page
    return state._replace(sealed_areas=tuple(areas))


SPOILT = {
    "two save areas exchanged": (lambda state: swapped(state, 0, 2), "SNP_PAGE_SWAP_IN: BAD_MEASUREMENT"),
    "that of another vCPU's VMPL0": (lambda state: swapped(state, 0, 1), "SNP_PAGE_SWAP_IN: BAD_MEASUREMENT"),
    "one at another address": (lambda state: said(state, 2, gpa=PAGES[0]), "SNP_PAGE_SWAP_IN: INVALID_MDATA_ENTRY"),
    "one where no memory is": (lambda state: said(state, 2, gpa=1 << 45), "save area: no memory at 0x200000000000"),
    "one of a vCPU that is none": (lambda state: said(state, 2, vcpu=2), "save areas: expected one of VMPL0"),
    "one of a VMPL that is none": (lambda state: said(state, 2, vmpl=4), "save areas: expected one of VMPL0"),
    "two of one seat": (lambda state: said(state, 3, vcpu=0), "save areas: expected one of VMPL0"),
    "none of VMPL0": (lambda state: said(state, 0, vmpl=1), "save areas: expected one of VMPL0"),
    "two that a vCPU runs with": (lambda state: said(state, 0, entered=True), "save areas: expected one of VMPL0"),
    "none that a vCPU runs with": (lambda state: said(state, 2, entered=False), "save areas: expected one of VMPL0"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_save_areas_that_came_otherwise_than_they_left_are_refused_and_the_guest_goes_on(on_its_way, expected, how):
    here, there = on_its_way
    what = stopped(here, "vm")
    spoil, line = SPOILT[how]
    assert (laid(there, "vm", what, spoil(what.state)) or "").startswith(line)
    there.arrivals.abandon("vm")
    here.departures.cancel("vm")
    ends_well(here, expected)


def test_a_hypervisor_that_enters_a_vcpu_at_its_vmpl0_finds_no_more_than_the_svsm(on_its_way, expected):
    """Which save area a control block names is its choice on every host; the guest's kernel is called when it asks."""
    here, there = on_its_way
    what = stopped(here, "vm")
    other = said(said(what.state, 0, entered=True), 2, entered=False)
    assert laid(there, "vm", what, other) is None
    there.arrivals.start("vm")
    here.departures.finish("vm")
    assert there.board.vmcb("vm", 0).vmpl == 0
    ends_well(there, expected)


def test_a_guest_without_an_svsm_has_one_save_area_for_each_vcpu():
    areas = [MovedArea(VMSA_GPA, 0), MovedArea(save_area_gpa(0), 0, GUEST_VMPL, entered=False)]
    packets = tuple((number, one.pack(), bytes(PAGE_BYTES)) for number, one in enumerate(areas))
    state = VmState("vm", (), (True,), (), (0,), (), (), sealed_areas=packets)
    assert areas_in(state, 1, levels=True) == areas
    with pytest.raises(LaunchRefused, match="expected one of VMPL0 for each vCPU"):
        areas_in(state, 1, levels=False)
    assert areas_in(state._replace(sealed_areas=packets[:1]), 1, levels=False) == areas[:1]


def test_each_save_area_goes_out_as_a_vmsa_page(on_its_way, monkeypatch):
    here, _ = on_its_way
    swap, kinds = here.board.psp.snp.swap, []
    put = swap._put_mdata
    monkeypatch.setattr(
        swap, "_put_mdata", lambda context, gctx, entry, spa: (kinds.append(entry), put(context, gctx, entry, spa))
    )
    stopped(here, "vm")
    areas = [one for one in kinds if one.flags & MdataEntry.VMSA]
    assert [one.gpa for one in areas[:2]] == [VMSA_GPA, VMSA_GPA]
    assert len({one.gpa for one in areas[2:]}) == len(areas[2:]) == 2


def test_what_a_guest_measured_before_it_moved_is_in_its_vtpm_after():
    programs = {"measures": script(measures)}
    here, there = (
        make_host(programs, name=name, costs=QUICK, platform=WITH_AGENT) for name in ("here", "there")
    )
    guest = started(here, dataclasses.replace(SPEC, program=dataclasses.replace(SPEC.program, name="measures")))
    until(lambda: guest.vcpus[0].thread == 0 and guest.vcpus[0].registers.rbx == EXTENDS // 2, here)
    move(here, there, "vm")
    run(there, there.now_ns + SECOND)
    extended = bytes(32)
    for _ in range(EXTENDS):
        extended = hashlib.sha256(extended + DIGEST).digest()
    assert look(there, there.guests["vm"], PAGES[1], 32) == extended


def test_what_a_guest_lent_to_its_svsm_it_has_no_rights_to_where_it_came_either():
    programs = {"lends": script(lends)}
    here, there = (
        make_host(programs, name=name, costs=QUICK, platform=WITH_AGENT) for name in ("here", "there")
    )
    program = dataclasses.replace(SPEC.program, name="lends")
    guest = started(here, dataclasses.replace(SPEC, program=program, kernel=HANDS_OFF))
    until(lambda: guest.vcpus[0].thread == 0 and guest.vcpus[0].registers.rbx == 3, here)
    move(here, there, "vm")
    before = look(there, there.guests["vm"], PAGES[1], 2)
    run(there, there.now_ns + SECOND // 100)
    after = look(there, there.guests["vm"], PAGES[1], 2)
    assert (before[0], after[0]) == (1, 1)
    assert after[1] > before[1] > 0
