"""A host's memory as a device sees it: flat, with an end, counting what passes."""

import sys
from pathlib import Path

import pytest

from tio.dma_port import DmaFault

sys.path.insert(0, str(Path(__file__).parent))


class HostMemory:
    """``refused`` holds page numbers that no device may touch."""

    def __init__(self, size: int = 8 << 20) -> None:
        self.bytes = bytearray(size)
        self.refused: set[int] = set()
        self.accesses = 0

    def read(self, address: int, length: int) -> bytes:
        self._check(address, length, write=False)
        return bytes(self.bytes[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data), write=True)
        self.bytes[address : address + len(data)] = data

    def _check(self, address: int, length: int, *, write: bool) -> None:
        self.accesses += 1
        pages = range(address // 4096, (address + length - 1) // 4096 + 1)
        if address < 0 or address + length > len(self.bytes) or not self.refused.isdisjoint(pages):
            raise DmaFault(address, length, write=write)


@pytest.fixture
def host_memory() -> HostMemory:
    return HostMemory()


@pytest.fixture(scope="session")
def make_memory():
    return HostMemory
