"""The folder of a Ray of our own, and an end to those that drivers left who were killed.

Who made a folder stands in a file in it, so that the next run can tell whether anybody needs it still:

    sf-XXXXXXXX/driver        boot, process namespace, number and start time of the driver's process
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from cluster.process_family import Process, is_alive, process_of

PREFIX = "sf-"
_DRIVER = "driver"
_PROC = Path("/proc")


def new_folder(beside: str) -> str:
    """A new folder in the folder ``beside``, from which those that nobody needs any more are removed."""
    remove_left_behind(Path(beside))
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=beside)
    pid, start = process_of(os.getpid())
    with contextlib.suppress(OSError):
        (Path(folder) / _DRIVER).write_text(f"{_here()} {pid} {start}\n", "ascii")
    return folder


def remove_left_behind(beside: Path) -> None:
    """Remove our user's folders whose driver is gone and whose Ray, which outlives it a little, is too."""
    with contextlib.suppress(OSError):
        left = [folder for folder in beside.glob(f"{PREFIX}*") if _is_left_behind(folder)]
        commands = _commands() if left else b""
        for folder in left:
            if os.fsencode(folder) not in commands:
                shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: Path) -> bool:
    """Whether it says that its driver was a process here that is gone."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        *where, pid, start = (folder / _DRIVER).read_text("ascii").split()
        driver: Process = int(pid), int(start)
    except (OSError, ValueError):
        return False
    return " ".join(where) == _here() and driver[1] > 0 and not is_alive(driver)


def _here() -> str:
    """What numbers of processes hold for; nothing where the kernel does not tell."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _commands() -> bytes:
    """The command lines of all processes: those of a Ray name its folder."""
    lines = []
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                lines.append((folder / "cmdline").read_bytes())
    return b"\n".join(lines)
