"""The machine's trusted I/O as the TSM reaches it: root ports, the secure device table, fences of ASIDs.

The board has it; firmware is handed it with its bus. Requesters are requester ids (bus, device, function), ASIDs those
of SNP guests. Source: ``spec/tio/tio-overview.md``, sections 2 and 3; ``spec/tio/iommu.md``, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from psp.tsm.secure_device_entry import SecureDeviceEntry
from tio.ide.keys import Direction
from tio.ide.tlp import SubStream


@dataclass(frozen=True, slots=True)
class TdiBinding:
    """Whose a TDI is: the guest's ASID, the number by which it knows the device, and the streams of its packets.

    Streams are those of ``root_port``: another port has others of the same ids, whose keys another device has. Its
    packets are not this TDI's, whatever requester they name. None does not say which port.
    """

    asid: int
    guest_device_id: int
    stream_ids: frozenset[int]
    root_port: int | None = None


class RootPortKeys(Protocol):
    """The keys of a root port's IDE streams; directions are the root port's own.

    Each raises ``tio.ide.IdeError`` for a stream that the host has not set up, and for a key that is none.
    """

    def program(
        self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream, key: bytes, initial: int
    ) -> None:
        """Take a key."""

    def go(self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Use it from now on."""

    def stop(self, stream_id: int, key_set: int, direction: Direction, sub_stream: SubStream) -> None:
        """Use it no more."""

    def is_free(self, stream_id: int, key_set: int) -> bool:
        """Whether no packet is under way or awaited under a key set any more."""

    def is_secure(self, stream_id: int) -> bool:
        """Whether a stream is enabled, with all its keys running."""


class TrustedIo(Protocol):
    """What of trusted I/O only firmware reaches."""

    def root_port(self, segment: int, port: int) -> RootPortKeys | None:
        """The root port of this number; None where there is none."""

    def leads(self, segment: int, port: int, spa: int, length: int) -> bool:
        """Whether what cores ask of a whole range of addresses goes down this root port."""

    def bind(self, requester: int, binding: TdiBinding) -> None:
        """A TDI belongs to a guest; its trusted requests fault until it runs and the guest's entry allows them."""

    def start(self, requester: int) -> None:
        """It runs."""

    def write_entry(self, requester: int, entry: SecureDeviceEntry) -> None:
        """The guest's part of its secure device table entry."""

    def unbind(self, requester: int) -> None:
        """It is nobody's; its entry is clear. Without effect where it is nobody's already."""

    def fence_status(self, asid: int) -> int:
        """DMA fence in bits 1:0, MMIO fence in bits 3:2, as TIO_ASID_FENCE_STATUS says them."""

    def fence_clear(self, asid: int) -> bool:
        """Lift the fence of an error; False while a TDI of the guest runs."""
