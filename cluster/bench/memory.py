"""``sevfleet bench memory``: private memory through the checks and the cipher, beside OpenSSL's own speed."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

from cluster.errors import ToolError
from cluster.figure import Figure
from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.operations import GuestOperation, NestedFrames, NestedMap, Read, VmcbWrite, Write
from node.product import PRODUCTS
from node.rmp import GuestCore
from node.vmcb import Vmcb
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES, RmpEntry

OPENSSL = ("openssl", "speed", "-evp", "aes-128-xts", "-bytes", "16384", "-seconds", "3")
GUEST_BYTES = 32 << 20
LINE_BYTES = 64
TARGET_LINES_PER_S = 50_000.0
Batches = Sequence[tuple[GuestOperation, ...]]
_ASID = 1
_TABLES_SPA, _TABLES_BYTES = 512 << 20, 64 << 10
_ROUNDS = 7


def run() -> Iterator[Figure]:
    """Private XEX memory per second of processor time, with nested translation, RMP and ASID checks, in one thread."""
    version, reference = openssl_speed()
    yield Figure(f"openssl aes-128-xts 16 KiB ({version})", reference, "byte/s")
    board, vmcb = private_guest()
    name = "openssl aes-128-xts"
    for size, gpas, repeat in (
        (LARGE_PAGE_BYTES, range(0, GUEST_BYTES, LARGE_PAGE_BYTES), 1),
        (PAGE_BYTES, range(0, 8 << 20, PAGE_BYTES), 4),
    ):
        for word, per_s in _per_s(board, vmcb, size, gpas, repeat):
            yield Figure(f"private {size // 1024} KiB {word}", size * per_s, "byte/s", reference, name)
    # Each in another page and at another place of it.
    for word, per_s in _per_s(board, vmcb, LINE_BYTES, range(0, GUEST_BYTES, PAGE_BYTES + LINE_BYTES), 1):
        yield Figure(f"private {LINE_BYTES} byte {word}", per_s, "1/s", TARGET_LINES_PER_S, "the target")


def private_guest() -> tuple[Board, Vmcb]:
    """A board with one SNP guest whose memory is assigned, validated and backed, without a launch around it."""
    board = Board("bench", PRODUCTS["Milan"], 1 << 30, 100, CounterRandom(1))
    base = LARGE_PAGE_BYTES
    board.controller.install_key(_ASID, CounterRandom(1).octets("bench", "key", 0, 16))
    # The vCPU's save area: a page of zeros, so VMPL 0.
    board.controller.write(0, bytes(PAGE_BYTES), _ASID)
    board.execute_host((
        NestedFrames("vm", _TABLES_SPA, _TABLES_BYTES),
        NestedMap("vm", 0, base, GUEST_BYTES),
        VmcbWrite("vm", 0, _ASID, Generation.SEV_SNP.value, 0),
    ))  # fmt: skip
    assert board.rmp is not None
    board.rmp.rmpupdate(base, GUEST_BYTES, RmpEntry(assigned=True, large=True, asid=_ASID))
    board.rmp.pvalidate(base, 0, GuestCore(_ASID), GUEST_BYTES, large=True, validate=True)
    return board, board.vmcb("vm", 0)


def openssl_speed() -> tuple[str, float]:
    """OpenSSL's version and its bytes per second, in one thread. Raises ToolError where there is no openssl."""
    try:
        version = subprocess.run((OPENSSL[0], "version"), capture_output=True, text=True, check=True).stdout
        report = subprocess.run(OPENSSL, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolError(f"openssl: expected to measure against it, got {error}") from None
    found = re.search(r"AES-128-XTS\s+([\d.]+)k", report, re.IGNORECASE)
    if found is None:
        raise ToolError("openssl speed: expected a line for AES-128-XTS")
    return " ".join(version.split()[:2]), float(found[1]) * 1000.0


def _per_s(board: Board, vmcb: Vmcb, size: int, gpas: range, repeat: int) -> Iterator[tuple[str, float]]:
    """Writes and reads of ``size`` bytes per second, one operation in a batch."""
    data = bytes(range(256)) * -(-size // 256)
    writes: Batches = [(Write(gpa, data[:size]),) for gpa in gpas] * repeat
    reads: Batches = [(Read(gpa, size),) for gpa in gpas] * repeat
    for word, batches, answer in (("writes", writes, None), ("reads", reads, data[:size])):
        # What faults is fast, and no measure of anything.
        assert all(board.execute_guest(vmcb, batch) == (answer,) for batch in batches)
        yield word, len(batches) / _median_s(partial(_execute, board, vmcb, batches))


def _execute(board: Board, vmcb: Vmcb, batches: Batches) -> None:
    execute = board.execute_guest
    for batch in batches:
        execute(vmcb, batch)


def _median_s(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(_ROUNDS):
        # Processor time, because that is what openssl speed divides by: other load then wrongs neither.
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return median(times)
