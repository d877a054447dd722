"""What a host enters in its books of a guest's batch: bytes and faults, and what a migration has to send again."""

from __future__ import annotations

from node import operations as op
from node.dirty_log import DirtyLog
from node.guest import Guest


def mark_stores(
    log: DirtyLog, batch: tuple[op.GuestOperation, ...], answers: tuple[op.Answer, ...], now_ns: int
) -> None:
    """Note in the log of a migration what a batch stored by guest-physical address."""
    for one, answer in zip(batch, answers, strict=True):
        if type(one) is op.Write or type(one) is op.UpkeepWrite:
            log.mark(one.gpa, len(one.data), now_ns)
        elif type(one) is op.Clear:
            log.mark(one.gpa, max(0, one.length), now_ns)
        elif type(one) is op.Copy and type(answer) is bytes:
            log.mark(one.target, len(answer), now_ns)
        elif type(one) is op.BlockRead:
            log.mark(one.gpa, one.blocks * op.BLOCK_BYTES, now_ns)


def count_batch(guest: Guest, batch: tuple[op.GuestOperation, ...], answers: tuple[op.Answer, ...]) -> bool:
    """Count what a batch did in memory; whether there is something of the disk in it."""
    if len(answers) == 1:
        # As most are: a load or a store, and nothing wrong with it.
        only, answer = batch[0], answers[0]
        if type(only) is op.Read and type(answer) is bytes:
            guest.bytes_read += len(answer)
            return False
        if type(only) is op.Write and answer is None:
            guest.bytes_written += len(only.data)
            return False
    disk = False
    for one, answer in zip(batch, answers, strict=True):
        kind, came = type(one), type(answer)
        if came is bytes:
            if kind is op.Copy:
                guest.bytes_bounced += len(answer)  # type: ignore[arg-type]  # of bytes
                guest.copies += 1
            elif kind is not op.PortInString:  # a bus is no memory
                guest.bytes_read += len(answer)  # type: ignore[arg-type]
        elif came is op.Fault:
            guest.faults += 1
        elif kind is op.Write or kind is op.VirtualWrite or kind is op.UpkeepWrite:
            guest.bytes_written += len(one.data)  # type: ignore[union-attr]  # they have data
        elif kind is op.BlockRead or kind is op.BlockWrite:
            disk = True
    return disk
