"""A line for somebody to read where this process is ended in the middle of a block, by a library or from outside."""

from __future__ import annotations

import contextlib
import subprocess
from types import TracebackType
from typing import Self

_LISTEN = r"""
line=$0
while read -r word; do line=$word; done
[ -z "$line" ] && exit
[ -t 2 ] && printf '\033[?25h\r\033[K' >&2
printf '%s\n' "$line" >&2
"""
"""The last line heard is written; on a terminal, where a bar was drawn, whose cursor nobody else shows again."""


class LastWords:
    """A ``with`` block; if this process does not live to its end, ``line`` is written to standard error.

    Another process waits for that, in a session of its own, where Ctrl-C does not reach it.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._listener: subprocess.Popen[bytes] | None = None

    def change(self, line: str) -> None:
        """Have another line written."""
        if self._listener is not None and self._listener.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._listener.stdin.write(line.encode() + b"\n")
                self._listener.stdin.flush()

    def __enter__(self) -> Self:
        command = ["/bin/sh", "-c", _LISTEN, self._line]
        self._listener = subprocess.Popen(  # noqa: S603 - a constant program
            command, stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.change("")
        if self._listener is not None:
            with contextlib.suppress(BrokenPipeError):
                self._listener.communicate()
