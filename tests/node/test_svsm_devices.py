"""A kernel above an SVSM has devices of its own, trusted or not: the SVSM hands their memory on, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from svsm_guests import PAGES, said_by

from node import operations as op
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.device_window import BAR_STRIDE, DEVICES_GPA, bar_gpa
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import Guest, GuestSpec, GuestState
from node.guest_functions import MOST_DEVICES
from node.host import Host, HostSpec
from node.platform import Platform
from node.product import PRODUCTS
from node.program import ProgramSpec
from node.svsm_call import DeviceCall, Protocol, SvsmResult
from node.svsm_memory import GUEST_VMPL, SVSM
from node.tenant import SERVICES
from psp.system_bus import PAGE_BYTES
from tio.device_identity import CardKind
from tio.dma_port import DmaFault
from workloads.device_work import NOT_TRUSTED
from workloads.library import PROGRAMS

MIB, SECOND = 1 << 20, 10**9
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
CARDS = (CardSlot(1, CardKind.NVME), CardSlot(2, CardKind.GPU))
WORK = ProgramSpec("device-work", (("block_bytes", 4096), ("matrix_order", 8), ("rounds_attached", 2)))
IMAGE = laboratory_image()
_R = SvsmResult


def host_of() -> Host:
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=Platform(cards=CARDS))
    return Host(spec, PROGRAMS, {"auto": IMAGE}, COSTS)


def launched(host: Host, generation: Generation, until_ns: int = SECOND) -> Guest:
    devices = CardKind.NVME, CardKind.GPU
    spec = GuestSpec("vm", generation, 2, 128 * MIB, WORK, 7, devices=devices, svsm=True)
    host.launch(spec, lambda _: None, running=True)
    host.clock.env.run(until=until_ns)
    return host.guests["vm"]


@pytest.mark.parametrize("generation", [Generation.SEV_SNP, Generation.SEV_TIO])
def test_a_program_works_on_its_devices_above_an_svsm(generation: Generation) -> None:
    guest = launched(host_of(), generation)
    assert guest.state is GuestState.RUNNING, guest.reason
    # It lets them go every two rounds and takes them again.
    assert guest.vcpus[0].registers.r13 >= 6
    trusted = generation is Generation.SEV_TIO
    assert (guest.vcpus[0].registers.r11, guest.bytes_bounced > 0) == (0b11 * trusted, not trusted)


def test_a_trusted_device_has_no_more_rights_than_its_kernel() -> None:
    host = host_of()
    launched(host, Generation.SEV_TIO)
    dma, device = host.board.trusted_dma, CARDS[0].requester
    binding = dma.binding(device)
    assert binding is not None
    (stream,) = binding.stream_ids
    assert len(dma.read(device, stream, PAGES[0], 16, binding.root_port)) == 16
    with pytest.raises(DmaFault):
        dma.read(device, stream, SVSM.gpa, 16, binding.root_port)


def test_without_the_svsm_s_word_a_kernel_reaches_no_device_s_trusted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {one: serve for one, serve in SERVICES.items() if one != Protocol.DEVICES}
    monkeypatch.setattr("node.tenant.SERVICES", others)
    guest = launched(host_of(), Generation.SEV_TIO)
    assert (guest.state, guest.shutdown_code) == (GuestState.STOPPED, NOT_TRUSTED.code)


def test_rights_are_the_kernel_s_alone_and_only_on_pages_that_firmware_has_validated() -> None:
    host = host_of()
    launched(host, Generation.SEV_TIO)
    vmcb, rmp = host.board.vmcb("vm", 0), host.board.rmp
    ((spa, *_),) = vmcb.nested.translate(bar_gpa(0, 0), PAGE_BYTES)
    entry = rmp.entry(spa)
    assert (entry.validated, entry.vmpl_permissions[GUEST_VMPL]) == (True, 0xF)
    assert {entry.vmpl_permissions[vmpl] for vmpl in (1, 3)} == {0}


LAST = bar_gpa(MOST_DEVICES, 0) - PAGE_BYTES


@pytest.mark.parametrize(
    ("call", "gpa", "pages", "result"),
    [
        (1, DEVICES_GPA, 1, _R.UNSUPPORTED_CALL),
        (DeviceCall.GRANT, PAGES[0], 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, SVSM.gpa, 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, DEVICES_GPA - PAGE_BYTES, 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, LAST + PAGE_BYTES, 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, (1 << 64) - PAGE_BYTES, 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, DEVICES_GPA + 8, 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, DEVICES_GPA, 0, _R.INVALID_PARAMETER),
        (DeviceCall.GRANT, DEVICES_GPA, BAR_STRIDE // PAGE_BYTES + 1, _R.INVALID_PARAMETER),
        (DeviceCall.GRANT, DEVICES_GPA + PAGE_BYTES, BAR_STRIDE // PAGE_BYTES, _R.INVALID_PARAMETER),
        (DeviceCall.GRANT, DEVICES_GPA, (1 << 64) - 1, _R.INVALID_PARAMETER),
        # Where no device's memory is the RMP has its say, and firmware has validated nothing.
        (DeviceCall.GRANT, DEVICES_GPA, 1, _R.INVALID_ADDRESS),
        (DeviceCall.GRANT, LAST, 1, _R.INVALID_ADDRESS),
    ],
)
def test_the_svsm_hands_nothing_on_that_is_no_device_s_memory(call: int, gpa: int, pages: int, result: int) -> None:
    def talk(talker):  # type: ignore[no-untyped-def]
        answer = yield from talker.call(Protocol.DEVICES, call, gpa, pages)
        spoken = yield from talker.call(Protocol.CORE, 6, Protocol.DEVICES << 32 | 1)
        return answer.result, spoken.rcx

    assert said_by(talk) == (result, 1 << 32 | 1)


def test_a_hypervisor_that_has_memory_where_a_device_s_should_be_gets_no_rights_to_it_given() -> None:
    """The SVSM's own page at a device's address: the RMP has it at another."""
    host = host_of()
    guest = launched(host, Generation.SEV_SNP)
    record = host.hypervisor.launched("vm")
    spa, gpa = record.spa_of(SVSM.gpa), bar_gpa(4, 0)
    host.board.execute_host((op.NestedMap("vm", gpa, spa, PAGE_BYTES),))
    vmcb = replace(host.board.vmcb("vm", 0), save_area_spa=record.save_areas[0], vmpl=0)
    (answer,) = host.board.execute_guest(vmcb, (op.RmpAdjust(gpa, PAGE_BYTES, False, GUEST_VMPL, 0xF),))
    assert isinstance(answer, op.Fault)
    assert host.board.rmp.entry(spa).vmpl_permissions[GUEST_VMPL] == 0
    assert guest.state is GuestState.RUNNING
