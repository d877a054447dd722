"""What joins root ports for packets that end at none of them: those of a selective stream between two cards.

They go from port to port as they came, protected, by what their headers say in the clear: requests by address,
completions by requester. Whether ports are joined is for whoever owns them; without a path such packets are lost.
Source: PCI Express base specification, 6.33.1 (selective streams pass what lies between their ends), 2.2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tio.ide.stream import IdeTlp
from tio.ide.tlp import SubStream, Tlp, TlpError, TlpKind
from tio.root_port import RootPort


@dataclass(frozen=True, slots=True)
class PeerWindow:
    """What leads to one root port: a bus, and addresses from a first to a last."""

    root: RootPort
    bus: int
    addresses: tuple[int, int]


class PeerPath:
    """Joins ports. A card that is reached by its peer reaches none while that lasts, so that no ring of them turns."""

    def __init__(self, windows: Sequence[PeerWindow]) -> None:
        self.lost = 0
        """Packets that led nowhere."""
        self._windows = tuple(windows)
        self._reaching = False
        for one in self._windows:
            one.root.pass_on = self.pass_on

    def pass_on(self, packet: IdeTlp) -> None:
        """Bring a packet to the port that it leads to; what leads nowhere is dropped."""
        try:
            tlp = Tlp(packet.header, packet.payload)
            answers = tlp.sub_stream is SubStream.CPL
            found = self._window_of(tlp)
        except (TlpError, IndexError):
            self.lost += 1
            return
        if found is None or (self._reaching and not answers):
            self.lost += 1
            return
        before, self._reaching = self._reaching, True
        try:
            found.root.pass_down(packet)
        finally:
            self._reaching = before

    def _window_of(self, tlp: Tlp) -> PeerWindow | None:
        if tlp.sub_stream is SubStream.CPL:
            bus = tlp.requester >> 8
            return next((one for one in self._windows if one.bus == bus), None)
        if tlp.kind not in (TlpKind.MEMORY_READ, TlpKind.MEMORY_WRITE) or len(tlp.header) != _REQUEST_BYTES:
            return None
        at = tlp.address
        return next((one for one in self._windows if one.addresses[0] <= at <= one.addresses[1]), None)


_REQUEST_BYTES = 16
"""Of a memory request's header with an address of 64 bits."""
