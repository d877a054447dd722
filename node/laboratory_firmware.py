"""The laboratory's own firmware image, for machines without OVMF: small, valid, the same everywhere.

It carries what the launch of a VM needs (GUIDed table, reset block, SEV
metadata in OVMF's memory layout) and code that would only halt: the guest's
program is the tenant's, not the image's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from node.ovmf import (
    BYTES_AFTER_TABLE,
    ENTRY_TAIL,
    METADATA_HEADER,
    METADATA_ITEM,
    METADATA_SIGNATURE,
    METADATA_VERSION,
    SEV_ES_RESET_BLOCK,
    SEV_HASH_TABLE,
    SEV_METADATA,
    SEV_SECRET_BLOCK,
    TABLE_FOOTER,
    GuestArea,
    MetadataSection,
    SectionType,
)

LABORATORY_IMAGE_BYTES = 16 * 1024

RESET_EIP = 0x0080_B004
"""Where OVMF's work area keeps the far jump of the other processors."""

HASH_TABLE_AREA = GuestArea(0x0081_0C00, 0x400)
SECRET_AREA = GuestArea(0x0081_0000, 0xC00)

SECTIONS = (
    MetadataSection(SectionType.SEC_MEM, 0x0080_0000, 0x9000),
    MetadataSection(SectionType.SEC_MEM, 0x0080_A000, 0x3000),
    MetadataSection(SectionType.SECRETS, 0x0080_D000, 0x1000),
    MetadataSection(SectionType.CPUID, 0x0080_E000, 0x1000),
    MetadataSection(SectionType.SVSM_CAA, 0x0080_F000, 0x1000),
    MetadataSection(SectionType.KERNEL_HASHES, 0x0081_0000, 0x1000),
    MetadataSection(SectionType.SEC_MEM, 0x0081_1000, 0xF000),
)
"""The ranges of OVMF's AmdSev build, so that a guest's layout does not depend on the image."""

VERIFIER_SECTIONS = (*SECTIONS[:-1], MetadataSection(SectionType.SEC_MEM, 0x0081_1000, 0x5000))
"""Those of a small verifier: 26 pages are launched with its 4 and a save area, which take the 28 ms that each of up to
ten launches at once of SEVeriFast's takes longer than the one before."""

_HALT_FOREVER = bytes.fromhex("fa f4 eb fd")
"""cli; hlt; jmp back."""

METADATA_OFFSET = 0x600
"""Bytes from the metadata's start to the image's end: clear of the table."""


def build_image(
    size: int = LABORATORY_IMAGE_BYTES,
    sections: Sequence[MetadataSection] = SECTIONS,
    entries: Mapping[UUID, bytes] | None = None,
) -> bytes:
    """An image of ``size`` bytes with the given metadata; ``entries`` replaces the usual table entries."""
    image = bytearray(_HALT_FOREVER * (size // len(_HALT_FOREVER)))
    metadata = METADATA_HEADER.pack(
        METADATA_SIGNATURE,
        METADATA_HEADER.size + len(sections) * METADATA_ITEM.size,
        METADATA_VERSION,
        len(sections),
    ) + b"".join(METADATA_ITEM.pack(section.gpa, section.size, section.section_type) for section in sections)
    start = size - METADATA_OFFSET
    image[start : start + len(metadata)] = metadata
    table = _table(_usual_entries() if entries is None else entries)
    end = size - BYTES_AFTER_TABLE
    image[end - len(table) : end] = table
    return bytes(image)


def _usual_entries() -> dict[UUID, bytes]:
    return {
        SEV_METADATA: METADATA_OFFSET.to_bytes(4, "little"),
        SEV_HASH_TABLE: _area_bytes(HASH_TABLE_AREA),
        SEV_SECRET_BLOCK: _area_bytes(SECRET_AREA),
        SEV_ES_RESET_BLOCK: RESET_EIP.to_bytes(4, "little"),
    }


def _area_bytes(area: GuestArea) -> bytes:
    return area.gpa.to_bytes(4, "little") + area.size.to_bytes(4, "little")


def _table(entries: Mapping[UUID, bytes]) -> bytes:
    body = b"".join(
        data + ENTRY_TAIL.pack(len(data) + ENTRY_TAIL.size, guid.bytes_le) for guid, data in entries.items()
    )
    return body + ENTRY_TAIL.pack(len(body) + ENTRY_TAIL.size, TABLE_FOOTER.bytes_le)
