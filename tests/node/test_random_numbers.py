"""RDRAND: numbers that follow from the host's seed, and that no guest gets twice, here or elsewhere."""

import pytest
from toy_guests import make_host, start

from node.generation import Generation
from node.operations import ReadRandom
from node.platform import Platform


def board_of(name="here", generation=Generation.SEV_SNP):
    host = make_host(name=name, platform=Platform())
    for vm in ("one", "other"):
        start(host, vm, generation, "rest")
    return host.board


def draw(board, vm, count=4):
    return board.execute_guest(board.vmcb(vm, 0), (ReadRandom(),) * count)


@pytest.mark.parametrize("generation", [Generation.PLAIN, Generation.SEV_SNP])
def test_no_number_comes_twice_to_any_guest_of_any_host(generation):
    here, there = board_of("here", generation), board_of("there", generation)
    found = [*draw(here, "one"), *draw(here, "other"), *draw(here, "one"), *draw(there, "one")]
    assert len(set(found)) == len(found) == 16
    assert max(one.bit_length() for one in found) > 56
    assert all(0 <= one < 1 << 64 for one in found)


def test_the_same_host_gives_the_same_guest_the_same_numbers_whatever_its_neighbours_draw():
    board = board_of()
    alone = draw(board_of(), "one", 8)
    first = draw(board, "one")
    draw(board, "other")
    assert (*first, *draw(board, "one")) == alone
