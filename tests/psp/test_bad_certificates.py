"""Certificates that are wrong in one way, at the commands that read them: the documented status, and nothing changed.

The SEV interface's certificates have no dates, so none is expired or of the future.
"""

import dataclasses
import hashlib

import pytest
from toy_machine import COMMAND_PAGE, FIRMWARE, OUT, returning, up

from psp import command_buffers as buffers
from psp import elliptic, sev_certificate
from psp.commands import LegacyCommand
from psp.sev_certificate import KeyAlgorithm, KeyUsage, SevCertificate
from psp.sev_session import TransportKeys, seal
from psp.status import Status

PEK_AT, OCA_AT, CERTIFICATE, SESSION = 0x50_0000, 0x50_1000, 0x50_2000, 0x50_3000
OWNER, STRANGER = (elliptic.private_key(hashlib.shake_128(name).digest(56)) for name in (b"owner", b"stranger"))
MACHINE = up()
KEYS = MACHINE.psp.legacy.keys


def refusal(command, buffer):
    MACHINE.bus.write(COMMAND_PAGE, buffer.pack())
    before = MACHINE.snapshot()
    status = MACHINE.psp.submit(command, COMMAND_PAGE)
    assert status != Status.SUCCESS
    assert MACHINE.snapshot() == before
    return status


def request():
    """PEK_CSR."""
    MACHINE.bus.rmp_set(OUT, FIRMWARE)
    assert returning(MACHINE, LegacyCommand.PEK_CSR, buffers.Output(OUT, 0x824).pack())[0] == Status.SUCCESS
    return sev_certificate.parse(MACHINE.bus.read(OUT, 0x824), KeyUsage.PEK)


def owned(key=OWNER):
    """PEK and OCA as an owner hands them in."""
    oca = sev_certificate.unsigned(key.public_key(), KeyUsage.OCA, (1, 55))
    return sev_certificate.sign(request(), key, KeyUsage.OCA), sev_certificate.sign(oca, key, KeyUsage.OCA)


PEK, OCA = owned()


def imported(pek, oca, lengths=(0x824, 0x824)):
    for spa, octets in ((PEK_AT, pek), (OCA_AT, oca)):
        MACHINE.bus.write(spa, octets.ljust(0x1000, b"\0")[:0x1000])
    return refusal(LegacyCommand.PEK_CERT_IMPORT, buffers.PekCertImport(PEK_AT, lengths[0], OCA_AT, lengths[1]))


def flipped(octets, at):
    return octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]


LOOKED_AT = [
    field for field in dataclasses.fields(SevCertificate) if not field.name.startswith("second")
]  # fmt: skip
"""An owner's PEK and its OCA carry one signature; what is in the empty slot is nobody's concern."""


@pytest.mark.parametrize("field", LOOKED_AT, ids=lambda field: field.name)
@pytest.mark.parametrize("which", ["PEK", "OCA"])
def test_an_owner_s_certificate_with_a_field_flipped_is_refused(which, field):
    first, last = field.metadata["offset"], field.metadata["offset"] + field.metadata["width"] - 1
    for at in {first, last}:
        pek, oca = PEK.pack(), OCA.pack()
        bad = (flipped(pek, at), oca) if which == "PEK" else (pek, flipped(oca, at))
        assert imported(*bad) == Status.INVALID_CERTIFICATE, hex(at)


@pytest.mark.parametrize("at", [0x61C, 0x620, 0x624, 0x700, 0x823], ids=hex)
def test_an_owner_s_root_with_something_in_its_empty_slot_is_refused(at):
    assert imported(PEK.pack(), flipped(OCA.pack(), at)) == Status.INVALID_CERTIFICATE


def resigned(certificate, key=OWNER, **changes):
    """Signed anew after a change, so that nothing but the change is wrong."""
    bare = dataclasses.replace(certificate, first_usage=KeyUsage.INVALID, first_algorithm=0, first_signature=bytes(512))
    return sev_certificate.sign(dataclasses.replace(bare, **changes), key, KeyUsage.OCA).pack()


STRANGE_PEK, STRANGE_OCA = owned(STRANGER)
POINT_OFF = dataclasses.replace(OCA, public_key=flipped(OCA.public_key, 4))
WRONG = {
    "order swapped": (OCA.pack(), PEK.pack()),
    "PEK signed by itself": (sev_certificate.sign(request(), KEYS.pek_key, KeyUsage.OCA).pack(), OCA.pack()),
    "PEK of another owner": (STRANGE_PEK.pack(), OCA.pack()),
    "OCA of another owner": (PEK.pack(), STRANGE_OCA.pack()),
    "OCA not signed by itself": (PEK.pack(), resigned(OCA, STRANGER)),
    "OCA that signed nothing": (request().pack(), OCA.pack()),
    "another platform's PEK": (resigned(PEK, public_key=STRANGE_OCA.public_key), OCA.pack()),
    "PEK for another usage": (resigned(PEK, usage=KeyUsage.PDH), OCA.pack()),
    "OCA for another usage": (PEK.pack(), resigned(OCA, usage=KeyUsage.CEK)),
    "OCA that only agrees": (PEK.pack(), resigned(OCA, algorithm=KeyAlgorithm.ECDH_SHA256)),
    "OCA of RSA": (PEK.pack(), resigned(OCA, algorithm=KeyAlgorithm.RSA_SHA256)),
    "OCA off the curve": (PEK.pack(), POINT_OFF.pack()),
    "OCA on another curve": (PEK.pack(), resigned(OCA, public_key=b"\1\0\0\0" + OCA.public_key[4:])),
    "another hash than said": (dataclasses.replace(PEK, first_algorithm=KeyAlgorithm.ECDSA_SHA384).pack(), OCA.pack()),
    "version 0": (PEK.pack(), resigned(OCA, version=0)),
    "version 2": (PEK.pack(), resigned(OCA, version=2)),
    "zeros": (bytes(0x824), bytes(0x824)),
}  # fmt: skip


@pytest.mark.parametrize("pair", WRONG.values(), ids=WRONG)
def test_what_an_owner_must_not_hand_in(pair):
    assert imported(*pair) == Status.INVALID_CERTIFICATE


@pytest.mark.parametrize("lengths", [(0x823, 0x824), (0x825, 0x824), (0x824, 0x823), (0x824, 0x825), (0, 0x824)])
def test_an_owner_s_certificates_have_one_length(lengths):
    assert imported(PEK.pack(), OCA.pack(), lengths) == Status.INVALID_LENGTH


# The certificate of a guest owner's DH key: nobody signs it, so only what it says itself can be wrong.

GODH = sev_certificate.unsigned(OWNER.public_key(), KeyUsage.PDH, (1, 55))


def launched(certificate, length=0x824):
    z = elliptic.shared_secret(OWNER, KEYS.pdh_key.public_key())
    session = seal(z, 0, TransportKeys(bytes(16), bytes(16)), bytes(16), bytes(16))
    MACHINE.bus.write(CERTIFICATE, certificate)
    MACHINE.bus.write(SESSION, session.pack())
    start = buffers.LaunchStart(0, 0, CERTIFICATE, length, SESSION, 0x80)
    MACHINE.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    status = refusal(LegacyCommand.LAUNCH_START, start)
    MACHINE.bus.rmp.pop(COMMAND_PAGE // 0x1000)
    return status


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0}, {"version": 2}, {"usage": KeyUsage.PEK}, {"usage": KeyUsage.INVALID}, {"usage": 0xFFFF_FFFF},
        {"algorithm": KeyAlgorithm.NONE}, {"algorithm": KeyAlgorithm.ECDSA_SHA256},
        {"algorithm": KeyAlgorithm.RSA_SHA384}, {"algorithm": 0x203}, {"public_key": bytes(0x404)},
        {"public_key": GODH.public_key[:-1] + b"\1"}, {"public_key": GODH.public_key[:0x40] + b"\1" * 0x3C4},
    ],
    ids=repr,
)  # fmt: skip
def test_an_owner_s_key_that_is_none_opens_no_session(changes):
    assert launched(dataclasses.replace(GODH, **changes).pack()) == Status.INVALID_CERTIFICATE


@pytest.mark.parametrize("length", [0, 0x414, 0x823, 0x825, 0xFFFF_FFFF])
def test_an_owner_s_key_that_is_cut_or_has_more_opens_no_session(length):
    assert launched(GODH.pack(), length) == Status.INVALID_LENGTH
