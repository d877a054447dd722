"""An SVSM at VMPL0 and a kernel at VMPL2 above it: launch, boot, calls, and what nobody gets past it."""

import struct
from dataclasses import replace

import pytest
from sevsnpmeasure import guest as sev_snp_measure
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from svsm_guests import CAA, PAGES, PLACE, SNP, SvsmVm, said_by
from test_remote_ports import Remote, local_host
from toy_guests import IMAGE, SECOND, busy, final_state, guest_spec, ledger, make_host, run, script

from node import ghcb_msr as msr
from node import operations as op
from node.generation import Generation
from node.guest import GuestState
from node.guest_svsm import SvsmUntrusted
from node.hypervisor import Hypervisor
from node.operations import FaultKind
from node.rmp_faults import ERROR_VMPL
from node.svsm_call import CoreCall, Protocol, SvsmResult
from node.svsm_memory import BOOK_GPA, CPUID_GPA, SECRETS_GPA, SVSM, TPM_GPA, laboratory_svsm
from node.vcpu_runner import TERMINATED


@pytest.fixture(scope="module")
def up():
    """A VM whose program has looked around once."""

    def look(talker):
        version = yield from talker.call(Protocol.CORE, CoreCall.QUERY_PROTOCOL, 1)
        base = 0x300_0000
        return version, (
            yield from talker.do(
                op.Read(PLACE.secrets_gpa, 0x160),
                op.Read(PLACE.secrets_gpa + 0x1000, 16),
                op.PValidate(PAGES[0], 0x1000, large=False),
                op.RmpAdjust(PAGES[0], 0x1000, large=False, target=2, permissions=0),
                op.RmpAdjust(PAGES[0], 0x1000, large=False, target=3, permissions=1),
                *[op.Read(gpa, 16) for gpa in (SECRETS_GPA, CPUID_GPA, BOOK_GPA, TPM_GPA, SVSM.gpa + 0x10_0000)],
                op.Write(TPM_GPA, b"mine"),
                op.Read(IMAGE.gpa - 4096, 16),
                op.Read(IMAGE.gpa, 16),
                op.Read(base, 16),
            )
        )

    return SvsmVm(look)


def test_every_vcpu_runs_its_kernel_at_vmpl_2_and_its_svsm_at_vmpl_0(up):
    assert up.guest.state is GuestState.RUNNING
    for vcpu in range(2):
        vmcb = up.host.board.vmcb("vm", vcpu)
        assert vmcb.vmpl == 2
        assert vmcb.save_area_spa == up.record.vmpls.areas[vcpu, 2] != up.record.save_areas[vcpu]
        entry = up.host.board.rmp.entry(vmcb.save_area_spa)
        assert (entry.vmsa, entry.vmpl_permissions[1:]) == (True, (0, 0, 0))


def test_the_launch_measures_as_in_sev_snp_measure(up, tmp_path):
    ovmf, svsm = tmp_path / "ovmf.fd", tmp_path / "svsm.bin"
    ovmf.write_bytes(IMAGE.data)
    svsm.write_bytes(laboratory_svsm(IMAGE.gpa).data)
    expected = sev_snp_measure.calc_launch_digest(
        SevMode.SEV_SNP_SVSM, 2, CPU_SIGS["EPYC-v4"], str(ovmf), None, None, None, 1, "",
        svsm_file=str(svsm), ovmf_vars_size=0,
    )  # fmt: skip
    assert up.guest.launch_digest == expected.hex()


def test_the_kernel_gets_the_secrets_page_without_vmpck0_and_with_where_its_svsm_is(up):
    secrets, cpuid, *_ = up.said[1]
    own = up.as_vmpl0(SECRETS_GPA, 0x160)
    assert secrets[0x20:0x40] == bytes(32) != own[0x20:0x40]
    assert secrets[0x40:0xA0] == own[0x40:0xA0] != bytes(0x60)
    assert secrets[0x140:] == struct.pack("<QQQIBxxx", SVSM.gpa, SVSM.length, CAA, 1, 2)
    assert cpuid == up.as_vmpl0(CPUID_GPA, 16) != bytes(16)


def test_the_kernel_validates_and_grants_nothing_itself(up):
    _, _, validated, own, lower, *_ = up.said[1]
    assert validated == op.PValidateResult(2, unchanged=False)
    assert own == 2
    assert lower == 0


def test_the_svsms_pages_are_out_of_the_kernels_reach(up):
    *faults, firmware, memory = up.said[1][5:]
    for fault in faults:
        assert fault.kind is FaultKind.RMP_FAULT, fault
        assert fault.error & ERROR_VMPL
    assert firmware == IMAGE.data[:16]
    assert memory == bytes(16), "what the kernel got was cleared"


def test_the_svsm_answers_by_register(up):
    version, _ = up.said
    assert (version.result, version.rcx) == (SvsmResult.SUCCESS, 1 << 32 | 1)
    assert up.as_vmpl0(CAA, 1) == b"\0"


def test_programs_above_an_svsm_work_as_without_and_survive_a_pause():
    def play(svsm, pause_ns=0):
        host = make_host({"ledger": ledger})
        host.launch(replace(guest_spec("vm", SNP, "ledger", vcpus=2, units=20), svsm=svsm), lambda _: None)
        guest = host.guests["vm"]
        for _ in range(4 if pause_ns else 0):
            run(host, host.now_ns + pause_ns)
            host.pause("vm")
            run(host, host.now_ns + 1000_000)
            assert guest.state in (GuestState.PAUSED, GuestState.LAUNCHING)
            assert not any(thread for thread in (guest.software.running if guest.vcpus else ()))
            host.resume("vm")
        run(host, 20 * SECOND)
        assert guest.state is GuestState.RUNNING
        return final_state(host, guest)

    registers, _, units = play(svsm=False)
    expected = play(svsm=True)
    # Memory that nobody wrote reads as what zeros decrypt to without, and was cleared with an SVSM.
    assert (expected[0], expected[2]) == (registers, units)
    assert units == 40
    assert play(svsm=True, pause_ns=47_000_001) == expected


def test_behind_bytes_an_svsm_lives_the_same_life():
    spec = replace(guest_spec("vm", SNP, "ledger", vcpus=2, units=20), svsm=True)
    chains = []
    for host in (local_host(), Remote().host):
        host.launch(spec, lambda _: None)
        run(host, SECOND // 8)
        host.pause("vm")
        run(host, SECOND // 4)
        host.resume("vm")
        run(host, 20 * SECOND)
        host.close(host.now_ns)
        guest = host.guests["vm"]
        assert guest.units_of_work == 40
        chains.append((guest.launch_digest, guest.operation_ns, guest.operations, guest.lost_ns, host.log.close()))
    assert chains[0] == chains[1]


def test_a_pause_during_boot_comes_between_blocks_of_the_svsm_too():
    host = make_host({"ledger": ledger})
    spec = replace(guest_spec("vm", SNP, "ledger", vcpus=2, units=3), svsm=True)
    host.launch(spec, lambda _: None, running=True)
    guest = host.guests["vm"]
    pauses = 0
    while guest.units_of_work < 1 and pauses < 200 and guest.vcpus[0].units_of_work < 1:
        run(host, host.now_ns + 40_000)
        host.pause("vm")
        run(host, host.now_ns + 30_000_000)
        assert not any(guest.software.running)
        host.resume("vm")
        pauses += 1
    assert pauses > 3
    run(host, 20 * SECOND)
    host.close(host.now_ns)
    assert guest.units_of_work == 6


def test_a_destroyed_vm_leaves_nothing_behind():
    host = make_host({"busy": script(busy)})
    before = len(host.board.rmp), host.hypervisor.figures().memory_bytes
    for number in range(2):
        spec = replace(guest_spec(f"vm{number}", SNP, "busy", vcpus=2), svsm=True)
        host.launch(spec, lambda _: None, running=True)
        run(host, (number + 1) * SECOND)
        assert host.guests[f"vm{number}"].state is GuestState.RUNNING
        host.destroy(f"vm{number}")
        run(host, (number + 1) * SECOND + SECOND // 2)
    assert (len(host.board.rmp), host.hypervisor.figures().memory_bytes) == before


class Lazy(Hypervisor):
    """Says that it ran the SVSM, and did not."""

    def vmgexit(self, vm, vcpu, value):
        if value == msr.RunVmplRequest(0).value:
            return msr.RunVmplResult(0).value
            yield ()
        return (yield from super().vmgexit(vm, vcpu, value))


class Poor(Hypervisor):
    """Offers no VMPLs."""

    def vmgexit(self, vm, vcpu, value):
        answer = yield from super().vmgexit(vm, vcpu, value)
        return msr.Features(1).value if value == msr.FeaturesRequest().value else answer


@pytest.mark.parametrize(
    ("hypervisor", "reason_set", "reason"),
    [(Lazy, 1, msr.LinuxReason.NOT_VMPL0), (Poor, 0, msr.GhcbReason.SNP_FEATURES)],
)
def test_a_vm_ends_itself_where_its_svsm_is_not_run(hypervisor, reason_set, reason):
    host = make_host()
    host.hypervisor.__class__ = hypervisor
    host.launch(replace(guest_spec("vm", SNP), svsm=True), lambda _: None, running=True)
    run(host, SECOND)
    guest = host.guests["vm"]
    assert guest.state is GuestState.STOPPED
    assert guest.shutdown_code == TERMINATED | reason_set << 8 | reason


def test_a_call_that_nobody_took_is_no_answer():
    def talk(talker):
        vm.host.hypervisor.__class__ = Lazy
        with pytest.raises(SvsmUntrusted):
            yield from talker.call(Protocol.CORE, CoreCall.QUERY_PROTOCOL, 1)
        return "noticed"

    vm = SvsmVm.__new__(SvsmVm)  # so that the talk knows it
    vm.__init__(talk)  # type: ignore[misc]
    assert vm.said == "noticed"


def test_a_call_goes_by_ghcb_page_too():
    def talk(talker):
        page = yield from talker.call(Protocol.CORE, CoreCall.QUERY_PROTOCOL, 2 << 32 | 1, ghcb=PLACE.heap_gpa)
        return page.result, page.rcx

    assert said_by(talk) == (SvsmResult.SUCCESS, 1 << 32 | 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generation": Generation.SEV_ES}, "svsm: SEV_ES has no VMPLs"),
        ({"generation": Generation.PLAIN}, "svsm: PLAIN has no VMPLs"),
        ({"vcpus": 129, "memory_bytes": 1 << 30}, "svsm: expected at most 128 vCPUs, got 129"),
    ],
    ids=["SEV-ES", "plain", "vCPUs"],
)
def test_a_vm_that_cannot_have_an_svsm_is_refused(changes, said):
    host = make_host()
    host.launch(replace(guest_spec("vm", SNP), svsm=True, **changes), lambda _: None)
    run(host, SECOND)
    guest = host.guests["vm"]
    assert (guest.state, guest.reason) == (GuestState.REFUSED, said)
    assert host.hypervisor.figures().memory_bytes == make_host().hypervisor.figures().memory_bytes
