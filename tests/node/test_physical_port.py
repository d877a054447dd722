"""Whoever holds the DIMMs gets what they hold: ciphertext, and cells under any address he likes."""

from __future__ import annotations

import numpy as np
import pytest

from node.cipher_modes import CIPHER_DESIGNS
from node.dimm_routes import Unanswered
from node.dram import Dram, MachineCheck
from node.memory_cipher import CipherMode
from node.memory_controller import MemoryController
from node.physical_port import PhysicalPort
from psp.system_bus import PAGE_BYTES

MIB = 1 << 20
SECRET = np.random.default_rng(3).bytes(2 * PAGE_BYTES)
VICTIM, GHOST = 1 * MIB, 33 * MIB
CIPHERS = CIPHER_DESIGNS[CipherMode.AES_128_XEX].for_boot(np.random.default_rng(7).bytes)


@pytest.fixture
def machine() -> tuple[PhysicalPort, MemoryController]:
    dram = Dram(64 * MIB)
    controller = MemoryController(dram, CIPHERS)
    controller.install_key(1, bytes(range(16)))
    return PhysicalPort(dram), controller


def test_a_dump_shows_laid_and_written_pages_as_the_dimm_holds_them(
    machine: tuple[PhysicalPort, MemoryController],
) -> None:
    port, controller = machine
    controller.lay(VICTIM, SECRET, 1)
    controller.lay(2 * MIB, SECRET, 0)
    dumped = port.dump(VICTIM, len(SECRET))
    assert SECRET[:16] not in dumped
    assert dumped == controller.read(VICTIM, len(SECRET), 0)
    assert port.dump(2 * MIB, len(SECRET)) == SECRET
    with pytest.raises(MachineCheck):
        port.dump(64 * MIB - 1, 2)


def test_a_poke_garbles_one_block_and_an_old_one_is_as_good_as_new(
    machine: tuple[PhysicalPort, MemoryController],
) -> None:
    port, controller = machine
    controller.write(VICTIM, SECRET, 1)
    old = port.dump(VICTIM, 64)
    port.poke(VICTIM + 17, bytes(1))
    read = controller.read(VICTIM, len(SECRET), 1)
    assert (read[:16], read[32:]) == (SECRET[:16], SECRET[32:])
    assert read[16:32] != SECRET[16:32]
    controller.write(VICTIM, bytes(64), 1)
    port.poke(VICTIM, old)
    assert controller.read(VICTIM, 64, 1) == SECRET[:64]


def test_an_alias_shows_the_ciphertext_and_not_the_address_it_was_made_for(
    machine: tuple[PhysicalPort, MemoryController],
) -> None:
    port, controller = machine
    controller.lay(VICTIM, SECRET, 1)
    port.alias(GHOST, 2 * PAGE_BYTES, VICTIM)
    ciphertext = port.dump(VICTIM, len(SECRET))
    assert controller.read(GHOST, len(SECRET), 0) == ciphertext
    # The same key under another SPA is another tweak.
    assert controller.read(GHOST, len(SECRET), 1) != SECRET
    controller.write(VICTIM, bytes(len(SECRET)), 1)
    controller.write(GHOST, ciphertext, 0)
    assert controller.read(VICTIM, len(SECRET), 1) == SECRET
    # What is written there under the key decrypts there and nowhere else, laid or not.
    for store in (controller.write, controller.lay):
        store(GHOST, SECRET[::-1], 1)
        assert controller.read(GHOST, len(SECRET), 1) == SECRET[::-1]
        assert controller.read(VICTIM, len(SECRET), 1) not in (SECRET, SECRET[::-1])
    assert port.dump(GHOST, 64) == bytes(64)  # its own cells


def test_encrypting_in_place_through_an_alias_uses_the_address_that_was_named(
    machine: tuple[PhysicalPort, MemoryController],
) -> None:
    port, controller = machine
    port.alias(GHOST, 2 * PAGE_BYTES, VICTIM)
    controller.lay(VICTIM, SECRET, 0)
    controller.encrypt_in_place(GHOST, len(SECRET), 1)
    assert controller.read(GHOST, len(SECRET), 1) == SECRET


def test_a_switch_on_an_address_line_swaps_memory_under_a_running_guest(
    machine: tuple[PhysicalPort, MemoryController],
) -> None:
    port, controller = machine
    line = 32 * MIB
    controller.write(VICTIM, SECRET, 1)
    controller.write(GHOST, b"the host's own", 0)
    port.ground(line)
    old = controller.read(GHOST, 64, 0)
    port.unground(line)
    assert controller.read(GHOST, 14, 0) == b"the host's own"
    controller.write(VICTIM, bytes(64), 1)
    port.ground(line)
    controller.write(GHOST, old, 0)
    port.unground(line)
    assert controller.read(VICTIM, len(SECRET), 1) == SECRET


def test_a_dropped_range_loses_writes_and_answers_one_value(machine: tuple[PhysicalPort, MemoryController]) -> None:
    port, controller = machine
    controller.write(VICTIM, SECRET, 1)
    for reads in Unanswered:
        port.drop(VICTIM, PAGE_BYTES, reads)
        controller.write(VICTIM, bytes(64), 0)
        controller.write(VICTIM, bytes(64), 1)
        controller.lay(VICTIM, bytes(PAGE_BYTES), 1)
        controller.encrypt_in_place(VICTIM, PAGE_BYTES, 1)
        assert controller.read(VICTIM, 4, 0) == bytes([reads]) * 4
    port.restore(VICTIM, PAGE_BYTES)
    assert controller.read(VICTIM, len(SECRET), 1) == SECRET
