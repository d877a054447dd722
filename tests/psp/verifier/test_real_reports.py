"""AMD's real Milan reports under AMD's real roots: believed as they are, and not with any byte changed."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from psp.verifier import AMD_ROOTS, Evidence, Expectations, Reason, Rejected, Stage, der_blocks, verify

NOW = 1_700_000_000
DEBUGGED = Expectations(debug_allowed=True)
"""The first report is of a guest that may be debugged."""
SIGNED_BYTES = 0x2A0


@pytest.fixture(scope="module")
def chains(test_data):
    folder = test_data / "vectors"
    ask, ark = der_blocks((folder / "milan-ask-ark.pem").read_bytes())
    reports = (
        (folder / "milan-v2-report-a.bin").read_bytes(),
        bytes.fromhex((folder / "milan-v2-report-b.hex").read_text()),
    )
    leaves = [(folder / f"milan-v2-vcek-{which}.der").read_bytes() for which in "ab"]
    return [Evidence(report, ark, ask, leaf) for report, leaf in zip(reports, leaves, strict=True)]


def refused(evidence, expected=DEBUGGED, now=NOW, roots=AMD_ROOTS):
    with pytest.raises(Rejected) as caught:
        verify(evidence, expected, now, roots)
    return caught.value.reason


def changed(evidence, **parts):
    fields = {name: getattr(evidence, name) for name in ("report", "ark", "ask", "leaf", "crls")}
    return Evidence(**fields | parts)


def flipped(data, at, bit=0):
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_real_reports_are_believed(chains):
    first, second = (verify(chain, DEBUGGED, NOW) for chain in chains)
    assert [one.key.line.name for one in (first, second)] == ["Milan", "Milan"]
    # Read from the files with openssl and od.
    assert first.report.policy == 0xB0000
    assert (first.report.reported_tcb.hex(), second.report.reported_tcb.hex()) == (
        "0200000000000544",
        "0300000000000873",
    )


def test_a_debugged_guest_is_refused_unless_allowed(chains):
    assert refused(chains[0], Expectations()) is Reason.POLICY_DEBUG
    verify(chains[1], Expectations(), NOW)


@pytest.mark.parametrize("which", [0, 1])
def test_no_byte_of_the_signed_part_can_be_changed(chains, which):
    evidence = chains[which]
    reasons = [
        refused(changed(evidence, report=flipped(evidence.report, at, at % 8))) for at in range(SIGNED_BYTES)
    ]
    assert {reason.stage for reason in reasons} == {Stage.PARSE, Stage.BINDING, Stage.SIGNATURE}
    # What no field explains is for the signature to find.
    assert reasons[0x090:0x180] == [Reason.REPORT_SIGNATURE] * 0xF0


def test_no_byte_behind_the_signed_part_can_be_changed(chains):
    evidence = chains[1]
    padding = [*range(0x2A0 + 48, 0x2E8), *range(0x2E8 + 48, 0x4A0)]
    numbers = [at for at in range(0x2A0, 0x330) if at not in padding]
    found = {at: refused(changed(evidence, report=flipped(evidence.report, at))) for at in range(SIGNED_BYTES, 0x4A0)}
    assert {found[at] for at in padding} == {Reason.REPORT_SIGNATURE_PADDING}
    assert {found[at] for at in numbers} == {Reason.REPORT_SIGNATURE}


def test_a_report_is_as_long_as_it_is(chains):
    report = chains[0].report
    for data in (b"", report[:-1], report + b"\0", report[:SIGNED_BYTES]):
        assert refused(changed(chains[0], report=data)) is Reason.REPORT_LENGTH


def test_another_chips_vcek_is_refused(chains):
    assert refused(changed(chains[0], leaf=chains[1].leaf)) is Reason.REPORTED_TCB_MISMATCH
    assert refused(changed(chains[1], leaf=chains[0].leaf)) is Reason.REPORTED_TCB_MISMATCH


@pytest.mark.parametrize("part", ["ark", "ask", "leaf"])
def test_no_byte_of_a_certificate_can_be_changed(chains, part):
    data = getattr(chains[0], part)
    # Every byte of names, times and extensions would cost seconds: each fifth, from another offset in each part.
    start = ["ark", "ask", "leaf"].index(part)
    for at in range(start, len(data), 5):
        reason = refused(changed(chains[0], **{part: flipped(data, at, at % 8)}))
        assert reason.stage in {Stage.PARSE, Stage.CHAIN}


@pytest.mark.parametrize(("part", "reason"), [
    ("ark", Reason.ARK_MALFORMED), ("ask", Reason.ASK_MALFORMED), ("leaf", Reason.LEAF_MALFORMED),
])  # fmt: skip
def test_a_certificate_is_as_long_as_it_is(chains, part, reason):
    data = getattr(chains[0], part)
    for cut in (b"", data[:-1], data + b"\0", data[: len(data) // 2], data + data):
        assert refused(changed(chains[0], **{part: cut})) is reason


def test_certificates_stand_where_they_belong(chains):
    one = chains[0]
    assert refused(changed(one, ark=one.ask, ask=one.ark)) is Reason.UNKNOWN_PRODUCT
    assert refused(changed(one, ask=one.ark)) is Reason.ASK_NAMES
    assert refused(changed(one, ask=one.leaf)) is Reason.ASK_NAMES
    assert refused(changed(one, leaf=one.ask)) is Reason.LEAF_NAMES


def test_certificates_have_their_time(chains):
    # The VCEKs begin in September 2022 and run for seven years, AMD's ASK and ARK from October 2020 to 2045.
    assert refused(chains[0], now=1_600_000_000) is Reason.ARK_NOT_YET_VALID
    assert refused(chains[0], now=1_610_000_000) is Reason.LEAF_NOT_YET_VALID
    assert refused(chains[0], now=1_900_000_000) is Reason.LEAF_EXPIRED
    assert refused(chains[0], now=2_400_000_000) is Reason.ARK_EXPIRED


def test_a_root_is_believed_by_its_key_alone(chains):
    assert refused(chains[0], roots={}) is Reason.ROOT_UNKNOWN
    assert refused(chains[0], roots={"Milan": AMD_ROOTS["Genoa"]}) is Reason.ROOT_UNKNOWN


def test_milans_pin_is_the_digest_of_amds_key(chains):
    key = x509.load_der_x509_certificate(chains[0].ark).public_key()
    octets = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert AMD_ROOTS["Milan"] == {hashlib.sha256(octets).hexdigest()}
