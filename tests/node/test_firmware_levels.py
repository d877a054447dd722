"""The table of firmware levels, against the public reports that its rows were read from."""

from itertools import pairwise

import pytest

from node.board import Board
from node.counter_random import CounterRandom
from node.firmware_levels import LEVELS, firmware_level
from node.platform import Platform
from node.product import PRODUCTS
from psp.installed_firmware import tcb_at_most

MEMORY = 64 << 20


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_comes_with_a_level_that_somebody_has_seen(name):
    assert PRODUCTS[name].firmware_api in {one.version for one in LEVELS[name]}


@pytest.mark.parametrize("name", PRODUCTS)
def test_levels_rise_in_every_component(name):
    line = PRODUCTS[name].line
    levels = [firmware_level(name, line, one.version) for one in LEVELS[name]]
    assert all(a.version < b.version and tcb_at_most(a.tcb, b.tcb) for a, b in pairwise(levels))


@pytest.mark.parametrize(("fixture", "version"), [("a.bin", (1, 49, 3)), ("b.hex", (1, 52, 4))])
def test_levels_of_milan_are_those_of_real_reports(test_data, fixture, version):
    octets = (test_data / "vectors" / f"milan-v2-report-{fixture}").read_bytes()
    report = octets if fixture.endswith("bin") else bytes.fromhex(octets.decode())
    level = firmware_level("Milan", PRODUCTS["Milan"].line, version)
    assert level.tcb.to_bytes(8, "little") == report[0x38:0x40]
    assert bytes(reversed(version)) == report[0x1E8:0x1EB]


def test_a_version_that_nobody_has_seen_is_as_secure_as_the_newest_one_below_it():
    line = PRODUCTS["Milan"].line
    seen = firmware_level("Milan", line, (1, 52, 4))
    assert firmware_level("Milan", line, (1, 54, 0)).tcb == seen.tcb
    assert firmware_level("Milan", line, (1, 40, 0)).tcb == firmware_level("Milan", line, (1, 49, 3)).tcb
    assert firmware_level("Rome", PRODUCTS["Rome"].line, (0, 24, 15)).tcb == 0


def test_a_host_runs_the_level_that_its_platform_names():
    random = CounterRandom(1)
    board = Board("host", PRODUCTS["Milan"], MEMORY, 100, random, platform=Platform(firmware_api=(1, 52, 4)))
    firmware = board.psp.firmware
    assert firmware.current == firmware.committed == firmware_level("Milan", PRODUCTS["Milan"].line, (1, 52, 4))
    assert firmware.reported_tcb == 0x7308_0000_0000_0003
