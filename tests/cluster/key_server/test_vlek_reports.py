"""A provider's key: SNP_VLEK_LOAD brings it to a chip, it signs reports that name none, and the line's root vouches."""

import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cluster import attested_guest
from cluster.attested_guest import HOST, Attestation, attest
from cluster.key_server.chip_register import ChipRegister
from cluster.key_server.key_service import KeyService, provider_secret
from cluster.key_server.key_urls import vlek_url
from cluster.root_keys import product_root
from node import operations as op
from node.firmware_image import laboratory_image
from node.product import PRODUCTS
from psp import command_buffers as buffers
from psp.certificate_table import CertificateKind, packed
from psp.commands import SnpCommand
from psp.product_root import RootName
from psp.status import Status
from psp.x509_profile import pem

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

SEED, PROVIDER = 5, "CN=cloud.example"
COMMAND, BLOB = 3 << 30, (3 << 30) + 4096
"""Memory of the host's that no guest has."""
MOMENT = "1780000000"  # within the validity of all


def service(product):
    return KeyService(
        ChipRegister([(HOST, PRODUCTS[product])], SEED), product_root, provider=PROVIDER,
        provider_secret=provider_secret(PROVIDER, SEED),
    )  # fmt: skip


def loaded(host, blob):
    """The firmware's answer to a hashstick."""
    load = op.PspCommand(SnpCommand.VLEK_LOAD, COMMAND, buffers.SnpVlekLoad(buffers.SnpVlekLoad.SIZE, 0, BLOB).pack())
    wrote, answer = host.board.execute_host((op.HostWrite(BLOB, blob), load))
    assert wrote is None
    return Status(answer.status)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_guest_s_report_is_signed_by_its_provider_s_key(product, monkeypatch, tmp_path):
    keys = service(product)

    def table(host, _laboratory):
        psp = host.board.psp
        tcb = psp.firmware.reported_tcb
        chip = psp.legacy.keys.chip
        sealed = keys.hashstick(chip.chip_id, tcb)
        assert loaded(host, bytes(12) + sealed[12:]) is Status.INVALID_KEY
        assert loaded(host, sealed) is Status.SUCCESS
        return packed({CertificateKind.VLEK: keys.answer(vlek_url(chip.line, tcb), "", 0).body})

    monkeypatch.setattr(attested_guest, "_table", table)
    found = attest(Attestation(product, b"nonce".ljust(64), laboratory_image(), SEED))
    report = found.report
    # Signing key 1, no chip named, and nothing masked.
    assert report[0x48:0x4C] == bytes([1 << 2, 0, 0, 0])
    assert report[0x1A0:0x1E0] == bytes(64)
    der = found.certificates[CertificateKind.VLEK]
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = x509.load_der_x509_certificate(der).public_key()
    key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    # And by the line's VLEK chain, as a client fetches it, up to the line's root.
    chain = keys.answer(f"/vlek/v1/{PRODUCTS[product].line.name}/cert_chain", "", 0).body
    (tmp_path / "chain").write_bytes(chain)
    (tmp_path / "vlek").write_text(pem(der))
    (tmp_path / "ark").write_text(pem(product_root(product).certificate(RootName.ARK)))
    words = ["openssl", "verify", "-attime", MOMENT, "-CAfile", "ark", "-untrusted", "chain", "vlek"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "vlek: OK\n"


def test_a_hashstick_for_a_chip_that_was_not_made_is_not_given_out():
    with pytest.raises(KeyError):
        service("Milan").hashstick(bytes(64), 0)
