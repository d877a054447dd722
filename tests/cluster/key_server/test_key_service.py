"""The key service knows every chip that was made and no other, and fails only in the ways that it is told to."""

import warnings
from datetime import UTC, datetime
from http import HTTPStatus

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cluster.key_server.chip_register import ChipRegister
from cluster.key_server.failures import FOR_EVER_NS, Failures, Lie
from cluster.key_server.gate import Gate
from cluster.key_server.key_service import KeyService, provider_secret
from cluster.key_server.key_urls import vcek_url, vlek_url
from cluster.key_server.rate_limit import RateLimit
from cluster.root_keys import product_root
from node.board import Board
from node.counter_random import CounterRandom
from node.product import PRODUCTS
from psp import amd_certificate, sev_certificate
from psp.product_root import RootName
from psp.sev_certificate import KeyUsage
from psp.vlek import provider_hashstick

SEED = 7
NAMES = ("Rome", "Milan", "Bergamo", "Turin")
TCB = 0x44_05_00000000_00_02
TURIN_TCB = 0x44_000000_05_00_02_01


@pytest.fixture(scope="module")
def boards():
    """Hosts as a run of the scenario makes them, each called as its product."""
    return {
        name: Board(name, PRODUCTS[name], 1 << 30, PRODUCTS[name].min_sev_asid, CounterRandom(SEED)) for name in NAMES
    }


def service(**settings):
    register = ChipRegister([(name, PRODUCTS[name]) for name in NAMES], SEED)
    return KeyService(register, product_root, **settings)


def chip(boards, name):
    return boards[name].psp.legacy.keys.chip


def get(one, url, now=0):
    return one.answer(url, "client", now)


def certificate(answer):
    assert answer.status is HTTPStatus.OK, answer.body
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.load_der_x509_certificate(answer.body)


@pytest.mark.parametrize(("name", "line", "tcb"), [("Bergamo", "Genoa", TCB), ("Turin", "Turin", TURIN_TCB)])
def test_a_vcek_s_certificate_fits_the_key_that_the_host_s_chip_signs_with(boards, name, line, tcb):
    own = chip(boards, name)
    url = vcek_url(own.line, own.chip_id, tcb)
    assert f"/{line}/" in url
    found = certificate(get(service(), url))
    assert found.public_key() == own.vcek_key(tcb).public_key()
    chip_id = found.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")).value.value
    assert chip_id == own.chip_id


def test_certificates_are_the_same_whoever_asks_and_when(boards):
    own = chip(boards, "Milan")
    url, one = vcek_url(own.line, own.chip_id, TCB), service()
    assert get(one, url) == get(one, url, 10**18) == get(service(), url)


def test_chips_that_were_not_made_or_are_of_another_line_are_not_found(boards):
    own = chip(boards, "Bergamo")
    one = service()
    for url in (
        vcek_url(own.line, bytes(64), TCB),
        vcek_url(own.line, own.chip_id, TCB).replace("Genoa", "Milan"),
        f"/cek/id/{bytes(64).hex()}",
    ):
        assert get(one, url).status is HTTPStatus.NOT_FOUND
        assert get(one, url).body == b"chip id: no such chip was made\n"


def test_no_chip_id_is_computed_before_one_is_asked_for():
    def hosts():
        raise AssertionError
        yield

    one = KeyService(ChipRegister(hosts(), SEED), product_root)
    assert get(one, "/vcek/v1/Milan/cert_chain").status is HTTPStatus.OK
    with pytest.raises(AssertionError):
        get(one, f"/cek/id/{bytes(64).hex()}")


def test_chains_are_the_line_s_intermediate_and_then_its_root():
    for family, intermediate in (("vcek", RootName.ASK), ("vlek", RootName.ASVK)):
        answer = get(service(), f"/{family}/v1/Turin/cert_chain")
        found = x509.load_pem_x509_certificates(answer.body)
        root = product_root("Turin")
        expected = [x509.load_der_x509_certificate(root.certificate(name)) for name in (intermediate, RootName.ARK)]
        assert found == expected


def test_a_cek_is_signed_as_the_platform_exports_it(boards):
    keys = boards["Rome"].psp.legacy.keys
    keys.complete()
    answer = get(service(), f"/cek/id/{keys.chip.chip_id.hex()}")
    found = sev_certificate.parse(answer.body, KeyUsage.CEK)
    assert found.signed == keys.chain().cek.signed
    amd_certificate.check_cek(found, product_root("Rome").amd_certificate(KeyUsage.ASK))


def test_a_vlek_s_certificate_fits_the_provider_s_hashstick():
    secret = provider_secret("CN=a cloud", SEED)
    one = service(provider="CN=a cloud", provider_secret=secret)
    found = certificate(get(one, vlek_url(product_root("Milan").line, TCB)))
    assert found.public_key() == provider_hashstick(secret, TCB).key().public_key()
    assert provider_secret("CN=another", SEED) != secret


def test_who_asks_too_often_is_told_when_to_come_again_and_gets_it_then():
    one = service(gate=Gate(RateLimit(2.0)))
    url = "/vcek/v1/Milan/crl"
    assert get(one, url).status is HTTPStatus.OK
    late = get(one, url, 1)
    assert (late.status, late.retry_ns, late.body) == (HTTPStatus.TOO_MANY_REQUESTS, 499_999_999, b"ask again in 1 s\n")
    assert get(one, url, 500_000_000).status is HTTPStatus.OK
    assert one.answer(url, "another client", 500_000_000).status is HTTPStatus.OK


def test_bad_urls_get_one_line():
    assert get(service(), "/vcek/v1/Milan/00").status is HTTPStatus.BAD_REQUEST
    answer = get(service(), "/favicon.ico")
    assert (answer.status, answer.body.count(b"\n")) == (HTTPStatus.NOT_FOUND, 1)


def test_a_service_that_is_down_or_slow_says_so_to_everybody():
    for url in ("/vcek/v1/Milan/crl", "/nothing"):
        down = service(gate=Gate(failures=Failures(down_until_ns=FOR_EVER_NS)))
        assert get(down, url).status is HTTPStatus.SERVICE_UNAVAILABLE
        assert get(service(gate=Gate(failures=Failures(delay_ns=5))), url).after_ns == 5


def lying(boards, lie):
    """VCEK, ASK, ARK and list as a client gets them of a liar, and the chip."""
    gate = Gate(failures=Failures(lie=lie))
    own, one = chip(boards, "Milan"), service(gate=gate, issued=datetime(2024, 2, 29, tzinfo=UTC))
    vcek = certificate(get(one, vcek_url(own.line, own.chip_id, TCB)))
    ask, ark = x509.load_pem_x509_certificates(get(one, "/vcek/v1/Milan/cert_chain").body)
    return own, vcek, ask, ark, x509.load_der_x509_crl(get(one, "/vcek/v1/Milan/crl").body)


def verify(key, signature, signed):
    key.verify(signature, signed, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())


@pytest.mark.parametrize("lie", [None, *(one for one in Lie if one is not Lie.GARBAGE)])
def test_a_liar_s_answers_are_consistent_and_wrong_in_one_thing(boards, lie):
    own, vcek, ask, ark, revoked = lying(boards, lie)
    verify(ask.public_key(), vcek.signature, vcek.tbs_certificate_bytes)
    verify(ark.public_key(), ask.signature, ask.tbs_certificate_bytes)
    verify(ark.public_key(), revoked.signature, revoked.tbs_certlist_bytes)
    chip_id = vcek.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")).value.value
    true_ark = x509.load_der_x509_certificate(product_root("Milan").certificate(RootName.ARK))
    wrong = {
        Lie.OTHER_CHIP: chip_id != own.chip_id,
        Lie.OTHER_TCB: vcek.public_key() == own.vcek_key(0).public_key(),
        Lie.OTHER_ROOT: ark.public_key() != true_ark.public_key(),
        Lie.EXPIRED: vcek.not_valid_after_utc.year == 2021,
        Lie.REVOKED: {one.serial_number for one in revoked} == {0, 65537, 65538},
    }
    assert [one for one, found in wrong.items() if found] == ([] if lie is None else [lie])


def test_garbage_is_no_certificate_and_as_long_as_one():
    url = "/vcek/v1/Milan/crl"
    bad = get(service(gate=Gate(failures=Failures(lie=Lie.GARBAGE))), url)
    assert bad.status is HTTPStatus.OK
    assert len(bad.body) == len(get(service(), url).body)
    with pytest.raises(ValueError, match="error parsing"):
        x509.load_der_x509_crl(bad.body)
