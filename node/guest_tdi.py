"""A guest kernel's way to a trusted device: it has it locked, judges it, starts it, and lets it into private memory.

The hypervisor carries every word and is believed in none: what decides comes from the firmware, sealed. Each method is
a part of a block, for ``yield from``. Source: ``spec/tio/tio-overview.md``, sections 4 to 6.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from node.device_policy import DevicePolicy, DeviceUntrusted, judge
from node.device_window import bar_gpa
from node.ghcb_page import GhcbUntrusted
from node.guest_functions import guest_device_id
from node.guest_ghcb import page_exit
from node.guest_memory_map import Range
from node.guest_messages import AboutDevice, Answered, GuestMessages, MessageRefused, MessagesBusy
from node.guest_svsm import SvsmBelow, SvsmUntrusted
from node.nae_event import NaeEvent, TioAction
from node.operations import UpkeepWrite
from node.svsm_call import DeviceCall, Protocol
from node.swiotlb import Steps
from node.validation_parameter import ValidationParameter
from psp.guest_message import MessageType
from psp.system_bus import PAGE_BYTES
from psp.tsm.guest_messages import (
    MmioValidateRequest,
    MmioValidateResponse,
    MmioValidateStatus,
    SdteWriteRequest,
    SdteWriteResponse,
    SdteWriteStatus,
    TdiInfoRequest,
    TdiInfoResponse,
    ValidateFlags,
)
from psp.tsm.secure_device_entry import NOBODYS, SecureDeviceEntry
from tio.tdisp.report import InterfaceReport, RangeAttributes

EVIDENCE_BYTES = 8 * PAGE_BYTES
"""Room for certificates, measurements and report."""
SHARED_BYTES = 2 * PAGE_BYTES + EVIDENCE_BYTES
"""What it needs of memory shared with the host: two pages for messages, and that room."""
_ALL = SecureDeviceEntry(valid=True, read=True, write=True)
_TABLES = RangeAttributes.MSIX_TABLE | RangeAttributes.MSIX_PBA | RangeAttributes.IS_NON_TEE_MEM


class TdiRefused(Exception):
    """The hypervisor or the firmware did not do as the guest asked; says what."""


_REFUSALS = DeviceUntrusted, TdiRefused, MessageRefused, MessagesBusy, GhcbUntrusted, SvsmUntrusted
"""How the way to a trusted device ends early."""


@dataclass(frozen=True, slots=True)
class GuestTdi:
    """One vCPU's way to the guest's device of a number. ``shared_gpa`` is memory shared with the host.

    ``below`` is the SVSM of a kernel above one: it hands the device's memory on.
    Errors beside TdiRefused and DeviceUntrusted: those of ``GuestMessages``, GhcbUntrusted, and SvsmUntrusted.
    """

    messages: GuestMessages
    device: int
    shared_gpa: int
    below: SvsmBelow | None = None

    @classmethod
    def of(cls, messages: GuestMessages, device: int, below: SvsmBelow | None = None) -> GuestTdi:
        """With the room behind the pages of its messages."""
        return cls(messages, device, max(messages.request_gpa, messages.response_gpa) + PAGE_BYTES, below)

    def attach(self, policy: DevicePolicy, nonce: bytes) -> Steps[InterfaceReport]:
        """From a device that nobody trusts to one that works in private memory; ``nonce`` as for ``judged``.

        It has the rights of the VMPL that its kernel runs at, and gets into private memory last, when its registers are
        proved, too. What is refused on the way, by whomever, is let go again before the error is raised: by the guest's
        own word, for that of the hypervisor is worth none.
        """
        report = None
        try:
            yield from self._order(TioAction.BIND)
            report = yield from self.judged(policy, nonce)
            yield from self._order(TioAction.RUN)
            yield from self.accept(report, validated=True)
            yield from self._write_entry(replace(_ALL, vmpl=self.messages.place.vmpl))
        except _REFUSALS:
            yield from self._give_up(report)
            raise
        return report

    def detach(self, report: InterfaceReport) -> Steps[None]:
        """Let the device go: no request of it passes any more, and its memory is nobody's."""
        yield from self._write_entry(replace(NOBODYS, vmpl=self.messages.place.vmpl))
        yield from self.accept(report, validated=False)
        yield from self._order(TioAction.UNBIND)

    def judged(self, policy: DevicePolicy, nonce: bytes) -> Steps[InterfaceReport]:
        """Ask the firmware what it knows and the hypervisor for evidence, now, and hold both against the policy.

        The device is to be measured with ``nonce``, 32 bytes that nobody could foresee. Where a guest says which it
        wants no text at hand tells: here it stands in the room for evidence when the guest asks.
        """
        room = Range(self.shared_gpa, EVIDENCE_BYTES)
        (laid,) = yield (UpkeepWrite(room.gpa, nonce, private=False),)
        if laid is not None:
            raise TdiRefused(f"evidence: {laid!r}")
        request = TdiInfoRequest(guest_device_id(self.device)).pack()
        answered = yield from self._ask(MessageType.TIO_TDI_INFO_REQ, request, room=room)
        return judge(policy, TdiInfoResponse.parse(answered.payload), answered.certificates, nonce)

    def accept(self, report: InterfaceReport, *, validated: bool) -> Steps[None]:
        """Take each range of trusted memory for the guest's own, as it was reported; or give it back."""
        done: dict[int, int] = {}
        for one in report.ranges:
            offset = done.get(one.range_id, 0)
            done[one.range_id] = offset + one.pages
            if one.attributes & _TABLES:
                continue
            for first, order in _runs(offset, one.pages):
                yield from self._validate(one.range_id, first, order, validated=validated)

    # Steps.

    def _give_up(self, report: InterfaceReport | None) -> Steps[None]:
        """Let go of what may have been taken, as far as anybody obeys.

        Who is kept from the answer to the entry has no key to ask with any more, and a device that it has judged.
        """
        with suppress(*_REFUSALS):
            yield from self._write_entry(replace(NOBODYS, vmpl=self.messages.place.vmpl))
        if report is not None:
            with suppress(*_REFUSALS):  # In the same order: the first that was not taken is the last that is asked for.
                yield from self.accept(report, validated=False)
        with suppress(*_REFUSALS):
            yield from self._order(TioAction.UNBIND)

    def _order(self, action: TioAction) -> Steps[None]:
        ghcb = self.messages.place.ghcb_gpa
        reply = yield from page_exit(ghcb, NaeEvent.TIO_OP, action << 32 | guest_device_id(self.device))
        if reply.exception is not None:
            raise GhcbUntrusted(f"TIO_OP: exception {reply.exception}")
        if reply.info2:
            raise TdiRefused(f"{action.name}: status {reply.info2:#x}")

    def _write_entry(self, entry: SecureDeviceEntry) -> Steps[None]:
        request = SdteWriteRequest(guest_device_id(self.device), entry.pack()).pack()
        answered = yield from self._ask(MessageType.TIO_SDTE_WRITE_REQ, request)
        status = SdteWriteResponse.parse(answered.payload).status
        if status != SdteWriteStatus.SUCCESS:
            raise TdiRefused(f"SDTE_WRITE: status {status}")

    def _validate(self, range_id: int, first: int, order: int, *, validated: bool) -> Steps[None]:
        gpa = bar_gpa(self.device, range_id) + first * PAGE_BYTES
        flags = ValidateFlags.VALIDATED if validated else ValidateFlags(0)
        request = MmioValidateRequest(
            guest_device_id(self.device), gpa, 1 << order, first, int(flags), range_id
        ).pack()
        parameter = ValidationParameter(gpa, order, range_id, tee=validated).pack()
        answered = yield from self._ask(MessageType.TIO_MMIO_VALIDATE_REQ, request, parameter)
        status = MmioValidateResponse.parse(answered.payload).status
        if status != MmioValidateStatus.SUCCESS:
            raise TdiRefused(f"MMIO_VALIDATE of BAR {range_id}: status {status}")
        if self.below is not None and validated:
            granted = yield from self.below.call(Protocol.DEVICES, DeviceCall.GRANT, gpa, 1 << order)
            if granted.result:
                raise TdiRefused(f"SVSM: BAR {range_id}: result {granted.result:#x}")

    def _ask(self, kind: MessageType, payload: bytes, parameter: int = 0, room: Range | None = None) -> Steps[Answered]:
        about = AboutDevice(guest_device_id(self.device), parameter)
        return (yield from self.messages.ask(kind, payload, room=room, device=about))


def _runs(first: int, pages: int) -> list[tuple[int, int]]:
    """Pages cut into powers of two, each at its own alignment, as (first, order)."""
    out, end = [], first + pages
    while first < end:
        order = (end - first).bit_length() - 1
        if first:
            order = min(order, (first & -first).bit_length() - 1)
        out.append((first, order))
        first += 1 << order
    return out
