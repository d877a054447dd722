"""PEK_GEN to PDH_CERT_EXPORT: who owns a platform, and which keys change when."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from owner import exported
from toy_machine import COMMAND_PAGE, FIRMWARE, OUT, PAGE, new_machine, returning, sev_guest, up

from psp import command_buffers as buffers
from psp import elliptic, sev_certificate
from psp.commands import LegacyCommand
from psp.product_line import PRODUCT_LINES
from psp.product_root import laboratory_root
from psp.sev_certificate import KeyUsage, SevCertificate
from psp.sev_chain import PlatformChain, check_chain
from psp.status import Status

PEK_AT, OCA_AT = 0x50_0000, 0x50_1000
NAPLES = laboratory_root(PRODUCT_LINES["Naples"])
AMD = [NAPLES.amd_certificate(usage) for usage in (KeyUsage.ARK, KeyUsage.ASK)]
OWNER = elliptic.private_key(hashlib.shake_128(b"platform owner").digest(56))


def chain_of(machine):
    return PlatformChain.parse(*exported(machine))


def signing_request(machine):
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert returning(machine, LegacyCommand.PEK_CSR, buffers.Output(OUT, 0x824).pack())[0] == Status.SUCCESS
    return sev_certificate.parse(machine.bus.read(OUT, 0x824), KeyUsage.PEK)


def owners_certificates(machine):
    oca = sev_certificate.unsigned(OWNER.public_key(), KeyUsage.OCA, (1, 55))
    oca = sev_certificate.sign(oca, OWNER, KeyUsage.OCA)
    return sev_certificate.sign(signing_request(machine), OWNER, KeyUsage.OCA), oca


def imported(machine, pek, oca, lengths=(0x824, 0x824)):
    machine.bus.write(PEK_AT, pek.pack())
    machine.bus.write(OCA_AT, oca.pack())
    buffer = buffers.PekCertImport(PEK_AT, lengths[0], OCA_AT, lengths[1]).pack()
    machine.bus.write(COMMAND_PAGE, buffer)
    before = machine.snapshot()
    status = machine.psp.submit(LegacyCommand.PEK_CERT_IMPORT, COMMAND_PAGE)
    assert (machine.snapshot() == before) == (status != Status.SUCCESS)
    return status


def owned(machine):
    _, answer = returning(machine, LegacyCommand.PLATFORM_STATUS, buffers.PlatformStatus().pack())
    return buffers.PlatformStatus.parse(answer).owner


@pytest.mark.parametrize("snp", [False, True])
def test_the_exported_chain_verifies_once_amd_has_signed_the_cek(snp):
    chain = chain_of(up(snp=snp))
    whole = PlatformChain(chain.pdh, chain.pek, chain.oca, NAPLES.certified_cek(chain.cek))
    check_chain(whole, *AMD)


def test_the_same_random_source_gives_the_same_platform_whenever_its_keys_are_looked_at():
    early, late = up(), up()
    first = exported(early)
    sev_guest(late)
    assert exported(late) == first


def test_a_shutdown_keeps_the_keys_and_a_reset_does_not():
    machine = up()
    before = chain_of(machine)
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    assert chain_of(machine) == before
    assert machine.call(LegacyCommand.SHUTDOWN) == Status.SUCCESS
    assert machine.call(LegacyCommand.PLATFORM_RESET) == Status.SUCCESS
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == Status.SUCCESS
    after = chain_of(machine)
    assert after.cek.signed == before.cek.signed  # the chip's own
    assert after.pdh.public_key != before.pdh.public_key
    assert after.pek.public_key != before.pek.public_key
    assert after.oca.public_key != before.oca.public_key


def test_pek_gen_renews_pek_and_pdh_and_pdh_gen_the_pdh_alone():
    machine = up()
    first = chain_of(machine)
    assert machine.call(LegacyCommand.PDH_GEN) == Status.SUCCESS
    second = chain_of(machine)
    assert second.pek == first.pek
    assert second.pdh.public_key != first.pdh.public_key
    assert machine.call(LegacyCommand.PEK_GEN) == Status.SUCCESS
    third = chain_of(machine)
    assert len({chain.pek.public_key for chain in (first, second, third)}) == 2
    assert len({chain.pdh.public_key for chain in (first, second, third)}) == 3
    assert third.cek == first.cek


def test_an_owner_takes_the_platform_once_and_pek_gen_gives_it_back():
    machine = up()
    assert owned(machine) == 0
    pek, oca = owners_certificates(machine)
    assert imported(machine, pek, oca) == Status.SUCCESS
    assert owned(machine) == 1
    chain = chain_of(machine)
    assert chain.oca == oca
    check_chain(PlatformChain(chain.pdh, chain.pek, chain.oca, NAPLES.certified_cek(chain.cek)), *AMD)
    assert imported(machine, pek, oca) == Status.ALREADY_OWNED
    assert machine.call(LegacyCommand.PEK_GEN) == Status.SUCCESS
    assert owned(machine) == 0
    assert chain_of(machine).oca != oca


def test_an_import_that_does_not_fit_is_an_invalid_certificate():
    machine = up()
    pek, oca = owners_certificates(machine)
    other_machine = new_platform()
    other = chain_of(other_machine)
    signed_for_another = owners_certificates(other_machine)[0]  # by the same owner
    for bad_pek, bad_oca in [
        (oca, pek), (pek, other.oca), (other.pek, oca), (signing_request(machine), oca), (signed_for_another, oca),
    ]:  # fmt: skip
        assert imported(machine, bad_pek, bad_oca) == Status.INVALID_CERTIFICATE
    assert imported(machine, pek, oca, (0x823, 0x824)) == Status.INVALID_LENGTH
    assert imported(machine, pek, oca, (0x824, 0x825)) == Status.INVALID_LENGTH


def new_platform():
    machine = up()
    assert machine.call(LegacyCommand.PEK_GEN) == Status.SUCCESS
    return machine


def test_a_chip_s_id_is_a_point_on_secp256k1():
    """As every real ID of Naples to Genoa that was looked at."""
    machine = new_machine()
    assert machine.call(LegacyCommand.GET_ID, buffers.Output(OUT, 128).pack()) == Status.SUCCESS
    assert buffers.Output.parse(machine.bus.read(COMMAND_PAGE, 12)).length == 64
    octets = machine.bus.read(OUT, 64)
    x, y = (int.from_bytes(octets[at : at + 32], "big") for at in (0, 32))
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256K1()).public_key()  # ValueError off the curve
    assert machine.call(LegacyCommand.GET_ID, buffers.Output(OUT, 64).pack()) == Status.SUCCESS
    assert machine.bus.read(OUT, 64) == octets


def test_get_id_of_a_turin_gives_eight_bytes():
    machine = up(line="Turin")
    machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert machine.call(LegacyCommand.GET_ID, buffers.Output(OUT, 7).pack()) == Status.INVALID_LENGTH
    assert buffers.Output.parse(machine.bus.read(COMMAND_PAGE, 12)).length == 8
    assert machine.call(LegacyCommand.GET_ID, buffers.Output(OUT, 64).pack()) == Status.SUCCESS
    assert machine.bus.read(OUT, 9) == machine.psp.legacy.keys.chip.chip_id + b"\0"


SHORT = {
    LegacyCommand.GET_ID: (buffers.Output(OUT, 63), buffers.Output(OUT, 64)),
    LegacyCommand.PEK_CSR: (buffers.Output(OUT, 0x823), buffers.Output(OUT, 0x824)),
    LegacyCommand.PDH_CERT_EXPORT: (
        buffers.PdhCertExport(OUT, 0x824, OUT + PAGE, 3 * 0x824 - 1),
        buffers.PdhCertExport(OUT, 0x824, OUT + PAGE, 3 * 0x824)),
}  # fmt: skip


@pytest.mark.parametrize("command", SHORT)
def test_a_short_buffer_is_told_the_length(command):
    machine = up(snp=False)
    short, enough = SHORT[command]
    status, back = returning(machine, command, short.pack())
    assert (status, back) == (Status.INVALID_LENGTH, enough.pack())
    assert machine.bus.read(OUT, 3 * PAGE) == bytes(3 * PAGE)
    assert machine.call(command, enough.pack()) == Status.SUCCESS


def test_a_host_that_asks_with_nothing_learns_both_lengths():
    status, back = returning(up(), LegacyCommand.PDH_CERT_EXPORT, buffers.PdhCertExport().pack())
    assert status == Status.INVALID_LENGTH
    assert buffers.PdhCertExport.parse(back) == buffers.PdhCertExport(0, 0x824, 0, 0x186C)


def test_certificates_carry_the_firmware_s_version_and_their_usage():
    chain = chain_of(up())
    for certificate in (chain.pdh, chain.pek, chain.oca, chain.cek):
        assert isinstance(certificate, SevCertificate)
        assert (certificate.version, certificate.api_major, certificate.api_minor) == (1, 1, 55)
    assert [one.usage for one in (chain.pek, chain.oca, chain.cek)] == [0x1002, 0x1001, 0x1004]
    assert (chain.pdh.usage, chain.pdh.algorithm) == (0x1003, 3)
