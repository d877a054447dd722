"""What a launch measures, in which order: digests equal sev-snp-measure's and its published answers.

Equal digests prove page order, metadata and VMSA construction against another
implementation, not against hardware.
"""

import hashlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sevsnpmeasure import guest
from sevsnpmeasure.sev_hashes import SevHashes

from node.cpuid_page import MAX_CPUID_ENTRIES, CpuidEntry, cpuid_entries, cpuid_page
from node.firmware_image import firmware_image, laboratory_image, read_firmware_image
from node.kernel_hashes import KernelHashes
from node.laboratory_firmware import SECTIONS, build_image
from node.measured_launch import VMSA_GPA, launch_vmsas, sev_launch_ranges, snp_launch_pages
from node.ovmf import (
    MAX_SECTION_BYTES,
    SEV_ES_RESET_BLOCK,
    SEV_HASH_TABLE,
    SEV_METADATA,
    SVSM_INFO,
    FirmwareImageError,
)
from node.svsm_launch import guest_launch_pages
from node.vcpu_model import vcpu_model
from psp.launch_digest import LaunchDigest, PageType

MODEL = vcpu_model("EPYC-v4")
DEBIAN_IMAGE = Path("/usr/share/ovmf/OVMF.fd")
NOTHING = "/dev/null"


@pytest.fixture(params=["installed", "ovmf_AmdSev_suffix.bin", "ovmf_OvmfX64_suffix.bin", "laboratory"])
def image_path(request, tmp_path):
    """Path of each image we can compare on."""
    if request.param == "installed":
        if not DEBIAN_IMAGE.is_file():
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {DEBIAN_IMAGE} (Debian package ovmf)")
        return DEBIAN_IMAGE
    if request.param == "laboratory":
        path = tmp_path / "laboratory.fd"
        path.write_bytes(build_image())
        return path
    return request.getfixturevalue("test_data") / "vectors" / request.param


@pytest.fixture
def amd_sev(test_data):
    return read_firmware_image(test_data / "vectors" / "ovmf_AmdSev_suffix.bin")


@pytest.fixture
def ovmf_x64(test_data):
    return read_firmware_image(test_data / "vectors" / "ovmf_OvmfX64_suffix.bin")


def snp_digest(pages):
    digest = LaunchDigest()
    for page in pages:
        digest.update(page.page_type, page.gpa, page.data)
    return digest.value.hex()


def sev_digest(ranges, vmsas=()):
    return hashlib.sha256(b"".join([*(data for _, data in ranges), *vmsas])).hexdigest()


@pytest.mark.parametrize("features", [0x1, 0x21])
@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("model", ["EPYC-v4", "EPYC-Milan", "EPYC-Genoa-v1", "EPYC-Turin"])
def test_snp_digests_equal_sev_snp_measures(image_path, model, vcpus, features):
    image, chosen = read_firmware_image(image_path), vcpu_model(model)
    expected = guest.snp_calc_launch_digest(
        vcpus, chosen.cpuid_signature, str(image_path), None, None, None, features, ""
    )
    assert snp_digest(snp_launch_pages(image, vcpus, chosen, features)) == expected.hex()


def test_sev_digests_equal_sev_snp_measures(image_path):
    image = read_firmware_image(image_path)
    expected = guest.sev_calc_launch_digest(str(image_path), None, None, None)
    assert sev_digest(sev_launch_ranges(image)) == expected.hex()


@pytest.mark.parametrize("vcpus", [1, 3])
def test_sev_es_digests_equal_sev_snp_measures(image_path, vcpus):
    image = read_firmware_image(image_path)
    expected = guest.seves_calc_launch_digest(vcpus, MODEL.cpuid_signature, str(image_path), None, None, None)
    assert sev_digest(sev_launch_ranges(image), launch_vmsas(image, vcpus, MODEL, 0)) == expected.hex()


# Published answers: sev-snp-measure 0.0.13, tests/test_guest.py; kernel and initrd are empty files.
LINE = "console=ttyS0 loglevel=7"
SNP_ANSWERS = [
    (LINE, 1, 0x21, "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"),
    (LINE, 1, 0x01, "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"),
    ("", 1, 0x21, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"),
    ("", 1, 0x01, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"),
    ("", 4, 0x21, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"),
    ("", 4, 0x01, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"),
    (None, 1, 0x21, "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"),
    (None, 1, 0x01, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"),
]  # fmt: skip
X64_ANSWERS = [
    (0x21, "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385"),
    (0x01, "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"),
]
SEV_ANSWERS = [
    (LINE, "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff"),
    ("", "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898"),
]
SEV_ES_ANSWERS = [
    (1, "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c"),
    (4, "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91"),
]
IMAGE_ANSWER = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"


@pytest.mark.parametrize(("cmdline", "vcpus", "features", "answer"), SNP_ANSWERS)
def test_snp_launches_of_the_amdsev_build_have_the_published_digests(amd_sev, cmdline, vcpus, features, answer):
    hashes = None if cmdline is None else KernelHashes.of(b"", b"", cmdline)
    assert snp_digest(snp_launch_pages(amd_sev, vcpus, MODEL, features, hashes)) == answer


@pytest.mark.parametrize(("features", "answer"), X64_ANSWERS)
def test_snp_launches_of_the_plain_build_have_the_published_digests(ovmf_x64, features, answer):
    assert snp_digest(snp_launch_pages(ovmf_x64, 1, MODEL, features)) == answer


def test_the_image_alone_has_its_published_digest(amd_sev):
    pages = list(snp_launch_pages(amd_sev, 1, MODEL, 1))
    assert snp_digest(pages[: len(amd_sev.data) // 4096]) == IMAGE_ANSWER


@pytest.mark.parametrize(("cmdline", "answer"), SEV_ANSWERS)
def test_sev_launches_with_a_kernel_have_the_published_digests(amd_sev, cmdline, answer):
    assert sev_digest(sev_launch_ranges(amd_sev, KernelHashes.of(b"", b"", cmdline))) == answer


@pytest.mark.parametrize(("vcpus", "answer"), SEV_ES_ANSWERS)
def test_sev_es_launches_with_a_kernel_have_the_published_digests(amd_sev, vcpus, answer):
    ranges = sev_launch_ranges(amd_sev, KernelHashes.of(b""))
    assert sev_digest(ranges, launch_vmsas(amd_sev, vcpus, MODEL, 0)) == answer


def test_the_hash_table_equals_another_implementations(tmp_path):
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    ours = KernelHashes.of(b"kernel", b"initrd", "quiet")
    assert ours.table() == SevHashes(str(kernel), str(initrd), "quiet").construct_table()
    assert KernelHashes.of(b"").table() == SevHashes(NOTHING, NOTHING, "").construct_table()


def test_pages_come_image_first_then_sections_in_table_order_then_vmsas():
    image = laboratory_image()
    pages = list(snp_launch_pages(image, 3, MODEL, 1))
    count = len(image.data) // 4096
    flash, rest = pages[:count], pages[count:]
    assert [page.gpa for page in flash] == list(range(image.gpa, 1 << 32, 4096))
    assert b"".join(page.data for page in flash) == image.data
    assert {page.page_type for page in flash} == {PageType.NORMAL}
    sections = [gpa for section in SECTIONS for gpa in range(section.gpa, section.gpa + section.size, 4096)]
    assert [page.gpa for page in rest[:-3]] == sections
    assert [page.page_type for page in rest[9 + 3 : 9 + 3 + 3]] == [PageType.SECRETS, PageType.CPUID, PageType.ZERO]
    assert all((page.page_type, page.gpa) == (PageType.VMSA, VMSA_GPA) for page in rest[-3:])
    assert rest[-3].data != rest[-2].data == rest[-1].data


def test_firmware_made_pages_carry_no_data():
    for page in snp_launch_pages(laboratory_image(), 1, MODEL, 1):
        assert (page.data is None) == (page.page_type in {PageType.ZERO, PageType.SECRETS})
        assert page.data is None or len(page.data) == 4096


def test_the_cpuid_page_shows_vendor_and_signature():
    (page,) = [page for page in snp_launch_pages(laboratory_image(), 1, MODEL, 1) if page.page_type is PageType.CPUID]
    assert struct.unpack_from("<IIQ", page.data) == (5, 0, 0)
    leaf_1 = struct.unpack_from("<IIQQIIIIQ", page.data, 16 + 48)
    assert (leaf_1[0], leaf_1[4]) == (1, MODEL.cpuid_signature)
    leaf_0 = struct.unpack_from("<IIQQ4s4s4s4sQ", page.data, 16)
    assert leaf_0[5] + leaf_0[7] + leaf_0[6] == b"AuthenticAMD"
    assert cpuid_page(cpuid_entries(MODEL.cpuid_signature)) == page.data
    assert len(cpuid_page([CpuidEntry(leaf) for leaf in range(MAX_CPUID_ENTRIES)])) == 4096
    with pytest.raises(ValueError, match="64 entries"):
        cpuid_page([CpuidEntry(0)] * (MAX_CPUID_ENTRIES + 1))


HASHES = KernelHashes.of(b"")
METADATA_ENTRY = {SEV_METADATA: (0x600).to_bytes(4, "little")}


def hash_entry(gpa, size):
    return METADATA_ENTRY | {SEV_HASH_TABLE: struct.pack("<II", gpa, size)}


LACKING = {
    "no metadata": (bytes(8192), 1, None, "SEV metadata"),
    "no reset block": (build_image(8192, entries=METADATA_ENTRY), 2, None, "SEV-ES reset block"),
    "no hash area": (build_image(8192, entries=METADATA_ENTRY), 1, HASHES, "SEV hash table area"),
    "hash area too small": (build_image(8192, entries=hash_entry(0x81_0C00, 160)), 1, HASHES, "SEV hash table area"),
    "hash area over a page's end": (
        build_image(8192, entries=hash_entry(0x81_0FF0, 0x400)), 1, HASHES, "SEV hash table area"),
    "hash area off its alignment": (
        build_image(8192, entries=hash_entry(0x81_0C08, 0x400)), 1, HASHES, "SEV hash table area"),
    "hash area outside of its section": (
        build_image(8192, entries=hash_entry(0x80_0000, 0x400)), 1, HASHES, "KERNEL_HASHES section"),
    "no hash section": (
        build_image(8192, SECTIONS[:5], hash_entry(0x81_0C00, 0x400)), 1, HASHES, "KERNEL_HASHES section"),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
def test_an_image_that_lacks_what_the_launch_asks_is_refused_before_the_first_page(case):
    data, vcpus, hashes, field = LACKING[case]
    with pytest.raises(FirmwareImageError) as error:
        snp_launch_pages(firmware_image(data, "image.fd"), vcpus, MODEL, 1, hashes)
    assert error.value.field == field
    assert str(error.value).startswith("image.fd: ")


def test_sev_needs_no_metadata_but_a_hash_area_for_hashes():
    image = firmware_image(bytes(8192), "image.fd")
    assert sev_launch_ranges(image) == [(0xFFFF_E000, bytes(8192))]
    with pytest.raises(FirmwareImageError, match="SEV hash table area"):
        sev_launch_ranges(image, HASHES)
    below = firmware_image(build_image(8192, entries=hash_entry(0xFFFF_DFE0, 0x400)), "image.fd")
    with pytest.raises(FirmwareImageError, match="below the image"):
        sev_launch_ranges(below, HASHES)


@given(
    pokes=st.lists(st.tuples(st.integers(8192 - 0x600, 8191), st.integers(0, 255)), min_size=1, max_size=5),
    hashes=st.sampled_from([None, HASHES]),
)
@settings(max_examples=62)
def test_any_poked_image_launches_in_bounded_pages_or_is_refused_by_that_error_alone(pokes, hashes):
    data = bytearray(build_image(8192))
    for offset, value in pokes:
        data[offset] = value
    try:
        pages = list(snp_launch_pages(firmware_image(bytes(data), "image.fd"), 2, MODEL, 1, hashes))
    except FirmwareImageError:
        return
    assert len(pages) <= 2 + MAX_SECTION_BYTES // 4096 + 2
    assert len({page.gpa for page in pages}) == len(pages) - 1  # no page twice, but the VMSAs' shared address


def test_a_vm_has_a_vcpu():
    with pytest.raises(ValueError, match="vcpus"):
        snp_launch_pages(laboratory_image(), 0, MODEL, 1)


@pytest.mark.parametrize("kept", [SECTIONS[:1], SECTIONS[:2], ()])
def test_a_host_launches_no_snp_guest_from_an_image_without_its_pages(kept):
    entries = METADATA_ENTRY | {SEV_ES_RESET_BLOCK: (0x80_B004).to_bytes(4, "little")}
    image = firmware_image(build_image(8192, kept, entries), "image.fd")
    assert len(list(snp_launch_pages(image, 1, MODEL, 1))) > 2
    with pytest.raises(FirmwareImageError, match=r"image\.fd: SEV metadata: expected a SECRETS and a CPUID section"):
        guest_launch_pages((image,), 1, MODEL, 1)
    svsm = firmware_image(build_image(8192, kept, {**entries, SVSM_INFO: bytes(4)}), "svsm.bin")
    with pytest.raises(FirmwareImageError, match=r"svsm\.bin: SEV metadata"):
        guest_launch_pages((laboratory_image(), svsm), 1, MODEL, 1)
