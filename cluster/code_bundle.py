"""sevfleet's own code as it goes along with a job, and the papers by which workers prove that they run it."""

from __future__ import annotations

import io
import platform
import socket
import zipfile
from functools import cache
from pathlib import Path

import cluster
from cluster.actor_shell import LIBRARIES, Offer, Papers, code_files, hash_of_code
from cluster.versions import versions

_ANY_DATE = (1980, 1, 1, 0, 0, 0)
"""Archives of the same code are the same bytes."""
_SHOWN = 12
"""Digits of a hash that tell two apart for a person."""


def code_root() -> Path:
    """The folder that holds our packages."""
    return Path(str(cluster.__file__)).resolve().parent.parent


@cache
def code_hash() -> str:
    """The hash of the code that runs here, as it was when this process asked first."""
    return hash_of_code(code_root())


def offer(*, archive: bool) -> Offer:
    """The code for a worker, with an archive of it for machines that do not see our folder."""
    return code_hash(), str(code_root()), code_archive() if archive else b""


@cache
def code_archive() -> bytes:
    """All files of the code as a zip."""
    root, out = code_root(), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in code_files(root):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _ANY_DATE)
            packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def own_papers() -> Papers:
    """The papers of this process."""
    libraries = tuple((name, versions()[name]) for name in LIBRARIES)
    return socket.gethostname(), platform.python_version(), code_hash(), libraries, ""


def difference(ours: Papers, theirs: Papers) -> str | None:
    """What keeps a worker with these papers from giving our results, in one line; None if nothing does."""
    _, python, code, libraries, _ = ours
    machine, its_python, its_code, its_libraries, problem = theirs
    its = dict(its_libraries)
    checks = [("Python", python, its_python), *((name, ours, its.get(name, "none")) for name, ours in libraries)]
    wrong = [f"{name} {expected}, got {got}" for name, expected, got in checks if expected != got]
    if not wrong and problem:
        wrong = [f"sevfleet's code to be imported, got {problem}"]
    elif not wrong and its_code != code:
        wrong = [f"sevfleet's code {code[:_SHOWN]}, got {its_code[:_SHOWN] or 'none'}"]
    return f"machine {machine}: expected {' and '.join(wrong)}" if wrong else None
