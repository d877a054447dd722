"""SNP_LAUNCH_UPDATE: the order of its checks and what each page type does (firmware ABI, section 8.17)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from toy_machine import (
    COMMAND_PAGE,
    GCTX,
    GUEST_PAGE,
    PAGE,
    UNCOVERED,
    Machine,
    change_context,
    context,
    pre_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.launch_digest import LaunchDigest, PageType
from psp.status import Status
from psp.system_bus import RmpEntry

GPA = 0x80_E000
MINE = RmpEntry(assigned=True, immutable=True, gpa=GPA, asid=2, vmpl_permissions=(15, 0, 0, 0))
CONTENTS = (3).to_bytes(4, "little") + bytes(range(252)) + b"firmware" * 480
WRONGS = ("context", "state", "active", "address", "page state", "owner", "size", "type")
"""What may be wrong with a call, in the order of the checks."""
STATUS = {
    "context": Status.INVALID_GUEST,
    "state": Status.INVALID_GUEST_STATE,
    "active": Status.INACTIVE,
    "address": Status.INVALID_ADDRESS,
    "page state": Status.INVALID_PAGE_STATE,
    "owner": Status.INVALID_PAGE_OWNER,
    "size": Status.INVALID_PAGE_SIZE,
    "type": Status.INVALID_PARAM,
}


def machine_with(wrongs: tuple[str, ...]) -> tuple[Machine, bytes]:
    """A machine and a buffer with exactly these things wrong."""
    machine = snp_guest(up())
    change_context(
        machine,
        state=SnpGuestState.RUNNING if "state" in wrongs else SnpGuestState.LAUNCH,
        asid=0 if "active" in wrongs else 2,
    )
    entry = replace(MINE, immutable="page state" not in wrongs, asid=3 if "owner" in wrongs else 2)
    machine.bus.rmp_set(GUEST_PAGE, replace(entry, large="size" in wrongs))
    update = buffers.SnpLaunchUpdate(
        gctx=GCTX + PAGE if "context" in wrongs else GCTX,
        flags=(7 if "type" in wrongs else PageType.NORMAL) << 1,
        address=GUEST_PAGE + 8 if "address" in wrongs else GUEST_PAGE,
    )
    machine.bus.write(COMMAND_PAGE, update.pack())
    return machine, update.pack()


@pytest.mark.parametrize(
    "wrongs",
    [(one,) for one in WRONGS] + [(one, other) for at, one in enumerate(WRONGS) for other in WRONGS[at + 1 :]],
    ids="+".join,
)
def test_the_first_of_two_wrongs_is_named_and_nothing_changes(wrongs: tuple[str, ...]) -> None:
    machine, _ = machine_with(wrongs)
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_UPDATE, COMMAND_PAGE) == STATUS[wrongs[0]]
    assert machine.snapshot() == before


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"flags": 0}, Status.INVALID_PARAM),
        ({"flags": 7 << 1}, Status.INVALID_PARAM),
        ({"flags": PageType.NORMAL << 1 | 1 << 4}, Status.INVALID_PARAM),
        ({"flags": PageType.NORMAL << 1 | 1}, Status.INVALID_PAGE_SIZE),
        ({"address": UNCOVERED}, Status.INVALID_ADDRESS),
        ({"address": 1 << 60}, Status.INVALID_ADDRESS),
    ],
)
def test_what_no_guest_of_this_version_has_is_refused(changes: dict[str, int], status: Status) -> None:
    machine, packed = machine_with(())
    machine.bus.write(COMMAND_PAGE, replace(buffers.SnpLaunchUpdate.parse(packed), **changes).pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_UPDATE, COMMAND_PAGE) == status
    assert machine.snapshot() == before


def test_a_2_mib_page_is_refused_even_where_both_sizes_agree() -> None:
    machine, packed = machine_with(("size",))
    large = replace(buffers.SnpLaunchUpdate.parse(packed), flags=PageType.NORMAL << 1 | 1)
    assert machine.call(SnpCommand.LAUNCH_UPDATE, large.pack()) == Status.INVALID_PAGE_SIZE

GENERAL_REGISTERS = {0x178, 0x1D8, 0x1F8, 0x308, 0x310, 0x318, 0x328, 0x330, 0x338} | set(range(0x340, 0x380, 8))
"""RIP, RSP, RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15 in the save area (APM volume 2, table B-4)."""


def page_info(page_type: PageType, contents: bytes, permissions: bytes) -> bytes:
    """The digest of a first page, put together by hand from the table of PAGE_INFO."""
    info = bytes(48) + contents + (0x70).to_bytes(2, "little") + bytes([page_type, 0, 0]) + permissions
    return hashlib.sha384(info + GPA.to_bytes(8, "little")).digest()


@pytest.mark.parametrize("page_type", PageType)
def test_each_page_type_measures_encrypts_and_marks_as_its_row_says(page_type: PageType) -> None:
    machine, _ = machine_with(())
    machine.bus.write(GUEST_PAGE, CONTENTS)
    update = buffers.SnpLaunchUpdate(GCTX, page_type << 1, GUEST_PAGE, 3 << 24 | 2 << 16 | 1 << 8)
    machine.bus.write(COMMAND_PAGE, update.pack())
    before = machine.snapshot()
    assert machine.psp.submit(SnpCommand.LAUNCH_UPDATE, COMMAND_PAGE) == 0

    measured = page_type in {PageType.NORMAL, PageType.VMSA}
    contents = hashlib.sha384(CONTENTS).digest() if measured else bytes(48)
    assert machine.psp.launch_record(GCTX).digest == page_info(page_type, contents, bytes([1, 2, 3]))

    inside = machine.bus.read_guest(GUEST_PAGE, PAGE, 2)
    if page_type is PageType.ZERO:
        assert inside == bytes(PAGE)
    elif page_type is PageType.SECRETS:
        head = (3).to_bytes(8, "little") + (0x00A0_0F11).to_bytes(4, "little") + bytes(0x14)  # a Milan
        assert inside[:0x100] == (head + context(machine).vmpcks).ljust(0x100, b"\0")
        bitmap = int.from_bytes(inside[0x100:0x140], "little")
        assert {8 * bit for bit in range(512) if bitmap >> bit & 1} == GENERAL_REGISTERS
        assert not any(inside[0x140:])
    elif page_type is PageType.VMSA:
        # These contents ask for masked registers, by bit 14 at 3B0: what is measured is what was laid.
        words = [struct.unpack(f"<{PAGE // 8}Q", one) for one in (CONTENTS, inside)]
        changed = {8 * at: laid ^ found for at, (laid, found) in enumerate(zip(*words, strict=True)) if laid != found}
        del changed[0x300]
        assert (set(changed), set(changed.values())) == (GENERAL_REGISTERS, {words[1][0x300 // 8]})
    else:
        assert inside == CONTENTS
    expected = replace(
        MINE, immutable=False, validated=True, vmsa=page_type is PageType.VMSA, vmpl_permissions=(15, 1, 2, 3)
    )
    assert machine.bus.rmp_entry(GUEST_PAGE) == expected

    after = machine.snapshot()
    drawn = {"drawn"} if page_type is PageType.VMSA else set()
    assert {key for key in after if after[key] != before[key]} == {"DRAM", "RMP"} | drawn


@pytest.mark.parametrize("count", [0, 64, 65, 0xFFFF_FFFF])
def test_a_cpuid_table_holds_at_most_64_entries(count: int) -> None:
    machine, _ = machine_with(())
    machine.bus.write(GUEST_PAGE, count.to_bytes(4, "little"))
    machine.bus.write(COMMAND_PAGE, buffers.SnpLaunchUpdate.of(GCTX, PageType.CPUID, GUEST_PAGE).pack())
    before = machine.snapshot()
    status = machine.psp.submit(SnpCommand.LAUNCH_UPDATE, COMMAND_PAGE)
    assert status == (Status.SUCCESS if count <= 64 else Status.INVALID_PARAM)
    assert (machine.snapshot() == before) == (count > 64)


def test_gosvw_of_launch_start_reaches_the_secrets_page() -> None:
    machine = snp_guest(up(), SnpGuestState.INIT)
    start = buffers.SnpLaunchStart(GCTX, 0x3_0000, gosvw=bytes(range(16)))
    assert machine.call(SnpCommand.LAUNCH_START, start.pack()) == 0
    assert machine.call(SnpCommand.ACTIVATE, buffers.SnpActivate(GCTX, 2).pack()) == 0
    pre_guest(machine)
    update = buffers.SnpLaunchUpdate.of(GCTX, PageType.SECRETS, GUEST_PAGE)
    assert machine.call(SnpCommand.LAUNCH_UPDATE, update.pack()) == 0
    assert machine.bus.read_guest(GUEST_PAGE, 0x20, 2)[0x10:] == bytes(range(16))


def test_pages_chain_in_the_order_of_the_calls() -> None:
    machine, _ = machine_with(())
    expected = LaunchDigest()
    for number in (2, 0, 1):
        spa = GUEST_PAGE + number * PAGE
        machine.bus.rmp_set(spa, replace(MINE, gpa=number * PAGE))
        machine.bus.write(spa, bytes([number]) * PAGE)
        expected.update(PageType.NORMAL, number * PAGE, bytes([number]) * PAGE)
        update = buffers.SnpLaunchUpdate.of(GCTX, PageType.NORMAL, spa)
        assert machine.call(SnpCommand.LAUNCH_UPDATE, update.pack()) == 0
    assert machine.psp.launch_record(GCTX).digest == expected.value
