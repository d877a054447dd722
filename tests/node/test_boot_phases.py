"""A guest that boots as on a real host runs its first program when the published phases have passed."""

import pytest
from toy_guests import COSTS, make_host, script

from node import operations as op
from node.boot_phases import BOOT_PHASES, BootPath
from node.generation import Generation
from node.guest import GuestSpec
from node.kernel_settings import KernelSettings
from node.mechanism import Mechanism
from node.program import ProgramSpec

OVMF_MS = 120.8 + 156.1 + 700.2 + 2166.6 + 17.8 + 562
"""As the artifact of SEVeriFast has OVMF's phases, the loader and Linux."""


def first_program(generation, boot, vcpus=1):
    seen = []

    def note(_, registers):
        registers.r13 += 1
        seen.append(host.now_ns)
        return op.Shutdown(0)
        yield ()

    host = make_host({"note": script(note)}, product="Milan")
    spec = GuestSpec(
        "vm", generation, vcpus, 64 << 20, ProgramSpec("note"), 1, kernel=KernelSettings(boot=boot)
    )  # fmt: skip
    host.launch(spec, lambda _: None, running=True)
    host.clock.env.run(until=20_000_000_000)
    return seen[0], host.guests["vm"]


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV, Generation.SEV_ES, Generation.SEV_SNP])
def test_the_phases_pass_before_the_first_program_and_are_booked_as_boot(generation):
    at_once, _ = first_program(generation, BootPath.NONE)
    booted, guest = first_program(generation, BootPath.OVMF)
    passed = booted - at_once
    assert passed == pytest.approx(OVMF_MS * 1e6 + COSTS["boot.qemu_ns"], abs=10)
    assert guest.lost_ns[Mechanism.BOOT] == pytest.approx(passed, abs=10)


def test_a_small_kernel_is_there_sooner():
    direct, ovmf = (first_program(Generation.SEV_SNP, one)[0] for one in (BootPath.DIRECT, BootPath.OVMF))
    assert direct < ovmf / 20


def test_every_phase_is_a_row():
    assert {row for rows in BOOT_PHASES.values() for row in rows} <= COSTS.keys()
