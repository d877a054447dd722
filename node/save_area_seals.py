"""Integrity values of SEV-ES save areas: what hardware keeps of a vCPU's registers besides the page itself.

The page lies in ordinary memory, encrypted with the guest's key; the value lies in
memory that the host gave up at INIT and that only hardware reaches (``spec/firmware/vmsa-ghcb.md``
section 2). So only the newest save at an address has a value that fits. How the value
is worked out is not published: a hash of the page as hardware wrote it stands for it,
and the values are kept here instead of in bytes of the trusted memory region.
"""

from __future__ import annotations

from hashlib import sha256


class SaveAreaSeals:
    """One value for each (ASID, SPA) that a save area was written to."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, int], bytes] = {}

    def seal(self, asid: int, spa: int, page: bytes) -> None:
        """Keep the value of a page that hardware writes; the one before it is void."""
        self._values[asid, spa] = sha256(page).digest()

    def fits(self, asid: int, spa: int, page: bytes) -> bool:
        """Whether a page is the one that hardware wrote there last; False where it never wrote one."""
        return self._values.get((asid, spa)) == sha256(page).digest()

    def forget(self, asid: int) -> None:
        """The key of an ASID is gone, and what was written through it with it."""
        for place in [place for place in self._values if place[0] == asid]:
            del self._values[place]
