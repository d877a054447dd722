"""A hypervisor's answers to what a guest asks about its devices: TIO_OP and TIO_GUEST_REQUEST.

The guest orders an interface locked, started and let go; what it has to say to the firmware the hypervisor carries, and
beside the answer hands over what it has of the device's evidence, which nothing but the firmware's digests vouches for.
Source: ``spec/tio/tio-overview.md``, section 5 (patches that are not merged).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node import nae_event as nae
from node import operations as op
from node.frame_allocator import OutOfMemory
from node.ghcb_page import BadInput, GhcbExit, GhcbRefused
from node.guest_requests import BadPage, GuestRequests, RequestError
from node.hypervisor_port import LaunchRefused, Task
from node.launched_vm import LaunchedVm
from node.nae_event import NaeEvent, TioAction
from node.nae_reply import NaeReply, Serve
from node.tio_carrier import TioRefused
from node.tio_evidence import CERTIFICATES, MEASUREMENTS, REPORT
from node.tio_host import Given, TioHost
from node.validation_parameter import MOST_ORDER, ValidationParameter
from psp.certificate_table import table_of
from psp.guest_message import MessageType
from psp.status import Status
from psp.system_bus import PAGE_BYTES
from psp.tsm.tio_buffers import NONCE_BYTES

MESSAGE_TYPE = 0x34


class TioServer:
    """Serves the guests of one hypervisor; ``requests`` carries their messages' pages."""

    def __init__(self, host: TioHost, requests: GuestRequests) -> None:
        self._host = host
        self._requests = requests
        self.events: Mapping[int, Callable[..., Serve]] = {
            NaeEvent.TIO_OP: self._operation,
            NaeEvent.TIO_GUEST_REQUEST: self._request,
        }

    def offers(self, vm: str, record: LaunchedVm) -> bool:
        """Whether a VM has trusted devices."""
        return self._host.trusted and bool(record.gctx) and self._host.has(vm)

    def _operation(self, vm: str, record: LaunchedVm, _vcpu: int, _exit: GhcbExit, asked: nae.TioOperation) -> Serve:
        given = self._given(vm, record, asked.guest_device_id, "SW_EXITINFO1")
        ways: Mapping[TioAction, Callable[[Given, int], Task]] = {
            TioAction.BIND: self._host.bind,
            TioAction.RUN: self._host.run,
            TioAction.STOP: self._host.unbind_asked,
            TioAction.UNBIND: self._host.unbind_asked,
        }
        try:
            yield from ways[asked.action](given, record.gctx)
        except (LaunchRefused, OutOfMemory) as refused:
            return NaeReply(info2=_status(refused))
        return NaeReply(info2=0)

    def _request(self, vm: str, record: LaunchedVm, _vcpu: int, _exit: GhcbExit, asked: nae.TioGuestRequest) -> Serve:
        given = self._given(vm, record, asked.guest_device_id, "RCX")
        if not given.bound:
            raise GhcbRefused(BadInput.INVALID_INPUT, "RCX")
        pages = asked.request
        request_spa, response_spa = record.page_spa(pages.request_gpa), record.page_spa(pages.response_gpa)
        if request_spa is None or response_spa is None:
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
        message, laid = yield (op.HostRead(request_spa, PAGE_BYTES), op.HostWrite(response_spa, bytes(PAGE_BYTES)))
        if not isinstance(message, bytes) or laid is not None:
            raise GhcbRefused(BadInput.INVALID_INPUT, "SW_EXITINFO1")
        if pages.data_pages:
            # Evidence is as new as the question, or the guest could not tell a device that has changed since.
            if self._host.measures_anew:
                yield from self._measured(given, record, pages.data_gpa)
            try:
                needed = yield from self._requests.lay(record, pages, self._evidence(given))
            except BadPage:
                raise GhcbRefused(BadInput.INVALID_INPUT, "RAX") from None
            if needed is not None:
                return NaeReply(info2=RequestError.BUFFER_TOO_SMALL << 32, registers={"RBX": needed, "RDX": 0})
        own = record.request_pages or (yield from self._requests.own_pages(record))
        if own is None:
            return NaeReply(info2=RequestError.BUSY << 32, registers={"RBX": pages.data_pages, "RDX": 0})
        there, back = own
        pages_of = None
        if message[MESSAGE_TYPE] == MessageType.TIO_MMIO_VALIDATE_REQ:
            pages_of = ValidationParameter.parse(asked.parameter)
            if pages_of.order > MOST_ORDER:
                raise GhcbRefused(BadInput.INVALID_INPUT, "RDX")
            if pages_of.tee and not (yield from self._host.assign(given, record.asid, pages_of.gpa, pages_of.pages)):
                raise GhcbRefused(BadInput.INVALID_INPUT, "RDX")
        yield (op.HostWrite(there, message),)
        status = yield from self._host.ask(given, record.gctx, there, back)
        (response,) = yield (op.HostRead(back, PAGE_BYTES),)
        if pages_of is not None and not pages_of.tee:
            yield from self._host.release(given, pages_of.gpa, pages_of.pages)
        if isinstance(response, bytes):
            yield (op.HostWrite(response_spa, response),)
        return NaeReply(info2=status, registers={"RBX": pages.data_pages, "RDX": 0})

    def _measured(self, given: Given, record: LaunchedVm, room_gpa: int) -> Task:
        """Have the device measured with what the guest has left in the room for evidence."""
        spa = record.page_spa(room_gpa)
        if spa is None:
            return
        (nonce,) = yield (op.HostRead(spa, NONCE_BYTES),)
        try:
            if isinstance(nonce, bytes):
                yield from self._host.measure(given.card, nonce)
        except (LaunchRefused, OutOfMemory):
            return  # What was measured before goes to the guest, which sees how old it is.

    def _given(self, vm: str, record: LaunchedVm, guest_device_id: int, field: str) -> Given:
        if not self.offers(vm, record):
            raise GhcbRefused(BadInput.INVALID_EVENT, "SW_EXITCODE")
        given = self._host.given(vm, guest_device_id)
        if given is None:
            raise GhcbRefused(BadInput.INVALID_INPUT, field)
        return given

    @staticmethod
    def _evidence(given: Given) -> bytes:
        card = given.card
        return table_of({CERTIFICATES: card.certificates, MEASUREMENTS: card.measurements, REPORT: given.report})


def _status(refused: LaunchRefused | OutOfMemory) -> Status:
    """The firmware's, or that the host has not what it takes."""
    return refused.status if isinstance(refused, TioRefused) else Status.RESOURCE_LIMIT
