"""SNP_GUEST_REQUEST: what firmware answers to a guest's messages (SEV-SNP firmware ABI, section 8.26, chapter 7).

A request must be sealed with the key of the VMPL that it claims and carry the number after that of
the last answer; so nothing that the hypervisor kept, changed or made up is ever answered. The
number that the answer carries is the last that both sides know.

Whatever is wrong with a message is the command's status, and leaves all as it was. What is wrong
with the request inside of a good one is the answer's status, and the guest reads that sealed.

Order of checks: the guest's state, where the pages lie, the header, the number, the seal, type and
length. That order is the laboratory's, as is INVALID_PARAM for a type or version that is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from psp import command_buffers as buffers
from psp.commands import SnpCommand
from psp.guest_context import GuestContext, counted
from psp.guest_message import LAST_SEQUENCE, BadMessage, MessageHeader, MessageKey
from psp.host_memory import HostMemory
from psp.snp_guests import SnpGuests
from psp.status import PspError, Status
from psp.system_bus import PAGE_BYTES

Answerer = Callable[["Request"], bytes]
"""What answers a kind of message: the payload of the response."""


@dataclass(frozen=True, slots=True)
class Request:
    """A message that was sealed by its guest, at VMPL ``vmpl``, and has a length that its version has."""

    context: GuestContext
    gctx: int
    vmpl: int
    version: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class OpenedMessage:
    """A message that its guest sealed; ``page`` as it came, ``plain`` the guest's context page before it."""

    gctx: int
    page: bytes
    plain: bytes = field(repr=False)
    context: GuestContext
    header: MessageHeader
    key: MessageKey
    payload: bytes


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One kind of request: payload lengths by version, None for one that differs, and what answers it."""

    lengths: Mapping[int, int | None]
    answer: Answerer
    changes_contexts: bool = False
    """Whether the answer may change whatever context, and even leave none."""


@dataclass(frozen=True, slots=True)
class GuestMessageSwitches:
    """What sources do not agree on, or do not say."""

    bad_sequence: Status = Status.AEAD_OFLOW
    """For a number that is not the next; INVALID_PARAM and BAD_MEASUREMENT are named elsewhere."""
    bad_message: Status = Status.INVALID_PARAM
    """For a bad header and for a bad seal; nobody has published it. The other candidate is BAD_MEASUREMENT."""
    checks_sequence: bool = True
    """Off, firmware answers whatever is sealed, however old: what the numbers are good for shows without them."""


class GuestRequests:
    """The handler of the command; ``rows`` are the messages that it knows, by type."""

    def __init__(self, memory: HostMemory, guests: SnpGuests, rows: Mapping[int, MessageRow]) -> None:
        self.switches = GuestMessageSwitches()
        self._memory = memory
        self._guests = guests
        self._rows = rows

    def request(self, asked: buffers.SnpGuestRequest) -> None:
        """SNP_GUEST_REQUEST."""
        opened = self.take(asked.gctx, SnpCommand.GUEST_REQUEST, asked.request, asked.response)
        header = opened.header
        row = self._rows.get(header.message_type)
        if row is None or row.lengths.get(header.message_version, -1) not in (None, header.payload_bytes):
            raise PspError(Status.INVALID_PARAM)
        request = Request(opened.context, asked.gctx, header.vmpck, header.message_version, opened.payload)
        self.give(opened, asked.response, row.answer(request), changes_contexts=row.changes_contexts)

    def take(self, gctx: int, command: SnpCommand, request: int, response: int) -> OpenedMessage:
        """The message in a page, opened, if an answer may go to another. Raises PspError; nothing has changed yet."""
        plain, context = self._guests.opened(gctx, command)
        if request % PAGE_BYTES or response % PAGE_BYTES:
            # A message that began in the middle of a page could cross its end.
            raise PspError(Status.INVALID_ADDRESS)
        page = self._memory.read(request, PAGE_BYTES)
        self._memory.check_writable(response, PAGE_BYTES)
        return OpenedMessage(gctx, page, plain, context, *self._opened(context, page))

    def take_again(self, opened: OpenedMessage, command: SnpCommand, response: int) -> OpenedMessage:
        """The same message some time after, by what its guest's keys and numbers are now. Raises PspError."""
        plain, context = self._guests.opened(opened.gctx, command)
        self._memory.check_writable(response, PAGE_BYTES)
        return OpenedMessage(opened.gctx, opened.page, plain, context, *self._opened(context, opened.page))

    def give(self, opened: OpenedMessage, response: int, answer: bytes, *, changes_contexts: bool = False) -> None:
        """Seal the answer to a message and count both."""
        header = opened.header
        sequence = header.sequence + 1
        kind, version = header.message_type + 1, header.message_version
        self._memory.write(response, opened.key.seal(header.vmpck, sequence, kind, version, answer))
        plain = opened.plain
        if changes_contexts:
            plain = self._left(opened.gctx, header.vmpck, opened.context.vmpck(header.vmpck))
        if plain:
            self._guests.pages.write_packed(opened.gctx, counted(plain, header.vmpck, sequence))

    def _left(self, gctx: int, vmpck: int, key: bytes) -> bytes:
        """What an answer left in a context page; nothing where there is no context, or the number is of another key."""
        try:
            page, context = self._guests.opened(gctx, SnpCommand.GUEST_REQUEST)
        except PspError:
            return b""
        return page if context.vmpck(vmpck) == key else b""

    def _opened(self, context: GuestContext, page: bytes) -> tuple[MessageHeader, MessageKey, bytes]:
        try:
            header = MessageHeader.checked(page)
        except BadMessage:
            raise PspError(self.switches.bad_message) from None
        self._check_sequence(context.message_counts[header.vmpck], header.sequence)
        key = MessageKey(context.vmpck(header.vmpck))
        try:
            return header, key, key.unseal(header, page)
        except BadMessage:
            raise PspError(self.switches.bad_message) from None

    def _check_sequence(self, count: int, sequence: int) -> None:
        checks = self.switches.checks_sequence
        if (count + 1 if checks else sequence) >= LAST_SEQUENCE:
            # There is no number left for an answer: the key is dead.
            raise PspError(Status.AEAD_OFLOW)
        if checks and sequence != count + 1:
            raise PspError(self.switches.bad_sequence)

