"""SWAP_OUT and SWAP_IN of SEV guests: pages return whole, but nobody says which, when and where."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from toy_machine import COMMAND_PAGE, FIRMWARE, GUEST_PAGE, OUT, PAGE, sev_guest, up

from psp import command_buffers as buffers
from psp import swap_buffers
from psp.commands import LegacyCommand
from psp.legacy_guest import LegacyGuestState
from psp.legacy_swap import DATA, VMSA, SwapEntry
from psp.policy import LegacyPolicy
from psp.status import Status

ASID = 6
INSIDE = bytes(range(256)) * 16
MDATA, BACK = 0x41_0000, 0x42_0000
LARGE = 0x20_0000


@pytest.fixture
def machine():
    """A running guest with a page of its own."""
    made = up(snp=False)
    sev_guest(made, LegacyGuestState.RUNNING)
    made.bus.write_guest(GUEST_PAGE, INSIDE, ASID)
    return made


def out(kind=DATA, **changes):
    return dataclasses.replace(swap_buffers.SwapOut(1, kind << 1, GUEST_PAGE, OUT, MDATA, 0x1234), **changes)


def back(kind=DATA, **changes):
    return dataclasses.replace(swap_buffers.SwapIn(1, kind << 1, OUT, BACK, MDATA), **changes)


def swap(machine, buffer):
    command = LegacyCommand.SWAP_OUT if isinstance(buffer, swap_buffers.SwapOut) else LegacyCommand.SWAP_IN
    return machine.call(command, buffer.pack())


def refused(machine, buffer):
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = swap(machine, buffer)
    assert machine.snapshot() == before
    return status


def es_guest(machine):
    machine.psp.legacy.guests[1].policy = LegacyPolicy.ES
    machine.bus.seal_save_area(GUEST_PAGE, ASID)


def test_a_page_comes_back_as_it_left(machine):
    assert swap(machine, out()) == 0
    assert INSIDE[:16] not in machine.bus.read(OUT, PAGE)
    assert swap(machine, back()) == 0
    assert machine.bus.read_guest(BACK, PAGE, ASID) == INSIDE


def test_what_lies_outside_is_aes_gcm_under_the_guest_s_offline_key(machine):
    assert swap(machine, out()) == 0
    entry = machine.bus.read(MDATA, 0x40)
    assert entry[:0x10] == (0x1234).to_bytes(8, "little") + (1).to_bytes(8, "little")
    assert entry[0x20:] == bytes(0x20)
    bound = entry[:0x10] + bytes(16) + entry[0x20:]
    sealed = machine.bus.read(OUT, PAGE) + entry[0x10:0x20]
    oek = machine.psp.legacy.guests[1].oek
    assert len(oek) == 32
    assert AESGCM(oek).decrypt((1).to_bytes(12, "little"), sealed, bound) == INSIDE


def test_a_large_page_returns_in_its_own_frame(machine):
    inside = INSIDE * 512
    machine.bus.write_guest(LARGE, inside, ASID)
    assert swap(machine, out(flags=1, source=LARGE, destination=3 * LARGE, mdata=0x3000)) == 0
    assert swap(machine, back(flags=1 | 1 << 3, source=3 * LARGE, destination=3 * LARGE, mdata=0x3000)) == 0
    assert machine.bus.read_guest(3 * LARGE, len(inside), ASID) == inside
    assert machine.bus.read(0x303C, 4) == bytes([1, 0, 0, 0])


def test_each_page_has_its_own_count_and_the_last_is_never_used(machine):
    assert [swap(machine, out()), SwapEntry.parse(machine.bus.read(MDATA, 0x40)).iv] == [0, 1]
    assert [swap(machine, out()), SwapEntry.parse(machine.bus.read(MDATA, 0x40)).iv] == [0, 2]
    machine.psp.legacy.guests[1].oek_iv_count = (1 << 64) - 1
    assert refused(machine, out()) == Status.AEAD_OFLOW


@pytest.mark.parametrize("place", [OUT, OUT + PAGE - 1, *(MDATA + at for at in (0, 8, 0x10, 0x1F))])
def test_a_changed_bit_of_page_or_entry_brings_nothing_back(machine, place):
    assert swap(machine, out()) == 0
    machine.bus.write(place, bytes([machine.bus.read(place, 1)[0] ^ 1]))
    assert refused(machine, back()) == Status.BAD_MEASUREMENT


def test_an_entry_of_another_type_or_size_is_not_this_page_s(machine):
    es_guest(machine)
    assert swap(machine, out(VMSA)) == 0
    assert refused(machine, back(DATA)) == Status.INVALID_PARAM
    machine.bus.write(MDATA + 0x3C, bytes([DATA << 1, 0, 0, 0]))
    assert refused(machine, back(DATA)) == Status.BAD_MEASUREMENT


def test_an_older_page_returns_and_at_another_address(machine):
    """SEV has no integrity: what a Metadata page of SNP forbids is the host's to do here."""
    assert swap(machine, out()) == 0
    machine.bus.write_guest(GUEST_PAGE, bytes(PAGE), ASID)
    for destination in (GUEST_PAGE, BACK):
        assert swap(machine, back(destination=destination)) == 0
        assert machine.bus.read_guest(destination, PAGE, ASID) == INSIDE


def test_another_guest_s_page_and_a_page_never_sent_out_are_nobody_s(machine):
    assert swap(machine, out()) == 0
    sev_guest(machine, LegacyGuestState.RUNNING, asid=7)
    assert refused(machine, back(handle=2)) == Status.BAD_MEASUREMENT
    assert swap(machine, out(handle=2, destination=BACK, mdata=MDATA + 0x40)) == 0
    assert refused(machine, back(handle=2, destination=GUEST_PAGE)) == Status.BAD_MEASUREMENT


def test_a_save_area_returns_with_its_integrity_value_and_a_damaged_one_does_not_leave(machine):
    assert refused(machine, out(VMSA)) == Status.POLICY_FAILURE
    assert refused(machine, back(VMSA)) == Status.POLICY_FAILURE
    es_guest(machine)
    # A save area is one page of 4 KiB, whatever the flags say.
    assert refused(machine, out(flags=VMSA << 1 | 1, source=0, destination=LARGE)) == Status.INVALID_PAGE_SIZE
    assert swap(machine, out(VMSA)) == 0
    machine.bus.sealed.clear()
    assert refused(machine, out(VMSA)) == Status.BAD_MEASUREMENT
    assert swap(machine, back(VMSA)) == 0
    assert machine.bus.sealed == {BACK: INSIDE}
    assert swap(machine, out(VMSA, source=BACK)) == 0
    machine.bus.write(BACK, b"\xff")
    assert refused(machine, out(VMSA, source=BACK)) == Status.BAD_MEASUREMENT


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (out(kind=1), Status.INVALID_PARAM),
        (out(kind=3), Status.INVALID_PARAM),
        (out(flags=1 << 3), Status.INVALID_PARAM),
        (out(flags=1 << 31), Status.INVALID_PARAM),
        (out(source=GUEST_PAGE + 16), Status.INVALID_ADDRESS),
        (out(destination=OUT + 16), Status.INVALID_ADDRESS),
        (out(mdata=MDATA + 16), Status.INVALID_ADDRESS),
        (out(destination=GUEST_PAGE), Status.INVALID_ADDRESS),
        (out(mdata=OUT + 0x40), Status.INVALID_ADDRESS),
        (out(mdata=GUEST_PAGE), Status.INVALID_ADDRESS),
        (out(flags=1), Status.INVALID_ADDRESS),
        (out(source=1 << 40), Status.INVALID_ADDRESS),
        (out(destination=1 << 40), Status.INVALID_ADDRESS),
        (out(mdata=1 << 40), Status.INVALID_ADDRESS),
        (back(kind=1), Status.INVALID_PARAM),
        (back(flags=1 << 4), Status.INVALID_PARAM),
        (back(flags=1 << 3), Status.INVALID_ADDRESS),
        (back(source=BACK), Status.INVALID_ADDRESS),
        (back(mdata=OUT), Status.INVALID_ADDRESS),
        (back(source=1 << 40), Status.INVALID_ADDRESS),
        (back(destination=1 << 40), Status.INVALID_ADDRESS),
        (back(mdata=1 << 40), Status.INVALID_ADDRESS),
        (back(), Status.BAD_MEASUREMENT),
    ],
)
def test_bad_orders_change_nothing(machine, buffer, status):
    assert refused(machine, buffer) == status


def test_an_inactive_guest_s_pages_stay(machine):
    machine.call(LegacyCommand.DEACTIVATE, buffers.Handle(1).pack())
    assert refused(machine, out()) == Status.INACTIVE
    assert refused(machine, back()) == Status.INACTIVE


def test_after_snp_init_what_firmware_writes_must_be_firmware_s():
    machine = up()
    sev_guest(machine, LegacyGuestState.LUPDATE)
    machine.bus.write_guest(GUEST_PAGE, INSIDE, ASID)
    assert refused(machine, out()) == Status.INVALID_PAGE_STATE
    machine.bus.rmp_set(OUT, FIRMWARE)
    assert refused(machine, out()) == Status.INVALID_PAGE_STATE
    machine.bus.rmp_set(MDATA, FIRMWARE)
    assert swap(machine, out()) == 0
    assert refused(machine, back()) == Status.INVALID_PAGE_STATE
    machine.bus.rmp_set(BACK, FIRMWARE)
    assert swap(machine, back()) == 0
    assert machine.bus.read_guest(BACK, PAGE, ASID) == INSIDE
