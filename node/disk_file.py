"""A file behind a VM's disk. Only read: what the VM writes stays with its disk, so that a run can be run again."""

from __future__ import annotations

import os
import stat
import weakref
from functools import cache
from pathlib import Path

from node.operations import BLOCK_BYTES
from tio.nvme_namespace import MediaError


class DiskFileError(ValueError):
    """A file that cannot be behind a disk: what was expected, and what was there."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"disk {path}: expected {expected}, got {got}")
        self.expected = expected
        self.got = got


class DiskFile:
    """A file of whole blocks, open for reading as long as this object lives. Raises DiskFileError."""

    def __init__(self, path: Path) -> None:
        try:
            # Not O_RDONLY alone: to open a pipe would wait for whoever writes to it.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DiskFileError(str(path), "a file that can be read", str(error.strerror).lower()) from None
        found = os.fstat(file)
        wrong = "" if stat.S_ISREG(found.st_mode) else "something else than a file"
        if not wrong and (found.st_size % BLOCK_BYTES or not found.st_size):
            wrong = f"{found.st_size} bytes"
        if wrong:
            os.close(file)
            raise DiskFileError(str(path), f"a file of whole blocks of {BLOCK_BYTES} bytes", wrong)
        self._file = file
        weakref.finalize(self, os.close, file)
        self.blocks = found.st_size // BLOCK_BYTES

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes. Raises MediaError where the file has become shorter, or its medium fails."""
        try:
            data = os.pread(self._file, length, offset)
        except OSError as error:
            raise MediaError(str(error)) from error
        if len(data) != length:
            raise MediaError(f"expected {length} bytes at {offset}, got {len(data)}")
        return data


@cache
def disk_file(path: str) -> DiskFile:
    """The file of a path, opened once in a process. Raises DiskFileError."""
    return DiskFile(Path(path))
