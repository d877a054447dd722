"""SNP_PAGE_MD_INIT, _SWAP_OUT, _SWAP_IN, _MOVE: pages leave and return whole, once, and to where they were."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    PAGE,
    POLICY,
    UNCOVERED,
    change_context,
    context,
    pre_guest,
    snp_guest,
    up,
)

from psp import swap_buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.page_swap import DATA, METADATA, VMSA, MdataEntry
from psp.policy import SnpPolicy
from psp.status import Status
from psp.system_bus import RmpEntry

ASID, GPA = 2, 0x5000
INSIDE = bytes(range(256)) * 16
MDATA, BACK = 0x41_0000, 0x42_0000
"""A Metadata page, and the frame that a page returns to."""
READY = RmpEntry(assigned=True, immutable=True, gpa=GPA, asid=ASID, vmpl_permissions=(15, 0, 0, 0))
SWAPPABLE = dataclasses.replace(READY, validated=True, vmpl_permissions=(15, 1, 2, 3))


@pytest.fixture
def machine():
    """A running guest with a page ready to go, a Metadata page of its own, and a frame that is the firmware's."""
    made = snp_guest(up(), SnpGuestState.RUNNING)
    pre_guest(made)
    made.bus.rmp_set(GUEST_PAGE, SWAPPABLE)
    made.bus.write_guest(GUEST_PAGE, INSIDE, ASID)
    made.bus.rmp_set(MDATA, FIRMWARE)
    made.bus.write(MDATA, b"\xee" * PAGE)
    assert made.call(SnpCommand.PAGE_MD_INIT, swap_buffers.SnpPageMdInit(GCTX, MDATA).pack()) == 0
    made.bus.rmp_set(OUT, FIRMWARE)
    return made


def out(kind=DATA, root=False, **changes):
    flags = kind << 1 | root << 4
    swap = swap_buffers.SnpPageSwapOut(GCTX, GUEST_PAGE, OUT, MDATA + 0x40, 0x1234, flags)
    return dataclasses.replace(swap, **changes)


def back(kind=DATA, root=False, **changes):
    flags = kind << 1 | root << 4
    return dataclasses.replace(swap_buffers.SnpPageSwapIn(GCTX, OUT, BACK, MDATA + 0x40, flags), **changes)


def call(machine, command, buffer):
    return machine.call(command, buffer.pack())


def refused(machine, command, buffer):
    machine.bus.write(COMMAND_PAGE, buffer.pack())
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert machine.snapshot() == before
    return status


def entry_of(machine, spa=MDATA + 0x40):
    return MdataEntry.parse(machine.bus.read(spa, 0x40))


def test_a_firmware_page_becomes_the_guest_s_of_empty_entries(machine):
    assert machine.bus.rmp_entry(MDATA) == dataclasses.replace(FIRMWARE, gpa=GCTX)
    assert machine.bus.read(MDATA, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("root", [False, True])
def test_a_page_comes_back_as_it_left_and_only_once(machine, root):
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out(root=root)) == 0
    assert INSIDE[:16] not in machine.bus.read(OUT, PAGE)
    assert machine.bus.rmp_entry(GUEST_PAGE) == dataclasses.replace(SWAPPABLE, validated=False)
    machine.bus.rmp_set(BACK, READY)
    assert call(machine, SnpCommand.PAGE_SWAP_IN, back(root=root)) == 0
    assert machine.bus.read_guest(BACK, PAGE, ASID) == INSIDE
    assert machine.bus.rmp_entry(BACK) == SWAPPABLE
    # Its entry is used up: the same ciphertext is worth nothing any more.
    machine.bus.rmp_set(BACK, READY)
    assert refused(machine, SnpCommand.PAGE_SWAP_IN, back(root=root)) == Status.INVALID_MDATA_ENTRY


def test_what_lies_outside_is_aes_gcm_under_the_guest_s_offline_key(machine):
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    entry = entry_of(machine)
    assert (entry.software_data, entry.iv, entry.permissions) == (0x1234, 1, bytes([15, 1, 2, 3]) + bytes(4))
    assert entry.flags == GPA | 1 << 0 | 1 << 1
    bound = machine.bus.read(MDATA + 0x40, 0x10) + bytes(16) + machine.bus.read(MDATA + 0x60, 0x20)
    sealed = machine.bus.read(OUT, PAGE) + entry.tag
    assert AESGCM(context(machine).oek).decrypt((1).to_bytes(12, "little"), sealed, bound) == INSIDE


def test_each_page_has_its_own_count_and_the_last_is_never_used(machine):
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    machine.bus.rmp_set(GUEST_PAGE, SWAPPABLE)
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out(mdata=MDATA)) == 0
    assert [entry_of(machine, MDATA + at).iv for at in (0x40, 0)] == [1, 2]
    change_context(machine, oek_iv_count=(1 << 64) - 1)
    machine.bus.rmp_set(GUEST_PAGE, SWAPPABLE)
    assert refused(machine, SnpCommand.PAGE_SWAP_OUT, out(mdata=MDATA + 0x80)) == Status.AEAD_OFLOW


def test_where_an_entry_is_the_context_s_own_no_place_of_one_counts(machine):
    for mdata in (MDATA, 1 << 60, 1):
        swap = out(METADATA, root=True, source=MDATA, mdata=mdata)
        assert call(machine, SnpCommand.PAGE_SWAP_OUT, swap) == 0
        assert machine.bus.rmp_entry(MDATA) == FIRMWARE
        swap = back(METADATA, root=True, destination=MDATA, mdata=mdata)
        assert call(machine, SnpCommand.PAGE_SWAP_IN, swap) == 0


def test_an_older_page_does_not_pass_for_the_newest(machine):
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    old = machine.bus.read(OUT, PAGE)
    machine.bus.rmp_set(BACK, READY)
    assert call(machine, SnpCommand.PAGE_SWAP_IN, back()) == 0
    machine.bus.rmp_set(GUEST_PAGE, SWAPPABLE)
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    machine.bus.write(OUT, old)
    machine.bus.rmp_set(BACK, READY)
    assert refused(machine, SnpCommand.PAGE_SWAP_IN, back()) == Status.BAD_MEASUREMENT


@pytest.mark.parametrize("kind", [DATA, VMSA])
def test_a_page_in_place(machine, kind):
    machine.bus.rmp_set(GUEST_PAGE, dataclasses.replace(SWAPPABLE, vmsa=kind == VMSA))
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out(kind)) == 0
    sealed = machine.bus.read(OUT, PAGE)
    machine.bus.rmp_set(BACK, READY)
    machine.bus.write(BACK, sealed)
    assert refused(machine, SnpCommand.PAGE_SWAP_IN, back(kind, source=BACK)) == Status.INVALID_ADDRESS
    in_place = back(kind, source=BACK, flags=kind << 1 | 1 << 3)
    assert call(machine, SnpCommand.PAGE_SWAP_IN, in_place) == 0
    assert machine.bus.read_guest(BACK, PAGE, ASID) == INSIDE
    assert machine.bus.rmp_entry(BACK).vmsa is (kind == VMSA)


def test_metadata_pages_go_out_and_come_back_too(machine):
    other = MDATA + PAGE
    machine.bus.rmp_set(other, FIRMWARE)
    assert call(machine, SnpCommand.PAGE_MD_INIT, swap_buffers.SnpPageMdInit(GCTX, other)) == 0
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    entries = machine.bus.read(MDATA, PAGE)
    frame = OUT + PAGE
    machine.bus.rmp_set(frame, FIRMWARE)
    gone = out(METADATA, source=MDATA, destination=frame, mdata=other)
    assert refused(machine, SnpCommand.PAGE_SWAP_OUT, dataclasses.replace(gone, mdata=MDATA)) == (
        Status.INVALID_MDATA_ENTRY
    )
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, gone) == 0
    assert machine.bus.rmp_entry(MDATA) == FIRMWARE
    assert entries[0x40:0x80] not in machine.bus.read(frame, PAGE)
    home = back(METADATA, source=frame, destination=MDATA, mdata=other)
    assert call(machine, SnpCommand.PAGE_SWAP_IN, home) == 0
    assert machine.bus.read(MDATA, PAGE) == entries
    machine.bus.rmp_set(BACK, READY)
    assert call(machine, SnpCommand.PAGE_SWAP_IN, back()) == 0


OUTS = [
    ("policy", {}, Status.POLICY_FAILURE),
    ("inactive", {}, Status.INACTIVE),
    ("", {"gctx": OUT}, Status.INVALID_GUEST),
    ("", {"flags": 3 << 1}, Status.INVALID_PARAM),
    ("", {"flags": 1 << 5}, Status.INVALID_PARAM),
    ("", {"flags": 1}, Status.INVALID_PAGE_SIZE),
    ("", {"flags": VMSA << 1}, Status.INVALID_PAGE_STATE),
    ("", {"flags": METADATA << 1}, Status.INVALID_PAGE_STATE),
    ("", {"source": GUEST_PAGE + 8}, Status.INVALID_ADDRESS),
    ("", {"source": UNCOVERED}, Status.INVALID_ADDRESS),
    ("", {"source": OUT}, Status.INVALID_PAGE_STATE),
    ("another's", {}, Status.INVALID_PAGE_OWNER),
    ("used", {}, Status.INVALID_PAGE_STATE),
    ("", {"destination": OUT + PAGE}, Status.INVALID_PAGE_STATE),
    ("", {"destination": 1 << 60}, Status.INVALID_ADDRESS),
    ("", {"mdata": MDATA + 8}, Status.INVALID_ADDRESS),
    ("", {"mdata": OUT}, Status.INVALID_PAGE_STATE),
    ("another's metadata", {}, Status.INVALID_PAGE_OWNER),
    ("entry", {}, Status.INVALID_MDATA_ENTRY),
]


def spoil(machine, what, page=GUEST_PAGE, entry=SWAPPABLE):
    match what:
        case "policy":
            change_context(machine, policy=POLICY | SnpPolicy.PAGE_SWAP_DISABLE)
        case "inactive":
            change_context(machine, asid=0)
        case "another's":
            machine.bus.rmp_set(page, dataclasses.replace(entry, asid=3))
        case "used":
            machine.bus.rmp_set(page, dataclasses.replace(entry, immutable=False))
        case "another's metadata":
            machine.bus.rmp_set(MDATA, dataclasses.replace(FIRMWARE, gpa=GCTX + PAGE))
        case "entry":
            machine.bus.write(MDATA + 0x60, b"\1")


@pytest.mark.parametrize(("what", "changes", "status"), OUTS)
def test_what_may_not_go_out_stays(machine, what, changes, status):
    spoil(machine, what)
    assert refused(machine, SnpCommand.PAGE_SWAP_OUT, out(**changes)) == status


INS = [
    ("policy", {}, Status.POLICY_FAILURE),
    ("inactive", {}, Status.INACTIVE),
    ("", {"gctx": OUT}, Status.INVALID_GUEST),
    ("", {"flags": 3 << 1}, Status.INVALID_PARAM),
    ("", {"flags": 1}, Status.INVALID_PAGE_SIZE),
    ("", {"flags": VMSA << 1}, Status.INVALID_MDATA_ENTRY),
    ("", {"flags": METADATA << 1}, Status.INVALID_PAGE_STATE),
    ("", {"destination": BACK + 8}, Status.INVALID_ADDRESS),
    ("", {"destination": OUT}, Status.INVALID_PAGE_STATE),
    ("another's", {}, Status.INVALID_PAGE_OWNER),
    ("used", {}, Status.INVALID_PAGE_STATE),
    ("another GPA", {}, Status.INVALID_MDATA_ENTRY),
    ("", {"source": 1 << 60}, Status.INVALID_ADDRESS),
    ("", {"source": OUT + 16}, Status.INVALID_ADDRESS),
    ("", {"mdata": MDATA}, Status.INVALID_MDATA_ENTRY),
    ("", {"mdata": MDATA + 1}, Status.INVALID_ADDRESS),
    ("", {"mdata": OUT}, Status.INVALID_PAGE_STATE),
    ("another's metadata", {}, Status.INVALID_PAGE_OWNER),
    ("flipped", {}, Status.BAD_MEASUREMENT),
    ("tag", {}, Status.BAD_MEASUREMENT),
    ("software data", {}, Status.BAD_MEASUREMENT),
    ("permissions", {}, Status.BAD_MEASUREMENT),
]


@pytest.mark.parametrize(("what", "changes", "status"), INS)
def test_what_is_not_the_page_that_left_does_not_come_in(machine, what, changes, status):
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    machine.bus.rmp_set(BACK, READY)
    spoil(machine, what, BACK, READY)
    at = {"flipped": OUT + 9, "tag": MDATA + 0x50, "software data": MDATA + 0x40, "permissions": MDATA + 0x69}.get(what)
    if at is not None:
        (old,) = machine.bus.read(at, 1)
        machine.bus.write(at, bytes([old ^ 1]))
    if what == "another GPA":
        machine.bus.rmp_set(BACK, dataclasses.replace(READY, gpa=GPA + PAGE))
    assert refused(machine, SnpCommand.PAGE_SWAP_IN, back(**changes)) == status


def move(**changes):
    return dataclasses.replace(swap_buffers.SnpPageMove(GCTX, 0, GUEST_PAGE, BACK), **changes)


def test_a_page_moves_with_its_attributes_and_is_encrypted_anew(machine):
    machine.bus.rmp_set(BACK, READY)
    assert call(machine, SnpCommand.PAGE_MOVE, move()) == 0
    assert machine.bus.read_guest(BACK, PAGE, ASID) == INSIDE
    assert machine.bus.rmp_entry(BACK) == SWAPPABLE
    assert machine.bus.rmp_entry(GUEST_PAGE) == dataclasses.replace(SWAPPABLE, validated=False)


def test_a_metadata_page_moves_to_a_firmware_page(machine):
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, out()) == 0
    entries = machine.bus.read(MDATA, PAGE)
    machine.bus.rmp_set(BACK, FIRMWARE)
    assert call(machine, SnpCommand.PAGE_MOVE, move(source=MDATA)) == 0
    assert machine.bus.read(BACK, PAGE) == entries
    assert machine.bus.rmp_entry(BACK) == dataclasses.replace(FIRMWARE, gpa=GCTX)
    assert machine.bus.rmp_entry(MDATA) == FIRMWARE


MOVES = [
    ("policy", {}, Status.POLICY_FAILURE),
    ("inactive", {}, Status.INACTIVE),
    ("", {"flags": 2}, Status.INVALID_PARAM),
    ("", {"flags": 1}, Status.INVALID_PAGE_SIZE),
    ("", {"gctx": OUT}, Status.INVALID_GUEST),
    ("", {"source": OUT}, Status.INVALID_PAGE_STATE),
    ("", {"source": MDATA}, Status.INVALID_PAGE_STATE),  # goes to a Firmware page only
    ("", {"destination": OUT}, Status.INVALID_PAGE_STATE),
    ("", {"destination": UNCOVERED}, Status.INVALID_ADDRESS),
    ("another's", {}, Status.INVALID_PAGE_OWNER),
    ("another GPA", {}, Status.INVALID_PAGE_OWNER),
]


@pytest.mark.parametrize(("what", "changes", "status"), MOVES)
def test_what_may_not_move_stays(machine, what, changes, status):
    machine.bus.rmp_set(BACK, READY)
    spoil(machine, what)
    if what == "another GPA":
        machine.bus.rmp_set(BACK, dataclasses.replace(READY, gpa=GPA + PAGE))
    assert refused(machine, SnpCommand.PAGE_MOVE, move(**changes)) == status


@pytest.mark.parametrize(
    ("entry", "changes", "status"),
    [
        (RmpEntry(), {}, Status.INVALID_PAGE_STATE),
        (dataclasses.replace(FIRMWARE, gpa=GCTX), {}, Status.INVALID_PAGE_STATE),
        (dataclasses.replace(FIRMWARE, large=True), {"address": 0x80_0000}, Status.INVALID_PAGE_SIZE),
        (FIRMWARE, {"address": OUT + 8}, Status.INVALID_ADDRESS),
        (FIRMWARE, {"gctx": OUT}, Status.INVALID_GUEST),
    ],
)
def test_md_init_wants_a_firmware_page(machine, entry, changes, status):
    md_init = dataclasses.replace(swap_buffers.SnpPageMdInit(GCTX, BACK), **changes)
    spa = 0x80_0000 if entry.large else BACK
    machine.bus.rmp_set(spa, entry)
    assert refused(machine, SnpCommand.PAGE_MD_INIT, md_init) == status


def test_pages_of_2_mib_go_out_and_come_back(machine):
    source, frame, home, size = 0x80_0000, 0xA0_0000, 0xC0_0000, 2 << 20
    machine.bus.rmp_set(source, dataclasses.replace(SWAPPABLE, large=True, gpa=0x20_0000))
    machine.bus.write_guest(source, INSIDE * 512, ASID)
    machine.bus.rmp_set(frame, dataclasses.replace(FIRMWARE, large=True))
    swap = out(source=source, destination=frame, flags=1)
    assert call(machine, SnpCommand.PAGE_SWAP_OUT, swap) == 0
    machine.bus.rmp_set(home, dataclasses.replace(READY, large=True, gpa=0x20_0000))
    assert call(machine, SnpCommand.PAGE_SWAP_IN, back(source=frame, destination=home, flags=1)) == 0
    assert machine.bus.read_guest(home, size, ASID) == INSIDE * 512
