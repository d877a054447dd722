"""A host's drive as a server that all its VMs share: requests wait while it is busy with others'.

A request keeps the drive busy for its bytes at the drive's rate, or for its part of the
requests that the drive serves in a second, whichever is longer. What one waits for a drive
that is idle is the request's own latency, and priced with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node import operations as op
from node.mechanism import Mechanism
from node.neighbour_ledger import BLOCKS, NeighbourLedger, Owner
from node.service_line import ServiceLine


class DiskQueue:
    """Virtual times of one drive, first come, first served."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.free_ns = 0.0
        self.busy_ns = 0.0
        self.ledger: NeighbourLedger | None = None
        """Who costs whom, where somebody asks for it."""
        self._line = ServiceLine()
        self._least_ns = {
            op.BlockRead: 1e9 / costs["disk.device_reads_per_s"],
            op.BlockWrite: 1e9 / costs["disk.device_writes_per_s"],
        }
        self._byte_ns = {
            op.BlockRead: 1e9 / costs["disk.device_read_bytes_per_s"],
            op.BlockWrite: 1e9 / costs["disk.device_write_bytes_per_s"],
        }

    def wait(
        self, now_ns: int, batch: Sequence[op.GuestOperation], lost_ns: dict[Mechanism, float], vm: str = ""
    ) -> int:
        """Queue the batch's requests, of ``vm``; nanoseconds that they wait for others', added to ``lost_ns``."""
        needed = 0.0
        for one in batch:
            kind = type(one)
            if kind is op.BlockRead or kind is op.BlockWrite:
                blocks = max(0, one.blocks)  # type: ignore[union-attr]  # the two kinds have them
                needed += max(self._least_ns[kind], blocks * op.BLOCK_BYTES * self._byte_ns[kind])
        if not needed:
            return 0
        waited = max(0, round(self.free_ns - now_ns))
        self.free_ns = max(self.free_ns, float(now_ns)) + needed
        self.busy_ns += needed
        lost_ns[Mechanism.DISK_WAIT] += waited
        if self.ledger is not None:
            ahead = self._line.ahead(now_ns, now_ns, now_ns + waited)
            self.ledger.note_wait(Owner(vm, BLOCKS), Mechanism.DISK_WAIT, ahead)
            self._line.join(vm, self.free_ns)
        return waited
