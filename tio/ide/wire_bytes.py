"""How many bytes packets take on the wire, and what protection adds: arithmetic, for traffic that nobody looks at.

Source: PCI Express base specification, 2.2 (headers), 3.6 and 4.2 (framing, sequence number, LCRC), 6.33.5 (prefix,
MAC, PCRC); data link packets are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from tio.ide.keys import MAC_BYTES
from tio.ide.prefix import PREFIX_BYTES

FRAMING_BYTES, LCRC_BYTES, PCRC_BYTES = 4, 4, 4


@dataclass(frozen=True, slots=True)
class WireFormat:
    """How packets of one kind cross: header and payload each, and under a MAC for how many together."""

    payload_bytes: int = 256
    header_bytes: int = 16
    protected: bool = True
    aggregation: int = 1
    pcrc: bool = False

    def packets(self, length: int) -> int:
        """How many packets carry so many bytes."""
        return -(-length // self.payload_bytes)

    def bytes_on_wire(self, length: int) -> int:
        """What so many bytes take, with all that goes with them."""
        packets = self.packets(length)
        each = FRAMING_BYTES + self.header_bytes + LCRC_BYTES
        if not self.protected:
            return length + packets * each
        each += PREFIX_BYTES + PCRC_BYTES * self.pcrc
        return length + packets * each + -(-packets // self.aggregation) * MAC_BYTES

    def efficiency(self, length: int) -> float:
        """The share of the wire that is payload."""
        return length / self.bytes_on_wire(length)
