"""SNP_VERIFY_MITIGATION: what firmware says of the mitigations it knows."""

import dataclasses

import pytest
from toy_machine import COMMAND_PAGE, FIRMWARE, OUT, new_machine, up

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.firmware import SecurityProcessor
from psp.installed_firmware import FirmwareLevel
from psp.mitigations import REQ_STATUS, REQ_VERIFY
from psp.status import Status

FIRST, SECOND, FAILING, UNKNOWN = 1 << 0, 1 << 5, 1 << 63, 1 << 1


def machine_of(api=(1, 58, 0)):
    machine = up(snp=False, legacy=False)
    level = FirmwareLevel(api)
    machine.psp = SecurityProcessor(machine.bus, lambda _purpose, _counter, length: bytes(length), level)
    assert machine.call(SnpCommand.INIT_EX, buffers.SnpInitEx(flags=buffers.SNP_INIT_RMP).pack()) == 0
    machine.bus.rmp_set(OUT, FIRMWARE)
    return machine


@pytest.fixture
def machine():
    made = machine_of()
    made.psp.snp.mitigations.supported = FIRST | SECOND | FAILING
    made.psp.snp.mitigations.failures = {FAILING: 7}
    return made


def asked(subcommand, vector=0, **changes):
    return dataclasses.replace(buffers.SnpVerifyMitigation(0x40, subcommand, vector, 1, 0, OUT), **changes)


def verify(machine, buffer):
    return machine.call(SnpCommand.VERIFY_MITIGATION, buffer.pack())


def answer(machine):
    return tuple(int.from_bytes(machine.bus.read(OUT + at, width), "little") for at, width in ((0, 8), (8, 8), (16, 4)))


def test_verified_bits_gather_and_a_failed_one_is_not_among_them(machine):
    known = FIRST | SECOND | FAILING
    assert (verify(machine, asked(REQ_STATUS)), answer(machine)) == (0, (0, known, 0))
    assert (verify(machine, asked(REQ_VERIFY, SECOND)), answer(machine)) == (0, (SECOND, known, 0))
    assert (verify(machine, asked(REQ_VERIFY, FAILING)), answer(machine)) == (0, (SECOND, known, 7))
    assert (verify(machine, asked(REQ_VERIFY, FIRST)), answer(machine)) == (0, (FIRST | SECOND, known, 0))
    assert (verify(machine, asked(REQ_STATUS)), answer(machine)) == (0, (FIRST | SECOND, known, 0))


def test_it_answers_nowhere_if_it_is_not_told_where(machine):
    before = machine.bus.read(OUT, 0x14)
    assert verify(machine, asked(REQ_VERIFY, FIRST, flags=0, destination=1 << 60)) == 0
    assert machine.bus.read(OUT, 0x14) == before
    assert machine.psp.snp.mitigations.verified == FIRST


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (asked(REQ_STATUS, length=0x3F), Status.INVALID_LENGTH),
        (asked(REQ_STATUS, length=0), Status.INVALID_LENGTH),
        (asked(2), Status.INVALID_PARAM),
        (asked(REQ_STATUS, flags=1 << 2), Status.INVALID_PARAM),
        (asked(REQ_STATUS, flags=0b11), Status.UNSUPPORTED),
        (asked(REQ_VERIFY, 0), Status.INVALID_PARAM),
        (asked(REQ_VERIFY, FIRST | SECOND), Status.INVALID_PARAM),
        (asked(REQ_VERIFY, UNKNOWN), Status.INVALID_PARAM),
        (asked(REQ_VERIFY, FIRST, destination=OUT + 0x1000), Status.INVALID_PAGE_STATE),
        (asked(REQ_STATUS, destination=1 << 60), Status.INVALID_ADDRESS),
    ],
)
def test_bad_requests_change_nothing(machine, buffer, status):
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    assert verify(machine, buffer) == status
    assert machine.snapshot() == before


@pytest.mark.parametrize(("api", "offered"), [((1, 55, 40), False), ((1, 58, 0), True), ((2, 0, 0), True)])
def test_feature_info_offers_it_where_it_is(api, offered):
    machine = machine_of(api)
    assert machine.call(SnpCommand.FEATURE_INFO, buffers.SnpFeatureInfo(0x10, 0, OUT).pack()) == 0
    assert bool(int.from_bytes(machine.bus.read(OUT + 8, 4), "little") & 1 << 13) == offered
    assert verify(machine, asked(REQ_STATUS)) == (Status.SUCCESS if offered else Status.UNSUPPORTED)


def test_firmware_knows_no_mitigation_unless_it_is_told():
    assert new_machine().psp.snp.mitigations.supported == 0
