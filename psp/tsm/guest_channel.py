"""TIO_GUEST_REQUEST: a guest's sealed messages about a TDI of its own, and the answers.

They go through the same keys and numbers as those of SNP_GUEST_REQUEST, and by the same rules. A TDI of another guest
is INVALID_TDI to the host; that a TDI is nobody's, or another than the guest means, is the answer's status. A message
whose answer needs the device is opened once more when the device has said its part: between the two the guest may have
had another answer under the same number, and no number is used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from psp.byte_layout import ByteLayout
from psp.commands import SnpCommand
from psp.guest_message import MessageType
from psp.guest_requests import GuestRequests, OpenedMessage
from psp.status import PspError, Status
from psp.system_bus import SystemBus
from psp.tsm.contexts import Binding, Contexts, DeviceContext, TdiContext
from psp.tsm.device_commands import linked
from psp.tsm.guest_messages import (
    NON_TEE,
    OLDER,
    WRITE,
    MmioConfigRequest,
    MmioConfigResponse,
    MmioConfigStatus,
    MmioValidateRequest,
    MmioValidateResponse,
    MmioValidateStatus,
    SdteWriteRequest,
    SdteWriteResponse,
    SdteWriteStatus,
    TdiInfoRequest,
    TdiInfoResponse,
    TdiInfoStatus,
    ValidateFlags,
)
from psp.tsm.mmio_pages import validate
from psp.tsm.secure_device_entry import ReservedBits, SecureDeviceEntry
from psp.tsm.spdm_loop import SpdmLoop, Steps
from psp.tsm.status_records import measurement_flags
from psp.tsm.tdi_commands import is_fresh
from psp.tsm.tio_buffers import TioGuestRequest
from psp.tsm.trusted_io import TrustedIo
from tio.device_security_module import ProtocolId
from tio.spdm.binding import Packet
from tio.tdisp.messages import TdispError
from tio.tdisp.report import MmioRange, RangeAttributes
from tio.tdisp.requester import set_mmio_attribute

_SUCCESS, _INVALID_TDI, _UNBOUND = 0, 1, 2
"""These three are alike in all four messages."""
R = TypeVar("R", bound=ByteLayout)


@dataclass(slots=True)
class TioMessageSwitches:
    """What no text at hand settles."""

    version: int = 1
    """Message version; some patches for Linux carry 2."""
    older_validate_statuses: bool = False
    """MMIO_VALIDATE answers by an RFC's list."""
    checks_vmpl: bool = True
    """SDTE_WRITE may not give a device the rights of a VMPL above its sender's; refused as reserved bits are."""
    wants_info: bool = True
    """SDTE_WRITE and MMIO_VALIDATE are INVALID_TDI for a binding that its guest has not asked TDI_INFO about.

    No text at hand has the rule. Without one a host could have the guest judge a device and put another into its place
    before these: they name a device by its number alone.
    """
    checks_route: bool = True
    """MMIO_VALIDATE is NOT_IO for reported pages that do not lie behind the device's own root port.

    No text at hand has the rule. Without one a device could be made to report the addresses of another, before it is
    locked, and its guest be given that one's registers; or a guest take another's registers for its device's.
    """


@dataclass(frozen=True, slots=True)
class _Asked:
    """A message, whose it is and about what."""

    device: DeviceContext
    tdi: TdiContext
    vmpl: int
    payload: bytes

    def parsed(self, layout: type[R]) -> R:
        """The message's fields. Raises PspError(INVALID_PARAM) for reserved ones that are not zero."""
        if not layout.reserved_is_zero(self.payload):
            raise PspError(Status.INVALID_PARAM)
        return layout.parse(self.payload)

    def standing(self, guest_device_id: int, *, shown: bool = False) -> int:
        """Whether the TDI is the guest's and the one it means; with ``shown`` also one that it has asked about."""
        binding = self.tdi.binding
        if binding is None:
            return _UNBOUND
        if shown and not binding.shown:
            return _INVALID_TDI
        return _SUCCESS if binding.guest_device_id == guest_device_id else _INVALID_TDI

    @property
    def binding(self) -> Binding:
        """Whose the TDI is; only where it stands well."""
        assert self.tdi.binding is not None, "expected a TDI that is bound"
        return self.tdi.binding


@dataclass(frozen=True, slots=True)
class _Row:
    """One kind of message: its length, and what answers it."""

    length: int
    answer: Callable[[_Asked], Steps]


class GuestChannel:
    """The handler of the command."""

    def __init__(
        self,
        bus: SystemBus,
        contexts: Contexts,
        loop: SpdmLoop,
        requests: GuestRequests,
        trusted_io: Callable[[], TrustedIo],
    ) -> None:
        self.switches = TioMessageSwitches()
        self._bus = bus
        self._contexts = contexts
        self._loop = loop
        self._requests = requests
        self._trusted_io = trusted_io
        self._rows: Mapping[int, _Row] = {
            MessageType.TIO_TDI_INFO_REQ: _Row(TdiInfoRequest.SIZE, _at_once(self._tdi_info)),
            MessageType.TIO_MMIO_VALIDATE_REQ: _Row(MmioValidateRequest.SIZE, _at_once(self._mmio_validate)),
            MessageType.TIO_MMIO_CONFIG_REQ: _Row(MmioConfigRequest.SIZE, self._mmio_config),
            MessageType.TIO_SDTE_WRITE_REQ: _Row(SdteWriteRequest.SIZE, _at_once(self._sdte_write)),
        }

    def request(self, order: TioGuestRequest) -> None:
        """TIO_GUEST_REQUEST."""
        device = self._contexts.device(order.device)
        tdi = self._contexts.tdi(device, order.tdi)
        begin = partial(self._begin, device, tdi, order)
        self._loop.carry(device, SnpCommand.TIO_GUEST_REQUEST, order, begin, tdi, order.gctx)

    def _begin(self, device: DeviceContext, tdi: TdiContext, order: TioGuestRequest) -> Steps:
        if tdi.binding is not None and tdi.binding.gctx != order.gctx:
            raise PspError(Status.INVALID_TDI)
        command = SnpCommand.TIO_GUEST_REQUEST
        opened = self._requests.take(order.gctx, command, order.message, order.answer)
        header = opened.header
        row = self._rows.get(header.message_type)
        if row is None or (header.message_version, header.payload_bytes) != (self.switches.version, row.length):
            raise PspError(Status.INVALID_PARAM)
        asked = _Asked(device, tdi, header.vmpck, opened.payload)
        return self._serve(opened, row.answer(asked), order.answer)

    def _serve(self, opened: OpenedMessage, steps: Steps, answer_spa: int) -> Steps:
        payload = yield from steps
        again = self._requests.take_again(opened, SnpCommand.TIO_GUEST_REQUEST, answer_spa)
        self._requests.give(again, answer_spa, payload)
        return b""

    # The messages.

    def _tdi_info(self, asked: _Asked) -> bytes:
        request = asked.parsed(TdiInfoRequest)
        device, standing = asked.device, asked.standing(request.guest_device_id)
        if standing != TdiInfoStatus.BOUND:
            return TdiInfoResponse(request.guest_device_id, standing).pack()
        asked.tdi.binding = replace(asked.binding, shown=True)
        binding, link = asked.binding, device.link
        return TdiInfoResponse(
            request.guest_device_id,
            TdiInfoStatus.BOUND,
            measurement_flags(device.measurements_digest, fresh=is_fresh(device, binding)),
            binding.lock_flags,
            0 if link is None else link.algorithms,
            device.certificates_digest,
            device.measurements_digest,
            binding.report_digest,
            asked.tdi.report_counter,
        ).pack()

    def _mmio_validate(self, asked: _Asked) -> bytes:
        request = asked.parsed(MmioValidateRequest)
        if request.flags & ~int(ValidateFlags.VALIDATED | ValidateFlags.FORCE):  # An IntFlag's own ~ is narrower.
            raise PspError(Status.INVALID_PARAM)
        wants = self.switches.wants_info and bool(request.flags & ValidateFlags.VALIDATED)
        status, changed = MmioValidateStatus(asked.standing(request.guest_device_id, shown=wants)), False
        if status is MmioValidateStatus.SUCCESS:
            status, changed = validate(self._bus, asked.binding, request, partial(self._leads, asked.device))
        number = OLDER.get(status, status) if self.switches.older_validate_statuses else status
        return MmioValidateResponse(
            request.guest_device_id,
            number,
            request.subrange_base,
            request.page_count,
            request.range_offset,
            ValidateFlags.CHANGED * changed,
            request.range_id,
        ).pack()

    def _leads(self, device: DeviceContext, spa: int, length: int) -> bool:
        """Whether a range lies behind a device's root port."""
        if not self.switches.checks_route:
            return True
        return self._trusted_io().leads(device.segment, device.root_port_number, spa, length)

    def _mmio_config(self, asked: _Asked) -> Steps:
        request = asked.parsed(MmioConfigRequest)
        if request.flags & ~NON_TEE or request.write & ~WRITE:
            raise PspError(Status.INVALID_PARAM)
        status, flags = MmioConfigStatus(asked.standing(request.guest_device_id)), 0
        if status is MmioConfigStatus.SUCCESS:
            places = [at for at, one in enumerate(asked.binding.report.ranges) if one.range_id == request.range_id]
            status = MmioConfigStatus.SUCCESS if places else MmioConfigStatus.NOT_REPORTED
            if places and request.write:
                status = yield from self._set_attribute(asked, places, non_tee=bool(request.flags & NON_TEE))
            # The TDI may have been taken from the guest while its device was asked.
            if places and asked.tdi.binding is not None:
                flags = _range_now(asked.tdi.binding, places[0]).attributes
        return MmioConfigResponse(request.guest_device_id, status, flags, request.range_id, request.write).pack()

    def _set_attribute(
        self, asked: _Asked, places: list[int], *, non_tee: bool
    ) -> Generator[Packet, Packet, MmioConfigStatus]:
        link = linked(asked.device)
        for at in places:
            one = _range_now(asked.binding, at)
            if not one.attributes & RangeAttributes.IS_MEM_ATTR_UPDATABLE:
                return MmioConfigStatus.COULD_NOT_CHANGE
            wanted = _made(one, non_tee=non_tee)
            try:
                steps = set_mmio_attribute(asked.tdi.interface, wanted.pack())
                yield from link.inside(ProtocolId.TDISP, steps)
            except TdispError:
                return MmioConfigStatus.COULD_NOT_CHANGE
            changed = tuple(sorted({**dict(asked.binding.non_tee), at: non_tee}.items()))
            asked.tdi.binding = replace(asked.binding, non_tee=changed)
        return MmioConfigStatus.SUCCESS

    def _sdte_write(self, asked: _Asked) -> bytes:
        request = asked.parsed(SdteWriteRequest)
        status = SdteWriteStatus(asked.standing(request.guest_device_id, shown=self.switches.wants_info))
        if status is SdteWriteStatus.SUCCESS:
            try:
                entry = SecureDeviceEntry.parse(request.entry)
            except ReservedBits:
                entry = None
            if entry is None or (self.switches.checks_vmpl and entry.vmpl < asked.vmpl):
                status = SdteWriteStatus.RESERVED_BITS
            else:
                self._trusted_io().write_entry(asked.tdi.interface.requester, entry)
        return SdteWriteResponse(request.guest_device_id, status).pack()


def _range_now(binding: Binding, at: int) -> MmioRange:
    """A range as it was reported, or as its guest has changed it since."""
    one = binding.report.ranges[at]
    non_tee = dict(binding.non_tee).get(at)
    return one if non_tee is None else _made(one, non_tee=non_tee)


def _made(one: MmioRange, *, non_tee: bool) -> MmioRange:
    """A range with this attribute, and all others as they are."""
    bit = int(RangeAttributes.IS_NON_TEE_MEM)
    return replace(one, attributes=one.attributes & ~bit | bit * non_tee)


def _at_once(answer: Callable[[_Asked], bytes]) -> Callable[[_Asked], Steps]:
    """Steps that ask the device nothing."""

    def steps(asked: _Asked) -> Steps:
        yield from ()
        return answer(asked)

    return steps
