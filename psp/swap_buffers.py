"""Command buffers of pages that go out, come back and move: SEV API, SWAP_*, and SEV-SNP firmware ABI chapter 8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psp.byte_layout import ByteLayout, at

SWAP_PAGE_FLAGS = 0b111
"""Legacy SWAP flags: page size (bit 0) and page type (2:1)."""
SWAP_IN_PLACE = 1 << 3
"""Legacy SWAP_IN flag: what is read lies where the page is to be."""
SNP_SWAP_IN_PLACE = 1 << 3
"""SWAP_IN flag: what is read lies where the page is to be."""
SNP_SWAP_ROOT_MDATA = 1 << 4
"""SWAP flag: the entry is the context's own."""
SNP_SWAP_FLAGS = 0b11111


@dataclass(frozen=True, slots=True)
class SwapOut(ByteLayout):
    """SWAP_OUT; ``mdata`` is where the page's entry goes."""

    SIZE: ClassVar[int] = 0x28
    handle: int = at(0x00, 4)
    flags: int = at(0x04, 4)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)
    mdata: int = at(0x18, 8)
    software_data: int = at(0x20, 8)


@dataclass(frozen=True, slots=True)
class SwapIn(ByteLayout):
    """SWAP_IN."""

    SIZE: ClassVar[int] = 0x20
    handle: int = at(0x00, 4)
    flags: int = at(0x04, 4)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)
    mdata: int = at(0x18, 8)


@dataclass(frozen=True, slots=True)
class SnpPageMdInit(ByteLayout):
    """SNP_PAGE_MD_INIT."""

    SIZE: ClassVar[int] = 0x10
    gctx: int = at(0x00, 8)
    address: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class SnpPageSwapOut(ByteLayout):
    """SNP_PAGE_SWAP_OUT; ``flags`` holds page size (bit 0), page type (2:1) and whether the entry is the root's (4)."""

    SIZE: ClassVar[int] = 0x30
    gctx: int = at(0x00, 8)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)
    mdata: int = at(0x18, 8)
    software_data: int = at(0x20, 8)
    flags: int = at(0x28, 8)


@dataclass(frozen=True, slots=True)
class SnpPageSwapIn(ByteLayout):
    """SNP_PAGE_SWAP_IN; ``flags`` as of SNP_PAGE_SWAP_OUT, with the page in its own frame (bit 3)."""

    SIZE: ClassVar[int] = 0x30
    gctx: int = at(0x00, 8)
    source: int = at(0x08, 8)
    destination: int = at(0x10, 8)
    mdata: int = at(0x18, 8)
    flags: int = at(0x28, 8)


@dataclass(frozen=True, slots=True)
class SnpPageMove(ByteLayout):
    """SNP_PAGE_MOVE; bit 0 of ``flags`` is the page size."""

    SIZE: ClassVar[int] = 0x20
    gctx: int = at(0x00, 8)
    flags: int = at(0x08, 8)
    source: int = at(0x10, 8)
    destination: int = at(0x18, 8)
