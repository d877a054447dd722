"""``sevfleet measure`` prints what sev-snp-measure computes, in every mode, and refuses in one line.

Equal digests prove agreement with another implementation, not with hardware.
"""

import base64
import hashlib
import os
import struct
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sevsnpmeasure import guest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType

from cluster.cli import main
from node.laboratory_firmware import SECTIONS, build_image
from node.ovmf import SEV_ES_RESET_BLOCK, SEV_METADATA, SVSM_INFO, SectionType

PROJECT = Path(__file__).parents[2]
DEBIAN_IMAGE = Path("/usr/share/ovmf/OVMF.fd")
MODES = {"sev": SevMode.SEV, "seves": SevMode.SEV_ES, "snp": SevMode.SEV_SNP}
SVSM_BYTES = 128 * 1024
ENTRY = 0x1_2340


@pytest.fixture(params=["installed", "ovmf_AmdSev_suffix.bin", "ovmf_OvmfX64_suffix.bin", "laboratory"])
def image(request, tmp_path):
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
    return test_data / "vectors" / "ovmf_AmdSev_suffix.bin"


@pytest.fixture
def lab(tmp_path):
    path = tmp_path / "laboratory.fd"
    path.write_bytes(build_image())
    return path


@pytest.fixture
def measured(capsys):
    """What the command prints in its last line, after success."""

    def run(*arguments):
        code = main(["measure", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out.splitlines()[-1]

    return run


@pytest.mark.parametrize("vmm", VMMType, ids=lambda vmm: vmm.name)
@pytest.mark.parametrize("vcpus", [1, 2, 5])
@pytest.mark.parametrize("mode", MODES)
def test_the_digest_equals_sev_snp_measures(image, measured, mode, vcpus, vmm):
    signature = CPU_SIGS["EPYC-Milan"]
    expected = guest.calc_launch_digest(
        MODES[mode], vcpus, signature, str(image), None, None, None, 0x21, "", vmm_type=vmm
    )
    ours = measured(
        "--mode", mode, "--vcpus", vcpus, "--vcpu-type", "EPYC-Milan", "--vmm-type", vmm.name, "--ovmf", image,
        "--guest-features", "0x21",
    )  # fmt: skip
    assert ours == expected.hex()


@pytest.mark.parametrize("vmm", VMMType, ids=lambda vmm: vmm.name)
@pytest.mark.parametrize("mode", MODES)
def test_a_measured_kernel_counts_as_in_sev_snp_measure(lab, tmp_path, measured, mode, vmm):
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(bytes(range(256)) * 9000)
    initrd.write_bytes(b"initrd")
    line = "console=ttyS0 loglevel=7"
    expected = guest.calc_launch_digest(
        MODES[mode], 3, 0x800F12, str(lab), str(kernel), str(initrd), line, 1, "", vmm_type=vmm
    )
    common = ("--mode", mode, "--vcpus", 3, "--vcpu-sig", "0x800f12", "--ovmf", lab, "--vmm-type", vmm.name)
    assert measured(*common, "--kernel", kernel, "--initrd", initrd, "--append", line) == expected.hex()
    assert measured(*common, "--kernel", kernel, "--initrd", initrd, "--append", line + " ") != expected.hex()


@pytest.mark.parametrize("name", CPU_SIGS)
def test_every_vcpu_model_and_its_numbers_give_the_same_digest(lab, measured, name):
    signature = CPU_SIGS[name]
    expected = guest.calc_launch_digest(SevMode.SEV_SNP, 2, signature, str(lab), None, None, None, 1, "").hex()
    family = (signature >> 8 & 0xF) + (signature >> 20)
    model = signature >> 12 & 0xF0 | signature >> 4 & 0xF
    common = ("--mode", "snp", "--vcpus", 2, "--ovmf", lab)
    assert measured(*common, "--vcpu-type", name) == expected
    assert measured(*common, "--vcpu-sig", signature) == expected
    numbers = ("--vcpu-family", family, "--vcpu-model", model, "--vcpu-stepping", signature & 0xF)
    assert measured(*common, *numbers) == expected


@given(
    vcpus=st.integers(1, 9),
    features=st.integers(0, (1 << 64) - 1),
    cmdline=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    vmm=st.sampled_from(list(VMMType)),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_snp_guest_measures_the_same(lab, measured, vcpus, features, cmdline, vmm):
    kernel = None if cmdline is None else "/dev/null"
    expected = guest.calc_launch_digest(
        SevMode.SEV_SNP, vcpus, 0xA00F11, str(lab), kernel, None, cmdline, features, "", vmm_type=vmm
    )
    boot = () if cmdline is None else ("--kernel", kernel, f"--append={cmdline}")
    ours = measured(
        "--mode", "snp", "--vcpus", vcpus, "--vcpu-sig", "0xA00F11", "--ovmf", lab, "--vmm-type", vmm.name,
        "--guest-features", hex(features), *boot,
    )  # fmt: skip
    assert ours == expected.hex()


def test_the_images_own_digest_stands_for_its_contents(image, lab, measured):
    alone = measured("--mode", "snp:ovmf-hash", "--ovmf", image)
    assert alone == guest.calc_snp_ovmf_hash(str(image)).hex()
    common = ("--mode", "snp", "--vcpus", 2, "--vcpu-type", "EPYC-v4", "--ovmf", image)
    assert measured(*common, "--snp-ovmf-hash", alone) == measured(*common)
    other = guest.snp_calc_launch_digest(2, CPU_SIGS["EPYC-v4"], str(image), None, None, None, 1, "ab" * 48).hex()
    assert measured(*common, "--snp-ovmf-hash", "ab" * 48) == other


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize("vars_bytes", [0x84000, 0x1000])
def test_an_svsm_below_ovmf_measures_as_in_sev_snp_measure(lab, tmp_path, measured, vcpus, vars_bytes):
    svsm, variables = tmp_path / "svsm.bin", tmp_path / "vars.fd"
    entries = {SVSM_INFO: struct.pack("<I", ENTRY), SEV_METADATA: struct.pack("<I", 0x600)}
    svsm.write_bytes(build_image(SVSM_BYTES, SECTIONS[:5], entries))
    variables.write_bytes(bytes(vars_bytes))
    expected = guest.calc_launch_digest(
        SevMode.SEV_SNP_SVSM, vcpus, CPU_SIGS["EPYC-v4"], str(lab), None, None, None, 1, "",
        svsm_file=str(svsm), ovmf_vars_size=vars_bytes,
    ).hex()  # fmt: skip
    common = ("--mode", "snp:svsm", "--vcpus", vcpus, "--vcpu-type", "EPYC-v4", "--ovmf", lab, "--svsm", svsm)
    assert measured(*common, "--vars-size", vars_bytes) == expected
    assert measured(*common, "--vars-file", variables) == expected


# Published answers for EPYC-v4 (sev-snp-measure 0.0.13, tests/test_guest.py): a row for each option that decides.
PUBLISHED = [
    (("snp", 1, "0x21", "QEMU", "console=ttyS0 loglevel=7"),
     "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"),
    (("snp", 1, "0x1", "QEMU", "console=ttyS0 loglevel=7"),
     "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"),
    (("snp", 4, "0x1", "QEMU", ""),
     "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"),
    (("snp", 1, "0x21", "QEMU", None),
     "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"),
    (("snp", 1, "0x21", "ec2", ""),
     "0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278c0d67fb"),
    (("snp", 1, "0x1", "ec2", ""),
     "0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056"),
    (("snp", 1, "0x1", "gce", ""),
     "5da7106cf14cf46b1725ebab123eb9e53bd46a1e9f400cd0c08e7827b04b688ea8b4e403c8404efed4397ea5d5d0722e"),
    (("snp", 4, "0x1", "gce", ""),
     "5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7ab81e29d"),
    (("seves", 1, "0x1", "QEMU", ""), "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c"),
    (("seves", 4, "0x1", "QEMU", ""), "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91"),
    (("sev", 1, "0x1", "QEMU", "console=ttyS0 loglevel=7"),
     "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff"),
    (("sev", 1, "0x1", "QEMU", ""), "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "answer"), PUBLISHED)
def test_published_answers_come_out(amd_sev, measured, options, answer):
    mode, vcpus, features, vmm, cmdline = options
    boot = () if cmdline is None else ("--kernel", "/dev/null", "--initrd", "/dev/null", "--append", cmdline)
    ours = measured(
        "--mode", mode, "--vcpus", vcpus, "--vcpu-type", "EPYC-v4", "--guest-features", features, "--vmm-type", vmm,
        "--ovmf", amd_sev, *boot,
    )  # fmt: skip
    assert ours == answer


def test_the_digest_is_alone_on_the_last_line(lab, capsys):
    assert main(["measure", "--mode", "sev", "--ovmf", str(lab), "--verbose"]) == 0
    *before, last = capsys.readouterr().out.splitlines()
    assert str(lab) in before[0]
    assert len(bytes.fromhex(last)) == 32


def test_the_readme_shows_what_comes_out(tmp_path, monkeypatch, capsys):
    """Its example is of Debian's image, whose SHA-256 it shows."""
    lines = [line.strip() for line in (PROJECT / "README.md").read_text("utf-8").splitlines()]
    first = next(at for at, line in enumerate(lines) if line.startswith("$ sevfleet measure"))
    shown = lines[first + 1 : first + 4]
    if not DEBIAN_IMAGE.is_file() or hashlib.sha256(DEBIAN_IMAGE.read_bytes()).hexdigest() not in shown[0]:
        pytest.skip("another OVMF image than the README's")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OVMF.fd").write_bytes(DEBIAN_IMAGE.read_bytes())
    assert main(lines[first].split()[2:]) == 0
    assert capsys.readouterr().out.splitlines() == shown


def test_base64_is_the_same_digest(lab, measured):
    common = ("--mode", "sev", "--ovmf", lab)
    assert base64.b64decode(measured(*common, "--output-format", "base64")).hex() == measured(*common)


@pytest.mark.parametrize("mode", ["seves", "snp"])
def test_save_areas_are_dumped_as_measured(lab, tmp_path, measured, monkeypatch, mode):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    monkeypatch.chdir(theirs)
    guest.calc_launch_digest(MODES[mode], 3, 0x800F12, str(lab), None, None, None, 1, "", dump_vmsa=True)
    monkeypatch.chdir(ours)
    measured("--mode", mode, "--vcpus", 3, "--vcpu-sig", "0x800F12", "--ovmf", lab, "--dump-vmsa")
    dumped = {path.name: path.read_bytes() for path in ours.iterdir()}
    assert sorted(dumped) == ["vmsa0.bin", "vmsa1.bin", "vmsa2.bin"]
    assert dumped == {path.name: path.read_bytes() for path in theirs.iterdir()}


SNP = ("--mode", "snp", "--vcpus", "1", "--vcpu-type", "EPYC-v4")
REFUSED = {
    "no mode": ((), "--mode"),
    "unknown mode": (("--mode", "tdx"), "--mode: expected one of sev, seves, snp"),
    "no vcpus": (("--mode", "snp", "--vcpu-type", "EPYC-v4"), "--vcpus: expected"),
    "zero vcpus": (("--mode", "snp", "--vcpus", "0"), "--vcpus: expected a whole number from 1"),
    "no vcpu model": (("--mode", "snp", "--vcpus", "1"), "--vcpu-type: expected one of"),
    "two vcpu models": ((*SNP, "--vcpu-sig", "1"), "--vcpu-type: expected one of"),
    "unknown vcpu model": (("--mode", "snp", "--vcpus", "1", "--vcpu-type", "486"), "--vcpu-type: expected one of E"),
    "family alone": (("--mode", "snp", "--vcpus", "1", "--vcpu-family", "25"), "--vcpu-family: expected --vcpu-model"),
    "no signature": (("--mode", "snp", "--vcpus", "1", "--vcpu-sig", "0xF0000000"), "--vcpu-sig: expected the value"),
    "wide signature": (("--mode", "snp", "--vcpus", "1", "--vcpu-sig", "0x100000000"), "at most 32 bits"),
    "wide features": ((*SNP, "--guest-features", hex(1 << 64)), "--guest-features: expected a number of at most 64"),
    "negative features": ((*SNP, "--guest-features=-1"), "--guest-features: expected a number of at most 64"),
    "unknown VMM, of no use": (("--mode", "sev", "--vmm-type", "xen"), "--vmm-type: expected one of QEMU, ec2, gce"),
    "unknown vCPU, of no use": (("--mode", "sev", "--vcpu-type", "486"), "--vcpu-type: expected"),
    "initrd, of no use": (("--mode", "snp:ovmf-hash", "--initrd", "/nowhere"), "--initrd: expected --kernel"),
    "an empty store, of no use": ((*SNP, "--vars-size", "0"), "--vars-size: expected mode snp:svsm"),
    "unknown VMM": ((*SNP, "--vmm-type", "xen"), "--vmm-type: expected one of QEMU, ec2, gce"),
    "initrd without kernel": ((*SNP, "--initrd", "/dev/null"), "--initrd: expected --kernel"),
    "line without kernel": ((*SNP, "--append", "quiet"), "--append: expected --kernel"),
    "no such kernel": ((*SNP, "--kernel", "/nowhere"), "/nowhere: No such file"),
    "kernel a folder": ((*SNP, "--kernel", "/"), "/: Is a directory"),
    "image digest for SEV": (("--mode", "sev", "--snp-ovmf-hash", "00" * 48), "--snp-ovmf-hash: expected mode snp"),
    "short image digest": ((*SNP, "--snp-ovmf-hash", "00"), "--snp-ovmf-hash: expected 96 hexadecimal"),
    "no save areas": (("--mode", "sev", "--dump-vmsa"), "--dump-vmsa: expected mode"),
    "no SVSM": (("--mode", "snp:svsm", *SNP[2:]), "--svsm: expected an SVSM image"),
    "no store": (("--mode", "snp:svsm", *SNP[2:], "--svsm", "/nowhere"), "--vars-file: expected"),
    "odd store": (("--mode", "snp:svsm", *SNP[2:], "--svsm", "/nowhere", "--vars-size", "17"), "--vars-size: expected"),
    "SVSM in a cloud": (
        ("--mode", "snp:svsm", *SNP[2:], "--svsm", "/nowhere", "--vars-size", "0", "--vmm-type", "ec2"),
        "--vmm-type: expected QEMU"),
    "kernel with an SVSM": (
        ("--mode", "snp:svsm", *SNP[2:], "--svsm", "/nowhere", "--vars-size", "0", "--kernel", "/dev/null"),
        "--kernel: expected mode"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(lab, capsys, case):
    options, said = REFUSED[case]
    assert main(["measure", "--ovmf", str(lab), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("contents", "said"),
    [(b"", "size: expected"), (bytes(5000), "size: expected"), (bytes(8192), "SEV metadata: expected")],
)
def test_an_image_that_cannot_be_launched_is_refused_by_name(tmp_path, capsys, contents, said):
    path = tmp_path / "broken.fd"
    path.write_bytes(contents)
    assert main(["measure", *SNP, "--ovmf", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{path}: {said}" in err
    assert err.count("\n") == 1


def test_an_svsm_without_entry_is_refused(lab, tmp_path, capsys):
    for entries, said in [
        ({SEV_METADATA: struct.pack("<I", 0x600)}, "SVSM info: expected an entry point, found none"),
        ({SVSM_INFO: struct.pack("<I", SVSM_BYTES)}, "SVSM info: expected an entry point below"),
    ]:
        svsm = tmp_path / "svsm.bin"
        svsm.write_bytes(build_image(SVSM_BYTES, SECTIONS[:5], entries))
        options = ("--mode", "snp:svsm", *SNP[2:], "--svsm", str(svsm), "--vars-size", "4096")
        assert main(["measure", "--ovmf", str(lab), *options]) == 2
        assert f"{svsm}: {said}" in capsys.readouterr().err


def test_a_pipe_as_kernel_is_refused_and_not_waited_for(lab, tmp_path, capsys):
    pipe = tmp_path / "kernel"
    os.mkfifo(pipe)
    assert main(["measure", *SNP, "--ovmf", str(lab), "--kernel", str(pipe)]) == 2
    assert "a pipe" in capsys.readouterr().err


RESET = {SEV_ES_RESET_BLOCK: struct.pack("<I", 0x80_B004)}
METADATA = {SEV_METADATA: struct.pack("<I", 0x600)}
PAGES = {one.section_type: one for one in SECTIONS}
WITHOUT_SNP = {
    "no metadata": ((), RESET),
    "metadata without sections": ((), RESET | METADATA),
    "memory alone": (SECTIONS[:1], RESET | METADATA),
    "no CPUID page": ((PAGES[SectionType.SECRETS],), RESET | METADATA),
    "no secrets page": ((PAGES[SectionType.CPUID],), RESET | METADATA),
}


@pytest.mark.parametrize("vmm", VMMType, ids=lambda vmm: vmm.name)
@pytest.mark.parametrize("kind", WITHOUT_SNP)
def test_an_image_that_was_built_without_snp_has_the_same_digest(measured, tmp_path, kind, vmm):
    sections, entries = WITHOUT_SNP[kind]
    path = tmp_path / "OVMF_CODE.fd"
    path.write_bytes(build_image(32768, sections, entries))
    for mode, vcpus in product(MODES, (1, 3)):
        expected = guest.calc_launch_digest(
            MODES[mode], vcpus, CPU_SIGS["EPYC-v4"], str(path), None, None, None, 1, "", vmm_type=vmm
        )
        options = ("--vcpus", vcpus, "--vcpu-type", "EPYC-v4", "--vmm-type", vmm.name)
        assert measured("--mode", mode, "--ovmf", path, *options) == expected.hex()


def test_an_svsm_without_metadata_has_the_same_digest(measured, lab, tmp_path):
    svsm = tmp_path / "svsm.bin"
    svsm.write_bytes(build_image(SVSM_BYTES, (), {SVSM_INFO: struct.pack("<I", ENTRY)}))
    expected = guest.svsm_calc_launch_digest(2, CPU_SIGS["EPYC-v4"], str(lab), 4096, str(svsm), False)
    options = ("--vcpus", 2, "--vcpu-type", "EPYC-v4", "--svsm", svsm, "--vars-size", 4096)
    assert measured("--mode", "snp:svsm", "--ovmf", lab, *options) == expected.hex()


@pytest.mark.parametrize("package", ["OVMF_CODE_4M.fd", "OVMF_CODE_4M.secboot.fd", "OVMF_CODE.fd"])
def test_an_installed_image_without_snp_has_the_same_digest(measured, package):
    path = DEBIAN_IMAGE.parents[1] / "OVMF" / package
    if not path.is_file():
        pytest.skip(f"no {path} (Debian package ovmf)")
    expected = guest.snp_calc_launch_digest(2, CPU_SIGS["EPYC-v4"], str(path), None, None, None, 1, "")
    assert measured("--mode", "snp", "--vcpus", 2, "--vcpu-type", "EPYC-v4", "--ovmf", path) == expected.hex()


@pytest.mark.parametrize("mode", MODES)
def test_a_name_that_is_empty_is_no_file_as_with_sev_snp_measure(measured, lab, mode):
    options = ("--mode", mode, *SNP[2:], "--ovmf", lab)
    assert measured(*options, "--initrd", "", "--append", "") == measured(*options)
    assert measured(*options, "--kernel", "", "--append", "") == measured(*options)
    booted = measured(*options, "--kernel", "/dev/null", "--initrd", "", "--append", "")
    expected = guest.calc_launch_digest(
        MODES[mode], int(SNP[3]), CPU_SIGS[SNP[5]], str(lab), "/dev/null", "", "", 1, ""
    )
    assert booted == expected.hex()
