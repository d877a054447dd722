"""A DOE mailbox: five registers through which a host carries data objects, a double word at a time.

PCI Express base specification, 6.30 and 7.9.24. One object is under way at a time. Rules:

- The host writes an object word by word, then GO. An object that is not as long as it says, or too long, or that comes
  while an answer waits, sets the error bit; nothing is taken until the host aborts.
- What the instance speaks is answered at once; an object of any other kind is dropped in silence.
- The answer waits in the read mailbox: a load shows its next word, a store of anything takes that word away.
- Abort forgets both directions and the error, and nothing of the protocols above.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag

from tio.doe import PCI_SIG, DataObject, DiscoveryTable, DoeError, parse_data_object
from tio.tdisp.interface import Tampering

_WORD_BYTES = 4
_MOST_WORDS = 1 << 18
"""Of one object, as its header can say."""


class MailboxRegister(IntEnum):
    """Offsets in the capability."""

    CAPABILITIES = 0x04
    CONTROL = 0x08
    STATUS = 0x0C
    WRITE_DATA = 0x10
    READ_DATA = 0x14


class MailboxControl(IntFlag):
    """CONTROL."""

    ABORT = 1 << 0
    INTERRUPT_ENABLE = 1 << 1
    GO = 1 << 31


class MailboxStatus(IntFlag):
    """STATUS. An instance here is never busy: it answers within the store that asks."""

    BUSY = 1 << 0
    INTERRUPT = 1 << 1
    ERROR = 1 << 2
    READY = 1 << 31


INTERRUPT_SUPPORT = 1
Answer = Callable[[DataObject], DataObject | None]
"""What the protocols above make of an object; None for one that they drop."""


class DoeMailbox:
    """An instance that speaks discovery and ``types``; ``answer`` gets objects of these types alone.

    ``largest_bytes`` bounds an object that comes in. ``interrupt`` is the message to the host, where it asked for one.
    """

    capability_id = 0x2E
    size_bytes = 0x18

    def __init__(
        self,
        types: Sequence[int],
        answer: Answer,
        *,
        largest_bytes: int = 1 << 16,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        self._discovery = DiscoveryTable(types)
        self._types = frozenset(types)
        self._answer = answer
        self._largest_words = largest_bytes // _WORD_BYTES
        self._interrupt = interrupt
        self._written: list[bytes] = []
        self._waiting: deque[int] = deque()
        self._enabled = MailboxControl(0)
        self._status = MailboxStatus(0)

    def load(self, offset: int) -> int:
        """A double word of the capability."""
        match offset:
            case MailboxRegister.CAPABILITIES:
                return INTERRUPT_SUPPORT
            case MailboxRegister.CONTROL:
                return int(self._enabled)
            case MailboxRegister.STATUS:
                return int(self._status | (MailboxStatus.READY if self._waiting else MailboxStatus(0)))
            case MailboxRegister.READ_DATA:
                return self._waiting[0] if self._waiting else 0
        return 0

    def store(self, offset: int, value: int) -> Tampering | None:
        """Store a double word; a mailbox touches no lock."""
        match offset:
            case MailboxRegister.CONTROL:
                self._control(MailboxControl(value & 0x8000_0003))
            case MailboxRegister.STATUS:
                # The host writes a one to clear what it saw.
                self._status &= ~(MailboxStatus(value & MailboxStatus.INTERRUPT))
            case MailboxRegister.WRITE_DATA if not self._status & MailboxStatus.ERROR:
                if len(self._written) == self._largest_words:
                    self._fail()
                else:
                    self._written.append(value.to_bytes(_WORD_BYTES, "little"))
            case MailboxRegister.READ_DATA if self._waiting:
                self._waiting.popleft()
        return None

    def reset(self) -> None:
        """Conventional reset: nothing is under way."""
        self._abort()
        self._enabled = MailboxControl(0)

    def _control(self, value: MailboxControl) -> None:
        self._enabled = value & MailboxControl.INTERRUPT_ENABLE
        if value & MailboxControl.ABORT:
            self._abort()
        elif value & MailboxControl.GO and not self._status & MailboxStatus.ERROR:
            self._go()

    def _abort(self) -> None:
        self._written.clear()
        self._waiting.clear()
        self._status = MailboxStatus(0)

    def _go(self) -> None:
        data = b"".join(self._written)
        self._written.clear()
        try:
            asked = parse_data_object(data)
        except DoeError:
            self._fail()
            return
        if self._waiting:
            self._fail()
            return
        answer = self._discovery.answer(asked)
        if answer is None and asked.vendor_id == PCI_SIG and asked.object_type in self._types:
            answer = self._answer(asked)
        if answer is not None:
            packed = answer.pack()
            words = range(0, len(packed), _WORD_BYTES)
            self._waiting.extend(int.from_bytes(packed[at : at + _WORD_BYTES], "little") for at in words)
            self._say()

    def _fail(self) -> None:
        self._written.clear()
        self._waiting.clear()
        self._status |= MailboxStatus.ERROR
        self._say()

    def _say(self) -> None:
        """Tell the host, if it wants to be told: an answer is there, or an error."""
        if self._enabled & MailboxControl.INTERRUPT_ENABLE:
            self._status |= MailboxStatus.INTERRUPT
            if self._interrupt is not None:
                self._interrupt()


def exchange(load: Callable[[int], int], store: Callable[[int, int], None], asked: DataObject) -> DataObject | None:
    """What a host's driver does: carry an object through a mailbox's registers; None where nothing comes back.

    ``load`` and ``store`` take offsets in the capability. Raises DoeError for an instance in error, which is aborted,
    and for words that are no object.
    """
    packed = asked.pack()
    for at in range(0, len(packed), _WORD_BYTES):
        store(MailboxRegister.WRITE_DATA, int.from_bytes(packed[at : at + _WORD_BYTES], "little"))
    store(MailboxRegister.CONTROL, MailboxControl.GO)
    words: list[bytes] = []
    for _ in range(_MOST_WORDS + 1):
        status = load(MailboxRegister.STATUS)
        if status & MailboxStatus.ERROR:  # as ones have it, which is what nobody answers
            store(MailboxRegister.CONTROL, MailboxControl.ABORT)
            raise DoeError("status", "no error", hex(status))
        if not status & MailboxStatus.READY:
            break
        words.append(load(MailboxRegister.READ_DATA).to_bytes(_WORD_BYTES, "little"))
        store(MailboxRegister.READ_DATA, 0)
    return parse_data_object(b"".join(words)) if words else None
