"""SNP_INIT_EX with ciphertext hiding: who may ask, the second split of ASIDs, and what tells of it."""

from __future__ import annotations

import pytest
from toy_machine import FIRMWARE, GCTX, Machine, new_machine, sev_guest, snp_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.guest_context import SnpGuestState
from psp.legacy_guest import LegacyGuest
from psp.policy import LegacyPolicy, SnpPolicy
from psp.status import Status

# The toy machine has ASIDs 1 to 8, from 5 on for SEV.
OUT = 0x40_0000
HIDE = buffers.SNP_INIT_RMP | buffers.SNP_INIT_HIDE_CIPHERTEXT
INVALID, OK = Status.INVALID_ASID, Status.SUCCESS


def hiding(max_snp_asid: int = 2) -> Machine:
    machine = new_machine()
    machine.bus.can_hide_ciphertext = True
    init = buffers.SnpInitEx(flags=HIDE, max_snp_asid=max_snp_asid).pack()
    assert machine.call(SnpCommand.INIT_EX, init) == OK
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == OK
    machine.flush(LegacyCommand.DF_FLUSH)
    return machine


@pytest.mark.parametrize(
    ("capable", "max_snp_asid", "status"),
    [
        (False, 2, Status.UNSUPPORTED), (True, 0, Status.INVALID_PARAM), (True, 5, Status.INVALID_PARAM),
        (True, 0xFFFF, Status.INVALID_PARAM), (True, 1, OK), (True, 4, OK),
    ],
)  # fmt: skip
def test_hiding_needs_a_part_that_can_and_a_split_among_the_shared_asids(capable, max_snp_asid, status):
    machine = new_machine()
    machine.bus.can_hide_ciphertext = capable
    machine.bus.write(0x1000, init := buffers.SnpInitEx(flags=HIDE, max_snp_asid=max_snp_asid).pack())
    before = machine.snapshot()
    assert machine.call(SnpCommand.INIT_EX, init) == status
    assert machine.bus.hidden_up_to == (max_snp_asid if status == OK else 0)
    if status != OK:
        assert machine.snapshot() == before


def test_hiding_ends_with_the_platform_and_is_not_asked_for_by_the_number_alone():
    machine = new_machine()
    machine.bus.can_hide_ciphertext = True
    init = buffers.SnpInitEx(flags=HIDE, max_snp_asid=2).pack()
    assert machine.call(SnpCommand.INIT_EX, init) == OK
    machine.flush(SnpCommand.DF_FLUSH)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(length=8).pack()) == OK
    assert machine.bus.hidden_up_to == 0
    again = buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP, max_snp_asid=2).pack()
    assert machine.call(SnpCommand.INIT_EX, again) == OK
    assert machine.bus.hidden_up_to == 0
    machine.flush(SnpCommand.DF_FLUSH)
    snp_guest(machine, asid=4)


SHARED = {1: OK, 2: OK, 3: OK, 4: OK, 5: INVALID, 8: INVALID, 9: INVALID, 0: INVALID}


@pytest.mark.parametrize(("hidden", "asids"), [(False, SHARED), (True, {**SHARED, 3: INVALID, 4: INVALID})])
def test_an_snp_guest_activates_below_the_splits(hidden, asids):
    for asid, status in asids.items():
        machine = hiding() if hidden else up()
        machine.bus.rmp_set(GCTX, FIRMWARE)
        assert machine.call(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(GCTX).pack()) == OK
        assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, 0x3_0000).pack()) == OK
        assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, asid).pack()) == status


@pytest.mark.parametrize(("hidden", "asids"), [(False, SHARED), (True, {**SHARED, 1: INVALID, 2: INVALID})])
def test_an_es_guest_activates_between_the_splits(hidden, asids):
    """LAUNCH_START does not take such a policy yet: the guest is put there by hand."""
    for asid, status in asids.items():
        machine = hiding() if hidden else up()
        sev_guest(machine, asid=6)
        machine.psp.legacy.guests[9] = LegacyGuest(9, LegacyPolicy.ES | 1, bytes(16))
        assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(9, asid).pack()) == status


@pytest.mark.parametrize("asid", [5, 6, 8])
def test_hiding_leaves_the_asids_of_sev_guests_alone(asid):
    machine = hiding(max_snp_asid=4)
    sev_guest(machine, asid=asid)


@pytest.mark.parametrize(("hidden", "status"), [(False, Status.POLICY_FAILURE), (True, OK)])
def test_a_policy_that_demands_hiding_is_met_only_where_it_is_on(hidden, status):
    machine = hiding() if hidden else up()
    snp_guest(machine, SnpGuestState.INIT)
    policy = 0x3_0000 | SnpPolicy.CIPHERTEXT_HIDING
    assert machine.call(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, policy).pack()) == status


@pytest.mark.parametrize(
    ("capable", "on", "policy_flags", "ecx"),
    [(False, False, 1 << 3, 0), (True, False, 1 << 3 | 1 << 5, 1 << 3), (True, True, 1 << 3 | 1 << 5 | 1 << 6, 1 << 3)],
)
def test_the_platform_tells_what_it_can_and_what_it_does(capable, on, policy_flags, ecx):
    machine = hiding() if on else up()
    machine.bus.can_hide_ciphertext = capable
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(OUT).pack()) == OK
    assert buffers.SnpPlatformStatus.parse(machine.bus.read(OUT, 0x20)).policy_flags == policy_flags
    assert machine.call(SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(0x10, 0, OUT).pack()) == OK
    found = machine.bus.read(OUT, 16)
    assert (found[:8], found[8] & 1 << 3, found[9:]) == (bytes(8), ecx, bytes(7))
