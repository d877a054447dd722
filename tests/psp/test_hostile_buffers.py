"""Whatever a host puts into a buffer gets a status, and a refusal changes nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from toy_machine import (
    COMMAND_PAGE,
    FIRMWARE,
    GCTX,
    GUEST_PAGE,
    OUT,
    POLICY,
    pre_guest,
    sev_guest,
    snp_guest,
    up,
)

from psp.commands import COMMANDS
from psp.status import Status


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(COMMANDS)), st.binary(max_size=0x60), st.booleans(), st.data())
def test_any_bytes_get_a_status_and_a_refusal_changes_nothing(
    command: int, buffer: bytes, plausible: bool, data: st.DataObject
) -> None:
    machine = snp_guest(up())
    handle = sev_guest(machine)
    pre_guest(machine)
    if plausible:
        pieces = st.sampled_from([GCTX, GUEST_PAGE, OUT, 0, 1, 2, handle, POLICY, 1 << 63, 0xFFFF_FFFF])
        words = data.draw(st.lists(pieces, min_size=8, max_size=8))
        buffer = b"".join(word.to_bytes(8, "little") for word in words)
    machine.bus.write(COMMAND_PAGE, buffer)
    if data.draw(st.booleans()):
        machine.bus.rmp_set(COMMAND_PAGE, FIRMWARE)
    before = machine.snapshot()
    status = machine.psp.submit(command, COMMAND_PAGE)
    assert isinstance(status, Status)
    if status not in (Status.SUCCESS, Status.INVALID_LENGTH):
        assert machine.snapshot() == before
