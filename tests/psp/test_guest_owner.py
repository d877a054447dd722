"""A launch with a guest owner's session: what the owner can verify, and what a host cannot change unseen."""

import dataclasses
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from owner import BLOB, GODH, KEYS, Owner
from toy_machine import COMMAND_PAGE, FIRMWARE, GUEST_PAGE, OUT, PAGE, new_machine, returning, up

from psp import command_buffers as buffers
from psp import elliptic, sev_certificate
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.secret_packet import PacketHeader, pack_secret
from psp.sev_certificate import KeyUsage
from psp.status import Status

HEADER, PACKET = 0x71_0000, 0x71_1000
TMR = 0x80_0000
SECRET = b"the disk's key..".ljust(64, b"\0")
VMSA = bytes(range(256)) * 16
ES = 1 | 1 << 2


def refused(machine, command, buffer):
    """The status of a command that leaves everything as it was."""
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


def es_machine(*, snp=False):
    machine = up(snp=snp, legacy=False)
    if snp:
        for spa in range(TMR, TMR + (1 << 20), PAGE):
            machine.bus.rmp_set(spa, FIRMWARE)
    init = buffers.Init(flags=1, tmr_address=TMR, tmr_length=1 << 20)
    assert machine.call(LegacyCommand.INIT, init.pack()) == Status.SUCCESS
    machine.flush(LegacyCommand.DF_FLUSH)
    return machine


def launched(machine, owner, pages=(b"\x11" * PAGE,), vmsas=()):
    """LAUNCH_START to LAUNCH_MEASURE; handle, measurement and nonce."""
    status, answer = returning(machine, LegacyCommand.LAUNCH_START, owner.start().pack())
    assert status == Status.SUCCESS
    handle = buffers.LaunchStart.parse(answer).handle
    asid = 3 if owner.policy & 4 else 6
    assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, asid).pack()) == Status.SUCCESS
    machine.bus.rmp_set(GUEST_PAGE, FIRMWARE)
    for page in pages:
        machine.bus.write(GUEST_PAGE, page)
        update = buffers.LaunchUpdateData(handle, GUEST_PAGE, len(page))
        assert machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, update.pack()) == Status.SUCCESS
    for page in vmsas:
        machine.bus.write(GUEST_PAGE, page)
        update = buffers.LaunchUpdateVmsa(handle, GUEST_PAGE, PAGE)
        assert machine.call(LegacyCommand.LAUNCH_UPDATE_VMSA, update.pack()) == Status.SUCCESS
        assert machine.bus.read_guest(GUEST_PAGE, PAGE, asid) == page
    machine.bus.rmp_set(OUT, FIRMWARE)
    measure = buffers.LaunchMeasure(handle, OUT, 48).pack()
    assert returning(machine, LegacyCommand.LAUNCH_MEASURE, measure)[0] == Status.SUCCESS
    out = machine.bus.read(OUT, 48)
    return handle, out[:32], out[32:]


def expected_measure(policy, contents, nonce):
    """As the owner computes it (firmware ABI sheet, launch measurement), API 1.55 build 40."""
    digest = hashlib.sha256(contents).digest()
    return hmac.digest(KEYS.tik, bytes([4, 1, 55, 40]) + policy.to_bytes(4, "little") + digest + nonce, "sha256")


@pytest.mark.parametrize("snp", [False, True])
def test_the_owner_verifies_the_measurement_with_the_key_it_chose(snp):
    machine = up(snp=snp)
    _, measure, nonce = launched(machine, Owner(machine), (b"a" * PAGE, b"b" * 64))
    assert measure == expected_measure(1, b"a" * PAGE + b"b" * 64, nonce)
    assert measure != expected_measure(1, b"a" * PAGE + b"c" * 64, nonce)


@pytest.mark.parametrize("snp", [False, True])
def test_save_areas_are_measured_behind_the_data_and_encrypted(snp):
    machine = es_machine(snp=snp)
    _, measure, nonce = launched(machine, Owner(machine, policy=ES), vmsas=(VMSA, bytes(PAGE)))
    assert measure == expected_measure(ES, b"\x11" * PAGE + VMSA + bytes(PAGE), nonce)


def test_two_launches_are_never_measured_with_the_same_nonce():
    machine = up()
    owner = Owner(machine)
    first, second = launched(machine, owner), None
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(first[0]).pack()) == Status.SUCCESS
    machine.flush(LegacyCommand.DF_FLUSH)
    second = launched(machine, owner)
    assert first[2] != second[2]
    assert first[1] != second[1]


def secret_buffer(machine, handle, header, ciphertext):
    machine.bus.write(HEADER, header.pack())
    machine.bus.write(PACKET, ciphertext)
    return buffers.LaunchSecret(handle, HEADER, 0x34, GUEST_PAGE, len(SECRET), PACKET, len(ciphertext))


@pytest.mark.parametrize("snp", [False, True])
def test_a_secret_arrives_in_the_guest_s_memory_and_only_there(snp):
    machine = up(snp=snp)
    handle, measure, _ = launched(machine, Owner(machine))
    header, ciphertext = pack_secret(KEYS, SECRET, measure, b"v" * 16, (1, 55))
    buffer = secret_buffer(machine, handle, header, ciphertext)
    assert machine.call(LegacyCommand.LAUNCH_SECRET, buffer.pack()) == Status.SUCCESS
    assert machine.bus.read_guest(GUEST_PAGE, len(SECRET), 6) == SECRET
    assert all(SECRET[:16] not in page for page in machine.bus.pages.values())
    assert machine.psp.legacy.guests[handle].state is LegacyGuestState.LSECRET
    assert machine.call(LegacyCommand.LAUNCH_FINISH, buffers.Handle(handle).pack()) == Status.SUCCESS
    assert refused(machine, LegacyCommand.LAUNCH_SECRET, buffer) == Status.INVALID_GUEST_STATE


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 0x33 + 64), flips=st.integers(1, 255))
def test_a_packet_with_a_changed_byte_is_refused(at, flips):
    machine = up(snp=False)
    handle, measure, _ = launched(machine, Owner(machine))
    header, ciphertext = pack_secret(KEYS, SECRET, measure, b"v" * 16, (1, 55))
    packet = bytearray(header.pack() + ciphertext)
    packet[at] ^= flips
    buffer = secret_buffer(machine, handle, PacketHeader.parse(bytes(packet)), bytes(packet[0x34:]))
    expected = Status.BAD_MEASUREMENT
    if at < 4:  # flags: bit 0 asks for decompression
        expected = Status.UNSUPPORTED if (at, flips) == (0, 1) else Status.INVALID_PARAM
    assert refused(machine, LegacyCommand.LAUNCH_SECRET, buffer) == expected


def test_a_secret_for_another_launch_is_refused():
    machine = up(snp=False)
    handle, measure, _ = launched(machine, Owner(machine))
    header, ciphertext = pack_secret(KEYS, SECRET, bytes([measure[0] ^ 1]) + measure[1:], b"v" * 16, (1, 55))
    buffer = secret_buffer(machine, handle, header, ciphertext)
    assert refused(machine, LegacyCommand.LAUNCH_SECRET, buffer) == Status.BAD_MEASUREMENT


BAD_SECRETS = {
    "short header": ({"header_length": 0x33}, Status.INVALID_LENGTH),
    "no bytes": ({"guest_length": 0, "transport_length": 0}, Status.INVALID_LENGTH),
    "part of a block": ({"guest_length": 40, "transport_length": 40}, Status.INVALID_LENGTH),
    "too much": ({"guest_length": 0x4010, "transport_length": 0x4010}, Status.INVALID_LENGTH),
    "lengths apart": ({"guest_length": 48}, Status.INVALID_LENGTH),
    "off a block": ({"guest_address": GUEST_PAGE + 8}, Status.INVALID_ADDRESS),
    "no memory for the guest": ({"guest_address": 1 << 40}, Status.INVALID_ADDRESS),
    "no memory for the header": ({"header_address": 1 << 40}, Status.INVALID_ADDRESS),
    "no memory for the packet": ({"transport_address": 1 << 63}, Status.INVALID_ADDRESS),
    "no guest": ({"handle": 9}, Status.INVALID_GUEST),
}


@pytest.mark.parametrize("case", BAD_SECRETS)
def test_bad_ranges_of_a_secret_are_refused(case):
    changes, status = BAD_SECRETS[case]
    machine = up(snp=False)
    handle, measure, _ = launched(machine, Owner(machine))
    header, ciphertext = pack_secret(KEYS, SECRET, measure, b"v" * 16, (1, 55))
    buffer = dataclasses.replace(secret_buffer(machine, handle, header, ciphertext), **changes)
    assert refused(machine, LegacyCommand.LAUNCH_SECRET, buffer) == status


def test_a_secret_needs_an_active_guest():
    machine = up(snp=False)
    handle, measure, _ = launched(machine, Owner(machine))
    assert machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(handle).pack()) == Status.SUCCESS
    header, ciphertext = pack_secret(KEYS, SECRET, measure, b"v" * 16, (1, 55))
    buffer = secret_buffer(machine, handle, header, ciphertext)
    assert refused(machine, LegacyCommand.LAUNCH_SECRET, buffer) == Status.INACTIVE


# LAUNCH_START.


def test_a_policy_that_the_host_changed_is_refused():
    machine = up(snp=False)
    owner = Owner(machine, policy=1)
    for policy in (0, 3, 9):
        assert refused(machine, LegacyCommand.LAUNCH_START, owner.start(policy)) == Status.BAD_MEASUREMENT


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 0x7F), flips=st.integers(1, 255))
def test_a_session_with_a_changed_byte_is_refused(at, flips):
    machine = up(snp=False)
    start = Owner(machine).start()
    (old,) = machine.bus.read(BLOB + at, 1)
    machine.bus.write(BLOB + at, bytes([old ^ flips]))
    assert refused(machine, LegacyCommand.LAUNCH_START, start) == Status.BAD_MEASUREMENT


def test_a_session_for_another_pdh_is_refused():
    machine = up(snp=False)
    start = Owner(machine).start()
    assert machine.call(LegacyCommand.PDH_GEN) == Status.SUCCESS
    assert refused(machine, LegacyCommand.LAUNCH_START, start) == Status.BAD_MEASUREMENT


BAD_GODH = {
    "version": {"version": 2},
    "usage": {"usage": KeyUsage.PEK},
    "algorithm": {"algorithm": 2},
    "curve": {"public_key": (1).to_bytes(4, "little").ljust(0x404, b"\0")},
    "point at infinity": {"public_key": (2).to_bytes(4, "little").ljust(0x404, b"\0")},
    "off the curve": {"public_key": (2).to_bytes(4, "little") + b"\x05".ljust(0x400, b"\0")},
}


@pytest.mark.parametrize("case", BAD_GODH)
def test_a_dh_certificate_that_is_none_is_refused(case):
    machine = up(snp=False)
    owner = Owner(machine)
    owner.certificate = dataclasses.replace(owner.certificate, **BAD_GODH[case])
    assert refused(machine, LegacyCommand.LAUNCH_START, owner.start()) == Status.INVALID_CERTIFICATE


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"dh_certificate_length": 0x823}, Status.INVALID_LENGTH),
        ({"session_length": 0x7F}, Status.INVALID_LENGTH),
        ({"session_address": 1 << 60}, Status.INVALID_ADDRESS),
        ({"dh_certificate_address": (1 << 24) - 16}, Status.INVALID_ADDRESS),
        ({"session_address": GODH}, Status.BAD_MEASUREMENT),
        ({"policy": 1 | 4}, Status.POLICY_FAILURE),
    ],
)
def test_bad_fields_of_launch_start_are_refused(changes, status):
    machine = up(snp=False)
    start = dataclasses.replace(Owner(machine).start(), **changes)
    assert refused(machine, LegacyCommand.LAUNCH_START, start) == status


def test_without_a_certificate_the_session_is_not_looked_at_and_nobody_can_verify():
    machine = up(snp=False)
    start = buffers.LaunchStart(policy=1, session_address=1 << 60, session_length=3)
    assert machine.call(LegacyCommand.LAUNCH_START, start.pack()) == Status.SUCCESS
    (guest,) = machine.psp.legacy.guests.values()
    assert guest.transport.tek != guest.transport.tik
    assert guest.transport != KEYS


# LAUNCH_UPDATE_VMSA and INIT for SEV-ES.


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"length": 4095}, Status.INVALID_LENGTH),
        ({"length": 8192}, Status.INVALID_LENGTH),
        ({"address": GUEST_PAGE + 16}, Status.INVALID_ADDRESS),
        ({"address": 1 << 40}, Status.INVALID_ADDRESS),
        ({"handle": 7}, Status.INVALID_GUEST),
    ],
)
def test_launch_update_vmsa_takes_one_page_of_an_es_guest(changes, status):
    machine = es_machine()
    status_start, answer = returning(machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=ES).pack())
    assert status_start == Status.SUCCESS
    handle = buffers.LaunchStart.parse(answer).handle
    update = buffers.LaunchUpdateVmsa(handle, GUEST_PAGE, PAGE)
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, update) == Status.INACTIVE
    assert machine.call(LegacyCommand.ACTIVATE, buffers.Activate(handle, 3).pack()) == Status.SUCCESS
    wrong = dataclasses.replace(update, **changes)
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, wrong) == status


def test_a_guest_without_es_has_no_save_area_to_launch():
    machine = up(snp=False)
    status, answer = returning(machine, LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=1).pack())
    assert status == Status.SUCCESS
    update = buffers.LaunchUpdateVmsa(buffers.LaunchStart.parse(answer).handle, GUEST_PAGE, PAGE)
    assert refused(machine, LegacyCommand.LAUNCH_UPDATE_VMSA, update) == Status.POLICY_FAILURE


@pytest.mark.parametrize(
    ("init", "status"),
    [
        (buffers.Init(1, 0, 1 << 20), Status.INVALID_ADDRESS),
        (buffers.Init(1, TMR + PAGE, 1 << 20), Status.INVALID_ADDRESS),
        (buffers.Init(1, TMR, (1 << 20) - 1), Status.INVALID_LENGTH),
        (buffers.Init(1, 1 << 40, 1 << 20), Status.INVALID_ADDRESS),
    ],
)
def test_init_for_es_wants_its_trusted_region(init, status):
    assert refused(new_machine(), LegacyCommand.INIT, init) == status


def test_under_snp_the_trusted_region_is_the_firmware_s_and_aligned_to_2_mib():
    machine = up(legacy=False)
    inside = buffers.Init(1, TMR + (1 << 20), 1 << 20)
    assert refused(machine, LegacyCommand.INIT, inside) == Status.INVALID_ADDRESS
    assert refused(machine, LegacyCommand.INIT, buffers.Init(1, TMR, 1 << 20)) == Status.INVALID_PAGE_STATE


def test_platform_status_shows_es_until_shutdown():
    def config():
        _, answer = returning(machine, LegacyCommand.PLATFORM_STATUS, buffers.PlatformStatus().pack())
        return buffers.PlatformStatus.parse(answer).config

    machine = es_machine()
    assert config() == 40 << 24 | 1
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    assert config() == 40 << 24
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert config() == 40 << 24


# ATTESTATION.


def test_a_running_guest_s_digest_is_attested_by_the_pek():
    machine = up(snp=False)
    handle, _, _ = launched(machine, Owner(machine))
    assert machine.call(LegacyCommand.LAUNCH_FINISH, buffers.Handle(handle).pack()) == Status.SUCCESS
    asked = buffers.Attestation(handle, OUT, b"fresh".ljust(16, b"!"), 0xD0)
    short = dataclasses.replace(asked, length=0xCF)
    status, back = returning(machine, LegacyCommand.ATTESTATION, short.pack())
    assert (status, buffers.Attestation.parse(back)) == (Status.INVALID_LENGTH, asked)
    assert returning(machine, LegacyCommand.ATTESTATION, asked.pack())[0] == Status.SUCCESS
    report = machine.bus.read(OUT, 0xD0)
    assert report[:16] == asked.mnonce
    assert report[0x10:0x30] == hashlib.sha256(b"\x11" * PAGE).digest()
    assert report[0x30:0x34] == (1).to_bytes(4, "little")
    pek = sev_certificate.public_key(machine.psp.legacy.keys.chain().pek)
    signature = report[0x40:0xD0].ljust(512, b"\0")
    sha256 = sev_certificate.ECDSA_HASHES[2]
    assert elliptic.verifies(pek, signature, report[:0x34], sha256)
    assert not elliptic.verifies(pek, signature, b"?" + report[1:0x34], sha256)
