"""SEV-ES in the firmware: the trusted memory region at INIT, the policy bit, and save areas measured and sealed."""

from __future__ import annotations

import hashlib

import pytest
from toy_machine import COMMAND_PAGE, ES_POLICY, FIRMWARE, GUEST_PAGE, PAGE, TMR, Machine, new_machine, sev_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.status import Status

VMSA = hashlib.shake_128(b"registers").digest(PAGE)


def refused(machine: Machine, command: int, buffer: bytes) -> int:
    machine.bus.write(COMMAND_PAGE, buffer)
    before = machine.snapshot()
    status = int(machine.psp.submit(command, COMMAND_PAGE))
    assert machine.snapshot() == before
    return status


def es_guest(*, snp: bool = False) -> tuple[Machine, int]:
    machine = up(snp=snp)
    handle = sev_guest(machine, asid=4, policy=ES_POLICY)
    machine.bus.write(GUEST_PAGE, VMSA)
    return machine, handle


def update(handle: int, spa: int = GUEST_PAGE, length: int = PAGE) -> bytes:
    return buffers.LaunchUpdateData(handle, spa, length).pack()


def test_a_save_area_is_measured_encrypted_and_sealed() -> None:
    machine, handle = es_guest()
    machine.bus.write(0x30_0000, b"image" * 16)
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, buffers.LaunchUpdateData(handle, 0x30_0000, 80).pack()) == 0
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_VMSA, update(handle)) == 0
    assert machine.bus.read(GUEST_PAGE, PAGE) != VMSA
    assert machine.bus.read_guest(GUEST_PAGE, PAGE, 4) == VMSA
    assert machine.bus.sealed == {GUEST_PAGE: VMSA}
    digest = machine.psp.legacy_launch_record(handle).digest
    assert digest == hashlib.sha256(b"image" * 16 + VMSA).digest()


@pytest.mark.parametrize(
    ("spa", "length", "status"),
    [
        (GUEST_PAGE, 0, Status.INVALID_LENGTH),
        (GUEST_PAGE, PAGE - 16, Status.INVALID_LENGTH),
        (GUEST_PAGE, PAGE + 16, Status.INVALID_LENGTH),
        (GUEST_PAGE, 2 * PAGE, Status.INVALID_LENGTH),
        (GUEST_PAGE + 16, PAGE, Status.INVALID_ADDRESS),
        (1 << 60, PAGE, Status.INVALID_ADDRESS),
    ],
)
def test_what_is_no_page_in_memory_is_refused(spa: int, length: int, status: Status) -> None:
    machine, handle = es_guest()
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, update(handle, spa, length)) == status


def test_a_guest_without_the_es_bit_has_no_save_area_to_seal() -> None:
    machine = up(snp=False)
    handle = sev_guest(machine)
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, update(handle)) == Status.POLICY_FAILURE


def test_a_guest_without_an_asid_has_no_key_for_it() -> None:
    machine, handle = es_guest()
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == 0
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, update(handle)) == Status.INACTIVE


def test_once_snp_is_up_the_save_area_must_be_firmware_s() -> None:
    machine, handle = es_guest(snp=True)
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, update(handle)) == Status.INVALID_PAGE_STATE
    machine.bus.rmp_set(GUEST_PAGE, FIRMWARE)
    assert machine.call(LegacyCommand.LAUNCH_UPDATE_VMSA, update(handle)) == 0


@pytest.mark.parametrize("asid", [5, 8])
def test_a_guest_with_the_es_bit_takes_an_asid_below_min_sev_asid(asid: int) -> None:
    machine, handle = es_guest()
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == 0
    activate = buffers.Activate(handle, asid).pack()
    assert refused(machine, LegacyCommand.ACTIVATE, activate) == Status.INVALID_ASID


@pytest.mark.parametrize(
    ("address", "length", "status"),
    [
        (TMR, 0, Status.INVALID_LENGTH),
        (TMR, (1 << 20) - 1, Status.INVALID_LENGTH),
        (0, 1 << 20, Status.INVALID_ADDRESS),
        (TMR + 4096, 1 << 20, Status.INVALID_ADDRESS),
        (1 << 60, 1 << 20, Status.INVALID_ADDRESS),
    ],
)
def test_init_for_es_needs_a_trusted_region_of_1_mib(address: int, length: int, status: Status) -> None:
    assert refused(new_machine(), LegacyCommand.INIT, buffers.Init(1, address, length).pack()) == status


def test_init_for_es_tells_so_and_lets_the_policy_bit_through() -> None:
    machine = new_machine()
    assert machine.call(LegacyCommand.INIT, buffers.Init(1, TMR + (1 << 20), 1 << 20).pack()) == 0
    assert machine.call(LegacyCommand.PLATFORM_STATUS, buffers.PlatformStatus().pack()) == 0
    status = buffers.PlatformStatus.parse(machine.bus.read(COMMAND_PAGE, buffers.PlatformStatus.SIZE))
    assert status.config & 1


def test_without_it_the_policy_bit_is_refused() -> None:
    machine = new_machine()
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == 0
    start = buffers.LaunchStart(policy=ES_POLICY).pack()
    assert refused(machine, LegacyCommand.LAUNCH_START, start) == Status.POLICY_FAILURE


def test_once_snp_is_up_the_region_is_2_mib_of_firmware_pages() -> None:
    machine = up(legacy=False)
    for init, status in (
        (buffers.Init(1, TMR, 1 << 20), Status.INVALID_LENGTH),
        (buffers.Init(1, TMR + (1 << 20), 2 << 20), Status.INVALID_ADDRESS),
        (buffers.Init(1, TMR, 2 << 20), Status.INVALID_PAGE_STATE),
    ):
        assert refused(machine, LegacyCommand.INIT, init.pack()) == status
