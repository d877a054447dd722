"""SNP_INIT_EX with RAPL_DIS, and policies that demand it (SEV-SNP firmware ABI: SNP_INIT_EX, policy bit 23)."""

from __future__ import annotations

import pytest
from toy_machine import FIRMWARE, GCTX, Machine, new_machine, snp_guest

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.policy import SnpPolicy
from psp.status import Status

OUT = 0x40_0000
POLICY = 0x3_0000
RAPL_DIS = 1 << 2


def initialised(flags: int) -> Machine:
    machine = new_machine()
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP | flags).pack()) == 0
    machine.flush(SnpCommand.DF_FLUSH)
    return machine


@pytest.mark.parametrize("flags", [0, RAPL_DIS])
def test_readings_are_off_where_the_host_asked_for_it_until_shutdown(flags: int) -> None:
    machine = initialised(flags)
    assert machine.bus.power_readings_disabled is bool(flags)
    assert machine.call(SnpCommand.SHUTDOWN_EX, buffers.SnpShutdownEx(length=8).pack()) == 0
    assert not machine.bus.power_readings_disabled


@pytest.mark.parametrize(
    ("flags", "policy", "status"),
    [
        (0, SnpPolicy.RAPL_DIS, Status.POLICY_FAILURE),
        (RAPL_DIS, SnpPolicy.RAPL_DIS, Status.SUCCESS),
        (RAPL_DIS, 0, Status.SUCCESS),
    ],
)
def test_a_guest_that_demands_it_starts_nowhere_else(flags: int, policy: int, status: Status) -> None:
    machine = snp_guest(initialised(flags), SnpGuestState.INIT)
    machine.bus.write(0x1000, start := buffers.SnpLaunchStart(GCTX, POLICY | policy).pack())
    before = machine.snapshot()
    assert machine.call(SnpCommand.LAUNCH_START, start) == status
    assert (machine.snapshot() == before) is (status != 0)


@pytest.mark.parametrize("flags", [0, RAPL_DIS])
def test_status_and_features_tell_of_it(flags: int) -> None:
    machine = initialised(flags)
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(OUT).pack()) == 0
    status = buffers.SnpPlatformStatus.parse(machine.bus.read(OUT, buffers.SnpPlatformStatus.SIZE))
    assert bool(status.policy_flags & 1 << 4) is bool(flags)
    assert machine.call(SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(length=16, address=OUT).pack()) == 0
    assert machine.bus.read(OUT + 8, 4)[0] & 1 << 2
