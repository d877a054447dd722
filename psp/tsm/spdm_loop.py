"""A command that needs its device: it puts a packet out, answers SPDM_REQUEST, and goes on with the answer.

A command's steps are a generator of packets. The host carries each to the device's mailbox and gives the identical
command again. It may change, lose, repeat or make up whatever it carries: what protects the steps is theirs; here

- while a command waits, another SPDM command on the device is IN_USE, and the same with other parameters
  INVALID_PARAM; both leave it waiting;
- a response buffer without a response is RESYNC_REQ, one whose lengths cannot be INCORRECT_BUFFER_LENGTH, and one with
  more than a device may say RESPONSE_TOO_LARGE; the packet lies in the request buffer still, and the command waits;
- a response that the steps refuse ends the command: SPDM_ERROR if the device refuses, or says what is no answer;
  ERR_IN_DEV_CONN if it proves nothing, after which the session is of no use;
- a result that does not fit is kept: EXPAND_BUFFER_LENGTH_REQUEST, and the host gives the command again with other
  buffers.

Which status stands for what is the laboratory's reading of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psp.host_memory import HostMemory
from psp.status import PspError, Status
from psp.tsm.exchange_buffer import OUTPUT, REQUEST, RESPONSE, SCRATCH, ExchangeBuffer
from psp.tsm.exchange_records import ENCRYPTED, ObjectId, pack_message, parse_message
from psp.tsm.scatter_list import overlapping
from psp.tsm.tio_buffers import SpdmOrder
from tio.ide.key_programmer import KeyProgrammingError
from tio.spdm.binding import PCI_DOE, Packet
from tio.spdm.faults import MalformedMessage, PeerRefused, PeerUntrusted, SpdmFault
from tio.tdisp.messages import TdispError
from tio.tdisp.report import ReportError

if TYPE_CHECKING:
    from psp.tsm.contexts import DeviceContext, TdiContext

Steps = Generator[Packet, Packet, bytes]
"""What a command asks of its device; at its end all is done, and what it returns goes into the output buffer."""

TRANSFER_BYTES = 0xE00
"""What a device may say at once: with all heads and the record around it, it fits into a page."""
MOST_ANSWER_BYTES = TRANSFER_BYTES + 64
"""The same with a record around it, and padding."""
MAILBOX = replace(PCI_DOE, name="sev-tio", excess_bytes=31)
"""PCI DOE as the host carries it: answers are filled up to whole units of 32 bytes."""


@dataclass(slots=True)
class Pending:
    """A command that waits: for the answer to ``asked``, or, without one, for room for ``result``."""

    command: int
    order: SpdmOrder
    steps: Steps
    tdi: TdiContext | None
    gctx: int | None
    asked: Packet | None = None
    result: bytes = b""


class SpdmLoop:
    """Carries commands' steps through the host's buffers. ``is_context``: whether a range holds a context's page."""

    def __init__(self, memory: HostMemory, is_context: Callable[[int, int], bool]) -> None:
        self._memory = memory
        self._is_context = is_context

    def carry(
        self,
        device: DeviceContext,
        command: int,
        order: SpdmOrder,
        begin: Callable[[], Steps],
        tdi: TdiContext | None = None,
        gctx: int | None = None,
    ) -> None:
        """One giving of a command. ``begin`` checks what it must and makes the steps, the first time.

        Raises PspError, SPDM_REQUEST among others.
        """
        pending = device.pending
        if pending is not None:
            _check_same(pending, command, order)
        request, response, output = self._buffers(order)
        if pending is None:
            pending = Pending(command, order, begin(), tdi, gctx)
            device.pending = pending
            self._go_on(device, pending, None)
        elif pending.asked is not None:
            if response is None:
                raise PspError(Status.INVALID_ADDRESS)
            request.put(pack_message(ObjectId.REQUEST, pending.asked))
            self._go_on(device, pending, _answer(response))
        if pending.asked is not None:
            request.put(pack_message(ObjectId.REQUEST, pending.asked))
            raise PspError(Status.SPDM_REQUEST)
        pending.order = order
        self._hand_out(pending.result, output)
        device.pending = None

    def cancel(self, device: DeviceContext) -> None:
        """Forget the command that waits. An answer of its session that is on its way leaves the session without use."""
        pending = device.pending
        if pending is None:
            return
        device.pending = None
        pending.steps.close()
        if device.link is not None and pending.asked is not None and pending.asked.secured:
            device.link.broken = True

    def _buffers(self, order: SpdmOrder) -> tuple[ExchangeBuffer, ExchangeBuffer | None, ExchangeBuffer | None]:
        request = ExchangeBuffer.open(self._memory, order.request, REQUEST)
        scratch = ExchangeBuffer.open_if_any(self._memory, order.scratch, SCRATCH)
        output = ExchangeBuffer.open_if_any(self._memory, order.output, OUTPUT)
        response = ExchangeBuffer.open_if_any(self._memory, order.response, RESPONSE)
        pieces = tuple([piece for one in (request, scratch, output, response) if one for piece in one.pieces])
        if overlapping(pieces) or any(self._is_context(spa, length) for spa, length in pieces):
            raise PspError(Status.INVALID_PARAM)
        return request, response, output

    def _go_on(self, device: DeviceContext, pending: Pending, answer: Packet | None) -> None:
        """Let the steps take an answer; a fault ends the command."""
        try:
            pending.asked = next(pending.steps) if answer is None else pending.steps.send(answer)
        except StopIteration as end:
            pending.asked, pending.result = None, end.value
        except (SpdmFault, KeyProgrammingError, TdispError, ReportError) as fault:
            device.pending = None
            raise PspError(_status_of(device, pending, fault)) from None
        except PspError:
            device.pending = None
            raise

    def _hand_out(self, result: bytes, output: ExchangeBuffer | None) -> None:
        if not result:
            return
        if output is None:
            raise PspError(Status.INVALID_ADDRESS)
        if not output.fits(result):
            output.ask_for_room(result)
            raise PspError(Status.EXPAND_BUFFER_LENGTH_REQUEST)
        output.put(result)


def _check_same(pending: Pending, command: int, order: SpdmOrder) -> None:
    if command != pending.command:
        raise PspError(Status.IN_USE)
    expected = pending.order
    if pending.asked is None:  # It grew a buffer: that is another one.
        expected = replace(expected, scratch=order.scratch, output=order.output)
    if order != expected:
        raise PspError(Status.INVALID_PARAM)


def _answer(response: ExchangeBuffer) -> Packet:
    if response.header.flags & ENCRYPTED or not response.header.payload:
        raise PspError(Status.RESYNC_REQ)
    packet = parse_message(ObjectId.RESPONSE, response.payload())
    if len(packet.payload) > MOST_ANSWER_BYTES:
        raise PspError(Status.RESPONSE_TOO_LARGE)
    return packet


def _status_of(device: DeviceContext, pending: Pending, fault: Exception) -> Status:
    """What a fault is to the host. A record that is not its session's leaves the session without use."""
    refuses = isinstance(fault, (PeerRefused, MalformedMessage, KeyProgrammingError, TdispError, ReportError))
    if refuses:
        return Status.SPDM_ERROR
    if device.link is not None and pending.asked is not None and pending.asked.secured:
        device.link.broken = True
    assert isinstance(fault, (PeerUntrusted, SpdmFault))
    return Status.ERR_IN_DEV_CONN
