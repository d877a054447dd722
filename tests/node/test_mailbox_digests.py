"""What the firmware has measured after a launch by its mailbox, against sev-snp-measure: each VMM, kernel and image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from rmp_laboratory import FIRMWARE, POLICY, laboratory
from sevsnpmeasure import guest as reference
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType

from node import operations as op
from node.board import Board
from node.counter_random import CounterRandom
from node.firmware_image import FirmwareImage, firmware_image
from node.kernel_hashes import KernelHashes
from node.laboratory_firmware import build_image
from node.measured_launch import LaunchPage, launch_vmsas, sev_launch_ranges, snp_launch_pages
from node.product import PRODUCTS
from node.svsm_launch import svsm_launch_pages
from node.svsm_memory import laboratory_svsm
from node.vcpu_model import vcpu_model
from node.vmm_type import VMMS, Vmm
from psp import command_buffers as buffers
from psp.commands import LegacyCommand, SnpCommand
from psp.launch_digest import PageType
from psp.status import Status
from psp.system_bus import PAGE_BYTES, RmpEntry

MODEL = vcpu_model("EPYC-v4")
KERNEL, INITRD, LINE = b"a kernel", b"its initrd", "console=ttyS0"
BUFFER, GCTX, PAGES, MIB = 1 << 16, 0x30_0000, 8 << 20, 1 << 20
ASID, FEATURES, VCPUS = 9, 1, 3
ES_POLICY = 4


@pytest.fixture(scope="module", params=["laboratory", "ovmf_AmdSev_suffix.bin"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FirmwareImage, str]:
    data = build_image(256 << 10)
    if request.param != "laboratory":
        data = (request.getfixturevalue("test_data") / "vectors" / request.param).read_bytes()
    path = tmp_path_factory.mktemp("image") / "image.fd"
    path.write_bytes(data)
    return firmware_image(data, "image.fd"), str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """What sev-snp-measure takes for a kernel: two files and a line."""
    folder: Path = tmp_path_factory.mktemp("kernel")
    (folder / "kernel").write_bytes(KERNEL)
    (folder / "initrd").write_bytes(INITRD)
    return str(folder / "kernel"), str(folder / "initrd"), LINE


def hashes_of(*, kernel: bool) -> KernelHashes | None:
    return KernelHashes.of(KERNEL, INITRD, LINE) if kernel else None


def snp_pages(image: FirmwareImage, vmm: Vmm, hashes: KernelHashes | None, vcpus: int = VCPUS) -> Iterable[LaunchPage]:
    return snp_launch_pages(image, vcpus, MODEL, FEATURES, hashes, vmm)


def context_digest(pages: Iterable[LaunchPage], poked: int | None = None) -> str:
    """A guest of its own, launched page by page from memory of the host; its context as the firmware reloads it."""
    lab = laboratory()
    assert lab.host(op.RmpUpdate(GCTX, PAGE_BYTES, FIRMWARE)) == (0,)
    assert not lab.firmware(SnpCommand.GCTX_CREATE, buffers.GuestContextPage(GCTX))
    assert not lab.firmware(SnpCommand.LAUNCH_START, buffers.SnpLaunchStart(GCTX, POLICY))
    assert not lab.firmware(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, ASID))
    for number, page in enumerate(pages):
        spa = PAGES + number * PAGE_BYTES
        data = page.data if page.data is not None else bytes(PAGE_BYTES)
        entry = RmpEntry(assigned=True, immutable=True, gpa=page.gpa, asid=ASID)
        laid = [op.HostWrite(spa, data), *([op.HostWrite(spa + 5, b"!")] if number == poked else [])]
        assert lab.host(*laid, op.RmpUpdate(spa, PAGE_BYTES, entry))[-1] == 0
        update = buffers.SnpLaunchUpdate.of(GCTX, page.page_type, spa)
        status = lab.firmware(SnpCommand.LAUNCH_UPDATE, update)
        if page.page_type is PageType.CPUID and status is Status.INVALID_PARAM:
            status = lab.firmware(SnpCommand.LAUNCH_UPDATE, update)  # with what the firmware has put right in it
        assert not status, page.page_type
    assert not lab.firmware(SnpCommand.LAUNCH_FINISH, buffers.SnpLaunchFinish(GCTX))
    return lab.board.psp.snp.guests.pages.opened(GCTX)[1].digest.hex()


def legacy_digest(
    image: FirmwareImage, vmm: Vmm, hashes: KernelHashes | None, *, es: bool, vcpus: int = VCPUS
) -> str:
    """The same by LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA."""
    board = Board("board", PRODUCTS["Milan"], 64 * MIB, 50, CounterRandom(1))

    def firmware(command: LegacyCommand, buffer: bytes = b"") -> None:
        (answer,) = board.execute_host((op.PspCommand(command, BUFFER, buffer),))
        assert isinstance(answer, op.PspAnswer)
        assert answer.status == Status.SUCCESS, command

    asid = 1 if es else 50
    firmware(LegacyCommand.INIT, buffers.Init(buffers.INIT_ES, 32 * MIB, MIB).pack())
    board.execute_host((op.Wbinvd(),))
    firmware(LegacyCommand.DF_FLUSH)
    firmware(LegacyCommand.LAUNCH_START, buffers.LaunchStart(policy=ES_POLICY if es else 0).pack())
    (handle,) = board.psp.legacy.guests
    firmware(LegacyCommand.ACTIVATE, buffers.Activate(handle, asid).pack())
    spa = PAGES
    for gpa, data in sev_launch_ranges(image, hashes):
        spa += gpa % 16  # a table of hashes keeps its place within a block
        board.execute_host((op.HostWrite(spa, data),))
        firmware(LegacyCommand.LAUNCH_UPDATE_DATA, buffers.LaunchUpdateData(handle, spa, len(data)).pack())
        spa += -(-len(data) // PAGE_BYTES) * PAGE_BYTES
    for area in launch_vmsas(image, vcpus, MODEL, 0, vmm) if es else ():
        board.execute_host((op.HostWrite(spa, area),))
        firmware(LegacyCommand.LAUNCH_UPDATE_VMSA, buffers.LaunchUpdateVmsa(handle, spa, PAGE_BYTES).pack())
        spa += PAGE_BYTES
    return board.psp.legacy.guests[handle].digest.value.hex()


@pytest.mark.parametrize("kernel", [False, True], ids=["image", "kernel"])
@pytest.mark.parametrize("vmm", VMMS)
def test_an_snp_context_holds_what_sev_snp_measure_prints(
    image: tuple[FirmwareImage, str], files: tuple[str, str, str], vmm: str, kernel: bool
) -> None:
    expected = reference.snp_calc_launch_digest(
        VCPUS, MODEL.cpuid_signature, image[1], *(files if kernel else (None, None, None)), FEATURES, "", VMMType[vmm]
    )
    assert context_digest(snp_pages(image[0], VMMS[vmm], hashes_of(kernel=kernel))) == expected.hex()


@pytest.mark.parametrize("kernel", [False, True], ids=["image", "kernel"])
@pytest.mark.parametrize("vmm", VMMS)
def test_a_seves_guest_has_what_sev_snp_measure_prints(
    image: tuple[FirmwareImage, str], files: tuple[str, str, str], vmm: str, kernel: bool
) -> None:
    expected = reference.seves_calc_launch_digest(
        VCPUS, MODEL.cpuid_signature, image[1], *(files if kernel else (None, None, None)), VMMType[vmm]
    )
    assert legacy_digest(image[0], VMMS[vmm], hashes_of(kernel=kernel), es=True) == expected.hex()


def test_a_sev_guest_s_kernel_is_measured_as_by_sev_snp_measure(
    image: tuple[FirmwareImage, str], files: tuple[str, str, str]
) -> None:
    expected = reference.sev_calc_launch_digest(image[1], *files)
    assert legacy_digest(image[0], VMMS["QEMU"], hashes_of(kernel=True), es=False) == expected.hex()


def test_a_byte_changed_in_memory_before_it_is_measured_changes_the_digest(image: tuple[FirmwareImage, str]) -> None:
    pages = tuple(snp_pages(image[0], VMMS["gce"], hashes_of(kernel=True)))
    assert context_digest(pages, poked=0) != context_digest(pages)


@pytest.mark.parametrize("vcpus", [1, 2, 16])
def test_each_vcpu_s_save_area_counts_as_in_sev_snp_measure(image: tuple[FirmwareImage, str], vcpus: int) -> None:
    signature, qemu = MODEL.cpuid_signature, VMMS["QEMU"]
    snp = reference.snp_calc_launch_digest(vcpus, signature, image[1], None, None, None, FEATURES, "")
    assert context_digest(snp_pages(image[0], qemu, None, vcpus)) == snp.hex()
    es = reference.seves_calc_launch_digest(vcpus, signature, image[1], None, None, None)
    assert legacy_digest(image[0], qemu, None, es=True, vcpus=vcpus) == es.hex()


@pytest.mark.parametrize("vcpus", [1, 4])
def test_an_svsm_below_ovmf_counts_as_in_sev_snp_measure(
    image: tuple[FirmwareImage, str], tmp_path: Path, vcpus: int
) -> None:
    svsm = laboratory_svsm(image[0].gpa)
    path = tmp_path / "svsm.bin"
    path.write_bytes(svsm.data)
    expected = reference.calc_launch_digest(
        SevMode.SEV_SNP_SVSM, vcpus, MODEL.cpuid_signature, image[1], None, None, None, FEATURES, "",
        svsm_file=str(path), ovmf_vars_size=0,
    )  # fmt: skip
    assert context_digest(svsm_launch_pages(image[0], svsm, vcpus, MODEL)) == expected.hex()


def test_an_image_without_snp_s_metadata_counts_as_in_sev_snp_measure(test_data: Path) -> None:
    path = test_data / "vectors" / "ovmf_OvmfX64_suffix.bin"
    image = firmware_image(path.read_bytes(), path.name)
    es = reference.seves_calc_launch_digest(VCPUS, MODEL.cpuid_signature, str(path), None, None, None)
    assert legacy_digest(image, VMMS["QEMU"], None, es=True) == es.hex()
    sev = reference.sev_calc_launch_digest(str(path), None, None, None)
    assert legacy_digest(image, VMMS["QEMU"], None, es=False) == sev.hex()
