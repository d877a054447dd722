"""A guest launched through its host's mailbox has the digest that ``sevfleet measure`` printed beforehand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.cli import main
from node import operations as op
from node.cost_table import load_cost_table
from node.cpu_model import VCPU_MODEL
from node.firmware_image import read_firmware_image
from node.generation import Generation
from node.guest import GuestSpec
from node.host import Host, HostSpec
from node.laboratory_firmware import LABORATORY_IMAGE_BYTES, SECTIONS, build_image
from node.ovmf import SectionType
from node.product import PRODUCTS
from node.program import ProgramSpec
from psp.commands import LegacyCommand, SnpCommand

DEBIAN_IMAGE = Path("/usr/share/ovmf/OVMF.fd")
COSTS = load_cost_table()
MODES = {Generation.SEV: "sev", Generation.SEV_SNP: "snp"}
UPDATES = {LegacyCommand.LAUNCH_UPDATE_DATA, SnpCommand.LAUNCH_UPDATE}
LAUNCHES = [
    (product, generation)
    for product, generation in [
        ("Naples", Generation.SEV), ("Milan", Generation.SEV), ("Milan", Generation.SEV_SNP),
        ("Genoa", Generation.SEV_SNP), ("Turin", Generation.SEV_SNP),
    ]
]  # fmt: skip


@pytest.fixture(params=["installed", "ovmf_AmdSev_suffix.bin", "laboratory"])
def image(request, tmp_path):
    if request.param == "installed":
        if not DEBIAN_IMAGE.is_file():
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {DEBIAN_IMAGE} (Debian package ovmf)")
        return DEBIAN_IMAGE
    if request.param == "laboratory":
        return laboratory(tmp_path)
    return request.getfixturevalue("test_data") / "vectors" / request.param


def laboratory(folder: Path) -> Path:
    path = folder / "laboratory.fd"
    path.write_bytes(build_image())
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return laboratory(tmp_path_factory.mktemp("image"))


@pytest.fixture
def measured(capsys):
    def run(generation: Generation, image: Path, vcpus: int) -> str:
        options = ("--mode", MODES[generation], "--vcpus", vcpus, "--vcpu-type", VCPU_MODEL, "--ovmf", image)
        assert main(["measure", *map(str, options)]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    return run


def launched(
    product: str,
    generation: Generation,
    image: Path,
    vcpus: int,
    meanwhile: Callable[[Host], None] = lambda _: None,
) -> str:
    """The digest in the firmware's context; ``meanwhile`` happens before the first page is given to the firmware."""
    spec = HostSpec("host", PRODUCTS[product], 2 << 30, 5, 7, 1)
    host = Host(spec, {}, {"auto": read_firmware_image(image)}, COSTS)
    task = host.hypervisor.launch(GuestSpec("vm", generation, vcpus, 64 << 20, ProgramSpec("none"), 1).machine)
    answers, first = None, True
    try:
        while True:
            batch = task.send(answers)
            if first and any(isinstance(one, op.PspCommand) and one.command in UPDATES for one in batch):
                meanwhile(host)
                first = False
            answers = host.board.execute_host(batch)
    except StopIteration as end:
        entered = end.value
    assert not first
    psp = host.board.psp
    return (psp.launch_record(entered.gctx) if entered.gctx else psp.legacy_launch_record(entered.handle)).digest.hex()


def poke(gpa: int, flips: int = 1) -> Callable[[Host], None]:
    """Somebody at the memory's pins changes a byte."""

    def change(host: Host) -> None:
        spa = host.hypervisor.launched("vm").spa_of(gpa)
        (old,) = host.board.dram.read(spa, 1)
        host.board.dram.write(spa, bytes([old ^ flips]))

    return change


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize(("product", "generation"), LAUNCHES)
def test_the_guest_s_context_has_the_digest_that_was_expected(image, measured, product, generation, vcpus):
    assert launched(product, generation, image, vcpus) == measured(generation, image, vcpus)


@given(offset=st.integers(0, LABORATORY_IMAGE_BYTES - 1), flips=st.integers(1, 255), launch=st.sampled_from(LAUNCHES))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_byte_changed_in_memory_before_its_launch_command_changes_the_digest(lab, measured, offset, flips, launch):
    product, generation = launch
    gpa = (1 << 32) - LABORATORY_IMAGE_BYTES + offset
    changed = launched(product, generation, lab, 1, poke(gpa, flips))
    assert changed != measured(generation, lab, 1)
    # What came out is the digest of the image as it lay there, not merely another one.
    image = bytearray(lab.read_bytes())
    image[offset] ^= flips
    tampered = lab.with_name("tampered.fd")
    tampered.write_bytes(image)
    if offset < LABORATORY_IMAGE_BYTES - 0x600:  # in front of its tables, which the command would read again
        assert changed == measured(generation, tampered, 1)


def test_of_pages_that_the_firmware_fills_only_type_and_address_count(lab, measured):
    for section in SECTIONS:
        if section.section_type is not SectionType.CPUID:
            digest = launched("Milan", Generation.SEV_SNP, lab, 1, poke(section.gpa + 5))
            assert digest == measured(Generation.SEV_SNP, lab, 1)
