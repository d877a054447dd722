"""INIT_EX: persistent data in a file of the host's, that no other chip reads and nobody changes."""

import dataclasses
import hashlib

import pytest
from owner import exported
from toy_machine import COMMAND_PAGE, FIRMWARE, PAGE, Machine, ToyBus, new_machine, up

from psp import command_buffers as buffers
from psp.commands import LegacyCommand, LegacyPlatformState
from psp.firmware import SecurityProcessor
from psp.nv_storage import NV_BYTES
from psp.status import Status

NV = 0x50_0000
INIT = buffers.InitEx(0x24, nv_address=NV, nv_length=NV_BYTES)


def init_ex(machine, file=b"\xff" * NV_BYTES, init=INIT):
    machine.bus.write(NV, file)
    return machine.call(LegacyCommand.INIT_EX, init.pack())


def file_of(machine):
    return machine.bus.read(NV, NV_BYTES)


def rebooted(machine):
    """The same chip with nothing in its flash, at a time when its random source is elsewhere."""
    bus = ToyBus()
    first = machine.psp._octets

    def octets(purpose, counter, length):
        return first(purpose, counter, length) if purpose.startswith("chip fuses") else hashlib.shake_128(
            f"later {purpose} {counter}".encode()
        ).digest(length)

    return Machine(bus, SecurityProcessor(bus, octets))


@pytest.mark.parametrize("empty", [bytes(NV_BYTES), b"\xff" * NV_BYTES], ids=["zeros", "ones"])
def test_a_platform_is_the_same_again_with_its_file(empty):
    machine = new_machine()
    assert init_ex(machine, empty) == 0
    again = rebooted(machine)
    assert init_ex(again, file_of(machine)) == 0
    assert exported(again) == exported(machine)
    fresh = rebooted(machine)
    assert init_ex(fresh, empty) == 0
    assert exported(fresh) != exported(machine)


@pytest.mark.parametrize("command", [LegacyCommand.PDH_GEN, LegacyCommand.PEK_GEN])
def test_commands_that_change_keys_rewrite_the_file(command):
    machine = new_machine()
    assert init_ex(machine) == 0
    old = file_of(machine)
    assert machine.call(command) == 0
    assert file_of(machine) != old
    again = rebooted(machine)
    assert init_ex(again, file_of(machine)) == 0
    assert exported(again) == exported(machine)


def test_a_reset_leaves_an_empty_file():
    machine = new_machine()
    assert init_ex(machine) == 0
    assert machine.call(LegacyCommand.SHUTDOWN) == 0
    assert machine.call(LegacyCommand.PLATFORM_RESET) == 0
    assert file_of(machine) == b"\xff" * NV_BYTES


def test_after_an_init_without_a_file_none_is_written():
    machine = new_machine()
    assert init_ex(machine) == 0
    assert machine.call(LegacyCommand.SHUTDOWN) == 0
    assert machine.call(LegacyCommand.INIT, buffers.Init().pack()) == 0
    old = file_of(machine)
    assert machine.call(LegacyCommand.PDH_GEN) == 0
    assert file_of(machine) == old


@pytest.mark.parametrize("at", [0, 16, 28, 100, 196, 4500])
def test_a_corrupt_file_is_refused_once_and_then_new(at):
    machine = new_machine()
    assert init_ex(machine) == 0
    file = bytearray(file_of(machine))
    file[at] ^= 1
    again = rebooted(machine)
    within = at < 16 + 12 + 3 * 56 + 1 + 2 * 0x824 + 16
    assert init_ex(again, bytes(file)) == (Status.SECURE_DATA_INVALID if within else 0)
    if within:
        assert again.psp.legacy.state is LegacyPlatformState.UNINIT
        assert again.call(LegacyCommand.INIT_EX, INIT.pack()) == 0
        assert exported(again) != exported(machine)


def test_another_chip_s_file_is_corrupt():
    machine = new_machine()
    assert init_ex(machine) == 0
    bus = ToyBus()
    other = Machine(bus, SecurityProcessor(bus, lambda _, __, n: hashlib.shake_128(b"other").digest(n)))
    assert init_ex(other, file_of(machine)) == Status.SECURE_DATA_INVALID


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"length": 0x23}, Status.INVALID_LENGTH),
        ({"nv_length": NV_BYTES - 1}, Status.INVALID_LENGTH),
        ({"nv_length": NV_BYTES + 1}, Status.INVALID_LENGTH),
        ({"nv_address": 1 << 60}, Status.INVALID_ADDRESS),
        ({"nv_address": (1 << 24) - PAGE}, Status.INVALID_ADDRESS),
        ({"flags": 1}, Status.INVALID_LENGTH),
        ({"flags": 1, "tmr_length": 1 << 20}, Status.INVALID_ADDRESS),
    ],
)
def test_bad_fields_are_refused(changes, status):
    machine = new_machine()
    machine.bus.write(COMMAND_PAGE, dataclasses.replace(INIT, **changes).pack())
    before = machine.snapshot()
    assert machine.psp.submit(LegacyCommand.INIT_EX, COMMAND_PAGE) == status
    assert machine.snapshot() == before


def test_under_snp_the_file_s_memory_is_lent_to_the_firmware():
    machine = up(legacy=False)
    assert init_ex(machine) == Status.INVALID_PAGE_STATE
    for spa in range(NV, NV + NV_BYTES, PAGE):
        machine.bus.rmp_set(spa, FIRMWARE)
    assert init_ex(machine) == 0
    machine.bus.rmp.pop(NV // PAGE)
    before = machine.snapshot()
    assert machine.call(LegacyCommand.PDH_GEN) == Status.INVALID_PAGE_STATE
    assert machine.snapshot() == before


def test_no_key_stands_in_the_file():
    machine = new_machine()
    assert init_ex(machine) == 0
    keys = machine.psp.legacy.keys
    assert all(len(one) == 56 for one in (keys.oca_seed, keys.pek_seed, keys.pdh_seed))
    for seed in (keys.oca_seed, keys.pek_seed, keys.pdh_seed):
        assert seed[:16] not in file_of(machine)
