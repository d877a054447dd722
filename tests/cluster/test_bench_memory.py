"""What `sevfleet bench memory` measures is private memory that answers."""

from __future__ import annotations

from cluster.bench.memory import GUEST_BYTES, private_guest
from node.operations import Read, Write
from psp.system_bus import LARGE_PAGE_BYTES


def test_the_measured_guest_reaches_all_of_its_memory_and_dram_holds_ciphertext() -> None:
    board, vmcb = private_guest()
    data = b"a guest's secret" * (LARGE_PAGE_BYTES // 16)
    for gpa in (0, GUEST_BYTES - LARGE_PAGE_BYTES):
        assert board.execute_guest(vmcb, (Write(gpa, data), Read(gpa, LARGE_PAGE_BYTES))) == (None, data)
    assert data[:16] not in board.dram.read(LARGE_PAGE_BYTES, GUEST_BYTES)
