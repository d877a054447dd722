"""Addresses of network cards: they follow from the VM's name, so that whoever knows that knows where to send."""

from __future__ import annotations

import hashlib
from functools import lru_cache

MAC_BYTES = 6
_LOCAL = b"\x02"
"""Locally administered, of one station (IEEE 802, section 8.2)."""


@lru_cache(maxsize=4096)
def mac_of(vm: str, vcpu: int = 0) -> bytes:
    """The address of the card of one vCPU."""
    return _LOCAL + hashlib.sha256(f"{vm}/{vcpu}".encode()).digest()[: MAC_BYTES - 1]
