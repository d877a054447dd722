"""Reading firmware images: real tables read right, hostile ones refused by name and at a bounded cost."""

from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sevsnpmeasure.ovmf import OVMF

from node.laboratory_firmware import (
    HASH_TABLE_AREA,
    LABORATORY_IMAGE_BYTES,
    RESET_EIP,
    SECRET_AREA,
    SECTIONS,
    build_image,
)
from node.ovmf import (
    BYTES_AFTER_TABLE,
    ENTRY_TAIL,
    MAX_IMAGE_BYTES,
    SEV_ES_RESET_BLOCK,
    SEV_HASH_TABLE,
    SEV_METADATA,
    TABLE_FOOTER,
    FirmwareImageError,
    MetadataSection,
    OvmfTables,
    SectionType,
    parse_ovmf,
)

IMAGE = build_image(4096)
METADATA = 4096 - 0x600
FOOTER = 4096 - BYTES_AFTER_TABLE - ENTRY_TAIL.size


def poked(offset, value, width=4):
    image = bytearray(IMAGE)
    image[offset : offset + width] = value.to_bytes(width, "little")
    return bytes(image)


def with_sections(*rows):
    return build_image(4096, [MetadataSection(*row) for row in rows])


def test_the_laboratory_image_says_what_it_was_built_from():
    tables = parse_ovmf(build_image())
    assert tables.sections == SECTIONS
    assert tables.reset_eip == RESET_EIP
    assert tables.hash_table == HASH_TABLE_AREA
    assert tables.secret_block == SECRET_AREA
    assert len(build_image()) == LABORATORY_IMAGE_BYTES


def test_another_parser_reads_the_laboratory_image_the_same(tmp_path):
    path = tmp_path / "image.fd"
    path.write_bytes(build_image())
    other = OVMF(str(path))
    assert other.gpa() == 0x1_0000_0000 - LABORATORY_IMAGE_BYTES
    assert other.sev_es_reset_eip() == RESET_EIP
    assert other.sev_hashes_table_gpa() == HASH_TABLE_AREA.gpa
    read = [(item.section_type().value, item.gpa, item.size) for item in other.metadata_items()]
    assert read == [(section.section_type, section.gpa, section.size) for section in SECTIONS]


@pytest.mark.parametrize("name", ["ovmf_AmdSev_suffix.bin", "ovmf_OvmfX64_suffix.bin"])
def test_real_images_read_as_another_parser_reads_them(test_data, name):
    path = test_data / "vectors" / name
    tables, other = parse_ovmf(path.read_bytes()), OVMF(str(path))
    assert tables.reset_eip == other.sev_es_reset_eip()
    assert {str(guid) for guid in tables.guids} == set(other._table)
    read = [(item.section_type().value, item.gpa, item.size) for item in other.metadata_items()]
    assert read == [(section.section_type, section.gpa, section.size) for section in tables.sections]
    assert (tables.hash_table is not None) == other.is_sev_hashes_table_supported()


def test_an_image_without_a_table_carries_nothing():
    assert parse_ovmf(bytes(8192)) == OvmfTables()


@pytest.mark.parametrize("size", [0, 1, 4095, 5000, MAX_IMAGE_BYTES + 4096])
def test_odd_sizes_are_refused(size):
    with pytest.raises(FirmwareImageError) as error:
        parse_ovmf(bytes(size))
    assert error.value.field == "size"


HASH_ENTRY = {SEV_HASH_TABLE: bytes(4)}
REFUSED = {
    "footer shorter than itself": (poked(FOOTER, 17, 2), "table footer length"),
    "footer longer than the image": (poked(FOOTER, 0xFFFF, 2), "table footer length"),
    "entry of no length": (poked(FOOTER - ENTRY_TAIL.size, 0, 2), f"table entry {SEV_ES_RESET_BLOCK} length"),
    "entry longer than the table": (poked(FOOTER - 18, 0x400, 2), f"table entry {SEV_ES_RESET_BLOCK} length"),
    "table that ends inside an entry": (poked(FOOTER, 18 + 17, 2), "table entry"),
    "reset block of two bytes": (build_image(4096, entries={SEV_ES_RESET_BLOCK: b"ab"}), "SEV-ES reset block"),
    "hash area of four bytes": (build_image(4096, entries=HASH_ENTRY), "SEV hash table area"),
    "metadata offset 0": (build_image(4096, entries={SEV_METADATA: bytes(4)}), "SEV metadata offset"),
    "metadata before the image": (
        build_image(4096, entries={SEV_METADATA: (4097).to_bytes(4, "little")}),
        "SEV metadata offset",
    ),
    "signature": (poked(METADATA, 0), "SEV metadata signature"),
    "size below its items": (poked(METADATA + 4, 16), "SEV metadata size"),
    "size beyond the image": (poked(METADATA + 4, 0x601), "SEV metadata size"),
    "version": (poked(METADATA + 8, 2), "SEV metadata version"),
    "count": (poked(METADATA + 12, 0xFFFF_FFFF), "SEV metadata count"),
    "type": (poked(METADATA + 16 + 8, 9), "SEV metadata section 0 type"),
    "address inside a page": (poked(METADATA + 16, 0x80_0001), "SEV metadata section 0 address"),
    "no size": (poked(METADATA + 16 + 4, 0), "SEV metadata section 0 size"),
    "size of part of a page": (poked(METADATA + 16 + 4, 100), "SEV metadata section 0 size"),
    "two pages of secrets": (with_sections((SectionType.SECRETS, 0x1000, 0x2000)), "SEV metadata section 0 size"),
    "endless section": (with_sections((SectionType.SEC_MEM, 0, 0xFFFF_F000)), "SEV metadata section 0 size"),
    "sections too large together": (
        with_sections((SectionType.SEC_MEM, 0, 0xC0_0000), (SectionType.SEC_MEM, 0x100_0000, 0xC0_0000)),
        "SEV metadata sections",
    ),
    "sections that overlap": (
        with_sections((SectionType.SEC_MEM, 0x2000, 0x2000), (SectionType.SEC_MEM, 0, 0x3000)),
        "SEC_MEM section at 0x0",
    ),
    "section that meets the image": (
        with_sections((SectionType.SEC_MEM, 0xFFFF_E000, 0x2000)),
        "SEC_MEM section at 0xffffe000",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_field_is_named(case):
    image, field = REFUSED[case]
    with pytest.raises(FirmwareImageError) as error:
        parse_ovmf(image)
    assert error.value.field == field
    assert f"{field}: expected" in str(error.value)


def test_an_entry_that_comes_twice_is_refused():
    body = 2 * (bytes(4) + ENTRY_TAIL.pack(22, SEV_ES_RESET_BLOCK.bytes_le))
    table = body + ENTRY_TAIL.pack(len(body) + 18, TABLE_FOOTER.bytes_le)
    with pytest.raises(FirmwareImageError, match="one of its kind"):
        parse_ovmf(table.rjust(4096 - BYTES_AFTER_TABLE, b"\0") + bytes(BYTES_AFTER_TABLE))


@given(
    st.lists(
        st.tuples(st.integers(METADATA, 4095) | st.integers(FOOTER - 120, FOOTER + 18), st.integers(0, 255)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=125)
@example([])
def test_any_poked_image_parses_or_is_refused_by_that_error_alone(pokes):
    image = bytearray(IMAGE)
    for offset, value in pokes:
        image[offset] = value
    try:
        tables = parse_ovmf(bytes(image))
    except FirmwareImageError:
        return
    assert sum(section.size for section in tables.sections) <= MAX_IMAGE_BYTES


@given(
    entries=st.dictionaries(
        st.sampled_from([SEV_METADATA, SEV_HASH_TABLE, SEV_ES_RESET_BLOCK]) | st.uuids(),
        st.binary(max_size=24),
        max_size=12,
    ),
    rows=st.lists(
        st.tuples(
            st.sampled_from(list(SectionType)),
            st.integers(0, 0xFFFFF).map(lambda page: page << 12) | st.integers(0, 0xFFFF_FFFF),
            st.integers(0, 0x20).map(lambda pages: pages << 12) | st.integers(0, 0xFFFF_FFFF),
        ),
        max_size=8,
    ),
    keep=st.booleans(),
)
@settings(max_examples=62)
def test_any_built_image_parses_to_what_it_was_built_from_or_is_refused(entries, rows, keep):
    sections = [MetadataSection(*row) for row in rows]
    offset = (0x600).to_bytes(4, "little")
    named: dict[UUID, bytes] = entries | ({SEV_METADATA: offset} if keep else {})
    try:
        tables = parse_ovmf(build_image(8192, sections, named))
    except FirmwareImageError:
        return
    if keep:
        assert tables.sections == tuple(sections)
    assert tables.guids == named.keys()
