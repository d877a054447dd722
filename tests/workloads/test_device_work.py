"""One program on devices of its own under every generation: what comes back is right, and what the host saw of it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from node import operations as op
from node.card_slot import CardSlot
from node.cost_table import load_cost_table
from node.firmware_image import laboratory_image
from node.generation import Generation
from node.guest import GuestSpec, GuestState
from node.guest_functions import guest_device_id
from node.guest_memory_map import memory_map
from node.guest_nvme import BLOCK_BYTES
from node.host import Host, HostSpec
from node.mechanism import Mechanism
from node.physical_slots import PhysicalSlots
from node.platform import HostMode, Platform
from node.product import PRODUCTS
from node.program import ProgramSpec
from node.swiotlb import Steps
from tio.device_identity import CardKind
from tio.dma_port import DmaFault
from workloads.device_work import NOT_TRUSTED, DeviceWork
from workloads.library import PROGRAMS

MIB, SECOND = 1 << 20, 10**9
IMAGE = laboratory_image()
COSTS = dict(load_cost_table()) | {"psp.tio_exchange_ns": 1_000_000}
"""Devices are attached sooner than the table has it, so that tests need not wait."""
CARDS = tuple([CardSlot(port, (CardKind.GPU, CardKind.NVME)[port % 2], f"000{port}") for port in range(1, 5)])
ORDER = 12
WORK = ProgramSpec("device-work", (("block_bytes", 4096), ("matrix_order", ORDER), ("rounds_attached", 2)))


def host_of(generation: Generation, cards: tuple[CardSlot, ...] = CARDS) -> Host:
    mode = HostMode.SME if generation is Generation.SME else HostMode.NONE
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=Platform(mode, cards=cards))
    return Host(spec, PROGRAMS, {"auto": IMAGE}, COSTS)


def launched(
    host: Host, generation: Generation, name: str = "vm", devices: tuple[CardKind, ...] = (CardKind.NVME, CardKind.GPU)
) -> GuestSpec:
    spec = GuestSpec(name, generation, 1, 128 * MIB, WORK, 7, devices=devices)
    host.launch(spec, lambda _: None, running=True)
    return spec


@pytest.mark.parametrize("generation", list(Generation))
def test_the_same_program_works_on_its_gpu_under_every_generation(generation: Generation) -> None:
    host = host_of(generation)
    fresh = host.hypervisor.figures()
    launched(host, generation)
    host.clock.env.run(until=SECOND)
    guest = host.guests["vm"]
    assert (guest.state, guest.vcpus[0].registers.r13 >= 8) == (GuestState.RUNNING, True)
    host.destroy("vm")
    host.clock.env.run(until=2 * SECOND)
    after = host.hypervisor.figures()
    # What of trusted I/O stays with the host: a device that is connected keeps its context and its buffers.
    assert after.asids_in_use == fresh.asids_in_use
    assert after.memory_bytes - fresh.memory_bytes <= 256 << 10
    launched(host, generation, "next")
    host.clock.env.run(until=3 * SECOND)
    assert host.guests["next"].vcpus[0].registers.r13 >= 8


@pytest.mark.parametrize("generation", list(Generation))
def test_it_works_through_a_session_of_its_own_where_no_firmware_vouches_for_the_gpu(generation: Generation) -> None:
    host = host_of(generation)
    work = ProgramSpec("device-work", (*WORK.parameters, ("sealed", 1)))
    spec = GuestSpec("vm", generation, 1, 128 * MIB, work, 7, devices=(CardKind.GPU,))
    host.launch(spec, lambda _: None, running=True)
    host.clock.env.run(until=SECOND)
    guest = host.guests["vm"]
    # It opens more than one: its devices are let go every two rounds.
    rounds = guest.vcpus[0].registers.r13
    assert (guest.state, rounds >= 6) == (GuestState.RUNNING, True)
    # Matrices in and a product out at least, each less than a KiB, which no core seals and opens in no time.
    spent_ns = guest.row_ns.get("gpu.seal_ns_per_kib", 0.0)
    if generation is Generation.SEV_TIO:
        assert spent_ns == 0, "a device that is trusted"
    else:
        assert spent_ns >= rounds * 5 * COSTS["gpu.seal_ns_per_kib"], "three commands among them"
        assert guest.lost_ns[Mechanism.BOUNCE] >= spent_ns


@pytest.mark.parametrize("generation", [Generation.SEV_TIO, Generation.SEV_SNP])
def test_what_lies_on_a_cards_file_comes_into_private_memory_and_the_file_stays(
    generation: Generation, tmp_path: Path
) -> None:
    blocks = [bytes([at]) * BLOCK_BYTES for at in range(1, 33)]
    file = tmp_path / "disk.img"
    file.write_bytes(b"".join(blocks))
    host = host_of(generation, (CardSlot(1, CardKind.NVME, disk=str(file)),))
    launched(host, generation, devices=(CardKind.NVME,))
    registers = host.guests["vm"].vcpus[0].registers
    while not registers.r13:
        host.clock.env.run(until=host.clock.env.now + SECOND // 20)
    disk, scratch = work_of(host).nvme(0), work_of(host).scratch
    vmcb = host.board.vmcb("vm", 0)

    def done(steps: Steps[int]) -> int:
        answers = None
        try:
            while True:
                answers = host.board.execute_guest(vmcb, steps.send(answers))  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value

    # What it has stored so far lies over the first blocks: WORK's of its first round is one block.
    assert done(disk.read(8, 24, scratch)) == 0
    (found,) = host.board.execute_guest(vmcb, (op.Read(scratch, 24 * BLOCK_BYTES),))
    assert found == b"".join(blocks[8:])
    assert done(disk.write(31, 1, scratch)) == done(disk.read(31, 1, scratch)) == 0
    assert host.board.execute_guest(vmcb, (op.Read(scratch, BLOCK_BYTES),)) == (blocks[8],)
    assert done(disk.read(0, 1, scratch)) == 0
    assert host.board.execute_guest(vmcb, (op.Read(scratch, BLOCK_BYTES),)) != (blocks[0],)
    assert file.read_bytes() == b"".join(blocks)


def work_of(host: Host) -> DeviceWork:
    """The program of a machine that rests between rounds, as it is now."""
    guest = host.guests["vm"]
    placement = replace(
        memory_map(guest.spec.memory_bytes, 1).placement("vm", 0, guest.spec.seed),
        devices=guest.spec.devices, bounces=True,
    )  # fmt: skip
    return replace(DeviceWork.build(WORK, placement), trusted=guest.vcpus[0].registers.r11)


@pytest.mark.parametrize("sealed", [0, 1])
def test_a_guest_that_trusts_devices_uses_one_without_tee_io_over_bounce_buffers(sealed: int) -> None:
    cards = CardSlot(1, CardKind.NVME), CardSlot(2, CardKind.GPU, tee_io=False)
    host = host_of(Generation.SEV_TIO, cards)
    work = ProgramSpec("device-work", (*WORK.parameters, ("sealed", sealed)))
    devices = CardKind.NVME, CardKind.GPU
    spec = GuestSpec("vm", Generation.SEV_TIO, 1, 128 * MIB, work, 7, devices=devices)
    host.launch(spec, lambda _: None, running=True)
    host.clock.env.run(until=SECOND)
    guest, registers = host.guests["vm"], host.guests["vm"].vcpus[0].registers
    assert (guest.state, registers.r13 >= 5) == (GuestState.RUNNING, True)
    disk, gpu = (host.hypervisor.tio.given("vm", guest_device_id(device)) for device in (0, 1))
    # The firmware never met the one; the other is trusted as ever, whenever it is not just let go.
    assert (gpu.context, gpu.card.context, gpu.ran) == (0, 0, False)
    assert disk.card.context


@pytest.mark.parametrize("really", [False, True])
def test_one_that_works_on_trusted_devices_alone_is_not_talked_out_of_it(really: bool) -> None:
    cards = (CardSlot(2, CardKind.GPU, tee_io=really),)
    host = host_of(Generation.SEV_TIO, cards)
    work = ProgramSpec("device-work", (*WORK.parameters, ("trusted_only", 1)))
    guest = GuestSpec("vm", Generation.SEV_TIO, 1, 128 * MIB, work, 7, devices=(CardKind.GPU,))
    host.launch(guest, lambda _: None, running=True)
    record = host.hypervisor.launched("vm")
    while record is None or not record.functions:
        host.clock.env.step()
        record = host.hypervisor.launched("vm")
    # The host says that there is no TEE-IO, whether there is or not.
    record.functions = tuple(replace(one, tee_io=False) for one in record.functions)
    host.clock.env.run(until=SECOND)
    after = host.guests["vm"]
    assert (after.state is GuestState.RUNNING, after.shutdown_code == NOT_TRUSTED.code) == (really, not really)


def test_a_vm_without_a_free_card_is_refused_and_leaves_nothing() -> None:
    host = host_of(Generation.PLAIN)
    for name in ("a", "b"):
        launched(host, Generation.PLAIN, name)
    before = host.hypervisor.figures()
    launched(host, Generation.PLAIN, "c")
    assert host.guests["c"].state is GuestState.REFUSED
    assert "no free nvme" in host.guests["c"].reason
    assert host.hypervisor.figures().memory_bytes == before.memory_bytes
    launched(host, Generation.PLAIN, "d", (CardKind.NIC,))
    assert "no free nic" in host.guests["d"].reason


@pytest.mark.parametrize("ends", ["destroyed", "detached"])
def test_a_fence_ends_with_the_guests_last_device(ends: str) -> None:
    host = host_of(Generation.SEV_TIO)
    launched(host, Generation.SEV_TIO)
    host.clock.env.run(until=SECOND // 2)
    board, given = host.board, host.hypervisor.tio.given("vm", guest_device_id(1))
    asid = host.guests["vm"].asid
    with pytest.raises(DmaFault):  # where the host maps nothing
        board.card_memory.behind(given.function.port.port).read(
            given.function.requester, 1 << 40, 8, tee=True, stream_id=given.card.stream_id
        )
    assert board.trusted_dma.fences.blocks(asid)
    if ends == "destroyed":
        host.destroy("vm")
        host.clock.env.run(until=SECOND)
    else:
        tio, gctx = host.hypervisor.tio, host.hypervisor.launched("vm").gctx
        for device in (0, 1):
            steps, answers = tio.unbind(tio.given("vm", guest_device_id(device)), gctx), None
            assert board.trusted_dma.fences.blocks(asid)
            with contextlib.suppress(StopIteration):
                while True:
                    answers = board.execute_host(steps.send(answers))
    assert not board.trusted_dma.fences.blocks(asid)


def test_a_card_that_is_pulled_ends_its_guests_work_and_is_given_to_nobody() -> None:
    host = host_of(Generation.SEV_TIO)
    launched(host, Generation.SEV_TIO)
    host.clock.env.run(until=SECOND // 2)
    port = host.hypervisor.tio.given("vm", guest_device_id(1)).function.port.port
    PhysicalSlots(host.board.root_complex, host.board.slots).pull(port)
    host.clock.env.run(until=SECOND)
    assert host.guests["vm"].state is GuestState.STOPPED
    host.destroy("vm")
    host.clock.env.run(until=2 * SECOND)
    launched(host, Generation.SEV_TIO, "next")
    host.clock.env.run(until=3 * SECOND)
    assert host.hypervisor.tio.given("next", guest_device_id(1)).function.port.port != port
    assert host.guests["next"].vcpus[0].registers.r13 >= 4
    launched(host, Generation.SEV_TIO, "third", (CardKind.GPU,))
    assert "no free gpu" in host.guests["third"].reason


def test_attaching_a_gpu_takes_about_as_long_as_the_cost_table_guesses() -> None:
    spec = HostSpec("turin", PRODUCTS["Turin"], 1 << 30, 99, 1, 60 * SECOND, platform=Platform(cards=CARDS))
    host = Host(spec, PROGRAMS, {"auto": IMAGE}, load_cost_table())
    launched(host, Generation.SEV_TIO, devices=(CardKind.GPU,))
    vcpu = host.guests["vm"].vcpus[0]
    while not vcpu.registers.r13:
        host.clock.env.step()
    assert 1 <= host.now_ns / SECOND <= 3


def test_vms_share_cards_by_virtual_functions_each_attested_alone_and_given_on() -> None:
    devices = CardKind.NVME, CardKind.GPU, CardKind.NIC
    cards = tuple([CardSlot(port, kind, "00", virtual_functions=2) for port, kind in enumerate(devices, start=1)])
    host = host_of(Generation.SEV_TIO, cards)
    for name in ("a", "b"):
        launched(host, Generation.SEV_TIO, name, devices)
    host.clock.env.run(until=SECOND)
    assert all(host.guests[name].vcpus[0].registers.r13 >= 4 for name in ("a", "b"))
    launched(host, Generation.SEV_TIO, "c", devices)
    assert "no free nvme" in host.guests["c"].reason
    done = host.guests["b"].vcpus[0].registers.r13
    host.destroy("a")
    host.clock.env.run(until=2 * SECOND)
    launched(host, Generation.SEV_TIO, "d", devices)
    host.clock.env.run(until=3 * SECOND)
    # One tenant's going resets its own functions, not those beside them.
    assert host.guests["d"].vcpus[0].registers.r13 >= 4
    assert host.guests["b"].vcpus[0].registers.r13 >= done + 4


def test_a_vm_cannot_reach_a_card_that_it_was_not_given() -> None:
    host = host_of(Generation.PLAIN)
    launched(host, Generation.PLAIN)
    (answer,) = host.board.execute_guest(host.board.vmcb("vm", 0), (op.MmioLoad((1 << 40) + (2 << 36)),))
    assert answer == 0xFFFF_FFFF
