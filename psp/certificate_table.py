"""The certificates that a host hands a guest with its report: a table of GUIDs, then the certificates' bytes.

GUIDs stand in the order of their text (RFC 4122), as virtee/sev and
go-sev-guest read them, not in EFI's mixed order. Source: GHCB specification,
4.1.8.1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum
from uuid import UUID

PAGE_BYTES = 4096
_ENTRY = struct.Struct("<16sII")
ENTRY_BYTES = _ENTRY.size
_END = bytes(ENTRY_BYTES)


class CertificateKind(Enum):
    """What an entry can be. A table has the ASK or the ASVK, not both: one GUID stands for either."""

    ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
    ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
    VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
    VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
    CRL = UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")


AGENT_REPORT = UUID("5d1c6f2e-0b7a-4c0e-9a53-5e0f7e61a8d4")
"""A migration agent's own report: the laboratory's, for who has to judge a guest that it may move."""


class CertificateTableError(ValueError):
    """A table that is none; the message says where."""


def packed(certificates: Mapping[CertificateKind, bytes]) -> bytes:
    """The table and what it names, in order, filled up to whole pages; nothing but the end without any."""
    return table_of({kind.value: content for kind, content in certificates.items()})


def table_of(contents: Mapping[UUID, bytes]) -> bytes:
    """A table of anything that has a GUID."""
    offset = ENTRY_BYTES * (len(contents) + 1)
    entries = []
    for guid, content in contents.items():
        entries.append(_ENTRY.pack(guid.bytes, offset, len(content)))
        offset += len(content)
    return b"".join([*entries, _END, *contents.values()]) + bytes(-offset % PAGE_BYTES)


def with_agent_report(table: bytes, report: bytes) -> bytes:
    """A table with a migration agent's report beside all that was in it, strangers' entries too.

    What is no table, or names no certificate, stays as it was, and so does all of it without a report.
    """
    if not report:
        return table
    try:
        named = {UUID(bytes=guid): "an entry" for guid, _, _ in _entries(table)}
        contents = contents_of(table, named)
    except CertificateTableError:
        return table
    if not any(kind.value in contents for kind in CertificateKind):
        return table
    return table_of(contents | {AGENT_REPORT: report})


def agent_report_of(table: bytes) -> bytes | None:
    """The report that ``with_agent_report`` laid in, if there is one. Raises as ``contents_of``."""
    return contents_of(table, {AGENT_REPORT: "agent's report"}).get(AGENT_REPORT)


def parsed(table: bytes) -> dict[CertificateKind, bytes]:
    """What a guest finds in its pages. Entries of strangers' GUIDs are skipped. Raises as ``contents_of``."""
    found = contents_of(table, {kind.value: kind.name for kind in CertificateKind})
    return {CertificateKind(guid): content for guid, content in found.items()}


def contents_of(table: bytes, wanted: Mapping[UUID, str]) -> dict[UUID, bytes]:
    """What a table has of these GUIDs, by name; others are skipped.

    Raises CertificateTableError for a table without end, a content outside the pages or in the table itself, and a
    GUID that is there twice.
    """
    found: dict[UUID, tuple[int, int]] = {}
    kinds = {guid.bytes: guid for guid in wanted}
    entries = _entries(table)
    end = ENTRY_BYTES * (len(entries) + 1)
    for guid, offset, length in entries:
        if guid in kinds:
            if kinds[guid] in found:
                raise CertificateTableError(f"certificate table: {wanted[kinds[guid]]} named twice")
            found[kinds[guid]] = offset, length
    for kind, (offset, length) in found.items():
        if offset < end or offset + length > len(table):
            raise CertificateTableError(f"certificate table: {wanted[kind]} lies outside")
    return {kind: table[offset : offset + length] for kind, (offset, length) in found.items()}


def _entries(table: bytes) -> list[tuple[bytes, int, int]]:
    """GUIDs, offsets and lengths, up to the end. Raises CertificateTableError where there is none."""
    entries: list[tuple[bytes, int, int]] = []
    for at in range(0, len(table) - ENTRY_BYTES + 1, ENTRY_BYTES):
        if table[at : at + ENTRY_BYTES] == _END:
            return entries
        entries.append(_ENTRY.unpack_from(table, at))
    raise CertificateTableError("certificate table: expected an entry of zeros at its end")
