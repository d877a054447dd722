"""The launch digest that a guest owner expects, computed without a host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from node.measured_launch import LaunchPage
from psp.launch_digest import LaunchDigest


def snp_digest(pages: Iterable[LaunchPage], start: bytes | None = None) -> bytes:
    """SHA-384 chain over the pages, 48 bytes; ``start`` is a digest to go on from."""
    digest = LaunchDigest() if start is None else LaunchDigest(start)
    for page in pages:
        digest.update(page.page_type, page.gpa, page.data)
    return digest.value


def sev_digest(ranges: Iterable[tuple[int, bytes]], vmsas: Iterable[bytes] = ()) -> bytes:
    """SHA-256 over the ranges of LAUNCH_UPDATE_DATA, then over the save areas of LAUNCH_UPDATE_VMSA, 32 bytes."""
    digest = hashlib.sha256()
    for _, data in ranges:
        digest.update(data)
    for vmsa in vmsas:
        digest.update(vmsa)
    return digest.digest()
