"""After a flush no chip of a board holds plaintext of a private page: everything that is reachable is searched."""

from __future__ import annotations

import gc
import mmap
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
from toy_guests import make_host, run, start

from node.board import Board
from node.counter_random import CounterRandom
from node.generation import Generation
from node.hypervisor import Hypervisor
from node.memory_cipher import CipherMode
from node.memory_controller import HOST_KEY
from node.operations import (
    HostWrite,
    NestedFrames,
    NestedMap,
    Read,
    VmcbWrite,
    Wbinvd,
    Write,
)
from node.platform import HostMode, Platform, Protection
from node.product import PRODUCTS
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

MIB = 1 << 20
SECRET = np.random.default_rng(11).bytes(2 * MIB)
PRODUCT_OF = {
    CipherMode.AES_128_XE: "Naples",
    CipherMode.AES_128_XEX_ZEN1: "Naples",
    CipherMode.AES_128_XEX: "Milan",
    CipherMode.AES_256_XTS: "Turin",
}
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)


def reachable(board: Board, alone: bool) -> Iterator[object]:
    """Every object of a board, and what the modules of its floors hold for all boards. Its hypervisor is no chip."""
    shared = [] if alone else [
        value
        for name, module in sorted(sys.modules.items())
        if name.split(".")[0] in ("node", "psp", "tio")
        for value in vars(module).values()
    ]
    seen: set[int] = set()
    todo: list[object] = [board, *shared]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (*_CODE, Hypervisor)):
            continue
        seen.add(id(one))
        yield one
        todo += gc.get_referents(one)  # of a memoryview, what it is a view of
        if isinstance(one, np.ndarray) and one.base is not None:
            todo.append(one.base)


def octets(one: object) -> bytes | None:
    """What an object holds as bytes, if it does."""
    if isinstance(one, np.ndarray) and one.base is None:
        return one.tobytes()  # of a view it is what it is a view of
    if isinstance(one, mmap.mmap):
        pages = np.frombuffer(one, np.uint64).reshape(-1, PAGE_BYTES // 8)
        return pages[pages.any(axis=1)].tobytes()
    return bytes(one) if isinstance(one, (bytes, bytearray)) else None


def holders(board: Board, secret: bytes = SECRET, *, alone: bool = False) -> list[str]:
    """What holds any of some blocks of a secret that lie all over it; ``alone`` looks at the board and not beyond."""
    starts = (0, 16, 4080, len(secret) // 2, len(secret) - 16)
    blocks = {secret[at : at + 16] for at in starts if at + 16 <= len(secret)}
    found = []
    for one in reachable(board, alone):
        held = octets(one)
        if held is not None and len(held) >= 16 and any(held.find(block) >= 0 for block in blocks):
            found.append(type(one).__name__)
    return found


def flush(board: Board) -> None:
    assert board.execute_host((Wbinvd(),)) == (None,)


@pytest.mark.parametrize(
    ("mode", "tweaked", "caches"),
    [
        *((mode, True, caches) for mode in CipherMode for caches in (False, True)),
        (CipherMode.AES_128_XEX, False, False),
        (CipherMode.AES_128_XE, False, False),
    ],
)
def test_what_a_guest_wrote_and_read_is_nowhere_in_the_clear(mode: CipherMode, tweaked: bool, caches: bool) -> None:
    disabled = frozenset[Protection]() if tweaked else frozenset({Protection.TWEAK})
    platform = Platform(memory_cipher=mode, caches=caches, disabled=disabled)
    board = Board("b", PRODUCTS[PRODUCT_OF[mode]], 1 << 28, 9, CounterRandom(5), platform)
    board.controller.install_key(9, bytes(board.controller.key_bytes - 1) + b"k")
    frames, pages = NestedFrames("vm", 64 * MIB, 64 << 10), NestedMap("vm", 0, 2 * MIB, 32 * MIB)
    assert board.execute_host((frames, pages, VmcbWrite("vm", 0, 9, "SEV", 0))) == (None,) * 3
    vmcb = board.vmcb("vm", 0)
    most = len(SECRET) // (16 if caches else 1)
    for gpa, length in ((0, most), (4 * MIB, PAGE_BYTES), (6 * MIB + 48, 64), (8 * MIB - 8, 16)):
        assert board.execute_guest(vmcb, (Write(gpa, SECRET[:length]), Read(gpa, length))) == (None, SECRET[:length])
        flush(board)
        assert holders(board, SECRET[:length], alone=True) == []
    assert board.execute_guest(vmcb, (Read(4 * MIB, PAGE_BYTES), Read(0, most))) == (SECRET[:PAGE_BYTES], SECRET[:most])
    flush(board)
    assert holders(board, SECRET[:most]) == []


def test_the_search_finds_plaintext_where_there_is_some() -> None:
    """So that finding nothing says something: in DRAM, laid down, in scratch, and in a cache's line."""
    for caches in (False, True):
        board = Board("b", PRODUCTS["Milan"], 1 << 28, 9, CounterRandom(5), Platform(caches=caches))
        board.controller.install_key(9, bytes(16))
        assert holders(board, SECRET[: MIB // 8]) == []
        board.controller.lay(4 * MIB, SECRET[: MIB // 8], 9)
        assert holders(board, SECRET[: MIB // 8])
        flush(board)
        assert holders(board, SECRET[: MIB // 8]) == []
        board.controller.read(4 * MIB, PAGE_BYTES, 9)
        assert holders(board, SECRET[: MIB // 8])
        flush(board)
        assert holders(board, SECRET[: MIB // 8]) == []
        board.controller.write(4 * MIB, SECRET[: MIB // 8], 0)
        flush(board)
        assert holders(board, SECRET[: MIB // 8]), "what is no guest's lies in the clear"


@pytest.mark.parametrize("mode", [HostMode.SME, HostMode.TSME])
def test_what_is_laid_through_a_key_is_ciphertext_after_a_flush_and_reads_back(mode: HostMode) -> None:
    board = Board("b", PRODUCTS["Milan"], 1 << 28, 9, CounterRandom(5), Platform(mode=mode))
    board.controller.install_key(9, bytes(16))
    board.bus.write_guest(4 * MIB, SECRET, 9)  # a secrets page, or a page that firmware received
    c_bit = mode is HostMode.SME
    assert board.execute_host((HostWrite(8 * MIB, SECRET, encrypted=c_bit),)) == (None,)  # a guest that arrived
    assert holders(board)
    flush(board)
    assert holders(board) == []
    for spa, key in ((4 * MIB, 9), (8 * MIB, HOST_KEY if c_bit else 0)):
        assert board.controller.read(spa, len(SECRET), key) == SECRET
    flush(board)
    assert holders(board) == []


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_SNP])
def test_a_launched_guests_own_writes_and_its_secrets_page_are_nowhere_in_the_clear(generation: Generation) -> None:
    host = make_host()
    guest = start(host, "vm", generation)
    run(host)
    place = guest.spec.memory.placement("vm", 0, 0)
    vmcb = host.board.vmcb("vm", 0)
    assert host.board.execute_guest(vmcb, (Write(place.base_gpa, SECRET[:MIB]),)) == (None,)
    assert host.board.execute_guest(vmcb, (Read(place.base_gpa, MIB),)) == (SECRET[:MIB],)
    before = host.board.dram.resident_bytes
    flush(host.board)
    assert holders(host.board, SECRET[:MIB]) == []
    # The image that it was launched from is public, and costs nothing still.
    assert host.board.dram.resident_bytes - before <= LARGE_PAGE_BYTES // 64
