"""Contexts of devices and of their TDIs, and the pages that stand for them.

What firmware knows of a device - its session, keys, digests, a command that waits for an answer - is kept inside of
the processor; a real one encrypts it into the context's pages. The laboratory's page holds nothing but a number that
nobody else knows how to make, laid down when the context was created. A context counts as long as its page is
firmware's and holds its number: one that was reclaimed, overwritten or never created is no context. A page that comes
back as it was stands for its context again: there is nothing older in it to bring back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from psp.host_memory import HostMemory
from psp.page_state import PageState, page_state
from psp.snp_pages import entry_of_page
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES, RmpEntry, SystemBus
from psp.tsm.device_link import DeviceLink
from psp.tsm.scatter_list import pieces_of
from psp.tsm.spdm_loop import Pending
from psp.tsm.trusted_io import RootPortKeys
from tio.tdisp.messages import InterfaceId
from tio.tdisp.report import InterfaceReport

DEVICE_CONTEXT_BYTES = PAGE_BYTES
TDI_CONTEXT_BYTES = PAGE_BYTES
MOST_DEVICES = 256
MOST_TDIS = 4096
_NUMBER_BYTES = 32


@dataclass(frozen=True, slots=True)
class Binding:
    """Whose a TDI is, and what was locked."""

    gctx: int
    asid: int
    guest_device_id: int
    lock_flags: int
    nonce: bytes = field(repr=False)
    offset_bytes: int = field(repr=False)
    """What the device adds to every address that it reports: no guest learns host addresses."""
    report: InterfaceReport
    report_digest: bytes
    measured: int
    """How often the device had been measured when it was bound."""
    runs: bool = False
    shown: bool = False
    """Whether its guest has asked what it is, by TDI_INFO."""
    non_tee: tuple[tuple[int, bool], ...] = ()
    """Ranges by place in the report, as the guest made them other than they were reported."""


@dataclass(slots=True)
class TdiContext:
    """One TDI of a device."""

    spa: int
    number: bytes = field(repr=False)
    interface: InterfaceId
    interface_id: bytes
    binding: Binding | None = None
    report_counter: int = 0


@dataclass(slots=True)
class DeviceContext:
    """One device, by function 0."""

    spa: int
    number: bytes = field(repr=False)
    requester: int
    segment: int
    root_port_number: int
    root_port: RootPortKeys
    claimed: frozenset[int] = frozenset()
    """Its streams of the root port, from when a connection begins: no other device may have keys for them."""
    link: DeviceLink | None = None
    """Its session and streams; None of a device that is not connected."""
    pending: Pending | None = None
    certificate_slot: int = 0
    certificates_digest: bytes = b""
    """Of the chain that it was connected with, last or now."""
    measurements_digest: bytes = b""
    measured: int = 0
    """How often TIO_DEV_MEASUREMENTS was done."""
    tdis: dict[int, TdiContext] = field(default_factory=dict)
    """By context page."""

    @property
    def bound(self) -> list[TdiContext]:
        """Its TDIs that are a guest's."""
        return [one for one in self.tdis.values() if one.binding is not None]


class Contexts:
    """All contexts of one boot, by page."""

    def __init__(self, bus: SystemBus, memory: HostMemory, random: Callable[[str, int], bytes]) -> None:
        self.devices: dict[int, DeviceContext] = {}
        self._reports = 0
        self._bus = bus
        self._memory = memory
        self._random = random

    def device(self, address: int) -> DeviceContext:
        """The context at a scatter-list address. Raises PspError: INVALID_DEV_CTX, and as ``pieces_of``."""
        found = self.devices.get(self._page(address, DEVICE_CONTEXT_BYTES))
        if found is None or not self.is_intact(found):
            raise PspError(Status.INVALID_DEV_CTX)
        return found

    def tdi(self, device: DeviceContext, address: int) -> TdiContext:
        """The same of a device's TDI. Raises PspError: INVALID_TDI_CTX, and as ``pieces_of``."""
        found = device.tdis.get(self._page(address, TDI_CONTEXT_BYTES))
        if found is None or not self.is_intact(found):
            raise PspError(Status.INVALID_TDI_CTX)
        return found

    def claims(self, device: DeviceContext, streams: frozenset[int]) -> bool:
        """Whether another device at the same root port has any of these streams.

        Who could connect a device of its own making there would have the keys that another one's packets pass with.
        """
        place = device.segment, device.root_port_number
        return any(
            one is not device and (one.segment, one.root_port_number) == place and one.claimed & streams
            for one in self.devices.values()
        )

    def is_intact(self, context: DeviceContext | TdiContext) -> bool:
        """Whether a context's page is firmware's and as firmware left it."""
        entry = self._bus.rmp_entry(context.spa)
        is_ours = page_state(entry) is PageState.FIRMWARE
        return is_ours and self._bus.read(context.spa, PAGE_BYTES) == _filled(context.number)

    def free_page(self, address: int, size: int) -> int:
        """A page that may become a context. Raises PspError.

        INVALID_PAGE_STATE unless it is lent, INVALID_PAGE_SIZE for a large one, IN_USE for a context's.
        """
        spa = self._page(address, size)
        entry = entry_of_page(self._bus, self._memory.pages, spa)
        if page_state(entry) is not PageState.FIRMWARE:
            raise PspError(Status.INVALID_PAGE_STATE)
        if entry.large:
            raise PspError(Status.INVALID_PAGE_SIZE)
        if any(self.is_intact(one) for one in self._at(spa)):
            raise PspError(Status.IN_USE)
        return spa

    def take_page(self, spa: int) -> bytes:
        """Make a page a context's: its number."""
        number = self._random("TSM context", _NUMBER_BYTES)
        self._bus.write(spa, _filled(number))
        return number

    def drop(self, context: DeviceContext | TdiContext, *, reclaim: bool = False) -> None:
        """Leave nothing in a context's page; ``reclaim`` hands it to its host at once."""
        if not self.is_intact(context):
            return
        self._bus.write(context.spa, bytes(PAGE_BYTES))
        if reclaim:
            self._bus.rmp_set(context.spa, RmpEntry(assigned=True))

    def next_report(self) -> int:
        """The number of an interface report that was taken: no two have the same, whosever they are.

        So a guest that asks again sees whether its device was put in another one's place meanwhile.
        """
        self._reports += 1
        return self._reports

    def overlaps(self, spa: int, length: int) -> bool:
        """Whether a range holds a context's page."""
        return any(spa <= one.spa < spa + length for device in self.devices.values() for one in _all_of(device))

    def _at(self, spa: int) -> list[DeviceContext | TdiContext]:
        return [one for device in self.devices.values() for one in _all_of(device) if one.spa == spa]

    def _page(self, address: int, size: int) -> int:
        pieces = pieces_of(self._memory, address)
        if sum([length for _, length in pieces]) != size:
            raise PspError(Status.INCORRECT_BUFFER_LENGTH)
        return pieces[0][0]


def _all_of(device: DeviceContext) -> list[DeviceContext | TdiContext]:
    return [device, *device.tdis.values()]


def _filled(number: bytes) -> bytes:
    return number * (PAGE_BYTES // len(number))
