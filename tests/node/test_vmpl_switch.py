"""A vCPU with several VMSAs, one for each VMPL: announced by AP creation, entered when the guest asks."""

import pytest
from paged_guests import LONG, PAGE, C, P, W, paged_guest
from toy_guests import SECOND, make_host, run, spa, start

from node import ghcb_msr as msr
from node import operations as op
from node.generation import Generation
from node.ghcb_page import BadInput, build_exit, parse_reply
from node.nae_event import NaeEvent
from node.operations import FaultKind
from node.rmp_faults import ERROR_VMPL
from node.vmpl_switch import VmplBook
from node.vmsa import VMSA_FIELDS, SevFeature, initial_vmsa

SNP = Generation.SEV_SNP
WORD = b"of VMPL0 alone!!"


class Guest:
    """An SNP guest at VMPL0 whose hypervisor offers VMPLs, and the hands of its kernel at whatever VMPL it is."""

    def __init__(self, offered=True):
        self.host = make_host()
        self.guest = start(self.host, "vm", SNP, vcpus=2)
        run(self.host, SECOND)
        self.record = self.host.hypervisor.launched("vm")
        if offered:
            self.record.vmpls = VmplBook({(vcpu, 0): at for vcpu, at in enumerate(self.record.save_areas)})
        self.host.board.leave("vm", 0)  # from here on nobody else runs it, so its save area is in use at no exit
        self.ghcb = self.guest.spec.memory.shared.gpa
        self.do(op.VmgExit(msr.RegisterGhcbRequest(self.ghcb >> 12).value))
        small = [part for part in self.guest.spec.memory.private_ranges(self.guest.launched) if not part.large]
        # The kernel's GHCB is the first; what is used here lies behind it.
        self.pages = [small[0].gpa + PAGE * number for number in range(1, 6)]

    @property
    def vmcb(self):
        return self.host.board.vmcb("vm", 0)

    def do(self, *batch):
        answers = self.host.board.execute_guest(self.vmcb, batch)
        return answers[0] if len(batch) == 1 else answers

    def ask(self, event, info1=0, info2=0, **registers):
        page = build_exit(event, info1, info2, registers)
        self.do(op.Write(self.ghcb, page, private=False), op.VmgExit(self.ghcb))
        spa_ = spa(self.host, self.guest, self.ghcb)
        (back,) = self.host.board.execute_host((op.HostRead(spa_, PAGE),))
        return back

    def create(self, vmpl=1, vcpu=0, gpa=None, features=SevFeature.SNP_ACTIVE, kind=1):
        gpa = self.pages[0] if gpa is None else gpa
        return self.ask(NaeEvent.AP_CREATION, kind | vmpl << 16 | vcpu << 32, gpa, RAX=features)

    def lay_area(self, vmpl=1, vmsa=True, page=0):
        changes = {"VMPL": vmpl}
        area = initial_vmsa(0xFFFF_FFF0, 0, SevFeature.SNP_ACTIVE, changes)
        gpa = self.pages[page]
        answers = self.do(op.Write(gpa, area), op.RmpAdjust(gpa, PAGE, large=False, target=1, permissions=0, vmsa=vmsa))
        assert answers == (None, 0)

    def run_vmpl(self, vmpl):
        return self.do(op.VmgExit(msr.RunVmplRequest(vmpl).value))


@pytest.fixture
def guest():
    return Guest()


def refused(back):
    assert int.from_bytes(back[0x398:0x3A0], "little") == 2
    return BadInput(int.from_bytes(back[0x3A0:0x3A8], "little"))


DONE = msr.RunVmplResult(0).value


def test_a_vcpu_goes_to_another_vmpl_and_back(guest):
    guest.lay_area()
    assert parse_reply(guest.create(), ()).info2 == 0
    assert guest.run_vmpl(1) == DONE
    assert (guest.vmcb.vmpl, guest.vmcb.save_area_spa) == (1, spa(guest.host, guest.guest, guest.pages[0]))
    assert guest.run_vmpl(0) == DONE
    assert (guest.vmcb.vmpl, guest.vmcb.save_area_spa) == (0, guest.record.save_areas[0])


def test_what_follows_the_exit_in_a_batch_waits_for_the_vmpl_that_made_it(guest):
    guest.lay_area()
    guest.create()
    secret = guest.pages[2]
    batch = (op.Write(secret, WORD), op.VmgExit(msr.RunVmplRequest(1).value), op.Write(secret, bytes(16)))
    assert guest.host.board.execute_guest(guest.vmcb, batch) == (None, DONE)
    guest.run_vmpl(0)
    assert guest.do(op.Read(secret, 16)) == WORD


def test_a_lower_vmpl_touches_what_it_was_given_and_nothing_else(guest):
    guest.lay_area()
    guest.create()
    own, given = guest.pages[2:4]
    grant = op.RmpAdjust(given, PAGE, large=False, target=1, permissions=0b0011)
    assert guest.do(op.Write(own, WORD), op.Write(given, WORD), grant) == (None, None, 0)
    guest.run_vmpl(1)
    for one in (op.Read(own, 16), op.Write(own, WORD), op.Read(guest.pages[0], 8)):
        fault = guest.do(one)
        assert fault.kind is FaultKind.RMP_FAULT
        assert fault.error & ERROR_VMPL
    assert guest.do(op.Read(given, 16), op.Write(given, bytes(16))) == (WORD, None)
    # It raises nobody, itself included, and validates nothing.
    for target in (0, 1):
        assert guest.do(op.RmpAdjust(given, PAGE, large=False, target=target, permissions=0)) == 2
    assert guest.do(op.RmpAdjust(given, PAGE, large=False, target=2, permissions=0b0111)) == 2
    assert guest.do(op.PValidate(given, PAGE, large=False)) == op.PValidateResult(2, unchanged=False)
    # The VMSA attribute is VMPL0's to set: from below it is ignored.
    assert guest.do(op.RmpAdjust(given, PAGE, large=False, target=2, permissions=0, vmsa=True)) == 0
    assert not guest.host.board.rmp.entry(spa(guest.host, guest.guest, given)).vmsa


def test_the_hypervisor_offers_vmpls_only_to_guests_that_it_keeps_books_for():
    features = msr.HypervisorFeature
    always = features.SNP | features.AP_CREATION | features.RESTRICTED_INJECTION | features.APIC_ID_LIST
    for offered, bits in ((True, always | features.MULTI_VMPL), (False, always)):
        guest = Guest(offered)
        assert guest.do(op.VmgExit(msr.FeaturesRequest().value)) == msr.Features(int(bits)).value
        if not offered:
            assert msr.RunVmplResult(0).value != guest.run_vmpl(1)
            assert refused(guest.create()) is BadInput.INVALID_INPUT
            assert refused(guest.ask(NaeEvent.RUN_VMPL, 1)) is BadInput.INVALID_EVENT


@pytest.mark.parametrize(
    "asked",
    [
        {"vmpl": 0},
        {"vcpu": 2},
        {"vcpu": 0xFFFF_FFFF},
        {"gpa": 1 << 40},
        {"gpa": 0x20_0000},  # at a border of 2 MiB
        {"features": 0},
        {"features": SevFeature.SNP_ACTIVE | SevFeature.DEBUG_SWAP},
        {"kind": 2},  # destroys what was never created
    ],
    ids=str,
)
def test_a_save_area_that_cannot_be_one_is_not_taken(guest, asked):
    before = dict(guest.record.vmpls.areas)
    assert refused(guest.create(**asked)) is BadInput.INVALID_INPUT
    assert guest.record.vmpls.areas == before


@pytest.mark.parametrize("wrong", ["nobody announced it", "no save area", "no such VMPL"])
def test_a_vmpl_that_cannot_be_entered_leaves_the_vcpu_where_it_is(guest, wrong):
    if wrong == "no save area":
        guest.lay_area(vmsa=False)
        guest.create()
    if wrong == "no such VMPL":
        guest.lay_area(vmpl=4)
        guest.create()
    assert guest.run_vmpl(1) == msr.RunVmplResult(1).value
    assert refused(guest.ask(NaeEvent.RUN_VMPL, 1)) is BadInput.INVALID_INPUT
    assert (guest.vmcb.vmpl, guest.vmcb.save_area_spa) == (0, guest.record.save_areas[0])
    assert guest.do(op.Read(guest.pages[3], 8)) is not None


def test_no_failure_and_no_write_of_a_control_block_raises_a_vmpl(guest):
    guest.lay_area()
    guest.create()
    guest.run_vmpl(1)
    area, own = guest.vmcb.save_area_spa, guest.pages[3]
    guest.record.vmpls.areas[0, 2] = spa(guest.host, guest.guest, guest.pages[4])  # which is no save area
    assert guest.run_vmpl(2) == msr.RunVmplResult(1).value
    assert (guest.vmcb.vmpl, guest.vmcb.save_area_spa) == (1, area)
    assert guest.do(op.Read(own, 8)).error & ERROR_VMPL
    # The hypervisor writes the block and does not run it: the guest that is in guest mode goes on.
    for spa_, vmpl in ((area, 1), (8 << 20, 3)):
        guest.host.board.execute_host((op.VmcbWrite("vm", 0, guest.record.asid, SNP.name, spa_),))
        assert guest.vmcb.vmpl == vmpl
        assert guest.do(op.Read(own, 8)).error & ERROR_VMPL


def test_a_save_area_that_runs_is_not_destroyed(guest):
    guest.lay_area()
    guest.create()
    guest.run_vmpl(1)
    guest.do(op.VmgExit(msr.RegisterGhcbRequest(guest.ghcb >> 12).value))
    assert refused(guest.create(kind=2)) is BadInput.INVALID_INPUT
    guest.run_vmpl(0)
    assert parse_reply(guest.create(kind=2), ()).info2 == 0
    assert guest.run_vmpl(1) == msr.RunVmplResult(1).value


def test_each_vmpl_registers_a_ghcb_of_its_own(guest):
    guest.lay_area()
    guest.create()
    guest.run_vmpl(1)
    assert refused(guest.ask(NaeEvent.RUN_VMPL, 0)) is BadInput.NOT_REGISTERED
    assert guest.do(op.VmgExit(msr.RegisterGhcbRequest(guest.ghcb >> 12).value))
    assert guest.ask(NaeEvent.RUN_VMPL, 0)
    assert guest.vmcb.vmpl == 0


def test_no_vmpl_is_served_what_another_walked():
    gva, mine, its = 0x7F12_3456_7000, 0x20_0000, 0x30_0000
    one = paged_guest(SNP, {**LONG, "VMPL": 0}, {**LONG, "VMPL": 0}, tlb=64)
    one.map(gva, mine | P | W | C)
    assert one.guest(op.Write(mine, b"VMPL0"), op.Write(its, b"VMPL1")) == (None, None)
    assert one.do(op.VirtualRead(gva, 5)) == b"VMPL0"
    grant = (op.RmpAdjust(0, 8 << 20, large=False, target=1, permissions=0b0011),)
    assert one.guest(*grant) == (0,)
    # VMPL1 has tables of its own at the same root address of another save area.
    root = 0x40_0000
    one.next_table = root + PAGE
    one.tables.clear()
    one.map(gva, its | P | W | C, root=root)
    area = one.board.vmcb(one.vm, 1).save_area_spa
    for name, value in (("CR3", root), ("VMPL", 1)):
        field = VMSA_FIELDS[name]
        one.board.controller.write(area + field.offset, value.to_bytes(field.width, "little"), 1)
    vmcb = one.board.vmcb(one.vm, 0)
    to = [op.VmcbWrite(one.vm, 0, 1, SNP.name, at) for at in (area, vmcb.save_area_spa)]
    assert one.host(to[0], op.VmRun(one.vm, 0)) == (None, 0)
    assert one.do(op.VirtualRead(gva, 5)) == b"VMPL1"
    assert one.host(to[1], op.VmRun(one.vm, 0)) == (None, 0)
    assert one.do(op.VirtualRead(gva, 5)) == b"VMPL0"
    misses = one.board.tlb.misses
    assert one.host(to[1], op.VmRun(one.vm, 0)) == (None, 0)
    assert one.do(op.VirtualRead(gva, 5)) == b"VMPL0"
    assert one.host(to[0], op.VmRun(one.vm, 0)) == (None, 0)
    assert one.do(op.VirtualRead(gva, 5)) == b"VMPL1"
    assert one.board.tlb.misses == misses, "to go back and forth flushes nothing"


