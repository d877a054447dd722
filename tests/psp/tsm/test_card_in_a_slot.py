"""Firmware, a root port and a card in its slot: work goes over a link whose keys firmware gave, and stops with them."""

from __future__ import annotations

from device_bench import GUEST_DEVICE_ID, PORT, RID, Bench, new_bench
from slot import CARD, DATA, RESULT, Slot
from toy_machine import snp_guest

from psp import tsm
from psp.commands import SnpCommand
from psp.guest_context import SnpGuestState
from psp.status import Status
from psp.tsm.trusted_io import RootPortKeys
from tio.gpu import GpuCommand, GpuOpcode, GpuStatus
from tio.ide import StreamState

CANARY = b"what a guest computes with, and nobody on the link may see"
STREAM = 1


def in_a_slot() -> tuple[Bench, Slot]:
    """A machine whose root port has a GPU in its slot."""
    bench, slot = new_bench(), Slot()
    root: RootPortKeys = slot.root
    bench.trusted_io.ports[0, PORT] = root  # type: ignore[assignment]
    bench.card = slot.card
    assert CARD == RID
    slot.watch()
    return bench, slot


def job(slot: Slot, *, tee: bool) -> bytes:
    """Copy into the card and out again: what is in memory then."""
    slot.memory.octets[DATA : DATA + len(CANARY)] = CANARY
    slot.memory.octets[RESULT : RESULT + len(CANARY)] = bytes(len(CANARY))
    slot.open_ring(tee=tee)
    commands = (
        GpuCommand(GpuOpcode.COPY_IN, 1, DATA, 0, len(CANARY)),
        GpuCommand(GpuOpcode.COPY_OUT, 2, 0, RESULT, len(CANARY)),
    )
    assert slot.submit(commands, tee=tee)[1] in {GpuStatus.DONE, 0}
    return bytes(slot.memory.octets[RESULT : RESULT + len(CANARY)])


def test_a_job_of_a_bound_card_goes_over_the_link_that_firmware_keyed() -> None:
    bench, slot = in_a_slot()
    snp_guest(bench.machine, SnpGuestState.RUNNING)
    assert bench.create() == Status.SUCCESS
    assert bench.connect() == Status.SUCCESS
    slot.enable()
    assert slot.root.is_secure(STREAM)
    assert bench.create_tdi() == Status.SUCCESS
    assert bench.bind() == Status.SUCCESS
    assert bench.bind(run_flags=tsm.RUN) == Status.SUCCESS
    assert bench.trusted_io.bindings[RID].guest_device_id == GUEST_DEVICE_ID
    slot.seen.clear()
    assert job(slot, tee=True) == CANARY
    assert slot.memory.log
    assert {(one.tee, one.stream_id) for one in slot.memory.log} == {(True, STREAM)}
    assert CANARY not in slot.on_the_wire()
    bench.lay_buffers()
    assert bench.run(SnpCommand.TIO_ROLL_KEY, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    assert job(slot, tee=True) == CANARY
    assert CANARY not in slot.on_the_wire()
    # Unbound, the card has forgotten what it worked with, and no trusted packet goes any more.
    assert bench.unbind() == Status.SUCCESS
    slot.memory.log.clear()
    assert slot.root.load(0xC0_0010_0000, 8, tee=True) == (1 << 64) - 1
    assert not any(slot.gpu.memory[: len(CANARY)])
    assert bench.run(SnpCommand.TIO_DEV_DISCONNECT, bench.order(tsm.DeviceOrder)) == Status.SUCCESS
    assert slot.root.port.streams[STREAM].state is StreamState.INSECURE


def test_without_a_connection_whoever_sits_on_the_link_reads_it() -> None:
    """The positive control of the test above."""
    _, slot = in_a_slot()
    assert job(slot, tee=False) == CANARY
    assert CANARY in slot.on_the_wire()
