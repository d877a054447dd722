"""A hypervisor's driver of DOE mailboxes: it carries data objects through a function's configuration space.

Each is a task for ``yield from``. Source: PCI Express base specification, 6.30.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from node import operations as op
from node.hypervisor_port import Answers, Batch
from tio.doe import MAX_PAYLOAD_BYTES, DataObject, DoeError, parse_data_object
from tio.pci.doe_mailbox import MailboxControl, MailboxRegister, MailboxStatus

_HEADER_WORDS = 2
_WORD_BYTES = 4
_LENGTH = (1 << 18) - 1


class MailboxFailed(Exception):
    """The mailbox is in error, answers nothing, or answers what is no data object."""


@dataclass(frozen=True, slots=True)
class DoeDriver:
    """One mailbox: the function that has it, and where in its configuration space it begins."""

    requester: int
    at: int

    def exchange(self, asked: DataObject) -> Generator[Batch, Answers, DataObject]:
        """The answer to an object. Raises MailboxFailed; the mailbox is then aborted, and can be used again."""
        *_, status = yield (
            op.ConfigOut(self.requester, self.at + MailboxRegister.WRITE_DATA, asked.pack()),
            op.ConfigWrite(self.requester, self.at + MailboxRegister.CONTROL, MailboxControl.GO),
            op.ConfigRead(self.requester, self.at + MailboxRegister.STATUS),
        )
        ready = isinstance(status, int) and status & (MailboxStatus.READY | MailboxStatus.ERROR) == MailboxStatus.READY
        if not ready:
            yield from self._abort()
            raise MailboxFailed(f"mailbox of {self.requester:#x}: expected an answer, got status {status!r}")
        head = yield from self._words(_HEADER_WORDS)
        words = int.from_bytes(head[_WORD_BYTES:], "little") & _LENGTH
        if not _HEADER_WORDS <= words <= MAX_PAYLOAD_BYTES // _WORD_BYTES:
            yield from self._abort()
            raise MailboxFailed(f"mailbox of {self.requester:#x}: an object of {words} double words")
        body = (yield from self._words(words - _HEADER_WORDS)) if words > _HEADER_WORDS else b""
        try:
            return parse_data_object(head + body)
        except DoeError as error:
            raise MailboxFailed(str(error)) from None

    def _words(self, count: int) -> Generator[Batch, Answers, bytes]:
        data = b""
        while len(data) < _WORD_BYTES * count:
            some = min(count - len(data) // _WORD_BYTES, op.MOST_WORDS)
            (answer,) = yield (op.ConfigIn(self.requester, self.at + MailboxRegister.READ_DATA, some),)
            if not isinstance(answer, bytes) or len(answer) != _WORD_BYTES * some:
                raise MailboxFailed(f"mailbox of {self.requester:#x}: {answer!r}")
            data += answer
        return data

    def _abort(self) -> Generator[Batch, Answers, None]:
        yield (op.ConfigWrite(self.requester, self.at + MailboxRegister.CONTROL, MailboxControl.ABORT),)
