"""An SNP guest starts its other vCPUs itself: what its hypervisor takes for a save area, and what VMRUN does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_guests import MIX, SECOND, guest_spec, make_host, run, start

from node import ghcb_msr as msr
from node import operations as op
from node.ap_start import ApStart
from node.event_delivery import gate
from node.event_injection import Event, EventType
from node.generation import Generation
from node.ghcb_msr import HypervisorFeature
from node.ghcb_page import BadInput, build_exit
from node.guest import GuestState
from node.guest_kernel import AP_RIP, GuestKernel
from node.nae_event import NaeEvent
from node.vcpu import VcpuState
from node.vcpu_runner import TERMINATED
from node.vmsa import VMSA_FIELDS, SevFeature, initial_vmsa, read_field
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

PLAIN, SEV, ES, SNP = Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP
CREATE, ON_INIT, DESTROY = 1, 0, 2
WAITING = VcpuState.WAITING


class Machine:
    """An SNP guest of three vCPUs that is up, and the hands of its kernel."""

    def __init__(self, program: str = "busy", features: int = 0) -> None:
        self.host = make_host()
        spec = replace(guest_spec("vm", SNP, program, vcpus=3), sev_features=int(features))
        self.host.launch(spec, lambda _: None, running=True)
        self.guest = self.host.guests["vm"]
        run(self.host, SECOND // 50)
        self.features = int(SevFeature.SNP_ACTIVE | features)
        self.ghcb = spec.memory.shared.gpa
        self.do(op.VmgExit(msr.RegisterGhcbRequest(self.ghcb >> 12).value))
        self.record = self.host.hypervisor.launched("vm")
        boot_ghcb = GuestKernel(SNP, spec.memory, self.guest.launched, 0, 0, 0).ghcb_gpa
        self.start = ApStart(spec.memory, self.guest.launched, boot_ghcb, AP_RIP, self.features)

    def do(self, *batch):
        return self.host.board.execute_guest(self.host.board.vmcb("vm", 0), batch)

    def ask(self, kind: int, vcpu: int = 2, gpa: int = 0, features: int | None = None, vmpl: int = 0):
        registers = {"RAX": self.features if features is None else features}
        page = build_exit(NaeEvent.AP_CREATION, kind | vmpl << 16 | vcpu << 32, gpa, registers)
        answers = self.do(
            op.Write(self.ghcb, page, private=False), op.VmgExit(self.ghcb), op.Read(self.ghcb, 4096, private=False)
        )
        return tuple(int.from_bytes(answers[2][at : at + 8], "little") for at in (0x398, 0x3A0))

    def fresh(self, number: int = 7, **fields: int) -> int:
        """A save area in a page that nobody has."""
        gpa = self.start.save_area_gpa(number)
        page = initial_vmsa(AP_RIP, 0, self.features, fields)
        adjust = op.RmpAdjust(gpa, PAGE_BYTES, large=False, target=1, permissions=0, vmsa=True)
        assert self.do(op.Write(gpa, page), adjust) == (None, 0)
        return gpa

    def states(self) -> list[VcpuState]:
        return [vcpu.state for vcpu in self.guest.vcpus]

    def units(self, vcpu: int) -> int:
        return self.guest.vcpus[vcpu].registers.r13

    def on(self, more_ns: int = SECOND // 500) -> None:
        run(self.host, self.host.now_ns + more_ns)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("generation", [PLAIN, SEV, ES, SNP])
def test_all_vcpus_of_a_guest_come_up(generation: Generation) -> None:
    host = make_host()
    guest = start(host, "vm", generation, "busy", vcpus=4)
    areas = [vcpu.save_area_spa for vcpu in guest.vcpus]
    run(host, SECOND // 100)
    assert all(vcpu.registers.r13 for vcpu in guest.vcpus)
    # Those of an SNP guest run with save areas that the guest made; of the others with those of the launch.
    moved = [vcpu.save_area_spa != area for vcpu, area in zip(guest.vcpus, areas, strict=True)]
    assert moved == [False, *[generation is SNP] * 3]


def test_a_save_area_is_the_guests_own_page_and_starts_at_its_kernel(machine: Machine) -> None:
    for vcpu in (1, 2):
        vmcb = machine.host.board.vmcb("vm", vcpu)
        gpa = machine.start.save_area_gpa(vcpu)
        assert machine.record.page_spa(gpa) == vmcb.save_area_spa != machine.record.save_areas[vcpu]
        entry = machine.host.board.rmp.entry(vmcb.save_area_spa)
        assert (entry.vmsa, entry.validated, entry.gpa) == (True, True, gpa)
        assert gpa % LARGE_PAGE_BYTES
        assert read_field(machine.host.board.save_areas.load(vmcb), "SEV_FEATURES") == SevFeature.SNP_ACTIVE
        # While it runs nobody changes the page.
        assert machine.do(op.RmpAdjust(gpa, PAGE_BYTES, large=False, target=1, permissions=0)) == (3,)


def test_a_vcpu_is_destroyed_and_created_anew(machine: Machine) -> None:
    assert machine.ask(DESTROY, 2) == (0, 0)
    assert machine.states()[2] is VcpuState.STOPPED
    done = machine.units(2)
    machine.on()
    assert machine.units(2) == done
    assert machine.units(1) > 0
    # Its old save area is in use no more, and the guest may have the page back.
    old = machine.start.save_area_gpa(2)
    assert machine.do(op.RmpAdjust(old, PAGE_BYTES, large=False, target=1, permissions=0)) == (0,)
    assert machine.ask(CREATE, 2, machine.fresh()) == (0, 0)
    machine.on()
    assert 0 < machine.units(2) < done
    assert machine.guest.state is GuestState.RUNNING


def test_a_vcpu_that_runs_is_started_from_the_beginning(machine: Machine) -> None:
    before = machine.units(2)
    assert machine.ask(CREATE, 2, machine.fresh()) == (0, 0)
    machine.on(SECOND // 1000)
    assert machine.units(2) < before


REFUSALS = {
    "no such vCPU": ({"kind": CREATE, "vcpu": 3}, BadInput.INVALID_INPUT),
    "itself": ({"kind": CREATE, "vcpu": 0}, BadInput.INVALID_INPUT),
    "its own end": ({"kind": DESTROY, "vcpu": 0}, BadInput.INVALID_INPUT),
    "other features": ({"kind": CREATE, "features": 0}, BadInput.INVALID_INPUT),
    "more features": ({"kind": CREATE, "features": 1 | 1 << 3}, BadInput.INVALID_INPUT),
    "the beginning of 2 MiB": ({"kind": CREATE, "gpa": 2 << 20}, BadInput.INVALID_INPUT),
    "no memory": ({"kind": CREATE, "gpa": (1 << 40) + PAGE_BYTES}, BadInput.INVALID_INPUT),
    "no such vCPU at INIT": ({"kind": ON_INIT, "vcpu": 1 << 31}, BadInput.INVALID_INPUT),
    "a VMPL that nobody keeps books of": ({"kind": CREATE, "vmpl": 1}, BadInput.INVALID_INPUT),
}


@pytest.fixture(scope="module")
def lasting() -> Machine:
    return Machine()


@pytest.mark.parametrize(("asked", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_malformed_is_refused_and_changes_nothing(lasting: Machine, asked, reason) -> None:
    before = [lasting.host.board.vmcb("vm", vcpu) for vcpu in range(3)]
    assert lasting.ask(**{"gpa": lasting.start.save_area_gpa(8), **asked}) == (2, reason)
    assert [lasting.host.board.vmcb("vm", vcpu) for vcpu in range(3)] == before
    assert lasting.record.on_init == {}
    lasting.on(1000)
    assert lasting.states() == [VcpuState.COMPUTING] * 3


@pytest.mark.parametrize("what", ["no save area", "in use", "other features", "no VMPL", "no event"])
def test_what_is_no_save_area_is_found_by_vmrun(machine: Machine, what: str) -> None:
    gpa = {
        "no save area": lambda: machine.start.save_area_gpa(7),
        "in use": lambda: machine.start.save_area_gpa(1),
        "other features": lambda: machine.fresh(SEV_FEATURES=int(SevFeature.PMC_VIRTUALIZATION) | 1),
        "no VMPL": lambda: machine.fresh(VMPL=4),
        "no event": lambda: machine.fresh(SEV_FEATURES=0x11, EVENTINJ=1 << 31 | 3 << 8 | 2),
    }[what]()
    assert machine.ask(CREATE, 2, gpa) == (2, BadInput.INVALID_INPUT)
    machine.on()
    assert machine.states()[2] is VcpuState.STOPPED
    assert machine.guest.state is GuestState.RUNNING
    assert machine.ask(CREATE, 2, machine.fresh(8)) == (0, 0)
    machine.on()
    assert machine.states()[2] is VcpuState.COMPUTING


def test_a_save_area_for_init_waits_for_one() -> None:
    machine = Machine(features=SevFeature.RESTRICTED_INJECTION)
    gpa, before = machine.fresh(), machine.units(2)
    assert machine.ask(ON_INIT, 2, gpa) == (0, 0)
    machine.on()
    assert machine.units(2) > before
    ipi = build_exit(NaeEvent.HV_IPI, 2 << 32 | 5 << 8)
    machine.do(op.Write(machine.ghcb, ipi, private=False), op.VmgExit(machine.ghcb))
    machine.on(SECOND // 1000)
    assert machine.units(2) < before
    assert machine.host.board.vmcb("vm", 2).save_area_spa == machine.record.page_spa(gpa)
    assert machine.record.on_init == {}


@pytest.mark.parametrize("later", [DESTROY, CREATE])
def test_a_vcpu_that_was_pointed_elsewhere_does_not_come_back_by_an_older_save_area(later: int) -> None:
    machine = Machine(features=SevFeature.RESTRICTED_INJECTION)
    kept, other = machine.fresh(7), machine.fresh(8)
    assert machine.ask(ON_INIT, 2, kept) == (0, 0)
    assert machine.ask(later, 2, other) == (0, 0)
    assert machine.record.on_init == {}
    ipi = build_exit(NaeEvent.HV_IPI, 2 << 32 | 5 << 8)
    machine.do(op.Write(machine.ghcb, ipi, private=False), op.VmgExit(machine.ghcb))
    machine.on()
    assert machine.host.board.vmcb("vm", 2).save_area_spa != machine.record.page_spa(kept)
    assert machine.states()[2] is (VcpuState.STOPPED if later == DESTROY else VcpuState.COMPUTING)


def test_with_alternate_injection_vmpl0_injects_and_the_hypervisor_cannot() -> None:
    machine = Machine(features=SevFeature.ALTERNATE_INJECTION)
    idt, stack = machine.start.save_area_gpa(20), machine.start.save_area_gpa(22)
    table = bytearray(PAGE_BYTES)
    table[16 * 0x80 : 16 * 0x81] = gate(MIX)
    assert machine.do(op.Write(idt, bytes(table))) == (None,)
    injected = Event(0x80, EventType.INTERRUPT).field
    gpa = machine.fresh(EVENTINJ=injected, IDTR_BASE=idt, IDTR_LIMIT=PAGE_BYTES - 1, RSP=stack)
    area = machine.record.page_spa(gpa) + VMSA_FIELDS["EVENTINJ"].offset
    (refused,) = machine.host.board.execute_host((op.HostWrite(area, injected.to_bytes(8, "little")),))
    assert isinstance(refused, op.Fault)
    assert machine.ask(CREATE, 2, gpa) == (0, 0)
    machine.on()
    # Its first instruction was the handler's, whose frame lies on the stack that VMPL0 gave it.
    assert machine.guest.vcpus[2].registers.rsp == stack - 40
    assert machine.units(2) > 0
    assert machine.do(op.Read(stack - 40, 8)) == (AP_RIP.to_bytes(8, "little"),)
    assert machine.host.board.controls.load(machine.host.board.vmcb("vm", 2), "EVENTINJ") == 0
    # The hypervisor's own event is refused, and its queue is not looked at.
    batch = op.VmcbStore("vm", 2, "EVENTINJ", injected), op.VmKick("vm", 2)
    assert machine.host.board.execute_host(batch) == (None, -1)


@pytest.mark.parametrize("at_ns", [0, 1_000, 30_000, 100_000, 1_000_000, SECOND // 100])
def test_a_pause_at_any_time_loses_no_vcpu(at_ns: int) -> None:
    host = make_host()
    guest = start(host, "vm", SNP, "busy", vcpus=3)
    run(host, at_ns)
    host.pause("vm")
    run(host, at_ns + SECOND // 100)
    assert all(vcpu.state in (VcpuState.PAUSED, WAITING) for vcpu in guest.vcpus)
    host.resume("vm")
    run(host, host.now_ns + SECOND // 100)
    assert [vcpu.state for vcpu in guest.vcpus] == [VcpuState.COMPUTING] * 3
    assert all(vcpu.registers.r13 for vcpu in guest.vcpus)


def test_a_guest_goes_with_all_that_it_took(machine: Machine) -> None:
    machine.ask(DESTROY, 1)
    machine.host.destroy("vm")
    run(machine.host, machine.host.now_ns + SECOND)
    fresh = make_host()
    assert machine.host.hypervisor.figures().memory_bytes == fresh.hypervisor.figures().memory_bytes
    assert len(machine.host.board.rmp) == len(fresh.board.rmp)


def test_a_sev_es_guest_has_no_such_exit() -> None:
    host = make_host()
    guest = start(host, "vm", ES, "rest", vcpus=2)
    run(host, SECOND)
    ghcb = guest.spec.memory.shared.gpa
    page = build_exit(NaeEvent.AP_CREATION, 1 << 32 | CREATE, PAGE_BYTES, {"RAX": 0})
    batch = op.Write(ghcb, page, private=False), op.VmgExit(ghcb), op.Read(ghcb, 4096, private=False)
    (*_, back) = host.board.execute_guest(host.board.vmcb("vm", 0), batch)
    assert int.from_bytes(back[0x3A0:0x3A8], "little") == BadInput.INVALID_EVENT


@pytest.mark.parametrize(
    ("offered", "code"), [(HypervisorFeature.SNP, 2), (HypervisorFeature.SNP | HypervisorFeature.AP_CREATION, 0)]
)
def test_a_guest_whose_vcpus_are_not_started_ends_itself(offered: HypervisorFeature, code: int) -> None:
    host = make_host()
    server = host.hypervisor._ghcb
    server._messages = {**server._messages, msr.FeaturesRequest: lambda *_: _answer(msr.Features(int(offered)).value)}
    server._events = {key: one for key, one in server._events.items() if key != NaeEvent.AP_CREATION}
    guest = start(host, "vm", SNP, "rest", vcpus=2)
    run(host, SECOND)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, TERMINATED | code)


def _answer(value: int):
    return value
    yield ()
