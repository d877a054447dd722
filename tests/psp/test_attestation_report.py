"""Reports: the layout of real ones, and what firmware says in each version of which guest."""

import pytest
from asking_guest import RESPONSE, TCB, ask, running
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from toy_machine import FIRMWARE, GCTX, POLICY, context, snp_guest, up

from psp import attestation_report, elliptic
from psp import command_buffers as buffers
from psp.alias_check import AliasCheck
from psp.attestation_report import SIGNED_BYTES, AttestationReport
from psp.commands import SnpCommand
from psp.guest_context import VCEK_DISABLED
from psp.guest_message import MessageType
from psp.installed_firmware import FirmwareLevel
from psp.status import Status
from psp.system_bus import MachineFacts
from psp.vlek import provider_hashstick

DATA = bytes(range(64))


def request(vmpl=0, select=0, data=DATA):
    return data + vmpl.to_bytes(4, "little") + select.to_bytes(4, "little") + bytes(24)


def answered(machine, payload=None, vmpl=0):
    """Status and report."""
    answer = ask(machine, MessageType.REPORT_REQ, request() if payload is None else payload, vmpl)
    status, length = (int.from_bytes(answer[at : at + 4], "little") for at in (0, 4))
    assert answer[8:0x20] == bytes(24)
    assert len(answer) == 0x20 + length == (0x20 if status else 0x20 + 0x4A0)
    return status, answer[0x20:]


def is_signed_by(report, public):
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    public.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    return not any(report[0x330:])


@pytest.fixture(params=["a.bin", "b.hex"])
def real(request, test_data):
    raw = (test_data / "vectors" / f"milan-v2-report-{request.param}").read_bytes()
    report = raw if request.param.endswith("bin") else bytes.fromhex(raw.decode())
    vcek = (test_data / "vectors" / f"milan-v2-vcek-{request.param[0]}.der").read_bytes()
    return report, x509.load_der_x509_certificate(vcek)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # AMD's VCEKs all have number 0
def test_a_real_report_is_read_and_made_again_byte_by_byte(real):
    report, vcek = real
    assert len(report) == attestation_report.REPORT_BYTES
    read = AttestationReport.parse(report)
    assert read.pack() == report[:SIGNED_BYTES]
    assert read.version == 2
    assert read.report_id_ma == b"\xff" * 32
    assert elliptic.verifies(vcek.public_key(), report[SIGNED_BYTES:], read.pack(), hashes.SHA384())


def test_a_report_says_what_the_sheet_has_at_each_offset():
    machine = running(
        guest_svn=0x11223344, family_id=b"F" * 16, image_id=b"I" * 16, host_data=b"H" * 32, id_key_digest=b"K" * 48,
        author_key_digest=b"A" * 48, launch_tcb=0x0102030405060708, digest=b"D" * 48,
    )  # fmt: skip
    snp = machine.psp.snp
    snp.alias_check = AliasCheck.COMPLETE
    firmware = machine.psp.firmware
    firmware.committed = FirmwareLevel((1, 54, 7), TCB)
    firmware.current, firmware.reported_tcb = FirmwareLevel((1, 55, 40), TCB + 1), TCB - 1
    machine.bus.machine_facts = MachineFacts(0x00A10F12, 1, smt=True, tsme=True, ecc=True)
    status, report = answered(machine, request(2, 1), vmpl=1)
    assert status == 0
    expected = {
        0x000: (3).to_bytes(4, "little"), 0x004: b"\x44\x33\x22\x11", 0x008: POLICY.to_bytes(8, "little"),
        0x010: b"F" * 16 + b"I" * 16, 0x030: b"\2\0\0\0\1\0\0\0", 0x038: (TCB + 1).to_bytes(8, "little"),
        0x040: b"\x27" + bytes(7), 0x048: b"\1" + bytes(7), 0x050: DATA, 0x090: b"D" * 48, 0x0C0: b"H" * 32,
        0x0E0: b"K" * 48, 0x110: b"A" * 48, 0x140: context(machine).report_id, 0x160: b"\xff" * 32,
        0x180: (TCB - 1).to_bytes(8, "little"), 0x188: b"\x19\x11\x02" + bytes(21),
        0x1A0: machine.psp.legacy.keys.chip.chip_id, 0x1E0: TCB.to_bytes(8, "little"),
        0x1E8: bytes([40, 55, 1, 0, 7, 54, 1, 0]), 0x1F0: bytes([8, 7, 6, 5, 4, 3, 2, 1]), 0x1F8: bytes(0xA8),
    }  # fmt: skip
    assert {at: report[at : at + len(octets)] for at, octets in expected.items()} == expected
    assert sum(map(len, expected.values())) == 0x2A0, "every byte that is signed"
    key = machine.psp.legacy.keys.chip.vcek_key(TCB - 1)
    assert is_signed_by(report, key.public_key())


@pytest.mark.parametrize(
    ("api", "version"),
    [((1, 49, 3), 2), ((1, 52, 4), 2), ((1, 54, 0), 3), ((1, 55, 29), 3), ((1, 55, 40), 3), ((1, 57, 9), 4),
     ((1, 58, 1), 5), ((2, 0, 0), 5)],
)  # fmt: skip
def test_firmware_s_age_decides_the_version(api, version):
    assert attestation_report.report_version(api) == version


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_each_version_adds_fields_to_those_before(version):
    machine = running(launch_mitigations=3)
    machine.psp.snp.reports.forced_version = version
    machine.psp.snp.mitigations.verified = 7
    _, report = answered(machine)
    assert report[0] == version
    assert report[0x188:0x18B] == (bytes(3) if version < 3 else b"\x19\x01\x01")
    vectors = report[0x1F8:0x208]
    assert vectors == (bytes(16) if version < 5 else (3).to_bytes(8, "little") + (7).to_bytes(8, "little"))
    assert not any(report[0x208:0x2A0])
    assert is_signed_by(report, machine.psp.legacy.keys.chip.vcek_key(TCB).public_key())


@pytest.mark.parametrize(
    ("fields", "bit"),
    [((), 0), (("smt",), 1 << 0), (("tsme",), 1 << 1), (("ecc",), 1 << 2), (("smt", "tsme", "ecc"), 7)],
)
def test_what_is_said_of_the_platform_is_what_it_has(fields, bit):
    machine = running()
    has = {name: name in fields for name in ("smt", "tsme", "ecc")}
    machine.bus.machine_facts = MachineFacts(0x00A00F11, 1, **has)
    assert answered(machine)[1][0x40:0x48] == bit.to_bytes(8, "little")


def test_equal_machines_make_equal_reports():
    one, another = (answered(running())[1] for _ in range(2))
    assert one == another
    assert answered(running(), request(data=bytes(64)))[1] != one


@pytest.mark.parametrize("vmpl", range(4))
@pytest.mark.parametrize("claimed", [0, 1, 2, 3, 4, 0xFFFF_FFFF])
def test_a_vmpl_has_reports_of_itself_and_of_those_below(vmpl, claimed):
    status, report = answered(running(), request(claimed), vmpl)
    if vmpl <= claimed <= 3:
        assert (status, report[0x30]) == (0, claimed)
    else:
        assert status == Status.INVALID_PARAM


@pytest.mark.parametrize("at", [0x44 + 1, 0x47, *range(0x48, 0x60, 5)])
def test_what_is_reserved_in_a_request_is_zero(at):
    payload = bytearray(request())
    payload[at] = 1
    assert answered(running(), bytes(payload))[0] == Status.INVALID_PARAM


# Which key signs.

BLOB = 0x43_0000


def with_vlek(**changes):
    machine = running(**changes)
    chip_key = machine.psp.legacy.keys.chip.symmetric_key("sev-vlek-wrapping")
    machine.bus.write(BLOB, provider_hashstick(b"a provider", TCB).wrapped(chip_key, b"iv of twelve"))
    assert machine.call(SnpCommand.VLEK_LOAD, buffers.SnpVlekLoad(0x10, 0, BLOB).pack()) == 0
    return machine


@pytest.mark.parametrize(("select", "signing"), [(0, 1), (1, 0), (2, 1)])
def test_a_vlek_signs_where_it_is_loaded_and_names_no_chip(select, signing):
    machine = with_vlek()
    status, report = answered(machine, request(select=select))
    assert status == 0
    assert report[0x48] >> 2 & 7 == signing
    assert any(report[0x1A0:0x1E0]) == (signing == 0)
    vcek = machine.psp.legacy.keys.chip.vcek_key(TCB).public_key()
    assert is_signed_by(report, provider_hashstick(b"a provider", TCB).key().public_key() if signing else vcek)


def test_a_vlek_signs_for_what_is_reported_and_not_for_more():
    machine = with_vlek()
    machine.psp.firmware.reported_tcb = TCB - 1
    _, report = answered(machine)
    assert is_signed_by(report, provider_hashstick(b"a provider", TCB - 1).key().public_key())
    machine.psp.firmware.reported_tcb = TCB + 1
    assert answered(machine)[0] == Status.INVALID_KEY


@pytest.mark.parametrize(
    ("make", "select", "status"),
    [
        (running, 2, Status.INVALID_KEY),
        (running, 3, Status.INVALID_PARAM),
        (with_vlek, 3, Status.INVALID_PARAM),
        (lambda: running(flags=VCEK_DISABLED), 0, Status.INVALID_KEY),
        (lambda: running(flags=VCEK_DISABLED), 1, Status.INVALID_KEY),
        (lambda: with_vlek(flags=VCEK_DISABLED), 1, Status.INVALID_KEY),
        (lambda: with_vlek(flags=VCEK_DISABLED), 0, 0),
    ],
)
def test_a_key_that_is_not_there_or_forbidden_signs_nothing(make, select, status):
    assert answered(make(), request(select=select))[0] == status


def test_masks_of_the_configuration_hide_the_chip_and_its_key():
    machine = running()
    machine.psp.snp.configuration.flags = buffers.SNP_CONFIG_MASK_CHIP_ID
    _, report = answered(machine)
    assert report[0x1A0:0x1E0] == bytes(64)
    assert report[0x48] == 0
    assert is_signed_by(report, machine.psp.legacy.keys.chip.vcek_key(TCB).public_key())
    machine.psp.snp.configuration.flags = buffers.SNP_CONFIG_MASK_CHIP_KEY
    _, report = answered(machine)
    assert report[0x48] == 1 << 1 | 7 << 2
    assert report[0x2A0:] == bytes(512)
    assert report[0x1A0:0x1E0] == machine.psp.legacy.keys.chip.chip_id
    provider = with_vlek()
    provider.psp.snp.configuration.flags = buffers.SNP_CONFIG_MASK_CHIP_KEY
    _, report = answered(provider)
    assert (report[0x48], report[0x1A0:0x1E0], report[0x2A0:]) == (1 << 1 | 7 << 2, bytes(64), bytes(512))


def test_hidden_ciphertext_shows():
    machine = running()
    machine.psp.asid_ranges.max_snp_asid = 3
    _, report = answered(machine)
    assert report[0x40] >> 4 & 1
    assert not report[0x40] >> 3 & 1


def test_that_energy_is_told_to_nobody_shows():
    machine = running()
    machine.bus.disable_power_readings(disabled=True)
    _, report = answered(machine)
    assert report[0x40] >> 3 & 1


def test_a_launch_may_forbid_the_vcek_for_ever():
    machine = snp_guest(up())
    finish = buffers.SnpLaunchFinish(GCTX, flags=buffers.SNP_FINISH_NO_VCEK)
    assert machine.call(SnpCommand.LAUNCH_FINISH, finish.pack()) == 0
    machine.bus.rmp_set(RESPONSE, FIRMWARE)
    assert answered(machine)[0] == Status.INVALID_KEY
