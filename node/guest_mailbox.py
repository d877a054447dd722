"""A guest's way to a mailbox among its device's registers: an object there, and the answer back.

The registers are those of DOE, in memory and not in configuration space. Source: PCI Express base specification, 6.30
(data object exchange).
"""

from __future__ import annotations

from dataclasses import dataclass

from node.device_window import DeviceSilent, DeviceWindow, bar_gpa
from node.operations import GuestOperation, MmioLoad, MmioStore
from node.swiotlb import Steps
from tio.doe import DataObject, DoeError, parse_data_object
from tio.pci.doe_mailbox import MailboxControl, MailboxRegister, MailboxStatus

_WORD_BYTES = 4
_HEAD_WORDS = 2
_LENGTH_MASK = (1 << 18) - 1
MOST_WORDS = 1 << 12
"""Of an answer that a guest takes."""


@dataclass(frozen=True, slots=True)
class GuestMailbox:
    """The mailbox at an offset of a BAR."""

    window: DeviceWindow
    bar: int
    offset: int

    def exchange(self, asked: DataObject) -> Steps[DataObject]:
        """Carry an object there and its answer back. Raises DeviceSilent, also for words that are no object."""
        packed = asked.pack()
        words = [packed[at : at + _WORD_BYTES] for at in range(0, len(packed), _WORD_BYTES)]
        data, control = self.offset + MailboxRegister.WRITE_DATA, self.offset + MailboxRegister.CONTROL
        yield from self.window.store(
            self.bar,
            *[(data, int.from_bytes(word, "little"), _WORD_BYTES) for word in words],
            (control, int(MailboxControl.GO), _WORD_BYTES),
        )
        status = yield from self.window.load(self.bar, self.offset + MailboxRegister.STATUS)
        if status & MailboxStatus.ERROR or not status & MailboxStatus.READY:
            yield from self.window.store(self.bar, (control, int(MailboxControl.ABORT), _WORD_BYTES))
            raise DeviceSilent(f"mailbox: status {status:#x}")
        head = yield from self._words(_HEAD_WORDS)
        count = int.from_bytes(head[_WORD_BYTES:], "little") & _LENGTH_MASK
        if not _HEAD_WORDS <= count <= MOST_WORDS:
            raise DeviceSilent(f"mailbox: expected {_HEAD_WORDS} to {MOST_WORDS} words, got {count}")
        try:
            return parse_data_object(head + (yield from self._words(count - _HEAD_WORDS)))
        except DoeError as error:
            raise DeviceSilent(str(error)) from None

    def _words(self, count: int) -> Steps[bytes]:
        """So many words of the answer, each taken by a store."""
        at = bar_gpa(self.window.device, self.bar) + self.offset + MailboxRegister.READ_DATA
        private = self.window.private
        each: tuple[GuestOperation, ...] = MmioLoad(at, _WORD_BYTES, private), MmioStore(at, 0, _WORD_BYTES, private)
        answers = (yield each * count) if count else ()
        found = answers[::2]
        if not all(isinstance(one, int) for one in found):
            raise DeviceSilent(f"mailbox: {found!r}")
        return b"".join([one.to_bytes(_WORD_BYTES, "little") for one in found if isinstance(one, int)])
