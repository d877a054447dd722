"""What a worker was told, kept by the driver so that another can be told the same.

A record is a window's horizon and the mail of that window. Where windows are cut
is no part of a result, so windows are joined again when they are read back. Beyond
a bound of bytes the journal lies in a file of its own, which nobody else sees and
which is gone with it. Where the disk does not take that, the journal ends: as long as
no worker is lost, nobody needs it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

import msgpack

from cluster.entity import Message
from cluster.shard_worker import Mail
from node.packing import packed

HELD_BYTES = 16 << 20
"""Bytes of a journal in memory; more go to disk."""
TOGETHER_BYTES = 4 << 20
"""Mail that is told in one go when windows are joined."""
_LARGEST_RECORD_BYTES = (1 << 32) - 1
"""Of msgpack's buffer while it reads, which grows as records need it."""

Window = tuple[int, Mail]
"""A horizon in virtual nanoseconds, and mail by receiver."""


class Journal:
    """Windows of one worker, oldest first. ``close`` gives memory and file back."""

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=held_bytes)  # noqa: SIM115 - open as long as the worker lives
        self._last_ns = -1
        self.wrong = ""
        """Why it has not all that was told, "" while it has."""

    def append(self, horizon_ns: int, mail: Mail) -> None:
        """Keep a window. One that is asked for again without mail, because it was not done, is kept once."""
        if horizon_ns == self._last_ns and not mail:
            return
        self._last_ns = horizon_ns
        letters = [letter for messages in mail.values() for letter in messages]
        if self.wrong:
            return
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(packed((horizon_ns, letters)))
        except OSError as error:
            self.wrong = f"{tempfile.gettempdir()}: {error.strerror or error}"
            self.close()

    def windows(self, together_bytes: int = TOGETHER_BYTES) -> Iterator[Window]:
        """What was kept, joined to as few windows as ``together_bytes`` of mail in each allow.

        Nothing may be appended while somebody reads, and nobody may read where something is ``wrong``.
        """
        self._file.seek(0)
        letters: list[Message] = []
        told_ns = horizon_ns = -1
        records = msgpack.Unpacker(self._file, use_list=False, max_buffer_size=_LARGEST_RECORD_BYTES)
        told_bytes = 0
        for horizon_ns, more in records:
            letters += [Message(*fields) for fields in more]
            if letters and records.tell() - told_bytes >= together_bytes:
                yield horizon_ns, _by_receiver(letters)
                letters, told_ns, told_bytes = [], horizon_ns, records.tell()
        if letters or horizon_ns > told_ns:
            yield horizon_ns, _by_receiver(letters)

    def close(self) -> None:
        """Forget everything."""
        with contextlib.suppress(OSError):  # what could not be written is still in a buffer
            self._file.close()


def _by_receiver(letters: list[Message]) -> Mail:
    mail: dict[str, list[Message]] = {}
    for letter in letters:
        mail.setdefault(letter.receiver, []).append(letter)
    return {name: tuple(sorted(messages)) for name, messages in mail.items()}
