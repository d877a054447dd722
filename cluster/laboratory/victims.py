"""The victims' programs, and the image that all of them are launched with."""

from __future__ import annotations

from collections.abc import Mapping

from node.cpu_model import VCPU_MODEL
from node.expected_measurement import sev_digest, snp_digest
from node.firmware_image import firmware_image
from node.generation import CAPABILITIES, Generation
from node.kernel_settings import KernelSettings
from node.laboratory_firmware import SECTIONS, build_image
from node.measured_launch import launch_vmsas, sev_launch_ranges, snp_launch_pages
from node.program import ProgramFactory, ProgramSpec
from node.sev_features import launch_features
from node.vcpu_model import vcpu_model
from psp.system_bus import PAGE_BYTES
from workloads.attacks import booted, newcomer
from workloads.attacks.booted import Booted
from workloads.attacks.caller import Caller
from workloads.attacks.chooser import Chooser
from workloads.attacks.colluder import Colluder
from workloads.attacks.console import Console
from workloads.attacks.counted import Counted
from workloads.attacks.depositor import Depositor
from workloads.attacks.grower import CHECKS_CARRY, Grower
from workloads.attacks.keeper import Keeper
from workloads.attacks.newcomer import Newcomer
from workloads.attacks.petitioner import Petitioner
from workloads.attacks.service import Service
from workloads.attacks.vault import Vault

IMAGE = firmware_image(
    build_image(PAGE_BYTES, [one for one in SECTIONS if one.size == PAGE_BYTES]), "the smallest of laboratory images"
)
"""Measured at each launch, of which an attack has two."""
PROGRAMS: Mapping[str, ProgramFactory] = {
    "vault": Vault.build, "service": Service.build, "chooser": Chooser.build, "newcomer": Newcomer.build,
    "booted": Booted.build, "colluder": Colluder.build, "console": Console.build,
    "depositor": Depositor.build, "counted": Counted.build,
    "caller": Caller.build, "keeper": Keeper.build, "grower": Grower.build, "petitioner": Petitioner.build,
}  # fmt: skip
"""By their names."""


def expected_measurement(generation: Generation, product: str) -> bytes:
    """The measurement of a launch of the laboratory's image, worked out without a host."""
    model = vcpu_model(VCPU_MODEL)
    if CAPABILITIES[generation].rmp:
        return snp_digest(snp_launch_pages(IMAGE, 1, model, launch_features(product, 0)))
    areas = launch_vmsas(IMAGE, 1, model, 0) if CAPABILITIES[generation].encrypted_registers else ()
    return sev_digest(sev_launch_ranges(IMAGE), areas)


def ordered(generation: Generation, kernel: KernelSettings, service: ProgramSpec) -> dict[str, ProgramSpec]:
    """Each victim as it is ordered."""
    checks = (newcomer.CHECKS_STATUS, int(kernel.checks_sev_status)), (newcomer.CHECKS_C_BIT, int(kernel.checks_c_bit))
    firmware = (booted.FIRMWARE_GPA, IMAGE.gpa), (booted.FIRMWARE_BYTES, len(IMAGE.data))
    return {
        "vault": ProgramSpec("vault"),
        "service": service,
        "chooser": ProgramSpec("chooser"),
        "console": ProgramSpec("console"),
        "caller": ProgramSpec("caller"),
        "petitioner": ProgramSpec("petitioner"),
        "keeper": ProgramSpec("keeper"),
        "grower": ProgramSpec("grower", ((CHECKS_CARRY, int(kernel.checks_carry)),)),
        "newcomer": ProgramSpec("newcomer", ((newcomer.GENERATION, generation.name), *checks)),
        "booted": ProgramSpec("booted", firmware),
    }
