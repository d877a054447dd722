"""Whatever a host puts into a buffer gets a status, and a refusal changes nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    MEMORY_BYTES,
    OUT,
    PAGE,
    POLICY,
    UNCOVERED,
    Machine,
    new_machine,
    pre_guest,
    sev_guest,
    snp_guest,
    up,
)

from psp import command_buffers as buffers
from psp.commands import COMMANDS, LegacyCommand, SnpCommand
from psp.guest_context import SnpGuestState
from psp.legacy_guest import LegacyGuestState
from psp.status import Status
from psp.system_bus import RmpEntry

ADDRESSES = (GCTX, GUEST_PAGE, OUT, COMMAND_PAGE, UNCOVERED, MEMORY_BYTES, GCTX + 8, (1 << 64) - PAGE)
NUMBERS = (0, 1, 2, 8, 16, 48, 6 << 32 | 1, POLICY)
words = st.sampled_from(ADDRESSES) | st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)
hostile = st.binary(max_size=PAGE) | st.lists(words, max_size=8).map(
    lambda them: b"".join(word.to_bytes(8, "little") for word in them)
)
entries = st.builds(
    RmpEntry,
    assigned=st.booleans(), immutable=st.booleans(), gpa=st.sampled_from([0, PAGE]), asid=st.sampled_from([0, 2, 3]),
    vmsa=st.booleans(), validated=st.booleans(),
)  # fmt: skip


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """A machine in any state, with damaged entries too."""
    kind = draw(st.sampled_from(["new", "snp", "sev", "both"]))
    if kind == "new":
        return new_machine()
    machine = up(snp=kind != "sev", legacy=kind != "snp")
    if kind != "sev":
        snp_guest(machine, draw(st.sampled_from(SnpGuestState)))
        pre_guest(machine)
        for spa in (GUEST_PAGE, OUT, COMMAND_PAGE):
            if draw(st.booleans()):
                machine.bus.rmp_set(spa, draw(entries | st.just(FIRMWARE)))
    if kind != "snp":
        was = machine.bus.rmp.get(OUT // PAGE), machine.bus.rmp.get(COMMAND_PAGE // PAGE)
        reached = (LegacyGuestState.LUPDATE, LegacyGuestState.LSECRET, LegacyGuestState.RUNNING)
        handle = sev_guest(machine, draw(st.sampled_from(reached)))
        machine.psp.legacy.guests[handle].policy = draw(st.sampled_from([0, 1, 4]))
        for spa, entry in zip((OUT, COMMAND_PAGE), was, strict=True):
            machine.bus.rmp_set(spa, entry or RmpEntry())
    return machine


RETURNED_LENGTHS = {
    LegacyCommand.LAUNCH_MEASURE: (0x10,), LegacyCommand.ATTESTATION: (0x20,), LegacyCommand.PEK_CSR: (0x08,),
    LegacyCommand.GET_ID: (0x08,), LegacyCommand.PDH_CERT_EXPORT: (0x08, 0x18),
}  # fmt: skip
"""Commands that answer a short buffer with the length they want: four bytes at these offsets."""


def without_lengths(snapshot: dict[str, object], command: int, spa: int = COMMAND_PAGE) -> dict[str, object]:
    pages = dict(snapshot["DRAM"])  # type: ignore[call-overload]
    for at in RETURNED_LENGTHS[command]:
        for octet in range(spa + at, spa + at + 4):
            page = bytearray(pages.get(octet // PAGE, bytes(PAGE)))
            page[octet % PAGE] = 0
            pages[octet // PAGE] = bytes(page)
    return {**snapshot, "DRAM": {at: page for at, page in pages.items() if page.strip(b"\0")}}


@settings(max_examples=125, deadline=None)
@given(machines(), st.sampled_from(sorted(COMMANDS)), hostile)
def test_any_bytes_get_a_status_and_a_refusal_changes_nothing(machine: Machine, command: int, buffer: bytes) -> None:
    machine.bus.write(COMMAND_PAGE, buffer.ljust(0x40, b"\0"))
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert isinstance(status, Status)
    after = machine.snapshot()
    if command in RETURNED_LENGTHS and status == Status.INVALID_LENGTH:
        before, after = without_lengths(before, command), without_lengths(after, command)
    if status != Status.SUCCESS:
        assert after == before


@settings(max_examples=62, deadline=None)
@given(machines(), st.integers(-1, 1 << 33), st.integers(-1, 1 << 65) | st.sampled_from(ADDRESSES))
def test_any_number_at_any_address_gets_a_status(machine: Machine, command: int, spa: int) -> None:
    before = machine.snapshot()
    status = machine.psp.submit(command, spa)
    assert isinstance(status, Status)
    if command not in COMMANDS:
        assert status == Status.INVALID_COMMAND or not 0 <= spa < 1 << 64
    after = machine.snapshot()
    if command in RETURNED_LENGTHS and status == Status.INVALID_LENGTH:
        before, after = (without_lengths(one, command, spa) for one in (before, after))
    if status != Status.SUCCESS:
        assert after == before


@settings(max_examples=31, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_write_to_the_registers_is_answered(low: int, high: int, response: int) -> None:
    mailbox = up().psp.mailbox
    mailbox.write_address(low, high)
    mailbox.write_response(response)
    assert mailbox.response >> 31 == 1
    Status(mailbox.response & 0xFFFF)


@settings(max_examples=62, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_launch_update_of_any_length_stays_inside_memory(length: int) -> None:
    machine = up(snp=False)
    handle = sev_guest(machine)
    update = buffers.LaunchUpdateData(handle, MEMORY_BYTES - 64, length).pack()
    status = machine.call(LegacyCommand.LAUNCH_UPDATE_DATA, update)
    assert (status == Status.SUCCESS) == (length in {16, 32, 48, 64})


def test_a_context_page_cannot_be_made_an_output() -> None:
    machine = snp_guest(up())
    asked = buffers.SnpGuestStatus(GCTX, GCTX).pack()
    assert machine.call(SnpCommand.GUEST_STATUS, asked) == Status.INVALID_PAGE_STATE
