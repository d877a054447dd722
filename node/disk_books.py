"""What one VM asked of its disk, and how long that took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from node import operations as op


@dataclass(slots=True)
class DiskBooks:
    """Requests that were served, their bytes and time; ``errors`` are those with another status than success.

    A request's time is what its vCPU waited for it on an idle drive: the device's, and what exits cost above a plain
    VM's. What it waited for others is in the VM's time by mechanism.
    """

    reads: int = 0
    writes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    time_ns: float = 0.0
    longest_ns: float = 0.0

    def note(self, one: op.BlockRead | op.BlockWrite, status: op.Answer, took_ns: float) -> None:
        """One request and what came of it."""
        if status != 0:
            self.errors += 1
            return
        moved = one.blocks * op.BLOCK_BYTES
        if isinstance(one, op.BlockRead):
            self.reads += 1
            self.bytes_read += moved
        else:
            self.writes += 1
            self.bytes_written += moved
        self.time_ns += took_ns
        self.longest_ns = max(self.longest_ns, took_ns)

    def body(self) -> tuple[int | float, ...]:
        """As msgpack-able values; ``DiskBooks(*body)`` is the same."""
        return astuple(self)


def counted(
    books: DiskBooks | None, batch: Sequence[op.GuestOperation], answers: Sequence[op.Answer],
    disk_ns: Callable[[op.BlockRead | op.BlockWrite], float],
) -> DiskBooks:  # fmt: skip
    """The books, begun where there are none, with a batch's requests in them; ``disk_ns`` is what one takes."""
    books = DiskBooks() if books is None else books
    for one, answer in zip(batch, answers, strict=True):
        if isinstance(one, op.BlockRead | op.BlockWrite):
            books.note(one, answer, disk_ns(one))
    return books
