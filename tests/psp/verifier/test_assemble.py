"""A chain is chosen out of many certificates by their names; what is wrong with one is still the verifier's to say."""

import base64
from dataclasses import replace

import forger
import pytest
from forger import ARK, ASK, NOW, VCEK, certificate, name

from psp.verifier import Expectations, Rejected, assemble, der_blocks, verify

OTHER_CHIP = replace(VCEK, extensions=forger.vcek_extensions(chip_id=bytes(range(2, 66))))
OTHER_TCB = replace(VCEK, extensions=forger.vcek_extensions(tcb=bytes([3, 0, 0, 0, 0, 0, 8, 114])))
GENOA = [
    replace(form, subject=name(cn), issuer=name("ARK-Genoa")) for form, cn in ((ARK, "ARK-Genoa"), (ASK, "SEV-Genoa"))
]


def blocks(*forms):
    return [(f"{at}.der", form if isinstance(form, bytes) else certificate(form)) for at, form in enumerate(forms)]


def code(evidence):
    try:
        verify(evidence, Expectations(vlek_allowed=True), NOW, forger.ROOTS)
    except Rejected as rejected:
        return rejected.reason.name
    return "believed"


@pytest.mark.parametrize("turn", range(3))
def test_what_fits_is_found_whatever_the_order(turn):
    forms = [OTHER_CHIP, *GENOA, OTHER_TCB, VCEK, forger.VLEK, forger.ASVK, ASK, ARK]
    assert code(assemble(forger.report(), blocks(*forms[turn * 3 :], *forms[: turn * 3]))) == "believed"
    vlek_report = forger.report(key_info=1 << 2, chip_id=bytes(64))
    assert code(assemble(vlek_report, blocks(*forms[turn * 3 :], *forms[: turn * 3]))) == "believed"


def test_the_list_of_the_root_is_taken():
    crls = (forger.crl(65537, issuer=name("ARK-Genoa")), forger.crl(65537))
    assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, *crls))) == "ASK_REVOKED"
    assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, crls[0]))) == "CRL_ISSUER"


@pytest.mark.parametrize("turn", range(2))
def test_of_several_lists_each_counts(turn):
    crls = (forger.crl(), forger.crl(65537))
    given = (ARK, ASK, VCEK, crls[turn], crls[1 - turn])
    assert code(assemble(forger.report(), blocks(*given))) == "ASK_REVOKED"
    assert code(assemble(forger.report(), blocks(*given[:3], crls[0]))) == "believed"


def test_a_list_out_of_date_revokes_but_does_not_expire_beside_a_new_one():
    old = forger.crl(this_update=NOW - 9, next_update=NOW - 1)
    assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, old))) == "CRL_EXPIRED"
    assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, old, forger.crl()))) == "believed"
    old = forger.crl(65537, this_update=NOW - 9, next_update=NOW - 1)
    assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, old, forger.crl()))) == "ASK_REVOKED"


@pytest.mark.parametrize("turn", range(2))
def test_a_forged_list_beside_a_real_one_is_no_list(turn):
    forged = forger.crl(signer="issuer")
    for pair in ((forger.crl(), forged), (forger.crl(next_update=NOW - 1), forged)):
        assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, *pair[:: 1 - 2 * turn]))) == "CRL_SIGNATURE"


def test_a_list_of_tomorrow_does_not_make_an_old_one_current():
    old, coming = forger.crl(next_update=NOW - 1), forger.crl(this_update=NOW + 1, next_update=NOW + 9)
    assert code(assemble(forger.report(), blocks(ARK, ASK, VCEK, old, coming))) == "CRL_EXPIRED"


@pytest.mark.parametrize("called", ["revoked.crl", "crl-of-may.der", "0.CRL"])
def test_a_broken_list_is_named_though_another_is_whole(called):
    given = [*blocks(ARK, ASK, VCEK, forger.crl()), (called, forger.crl(65537)[:-1])]
    assert code(assemble(forger.report(), given)) == "CRL_MALFORMED"


def pem(der, label="X509 CRL"):
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n".encode()


@pytest.mark.parametrize("cut", [lambda der: der[:-1], lambda der: der[:40], lambda der: pem(der)[:300]])
def test_a_list_cut_short_is_one_whatever_its_file_is_called(cut):
    given = [*blocks(ARK, ASK, VCEK, forger.crl()), ("revoked.der", cut(forger.crl(65537)))]
    assert code(assemble(forger.report(), given)) == "CRL_MALFORMED"


def test_a_list_cut_short_is_seen_behind_a_certificate_of_its_file():
    given = blocks(ARK, ASK, VCEK)
    bundle = pem(certificate(ASK), "CERTIFICATE") + pem(forger.crl(65537))
    for data, found in ((bundle, "ASK_REVOKED"), (bundle[:-40], "CRL_MALFORMED")):
        with_bundle = [*given, *(("chain.pem", block) for block in der_blocks(data))]
        assert code(assemble(forger.report(), with_bundle)) == found


def test_what_plays_no_part_is_said():
    other = forger.crl(issuer=name("ARK-Genoa"))
    given = [*blocks(ARK, ASK, VCEK, forger.crl()), ("genoa", other), ("notes.pem", b"buy milk")]
    found = assemble(forger.report(), given)
    assert code(found) == "believed"
    assert found.passed_over == (
        "notes.pem: neither a certificate nor a revocation list", 'genoa: a revocation list of "ARK-Genoa"',
    )  # fmt: skip
    assert assemble(forger.report(), blocks(ARK, ASK, VCEK, forger.crl())).passed_over == ()


@pytest.mark.parametrize(
    ("forms", "found"),
    [
        ((), "ARK_MISSING"),
        ((ARK, VCEK), "ASK_MISSING"),
        ((ARK, ASK), "LEAF_MISSING"),
        ((*GENOA, VCEK), "ROOT_UNKNOWN"),
        ((ARK, ASK, OTHER_CHIP), "CHIP_ID_MISMATCH"),
        ((ARK, ASK, OTHER_TCB), "REPORTED_TCB_MISMATCH"),
    ],
)
def test_what_is_missing_is_named(forms, found):
    assert code(assemble(forger.report(), blocks(*forms))) == found


@pytest.mark.parametrize("part", ["ark.pem", "ask.pem", "vcek.der", "crl.der"])
def test_a_broken_file_is_taken_for_what_it_is_called(part):
    given = {"ark.pem": ARK, "ask.pem": ASK, "vcek.der": VCEK}
    named = [(file, b"\x30\x00" if file == part else certificate(form)) for file, form in given.items()]
    if part == "crl.der":
        named.append((part, b"\x30\x00"))
    role = part.partition(".")[0].upper().replace("VCEK", "LEAF")
    assert code(assemble(forger.report(), named)) == f"{role}_MALFORMED"


@pytest.mark.parametrize("report", [b"", bytes(0x49), bytes(0x4A0)])
def test_a_report_of_any_length_is_answered(report):
    assert code(assemble(report, blocks(ARK, ASK, VCEK))).startswith("REPORT_")


def test_an_extension_stands_there_once():
    for kind in VCEK.extensions:
        given = [("vcek.der", certificate(VCEK, twice=kind)), *blocks(ARK, ASK)]
        assert code(assemble(forger.report(), given)) == "LEAF_MALFORMED"


@pytest.mark.parametrize("part", ["ark.der", "ask.der", "vcek.der", "some.crl"])
def test_the_algorithm_outside_is_the_one_inside(part):
    """RFC 5280, 4.1.1.2. Both forms are read, but what is outside is not signed."""
    default = bytes.fromhex("a303020101")
    given = {"ark.der": certificate(ARK), "ask.der": certificate(ASK), "vcek.der": certificate(VCEK)}
    given["some.crl"] = forger.crl()
    assert code(assemble(forger.report(), given.items())) == "believed"
    outer = forger.PSS_IDENTIFIER.replace(default, b"").replace(b"\x30\x46\x06", b"\x30\x41\x06")
    outer = outer.replace(b"\x0a\x30\x39\xa0", b"\x0a\x30\x34\xa0")
    before, _, behind = given[part].rpartition(forger.PSS_IDENTIFIER)
    body = (before + outer + behind)[4:]
    given[part] = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    role = {"vcek": "LEAF", "some": "CRL"}.get(part[:4], part[:3].upper())
    assert code(assemble(forger.report(), given.items())) == f"{role}_MALFORMED"
