"""The SEV interface's signatures, verified by OpenSSL's own command line: a real platform's, and the laboratory's.

Only the bytes come from here: offsets are written down once more from the SEV API's appendix on certificates and from
sev-tool's rendering of ATTESTATION's report, keys are handed over as DER, and OpenSSL says what it thinks of them.
"""

import subprocess
from pathlib import Path

import pytest
from owner import exported
from toy_machine import OUT, returning, sev_guest, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.status import Status

SIGNED, FIRST, SECOND = 0x414, 0x41C, 0x624
P384 = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200 04")
"""SubjectPublicKeyInfo of an uncompressed point of secp384r1, up to the point (RFC 5480)."""
RSA_2048 = bytes.fromhex("30820122300d06092a864886f70d01010105000382010f003082010a0282010100")
"""SubjectPublicKeyInfo of an RSA key whose modulus has its top bit set, up to the modulus; 65537 follows."""


def little(octets: bytes) -> int:
    return int.from_bytes(octets, "little")


def point(certificate: bytes) -> bytes:
    """The certificate's key as DER."""
    x, y = (little(certificate[at : at + 72]).to_bytes(48, "big") for at in (0x14, 0x5C))
    return P384 + x + y


def integer(number: int) -> bytes:
    octets = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return b"\x02" + bytes([len(octets)]) + octets


def signature(field: bytes) -> bytes:
    """R and S as DER."""
    pair = integer(little(field[:72])) + integer(little(field[72:144]))
    return b"\x30" + bytes([len(pair)]) + pair


def verifies(folder: Path, key: bytes, message: bytes, signed: bytes, *options: str) -> bool:
    for name, octets in (("key", key), ("message", message), ("signature", signed)):
        (folder / name).write_bytes(octets)
    said = subprocess.run(
        [
            "openssl", "dgst", "-sha256", "-keyform", "DER", "-verify", folder / "key", *options,
            "-signature", folder / "signature", folder / "message",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.stdout.strip() in ("Verified OK", "Verification failure", "Verification Failure"), said.stderr
    return said.returncode == 0


def changed(octets: bytes, at: int) -> bytes:
    return octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]


LINKS = [("oca", FIRST, "oca"), ("pek", FIRST, "oca"), ("pek", SECOND, "cek"), ("pdh", FIRST, "pek")]
"""Who signs whom, and in which slot: in the files of a real platform and in the laboratory's."""


@pytest.fixture(scope="module")
def naples(test_data):
    return {path.stem[7:]: path.read_bytes() for path in (test_data / "vectors").glob("naples-*.cert")}


@pytest.fixture(scope="module")
def ours():
    pdh, chain = exported(up(snp=False))
    return {"pdh": pdh, "pek": chain[:0x824], "oca": chain[0x824 : 2 * 0x824], "cek": chain[2 * 0x824 :]}


@pytest.mark.parametrize("whose", ["naples", "ours"])
def test_every_link_of_a_platform_s_chain_verifies(request, whose, tmp_path):
    files = request.getfixturevalue(whose)
    for name, slot, by in LINKS:
        field = files[name][slot : slot + 144]
        assert verifies(tmp_path, point(files[by]), files[name][:SIGNED], signature(field)), (name, by)
    pdh = files["pdh"]
    field = pdh[FIRST : FIRST + 144]
    assert not verifies(tmp_path, point(files["pek"]), changed(pdh[:SIGNED], 0x20), signature(field))
    assert not verifies(tmp_path, point(files["oca"]), pdh[:SIGNED], signature(field))


def test_a_real_cek_is_signed_by_amd(naples, tmp_path):
    ask = naples["ask"]
    key = RSA_2048 + little(ask[0x140:0x240]).to_bytes(256, "big") + bytes.fromhex("0203010001")
    signed = naples["cek"][FIRST : FIRST + 256][::-1]
    padding = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest", "-sigopt", "rsa_mgf1_md:sha256")
    assert verifies(tmp_path, key, naples["cek"][:SIGNED], signed, *padding)
    assert not verifies(tmp_path, key, changed(naples["cek"][:SIGNED], 0x20), signed, *padding)


def test_a_report_of_attestation_is_the_pek_s(tmp_path):
    machine = up(snp=False)
    handle = sev_guest(machine, LegacyGuestState.RUNNING)
    nonce = bytes(range(16))
    asked = buffers.Attestation(handle, OUT, nonce, 0xD0).pack()
    status, _ = returning(machine, LegacyCommand.ATTESTATION, asked)
    assert status == Status.SUCCESS
    report = machine.bus.read(OUT, 0xD0)
    assert report[:0x10] == nonce
    assert (little(report[0x34:0x38]), little(report[0x38:0x3C])) == (0x1002, 2)
    pek = exported(machine)[1][:0x824]
    assert verifies(tmp_path, point(pek), report[:0x34], signature(report[0x40:0xD0]))
    for at in range(0, 0x34, 13):
        assert not verifies(tmp_path, point(pek), changed(report[:0x34], at), signature(report[0x40:0xD0]))
