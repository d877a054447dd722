"""A board's trusted I/O as its security processor reaches it: the board's side of ``TrustedIo``."""

from __future__ import annotations

from collections.abc import Callable

from node.root_complex import RootComplex
from node.trusted_dma import TrustedDma
from psp.tsm.secure_device_entry import SecureDeviceEntry
from psp.tsm.trusted_io import RootPortKeys, TdiBinding


class BoardTrustedIo:
    """Root ports of one segment, the secure device table and the fences. ``slots`` is None without cards."""

    def __init__(self, slots: Callable[[], RootComplex | None], trusted: TrustedDma) -> None:
        self._slots = slots
        self._trusted = trusted

    def root_port(self, segment: int, port: int) -> RootPortKeys | None:
        """The root port of this number; a board has segment 0 alone."""
        slots = self._slots()
        return None if segment or slots is None else slots.port(port)

    def leads(self, segment: int, port: int, spa: int, length: int) -> bool:
        """Whether a whole range lies in the window of this root port."""
        slots = self._slots()
        return not segment and slots is not None and slots.leads(spa, length) == port

    def bind(self, requester: int, binding: TdiBinding) -> None:
        """A TDI belongs to a guest."""
        self._trusted.bind(requester, binding)

    def start(self, requester: int) -> None:
        """It runs."""
        self._trusted.start(requester)

    def write_entry(self, requester: int, entry: SecureDeviceEntry) -> None:
        """The guest's part of its entry."""
        self._trusted.write_entry(requester, entry)

    def unbind(self, requester: int) -> None:
        """It is nobody's."""
        self._trusted.unbind(requester)

    def fence_status(self, asid: int) -> int:
        """Both fences of an ASID."""
        return self._trusted.fences.status(asid)

    def fence_clear(self, asid: int) -> bool:
        """Lift the fence of an error."""
        return self._trusted.fences.clear(asid)
