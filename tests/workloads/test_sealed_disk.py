"""A tenant that has its disk key sealed, over an update of its host's firmware, its commit, and the other way round."""

from dataclasses import replace

import pytest

from cluster.firmware_updates import update_image
from node.generation import Generation
from node.guest import GuestSpec
from node.platform import Platform
from node.product import PRODUCTS
from node.program import ProgramSpec
from psp.command_buffers import SnpConfig
from psp.guest_context import VCEK_DISABLED
from psp.key_messages import RootTcb
from tests.node.toy_guests import MIB, SECOND, make_host, run
from workloads.library import PROGRAMS

OLD, NEW = (1, 52, 4), (1, 55, 29)
BOUND, REMEMBERED, FOLLOWING, FREE = (
    {}, {"remembers_tcb": 1}, {"remembers_tcb": 1, "seals_anew": 1}, {"binds_tcb": 0}
)  # fmt: skip


class World:
    """A host with one tenant, who opens its key each second."""

    def __init__(self, parameters, generation=Generation.SEV_SNP, rooted=RootTcb.ASKED, vcpus=1):
        self.host = make_host(PROGRAMS, platform=Platform(firmware_api=OLD))
        self.host.board.psp.snp.derived_keys.root_tcb = rooted
        program = ProgramSpec("sealed-disk", tuple(sorted(({"seconds": 1, "instructions": 0} | parameters).items())))
        spec = GuestSpec("vm", generation, vcpus, 128 * MIB, program, 11)
        self.host.launch(spec, lambda _: None, running=True)
        self.guest = self.host.guests["vm"]

    def goes_on(self):
        """Whether it opens its key three more times, or has ended with a code."""
        before = self.opened
        run(self.host, self.host.now_ns + 4 * SECOND)
        if self.guest.state == "running":
            assert all(vcpu.registers.r13 >= count + 3 for vcpu, count in zip(self.guest.vcpus, before, strict=True))
            return True
        return self.guest.shutdown_code

    @property
    def opened(self):
        return [vcpu.registers.r13 for vcpu in self.guest.vcpus]

    @property
    def sealed(self):
        return [vcpu.registers.r12 for vcpu in self.guest.vcpus]

    def update(self, version):
        self.host.firmware.update(update_image(PRODUCTS["Milan"], ".".join(map(str, version))), commit=False)
        run(self.host, self.host.now_ns + SECOND)
        return self.host.firmware.entries[-1].result

    def commit(self):
        self.host.firmware.commit()
        run(self.host, self.host.now_ns + SECOND // 10)
        return self.host.firmware.entries[-1].result


ALL = {"bound": BOUND, "remembered": REMEMBERED, "following": FOLLOWING, "free": FREE}


@pytest.mark.parametrize("kind", ALL)
def test_a_sealed_key_survives_all_but_the_commit_of_firmware_whose_tcb_it_is_bound_to(kind):
    world = World(ALL[kind], vcpus=2 if kind == "free" else 1)
    assert world.goes_on()
    assert world.update(NEW) == "SUCCESS"
    assert world.goes_on() is True, "nothing is reported of what is provisional"
    assert world.update(OLD) == "SUCCESS"
    assert world.goes_on() is True
    assert world.update(NEW) == "SUCCESS"
    assert world.commit() == "SUCCESS"
    assert world.goes_on() == (7 if kind == "bound" else True)
    assert set(world.sealed) == {2 if kind == "following" else 1}


def test_what_is_sealed_to_a_committed_version_opens_whatever_is_reported_and_is_not_sealed_to_less():
    world = World(FOLLOWING)
    assert [world.update(NEW), world.commit(), world.goes_on()] == ["SUCCESS", "SUCCESS", True]
    firmware = world.host.board.psp.firmware
    world.host.board.psp.snp.configuration.config(SnpConfig(firmware.committed.tcb - (1 << 48)))
    assert world.goes_on() is True
    assert world.sealed == [2]


@pytest.mark.parametrize("kind", ALL)
def test_where_keys_rest_on_the_reported_version_a_commit_ends_every_seal(kind):
    world = World(ALL[kind], rooted=RootTcb.REPORTED)
    assert world.update(NEW) == "SUCCESS"
    assert world.goes_on() is True
    assert world.commit() == "SUCCESS"
    assert world.goes_on() == 7


def test_what_the_host_puts_on_the_disk_opens_nothing():
    world = World(FREE)
    assert world.goes_on() is True
    media = world.host.board.disks["vm"].media
    block = bytearray(media.read(0, 1))
    block[30] ^= 1
    media.write(0, bytes(block))
    assert world.goes_on() == 7


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV_ES])
def test_a_guest_without_a_firmware_to_ask_ends(generation):
    assert World(FREE, generation).goes_on() == 5


@pytest.mark.parametrize("kind", ["bound", "free"])
def test_a_guest_that_may_not_use_its_chip_s_key_has_nothing_to_seal_with(kind):
    """Launched to rest on a provider's key, on a host that has none: no report, and no key."""
    world = World(ALL[kind])
    contexts = world.host.board.psp.snp.guests.pages
    gctx = world.host.hypervisor.launched("vm").gctx
    contexts.write(gctx, replace(contexts.read(gctx), flags=VCEK_DISABLED))
    assert world.goes_on() == 5
    assert world.sealed == [0]


@pytest.mark.parametrize(("seconds", "instructions", "each_ns"), [(1, 0, 10**9), (5, 0, 5 * 10**9), (1, 10**10, 0)])
def test_it_opens_its_key_as_often_as_it_is_told_to(seconds, instructions, each_ns):
    world = World(FREE | {"seconds": seconds, "instructions": instructions})
    clock, per_cycle = PRODUCTS["Milan"].base_hz, 1.5
    each_ns += 0 if each_ns else seconds * SECOND + int(instructions / per_cycle / clock * SECOND)
    run(world.host, 21 * SECOND)
    assert abs(20 * SECOND // each_ns - world.opened[0]) <= 1
