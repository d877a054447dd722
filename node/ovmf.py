"""What a firmware image says of itself: OVMF's table of GUIDed entries and its SEV metadata.

The table grows downwards from 0x20 bytes before the end of the image (which is
mapped to end at 4 GiB): data, u16 length, GUID; the last entry, the footer,
holds the length of the whole table. Sources: tianocore/edk2
OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and X64/OvmfSevMetadata.asm, as
QEMU reads them (hw/i386/pc_sysfw_ovmf.c, target/i386/sev.c).

An image is hostile input: what is absent is None or empty, what is present and
wrong is a ``FirmwareImageError``, and no image costs more than a walk of its
table and its metadata, both bounded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from uuid import UUID

PAGE_BYTES = 4096
FOUR_GIB = 1 << 32
MAX_IMAGE_BYTES = 16 * 1024 * 1024
"""Laboratory's bound; 4 MiB further down an image would cover the IO-APIC at FEC00000."""
MAX_SECTIONS = 64
MAX_SECTION_BYTES = 16 * 1024 * 1024
"""Laboratory's bound on metadata: every page of it costs a firmware command."""

TABLE_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SEV_ES_RESET_BLOCK = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_METADATA = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
SEV_HASH_TABLE = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_SECRET_BLOCK = UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
SVSM_INFO = UUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")

BYTES_AFTER_TABLE = 0x20
"""The reset vector and its neighbours behind the table."""
ENTRY_TAIL = struct.Struct("<H16s")
"""Length, data and tail together, then the GUID in its mixed-endian form."""
METADATA_HEADER = struct.Struct("<4sIII")
METADATA_ITEM = struct.Struct("<III")
METADATA_SIGNATURE = b"ASEV"
METADATA_VERSION = 1


class FirmwareImageError(ValueError):
    """The image breaks its format. Names the field, what was expected and what was found.

    ``origin`` is the file; the finder adds it to what the parser raised.
    """

    def __init__(self, field_name: str, expected: str, found: str = "", origin: str = "firmware image") -> None:
        super().__init__(f"{origin}: {field_name}: expected {expected}" + (f", found {found}" if found else ""))
        self.field = field_name
        self.expected = expected
        self.found = found
        self.origin = origin


class SectionType(IntEnum):
    """What a range of guest memory must become before the first instruction."""

    SEC_MEM = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


_ONE_PAGE_SECTIONS = (SectionType.SECRETS, SectionType.CPUID, SectionType.KERNEL_HASHES)


@dataclass(frozen=True, slots=True)
class MetadataSection:
    """One descriptor of the SEV metadata."""

    section_type: SectionType
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class GuestArea:
    """A range of guest memory that a table entry names."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class OvmfTables:
    """The parsed tables; an image without them is all None and empty."""

    reset_eip: int | None = None
    svsm_entry: int | None = None
    """Of an SVSM: its first instruction, from the image's begin."""
    sections: tuple[MetadataSection, ...] = ()
    hash_table: GuestArea | None = None
    secret_block: GuestArea | None = None
    guids: frozenset[UUID] = field(default_factory=frozenset)


def parse_ovmf(data: bytes, end: int = FOUR_GIB) -> OvmfTables:
    """Parse an image that ends at guest-physical ``end``; raises ``FirmwareImageError`` and nothing else."""
    if not 0 < len(data) <= MAX_IMAGE_BYTES or len(data) % PAGE_BYTES:
        raise FirmwareImageError("size", f"a multiple of {PAGE_BYTES} bytes up to {MAX_IMAGE_BYTES}", str(len(data)))
    entries = _table_entries(data)
    reset = _u32_entry(entries, SEV_ES_RESET_BLOCK, "SEV-ES reset block")
    return OvmfTables(
        reset_eip=reset or None,
        sections=_sections(data, entries, end),
        svsm_entry=_u32_entry(entries, SVSM_INFO, "SVSM info"),
        hash_table=_area(entries, SEV_HASH_TABLE, "SEV hash table area"),
        secret_block=_area(entries, SEV_SECRET_BLOCK, "SEV secret block"),
        guids=frozenset(entries),
    )


def _table_entries(data: bytes) -> dict[UUID, bytes]:
    """Entries by GUID, the footer left out; empty if the image carries no table."""
    end = len(data) - BYTES_AFTER_TABLE - ENTRY_TAIL.size
    length, guid = ENTRY_TAIL.unpack_from(data, end)
    if guid != TABLE_FOOTER.bytes_le:
        return {}
    start = end + ENTRY_TAIL.size - length
    if length < ENTRY_TAIL.size or start < 0:
        raise FirmwareImageError("table footer length", f"{ENTRY_TAIL.size} to the image's size", str(length))
    entries: dict[UUID, bytes] = {}
    while end > start:
        if end - start < ENTRY_TAIL.size:
            raise FirmwareImageError("table entry", f"at least {ENTRY_TAIL.size} bytes", f"{end - start} left")
        length, guid = ENTRY_TAIL.unpack_from(data, end - ENTRY_TAIL.size)
        name = UUID(bytes_le=guid)
        if not ENTRY_TAIL.size <= length <= end - start:
            expected = f"{ENTRY_TAIL.size} to {end - start}"
            raise FirmwareImageError(f"table entry {name} length", expected, str(length))
        if name in entries:
            raise FirmwareImageError(f"table entry {name}", "one of its kind", "two")
        entries[name] = data[end - length : end - ENTRY_TAIL.size]
        end -= length
    return entries


def _u32_entry(entries: dict[UUID, bytes], guid: UUID, name: str) -> int | None:
    entry = entries.get(guid)
    if entry is None:
        return None
    if len(entry) < 4:
        raise FirmwareImageError(name, "at least 4 bytes", str(len(entry)))
    return int.from_bytes(entry[:4], "little")


def _area(entries: dict[UUID, bytes], guid: UUID, name: str) -> GuestArea | None:
    """Base and size; OVMF builds without the feature carry the entry with zeros."""
    entry = entries.get(guid)
    if entry is None:
        return None
    if len(entry) < 8:
        raise FirmwareImageError(name, "at least 8 bytes", str(len(entry)))
    area = GuestArea(int.from_bytes(entry[:4], "little"), int.from_bytes(entry[4:8], "little"))
    return area if area.gpa else None


def _sections(data: bytes, entries: dict[UUID, bytes], end: int) -> tuple[MetadataSection, ...]:
    """The SEV metadata's descriptors in table order, which is the order they are measured in."""
    offset = _u32_entry(entries, SEV_METADATA, "SEV metadata offset")
    if offset is None:
        return ()
    if not METADATA_HEADER.size <= offset <= len(data):
        raise FirmwareImageError("SEV metadata offset", f"{METADATA_HEADER.size} to {len(data)}", str(offset))
    start = len(data) - offset
    signature, size, version, count = METADATA_HEADER.unpack_from(data, start)
    if signature != METADATA_SIGNATURE:
        raise FirmwareImageError("SEV metadata signature", repr(METADATA_SIGNATURE), repr(signature))
    if version != METADATA_VERSION:
        raise FirmwareImageError("SEV metadata version", str(METADATA_VERSION), str(version))
    if count > MAX_SECTIONS:
        raise FirmwareImageError("SEV metadata count", f"at most {MAX_SECTIONS}", str(count))
    needed = METADATA_HEADER.size + count * METADATA_ITEM.size
    if not needed <= size <= offset:
        raise FirmwareImageError("SEV metadata size", f"{needed} to {offset}", str(size))
    sections = tuple(
        _section(index, *METADATA_ITEM.unpack_from(data, start + METADATA_HEADER.size + index * METADATA_ITEM.size))
        for index in range(count)
    )
    _refuse_overlap(sections, end - len(data))
    return sections


def _section(index: int, gpa: int, size: int, kind: int) -> MetadataSection:
    name = f"SEV metadata section {index}"
    try:
        section_type = SectionType(kind)
    except ValueError:
        known = ", ".join(str(member.value) for member in SectionType)
        raise FirmwareImageError(f"{name} type", f"one of {known}", str(kind)) from None
    if gpa % PAGE_BYTES:
        raise FirmwareImageError(f"{name} address", "a page boundary", hex(gpa))
    if size == 0 or size % PAGE_BYTES or size > MAX_SECTION_BYTES:
        raise FirmwareImageError(f"{name} size", f"whole pages up to {MAX_SECTION_BYTES} bytes", hex(size))
    if section_type in _ONE_PAGE_SECTIONS and size != PAGE_BYTES:
        raise FirmwareImageError(f"{name} size", f"one page for {section_type.name}", hex(size))
    return MetadataSection(section_type, gpa, size)


def _refuse_overlap(sections: tuple[MetadataSection, ...], limit: int) -> None:
    """A page is launched once: sections neither meet each other nor reach the image."""
    total = sum(section.size for section in sections)
    if total > MAX_SECTION_BYTES:
        raise FirmwareImageError("SEV metadata sections", f"{MAX_SECTION_BYTES} bytes together", str(total))
    ascending = sorted(sections, key=lambda section: section.gpa)
    starts = [section.gpa for section in ascending[1:]] + [limit]
    for section, following in zip(ascending, starts, strict=False):
        if section.gpa + section.size > following:
            raise FirmwareImageError(
                f"{section.section_type.name} section at {section.gpa:#x}",
                f"its end at or below {following:#x}",
                hex(section.gpa + section.size),
            )
