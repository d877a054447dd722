"""The table of certificates of an extended guest request, as strangers' readers expect it."""

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psp.certificate_table import (
    CertificateKind,
    CertificateTableError,
    agent_report_of,
    contents_of,
    packed,
    parsed,
    table_of,
    with_agent_report,
)

VCEK_GUID = bytes.fromhex("63da758de6644564adc5f4b93be8accd")


def test_guids_stand_in_the_order_of_their_text_and_certificates_behind_an_entry_of_zeros():
    table = packed({CertificateKind.VCEK: b"vcek", CertificateKind.CRL: b"list"})
    assert table == (
        VCEK_GUID + (72).to_bytes(4, "little") + (4).to_bytes(4, "little")
        + bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea") + (76).to_bytes(4, "little") + (4).to_bytes(4, "little")
        + bytes(24) + b"vceklist"
    ).ljust(4096, b"\0")  # fmt: skip


def test_without_certificates_there_is_the_end_alone():
    assert packed({}) == bytes(4096)
    assert parsed(bytes(4096)) == {}


@given(st.dictionaries(st.sampled_from(CertificateKind), st.binary(max_size=3000)))
@settings(max_examples=15)
def test_a_guest_reads_what_was_packed_in_whole_pages(certificates):
    table = packed(certificates)
    assert len(table) % 4096 == 0
    assert parsed(table) == certificates


@given(st.binary(max_size=120))
@settings(max_examples=30)
def test_any_bytes_are_a_table_or_refused_by_that_error(data):
    try:
        found = parsed(data)
    except CertificateTableError:
        return
    assert all(content in data for content in found.values())


ENTRY = VCEK_GUID + (48).to_bytes(4, "little") + (4).to_bytes(4, "little")
BAD = {
    "expected an entry of zeros": ENTRY,
    "VCEK named twice": ENTRY * 2 + bytes(28),
    "VCEK lies outside": ENTRY + bytes(27),
    "VCEK lies": VCEK_GUID + (47).to_bytes(4, "little") + bytes(4) + bytes(60),
    "lies outside": VCEK_GUID + bytes([255] * 8) + bytes(60),
}


@pytest.mark.parametrize("said", BAD)
def test_a_hostile_host_s_table_is_refused(said):
    with pytest.raises(CertificateTableError, match=said):
        parsed(BAD[said])


def test_an_agent_s_report_comes_beside_all_that_a_host_s_owner_laid_there():
    stranger = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")
    laid = {CertificateKind.VCEK.value: b"vcek", stranger: b"a stranger's"}
    table = with_agent_report(table_of(laid), b"report")
    assert agent_report_of(table) == b"report"
    assert contents_of(table, dict.fromkeys(laid, "")) == laid
    assert agent_report_of(with_agent_report(table, b"another")) == b"another"


@pytest.mark.parametrize(
    "table", [b"", b"x" * 100, bytes(4096), table_of({UUID(int=5): b"a stranger's"}), *BAD.values()]
)
def test_a_report_is_laid_into_nothing_but_a_table_of_certificates(table):
    assert with_agent_report(table, b"report") == table
    assert with_agent_report(packed({CertificateKind.VCEK: b"vcek"}), b"") == packed({CertificateKind.VCEK: b"vcek"})


def test_entries_of_strangers_are_skipped():
    stranger = bytes.fromhex("ecae0c0f950243b1afa20ae2e0d565b6") + bytes(8)
    table = stranger + VCEK_GUID + (72).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(24) + b"vcek"
    assert parsed(table) == {CertificateKind.VCEK: b"vcek"}
