"""Whom the PDH agrees on a key with: only points of P-384, and what firmware gives away that does not ask for that."""

import dataclasses
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import COMMAND_PAGE, sev_guest, up

from psp import command_buffers as buffers
from psp import elliptic, sev_certificate
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.sev_certificate import KeyUsage
from psp.sev_session import TransportKeys, seal, wrapping_keys
from psp.status import Status
from psp.unchecked_point import unchecked_secret

CERTIFICATE, SESSION, CHAIN = 0x50_0000, 0x50_1000, 0x50_2000
KEYS = TransportKeys(b"e" * 16, b"i" * 16)
OURS = elliptic.private_key(hashlib.shake_128(b"GODH").digest(56))
NUMBERS = OURS.public_key().public_numbers()
GENERATOR_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973

# A point of order 5 on a curve that is not P-384, found with PARI/GP.
FIVE = (
    0xFCDC8A7D475FBF65E0CA2FBFA449AAEFFC20C9E47374C483B26A318AF63F29AB38C9B8D670A603E65F67963144625A9B,
    0x01FF875BF24885FE457D17D4EEF7F887A4E22B8C1A4EC53A8F2A4EBD149A955BABDEDEA2B9F3A5072E90D061BEE071EC,
)


PEK, OCA = (elliptic.private_key(hashlib.shake_128(name).digest(56)) for name in (b"PEK", b"OCA"))


def chain():
    """PEK, OCA and CEK of a platform that nobody but the sender of the certificates vouches for."""
    pek, oca, cek = (
        sev_certificate.unsigned(key.public_key(), usage, (0, 24))
        for key, usage in ((PEK, KeyUsage.PEK), (OCA, KeyUsage.OCA), (OCA, KeyUsage.CEK))
    )
    signed = (sev_certificate.sign(one, OCA, KeyUsage.OCA) for one in (pek, oca))
    return b"".join(one.pack() for one in (*signed, cek))


def certificate(x, y, curve=2):
    made = sev_certificate.unsigned(OURS.public_key(), KeyUsage.PDH, (0, 24))
    field = elliptic.pack_coordinates(x, y)
    return dataclasses.replace(made, public_key=curve.to_bytes(4, "little") + field[4:])


def launch(machine, theirs, z, command=LegacyCommand.LAUNCH_START):
    """The status of a launch with a session that is sealed with Z; whatever is refused has changed nothing."""
    machine.bus.write(CERTIFICATE, theirs.pack())
    machine.bus.write(SESSION, seal(z, 0, KEYS, bytes(16), bytes(16)).pack())
    machine.bus.write(COMMAND_PAGE, buffers.LaunchStart(0, 0, CERTIFICATE, 0x824, SESSION, 0x80).pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert status == Status.SUCCESS or machine.snapshot() == before
    return status


def send(machine, pdh):
    signed = sev_certificate.sign(pdh, PEK, KeyUsage.PEK)
    machine.bus.write(CERTIFICATE, signed.pack())
    machine.bus.write(CHAIN, TARGET_CHAIN)
    start = buffers.SendStart(1, 0, CERTIFICATE, 0x824, CHAIN, 3 * 0x824, 0, 0, SESSION, 0x80)
    machine.bus.write(COMMAND_PAGE, start.pack())
    before = machine.snapshot()
    status = machine.psp.submit(LegacyCommand.SEND_START, COMMAND_PAGE)
    assert status == Status.SUCCESS or machine.snapshot() == before
    return status


def without_check():
    machine = up(snp=False)
    machine.psp.legacy.keys.checks_points = False
    return machine


CHECKED, UNCHECKED = up(snp=False), without_check()
for one in (CHECKED, UNCHECKED):
    sev_guest(one, LegacyGuestState.RUNNING)
    one.psp.legacy.guests[1].policy = 0
TARGET_CHAIN = chain()
NO_POINTS = {
    "infinity as zeros": (0, 0),
    "off the curve": (NUMBERS.x, NUMBERS.y ^ 1),
    "coordinates swapped": (NUMBERS.y, NUMBERS.x),
    "small order": FIVE,
    "x beyond the field": (NUMBERS.x + elliptic.FIELD, NUMBERS.y),
    "y beyond the field": (NUMBERS.x, NUMBERS.y + elliptic.FIELD),
    "beyond every field": ((1 << 576) - 1, (1 << 576) - 1),
}


@pytest.mark.parametrize("command", [LegacyCommand.LAUNCH_START, LegacyCommand.RECEIVE_START])
@pytest.mark.parametrize("point", NO_POINTS.values(), ids=NO_POINTS)
def test_a_launch_with_no_point_of_the_curve_is_refused(point, command):
    x, y = point
    z = unchecked_secret(CHECKED.psp.legacy.keys.pdh_key.private_numbers().private_value, x, y)
    assert launch(CHECKED, certificate(x, y), z, command) == Status.INVALID_CERTIFICATE


@pytest.mark.parametrize("point", NO_POINTS.values(), ids=NO_POINTS)
def test_no_guest_is_sent_to_what_is_no_point_of_the_curve(point):
    assert send(CHECKED, certificate(*point)) == Status.INVALID_CERTIFICATE


@pytest.mark.parametrize("machine", [CHECKED, UNCHECKED], ids=["checked", "unchecked"])
@pytest.mark.parametrize("curve", [0, 1, 3, 1 << 31])
def test_another_curve_s_number_is_refused_with_and_without_the_check(machine, curve):
    theirs = certificate(NUMBERS.x, NUMBERS.y, curve)
    assert launch(machine, theirs, bytes(48)) == Status.INVALID_CERTIFICATE
    assert send(machine, theirs) == Status.INVALID_CERTIFICATE


@given(st.integers(1, GENERATOR_ORDER - 1), st.binary(min_size=56, max_size=56))
@settings(max_examples=10, deadline=None)
def test_with_points_of_the_curve_firmware_without_the_check_agrees_as_any_other(scalar, seed):
    ours, theirs = ec.derive_private_key(scalar, ec.SECP384R1()), elliptic.private_key(seed).public_key()
    numbers = theirs.public_numbers()
    assert unchecked_secret(scalar, numbers.x, numbers.y) == elliptic.shared_secret(ours, theirs)


@pytest.mark.parametrize("scalar", range(11))
def test_on_a_small_curve_there_are_few_shared_points(scalar):
    first = unchecked_secret(1, *FIVE)
    second = unchecked_secret(2, *FIVE)
    assert first != second
    assert unchecked_secret(scalar, *FIVE) == (bytes(48), first, second, second, first)[scalar % 5]


def test_firmware_without_the_check_tells_its_scalar_modulo_a_small_order():
    """CVE-2019-9836: the launch that succeeds says which of the few points was shared."""
    machine = without_check()
    scalar = machine.psp.legacy.keys.pdh_key.private_numbers().private_value
    guesses = [unchecked_secret(residue, *FIVE) for residue in range(3)]
    found = [launch(machine, certificate(*FIVE), z) for z in guesses]
    assert sorted(found) == [Status.SUCCESS, Status.BAD_MEASUREMENT, Status.BAD_MEASUREMENT]
    residue = found.index(Status.SUCCESS)
    assert scalar % 5 in (residue, (5 - residue) % 5)


def test_firmware_without_the_check_seals_for_a_point_of_small_order():
    """CVE-2021-26408: one SEND_START is enough for a guess without any further question."""
    machine = without_check()
    sev_guest(machine, LegacyGuestState.RUNNING)
    machine.psp.legacy.guests[1].policy = 0
    assert send(machine, certificate(*FIVE)) == Status.SUCCESS
    session = machine.bus.read(SESSION, 0x80)
    nonce, wrapped, mac = session[:16], session[0x10:0x30], session[0x40:0x60]
    fits = [
        residue for residue in range(3)
        if hmac.digest(wrapping_keys(unchecked_secret(residue, *FIVE), nonce).kik, wrapped, "sha256") == mac
    ]  # fmt: skip
    scalar = machine.psp.legacy.keys.pdh_key.private_numbers().private_value
    assert fits == [min(scalar % 5, 5 - scalar % 5) % 5]
