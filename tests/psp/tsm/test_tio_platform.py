"""What the firmware says of TIO: features, the platform's status, reports."""

from __future__ import annotations

import pytest
from device_bench import STATUS, new_bench
from toy_machine import FIRMWARE, new_machine, up

from psp import command_buffers as buffers
from psp.attestation_report import PLATFORM_TIO
from psp.commands import COMMANDS, SnpCommand
from psp.status import Status


@pytest.mark.parametrize("enabled", [False, True])
def test_features_status_and_reports_say_whether_tio_is_there_and_on(*, enabled: bool) -> None:
    bench = new_bench(enabled=enabled, tio_init=False)
    bench.lend(STATUS)
    assert bench.machine.call(SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(16, 0, STATUS).pack()) == 0
    assert bench.machine.bus.read(STATUS + 4, 4) == b"\x02\0\0\0"
    assert bench.machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(STATUS).pack()) == 0
    found = buffers.SnpPlatformStatus.parse(bench.machine.bus.read(STATUS, 32))
    assert found.flags >> 3 & 1 == enabled
    assert found.policy_flags >> 7 & 1
    assert bool(bench.machine.psp.snp._platform_info() & PLATFORM_TIO) == enabled


def test_a_machine_without_trusted_io_says_so_and_refuses_every_command() -> None:
    machine = up(legacy=False)
    machine.bus.rmp_set(STATUS, FIRMWARE)
    assert machine.call(SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(16, 0, STATUS).pack()) == 0
    assert machine.bus.read(STATUS + 4, 4) == bytes(4)
    assert machine.call(SnpCommand.PLATFORM_STATUS, buffers.SnpAddress(STATUS).pack()) == 0
    found = buffers.SnpPlatformStatus.parse(machine.bus.read(STATUS, 32))
    assert (found.flags >> 3 & 1, found.policy_flags >> 7 & 1) == (0, 0)
    for command, row in COMMANDS.items():
        if 0xD0 <= command <= 0xE4 and row.layout is not None:
            data = row.layout.SIZE.to_bytes(4, "little") + bytes(row.layout.SIZE - 4)
            machine.bus.write(0x1000, data)
            before = machine.snapshot()
            assert machine.psp.submit(command, 0x1000) == Status.UNSUPPORTED
            assert machine.snapshot() == before


def test_tio_is_not_switched_on_where_it_is_not() -> None:
    machine = new_machine()
    init = buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP | buffers.SNP_INIT_TIO)
    assert machine.call(SnpCommand.INIT_EX, init.pack()) == Status.UNSUPPORTED


def test_a_shutdown_switches_tio_off() -> None:
    bench = new_bench()
    shutdown = buffers.SnpShutdownEx(buffers.SnpShutdownEx.SIZE)
    assert bench.machine.call(SnpCommand.SHUTDOWN_EX, shutdown.pack()) == Status.SUCCESS
    init = buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP)
    assert bench.machine.call(SnpCommand.INIT_EX, init.pack()) == Status.SUCCESS
    assert not bench.machine.psp.snp._platform_info() & PLATFORM_TIO
