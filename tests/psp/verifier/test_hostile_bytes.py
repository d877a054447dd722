"""Whatever bytes come, the verifier refuses with a reason, after bounded work."""

import time
from dataclasses import replace

import forger
import pytest
from forger import NOW, evidence, tlv
from hypothesis import given, settings
from hypothesis import strategies as st

from psp.verifier import Expectations, Reason, Rejected, der_blocks, verify
from psp.verifier.der import DerError, Reader, integer, only

PARTS = ("report", "ark", "ask", "leaf", "crls")
GOOD = evidence(crl=forger.crl(7))


def fate(what):
    try:
        verify(what, Expectations(), NOW, forger.ROOTS)
    except Rejected as rejected:
        return rejected.reason
    return None


def changed(part, data):
    return replace(GOOD, **{part: (data,) if part == "crls" else data})


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PARTS), st.data())
def test_any_change_of_any_part_is_refused_with_a_reason(part, data):
    good = GOOD.crls[0] if part == "crls" else getattr(GOOD, part)
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, min(len(good), start + 40)))
    middle = data.draw(st.binary(max_size=40))
    bad = good[:start] + middle + good[end:]
    assert isinstance(fate(changed(part, bad)), Reason) or bad == good


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PARTS), st.binary(max_size=1300))
def test_noise_is_refused_with_a_reason(part, data):
    assert isinstance(fate(changed(part, data)), Reason)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=0x2A0, max_size=0x2A0))
def test_a_signed_report_of_noise_is_refused_with_a_reason(noise):
    """Even a firmware that signs anything does not make the verifier stumble."""
    fields = {name: noise[at : at + width] for name, (at, width) in forger.OFFSETS.items()}
    assert isinstance(fate(evidence(**fields)), Reason)


def nested(depth):
    data = b""
    for _ in range(depth):
        data = tlv(0x30, data)
    return data


@pytest.mark.parametrize(
    "data",
    [nested(1500), tlv(0x30, tlv(0x30, *[tlv(0x31, nested(1))] * 1000)), b"\x30\x84\xff\xff\xff\xff", b"\x30\xff"],
    ids=["deep", "wide", "long", "longer"],
)
def test_bombs_cost_nothing(data):
    begin = time.process_time()
    reasons = {fate(changed(part, data)) for part in PARTS[1:]}
    assert reasons == {Reason.ARK_MALFORMED, Reason.ASK_MALFORMED, Reason.LEAF_MALFORMED, Reason.CRL_MALFORMED}
    assert time.process_time() - begin < 0.2


@pytest.mark.parametrize(
    "octets",
    ["3080", "308101", "30820001", "30", "3001", "308500000000010000"],
)
def test_lengths_have_one_form(octets):
    with pytest.raises(DerError):
        only(bytes.fromhex(octets), 0x30)


@pytest.mark.parametrize("octets", ["0200", "020180", "02020001", "0202ff00"])
def test_numbers_have_one_form(octets):
    with pytest.raises(DerError):
        integer(Reader(bytes.fromhex(octets)).take(2))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_files_of_any_bytes_are_blocks_of_bytes(data):
    assert all(isinstance(block, bytes) for block in der_blocks(data))
    assert all(isinstance(block, bytes) for block in der_blocks(b"-----BEGIN CERTIFICATE-----" + data))


def test_pem_and_der_are_told_apart():
    import base64

    der = forger.certificate(forger.ASK)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    assert der_blocks(der) == (der,)
    assert der_blocks(pem + b"words between\n" + pem) == (der, der)
    assert der_blocks(pem + pem[:-9] + b"\n" + pem) == (der, pem[:-9] + b"\n", der)
    broken = pem.replace(b"M", b"=", 1).strip()
    assert der_blocks(broken) == (broken,)
    assert der_blocks(pem * 64) == (der,) * 64
    assert der_blocks(pem * 65) == (pem * 65,)
