"""TIO_TDI_*: TDIs of a connected device, whose they are, and what the host may ask of them.

TIO_TDI_BIND locks a TDI for a guest; given again with the run flag it starts it. Nothing that the host starts helps it:
a TDI reaches no memory before its guest has written the secure device table entry. A TDI that the device says is
locked already, from an attempt that ended halfway, is stopped first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from psp.commands import SnpCommand
from psp.host_memory import HostMemory
from psp.snp_guests import SnpGuests
from psp.status import PspError, Status
from psp.system_bus import SystemBus
from psp.tsm import tio_buffers as buffers
from psp.tsm.contexts import MOST_TDIS, TDI_CONTEXT_BYTES, Binding, Contexts, DeviceContext, TdiContext
from psp.tsm.device_commands import linked, result
from psp.tsm.device_link import DeviceLink
from psp.tsm.exchange_records import ObjectId
from psp.tsm.mmio_pages import any_valid
from psp.tsm.spdm_loop import SpdmLoop, Steps
from psp.tsm.status_records import TDI_STATUS_SHIFT, TdiInfoRecord, TdiStatusRecord, measurement_flags
from psp.tsm.trusted_io import TdiBinding, TrustedIo
from tio.device_security_module import ProtocolId
from tio.tdisp.messages import InterfaceId, LockFlags, LockRequest, TdiState
from tio.tdisp.report import parse_report
from tio.tdisp.requester import (
    ask_capabilities,
    ask_state,
    ask_version,
    lock_interface,
    read_report,
    start_interface,
    stop_interface,
)

_SEGMENT_SHIFT, _SEGMENT_VALID = 16, 1 << 24
_LOCK_FLAGS = sum(LockFlags)
_OFFSET_BYTES = 6
_PAGE = 0xFFF


@dataclass(slots=True)
class TdiSwitches:
    """What no text at hand settles."""

    holds_guest: bool = True
    """SNP_DECOMMISSION of a guest that has TDIs is IN_USE; without, firmware takes them from it and asks no device."""
    rekeys: bool = False
    """TIO_TDI_BIND rolls the keys of a device on which a TDI has run since it got them; no text says that it does."""
    checks_pages: bool = True
    """TIO_TDI_BIND binds no TDI of which any guest has valid pages, from a binding of before: IN_USE.

    No text at hand has the rule. Without one, a guest whose device was taken away unasked would store to it when it is
    the next one's, or its own again and runs something else: pages are valid until their host or guest takes them back.
    """


class TdiCommands:
    """Handlers of the commands."""

    def __init__(
        self,
        bus: SystemBus,
        memory: HostMemory,
        contexts: Contexts,
        loop: SpdmLoop,
        guests: SnpGuests,
        trusted_io: Callable[[], TrustedIo],
        random: Callable[[str, int], bytes],
    ) -> None:
        self.switches = TdiSwitches()
        self._bus = bus
        self._memory = memory
        self._contexts = contexts
        self._loop = loop
        self._guests = guests
        self._trusted_io = trusted_io
        self._random = random

    # Contexts.

    def create(self, order: buffers.TdiCreate) -> None:
        """TIO_TDI_CREATE. Another context of an interface is let go first if its page is lost."""
        device = self._contexts.device(order.device)
        interface = _interface(order.interface_id, device)
        if interface is None:
            raise PspError(Status.INVALID_PARAM)
        linked(device)
        spa = self._contexts.free_page(order.tdi, TDI_CONTEXT_BYTES)
        lost = []
        for owner in self._contexts.devices.values():
            for one in owner.tdis.values():
                here = owner is device and one.spa == spa
                if here or (owner.segment, one.interface.requester) == (device.segment, interface.requester):
                    lost.append((owner, one))
        if any(self._contexts.is_intact(one) for _, one in lost):
            raise PspError(Status.IN_USE)
        if sum([len(one.tdis) for one in self._contexts.devices.values()]) - len(lost) >= MOST_TDIS:
            raise PspError(Status.RESOURCE_LIMIT)
        for owner, one in lost:
            self._forget(owner, one)
        number = self._contexts.take_page(spa)
        device.tdis[spa] = TdiContext(spa, number, interface, order.interface_id)

    def reclaim(self, order: buffers.TdiReclaim) -> None:
        """TIO_TDI_RECLAIM."""
        device, tdi = self._named(order)
        if tdi.binding is not None or _waits(device, tdi):
            raise PspError(Status.IN_USE)
        self._forget(device, tdi)

    def info(self, order: buffers.TdiInfo) -> None:
        """TIO_TDI_INFO."""
        device, tdi = self._named(order)
        self._memory.check_writable(order.address, TdiInfoRecord.SIZE)
        self._memory.write(order.address, _info(device, tdi).pack())

    # Whose a TDI is.

    def bind(self, order: buffers.TdiBind) -> None:
        """TIO_TDI_BIND."""
        device, tdi = self._named(order)
        begin = partial(self._begin_bind, device, tdi, order)
        self._loop.carry(device, SnpCommand.TIO_TDI_BIND, order, begin, tdi, order.gctx)

    def _begin_bind(self, device: DeviceContext, tdi: TdiContext, order: buffers.TdiBind) -> Steps:
        if order.run_flags & ~buffers.RUN or order.lock_flags & ~_LOCK_FLAGS:
            raise PspError(Status.INVALID_PARAM)
        context = self._guests.in_state(order.gctx, SnpCommand.TIO_TDI_BIND)
        asid = self._guests.active_asid(context)
        link = linked(device)
        if order.run_flags:
            binding = _bound_to(tdi, order.gctx)
            if binding.runs:
                raise PspError(Status.INVALID_TDI_STATE)
            if (binding.guest_device_id, binding.lock_flags) != (order.guest_device_id, order.lock_flags):
                raise PspError(Status.INVALID_PARAM)
            return self._start(link, tdi, binding)
        if tdi.binding is not None:
            raise PspError(Status.INVALID_TDI_STATE)
        if self._names_another(asid, order.guest_device_id):
            raise PspError(Status.IN_USE)
        return self._lock(device, link, tdi, order, asid)

    def _names_another(self, asid: int, guest_device_id: int) -> bool:
        """Whether the guest knows another TDI by this number: it could not tell which of them it asks."""
        return any(
            one.binding is not None and (one.binding.asid, one.binding.guest_device_id) == (asid, guest_device_id)
            for device in self._contexts.devices.values()
            for one in device.tdis.values()
        )

    def _lock(
        self, device: DeviceContext, link: DeviceLink, tdi: TdiContext, order: buffers.TdiBind, asid: int
    ) -> Steps:
        interface = tdi.interface
        if self.switches.rekeys and link.has_run:
            yield from link.give_keys(1 - link.key_set)
            link.has_run = False
        yield from link.inside(ProtocolId.TDISP, ask_version(interface))
        yield from link.inside(ProtocolId.TDISP, ask_capabilities(interface))
        state = yield from link.inside(ProtocolId.TDISP, ask_state(interface))
        if state is not TdiState.CONFIG_UNLOCKED:
            yield from link.inside(ProtocolId.TDISP, stop_interface(interface))
        offset = self._drawn_offset(device, tdi)
        request = LockRequest(order.lock_flags, link.streams[0], offset)
        nonce = yield from link.inside(ProtocolId.TDISP, lock_interface(interface, request))
        blob = yield from link.inside(ProtocolId.TDISP, read_report(interface))
        report, digest = parse_report(blob), link.digest(blob)
        if self._names_another(asid, order.guest_device_id):  # One of another device, locked meanwhile.
            raise PspError(Status.IN_USE)
        if self.switches.checks_pages and any_valid(self._bus, report, offset):
            raise PspError(Status.IN_USE)
        tdi.report_counter = self._contexts.next_report()
        tdi.binding = Binding(
            order.gctx, asid, order.guest_device_id, order.lock_flags, nonce, offset, report, digest, device.measured
        )
        streams = frozenset(link.streams.values())
        self._trusted_io().bind(
            interface.requester, TdiBinding(asid, order.guest_device_id, streams, device.root_port_number)
        )
        return b""

    def _drawn_offset(self, device: DeviceContext, tdi: TdiContext) -> int:
        """What the device adds to its addresses: no sum of it and an address that there may be reaches 2^64."""
        purpose = f"TSM offset {device.segment:02x}:{tdi.interface.requester:04x}"
        return int.from_bytes(self._random(purpose, _OFFSET_BYTES), "little") & ~_PAGE

    def _start(self, link: DeviceLink, tdi: TdiContext, binding: Binding) -> Steps:
        yield from link.inside(ProtocolId.TDISP, start_interface(tdi.interface, binding.nonce))
        link.has_run = True
        tdi.binding = replace(binding, runs=True, nonce=b"")
        self._trusted_io().start(tdi.interface.requester)
        return b""

    def unbind(self, order: buffers.TdiOrder) -> None:
        """TIO_TDI_UNBIND; by force it asks nobody, and ends what waits for this TDI."""
        device, tdi = self._named(order)
        if not order.flags & buffers.FORCE:
            begin = partial(self._begin_unbind, device, tdi, order.gctx)
            self._loop.carry(device, SnpCommand.TIO_TDI_UNBIND, order, begin, tdi, order.gctx)
            return
        waits = _waits(device, tdi)
        if tdi.binding is not None or not waits:
            _bound_to(tdi, order.gctx)
        elif device.pending is not None and device.pending.gctx not in (None, order.gctx):
            raise PspError(Status.INVALID_TDI)
        if waits:
            self._loop.cancel(device)
        self.unlock(tdi)

    def _begin_unbind(self, device: DeviceContext, tdi: TdiContext, gctx: int) -> Steps:
        _bound_to(tdi, gctx)
        return self._unbind(linked(device), tdi)

    def _unbind(self, link: DeviceLink, tdi: TdiContext) -> Steps:
        yield from link.inside(ProtocolId.TDISP, stop_interface(tdi.interface))
        self.unlock(tdi)
        return b""

    def unlock(self, tdi: TdiContext) -> None:
        """Take a TDI from its guest."""
        tdi.binding = None
        self._trusted_io().unbind(tdi.interface.requester)

    def guest_ends(self, gctx: int) -> None:
        """A guest is to be decommissioned. Raises PspError(IN_USE) while it has TDIs, as the switch has it."""
        for device in self._contexts.devices.values():
            waits = device.pending is not None and device.pending.gctx == gctx
            bound = [one for one in device.bound if one.binding is not None and one.binding.gctx == gctx]
            if (waits or bound) and self.switches.holds_guest:
                raise PspError(Status.IN_USE)
            if waits:
                self._loop.cancel(device)
            for one in bound:
                self.unlock(one)

    # What a device is asked about a TDI.

    def report(self, order: buffers.TdiOrder) -> None:
        """TIO_TDI_REPORT: the interface report once more; what the guest is told of it is told of this one."""
        device, tdi = self._named(order)
        begin = partial(self._begin_report, device, tdi, order.gctx)
        self._loop.carry(device, SnpCommand.TIO_TDI_REPORT, order, begin, tdi, order.gctx)

    def _begin_report(self, device: DeviceContext, tdi: TdiContext, gctx: int) -> Steps:
        _bound_to(tdi, gctx)
        return self._report(device, linked(device), tdi)

    def _report(self, device: DeviceContext, link: DeviceLink, tdi: TdiContext) -> Steps:
        blob = yield from link.inside(ProtocolId.TDISP, read_report(tdi.interface))
        report = parse_report(blob)
        binding = tdi.binding
        assert binding is not None, "expected a TDI that nobody unbinds while its report is read"
        tdi.binding = replace(binding, report=report, report_digest=link.digest(blob))
        tdi.report_counter = self._contexts.next_report()
        return result(ObjectId.REPORT, device, blob)

    def status(self, order: buffers.TdiStatus) -> None:
        """TIO_TDI_STATUS: the state that the device says."""
        device, tdi = self._named(order)
        begin = partial(self._begin_status, device, tdi, order.address)
        self._loop.carry(device, SnpCommand.TIO_TDI_STATUS, order, begin, tdi)

    def _begin_status(self, device: DeviceContext, tdi: TdiContext, address: int) -> Steps:
        self._memory.check_writable(address, TdiStatusRecord.SIZE)
        return self._status(linked(device), tdi, address)

    def _status(self, link: DeviceLink, tdi: TdiContext, address: int) -> Steps:
        state = yield from link.inside(ProtocolId.TDISP, ask_state(tdi.interface))
        self._memory.check_writable(address, TdiStatusRecord.SIZE)
        self._memory.write(address, TdiStatusRecord(TdiStatusRecord.SIZE, state).pack())
        return b""

    # What the commands have in common.

    def _named(
        self, order: buffers.TdiReclaim | buffers.TdiInfo | buffers.TdiBind | buffers.TdiOrder | buffers.TdiStatus
    ) -> tuple[DeviceContext, TdiContext]:
        device = self._contexts.device(order.device)
        return device, self._contexts.tdi(device, order.tdi)

    def _forget(self, device: DeviceContext, tdi: TdiContext) -> None:
        if _waits(device, tdi):
            self._loop.cancel(device)
        if tdi.binding is not None:
            self.unlock(tdi)
        self._contexts.drop(tdi)
        del device.tdis[tdi.spa]


def _interface(octets: bytes, device: DeviceContext) -> InterfaceId | None:
    """The interface that 12 bytes name; None for reserved bits, and for one of another segment."""
    function = int.from_bytes(octets[:4], "little")
    segment = function >> _SEGMENT_SHIFT & 0xFF
    if any(octets[4:]) or function >> 25:
        return None
    if function & _SEGMENT_VALID:
        return InterfaceId(function & 0xFFFF, segment) if segment == device.segment else None
    return None if segment else InterfaceId(function & 0xFFFF)


def _bound_to(tdi: TdiContext, gctx: int) -> Binding:
    """Raises PspError: INVALID_TDI_STATE for a TDI of nobody, INVALID_TDI for another guest's."""
    if tdi.binding is None:
        raise PspError(Status.INVALID_TDI_STATE)
    if tdi.binding.gctx != gctx:
        raise PspError(Status.INVALID_TDI)
    return tdi.binding


def _waits(device: DeviceContext, tdi: TdiContext) -> bool:
    return device.pending is not None and device.pending.tdi is tdi


def _info(device: DeviceContext, tdi: TdiContext) -> TdiInfoRecord:
    binding, link = tdi.binding, device.link
    said = 0 if binding is None else 1 + binding.runs
    return TdiInfoRecord(
        TdiInfoRecord.SIZE,
        tdi.interface_id,
        measurement_flags(device.measurements_digest, fresh=is_fresh(device, binding)) | said << TDI_STATUS_SHIFT,
        0 if binding is None else binding.lock_flags,
        0 if link is None else link.algorithms,
        device.certificates_digest,
        device.measurements_digest,
        b"" if binding is None else binding.report_digest,
        tdi.report_counter,
        0 if binding is None else binding.asid,
    )


def is_fresh(device: DeviceContext, binding: Binding | None) -> bool:
    """Whether the device was measured since a TDI was bound: whose nonce it was, the guest sees in the blob."""
    return binding is not None and device.measured > binding.measured
