"""Files that a command reads whole: regular ones, and of a bounded size."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError


def read_small(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a file, at most so many. Raises UserError for one that cannot be read."""
    try:
        if path.is_fifo():  # it would be waited for, perhaps for ever
            raise UserError(f"{path}: expected a regular file, got a pipe")
        with path.open("rb") as file:
            return file.read(most_bytes)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
