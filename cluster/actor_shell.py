"""What runs in an actor's process before any code of ours is there: it lets the right code in, and shows papers.

Ray's workers may find other packages under our names, in their working folder or
beside Ray, or an older sevfleet. So this file travels by value, imports nothing of
ours, and puts the code that the driver runs before everything else: the driver's own
folder where the worker sees it too, else an archive that came with the job. Before it
is given work, a worker answers with a hash of the code that it really imported.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
import platform
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

FLOORS = ("cluster", "node", "psp", "tio", "workloads")
"""The packages that are sevfleet."""
LIBRARIES = ("ray", "numpy", "simpy", "cryptography", "pyarrow", "msgpack")
"""What a worker computes with, beside our own code."""

Offer = tuple[str, str, bytes]
"""The code: its hash, the driver's folder of it, and an archive of it, empty for workers on the driver's machine."""
Papers = tuple[str, str, str, tuple[tuple[str, str], ...], str]
"""Machine, Python, hash of the code, versions of the libraries, and what is wrong ("" for nothing)."""


def code_files(root: Path) -> Iterator[Path]:
    """Every file of the packages below ``root``, in one order everywhere; what Python wrote itself is left out."""
    for floor in FLOORS:
        found = [path for path in (root / floor).rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
        yield from sorted(found, key=lambda path: path.relative_to(root).as_posix())


def hash_of_code(root: Path) -> str:
    """SHA-256 over names, lengths and contents of all files of the packages below ``root``."""
    total = hashlib.sha256()
    for path in code_files(root):
        content = path.read_bytes()
        total.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


class ActorShell:
    """An object in an actor's process, and the only door to it.

    ``made_of`` is pickled: the object's class and its arguments. It is opened only
    after the code is in place, since opening it imports.
    """

    offer: Offer
    """The code to let in: of a class of whoever spawns it, with which it travels."""

    def __init__(self, made_of: bytes) -> None:
        self._object: Any = None
        self._problem = ""
        try:
            _let_in(self.offer)
            kind, arguments = pickle.loads(made_of)  # noqa: S301 - from the driver, whose code runs here anyway
        except Exception as error:  # noqa: BLE001 - whatever keeps the code from being imported here stands in the papers
            self._problem = f"{type(error).__name__}: {error}"
            return
        self._object = kind(*arguments)

    def papers(self) -> Papers:
        """Where this is, and what it runs."""
        root = getattr(sys.modules.get("cluster"), "__file__", None)
        code = "" if root is None else hash_of_code(Path(root).parent.parent)
        return socket.gethostname(), platform.python_version(), code, _versions(), self._problem

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object. Raises ImportError where there is none, for want of the code."""
        if self._problem:
            raise ImportError(self._problem)
        return getattr(self._object, method)(*arguments)

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function with the object."""
        return function(self._object, *arguments)

    def ping(self) -> int:
        """The process's number; answered by a thread of its own, also while the object works."""
        return os.getpid()


def _let_in(offer: Offer) -> None:
    code_hash, root, archive = offer
    place = Path(root)
    if not (place / FLOORS[0]).is_dir() or hash_of_code(place) != code_hash:
        place = _unpacked(code_hash, archive)
    for name in [name for name in sys.modules if name.partition(".")[0] in FLOORS]:
        del sys.modules[name]
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()


def _unpacked(code_hash: str, archive: bytes) -> Path:
    """The archive's content in a folder of its hash, which later workers of this machine use again."""
    if not archive:
        raise FileNotFoundError("the driver's code is not on this machine as it was, and none came with the job")
    shelf = Path(tempfile.gettempdir()) / f"sevfleet-code-{os.getuid()}"
    shelf.mkdir(mode=0o700, exist_ok=True)
    place = shelf / code_hash
    ours = shelf.lstat().st_uid == os.getuid() and not shelf.is_symlink()
    if ours and place.is_dir() and hash_of_code(place) == code_hash:
        return place
    fresh = Path(tempfile.mkdtemp(prefix="sevfleet-code-"))
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(fresh)
    if not ours:
        return fresh  # somebody else's folder under our name: not one to leave code in
    try:
        fresh.rename(place)
    except OSError:  # another worker was first, or what lies there is damaged: ours is as good
        return place if hash_of_code(place) == code_hash else fresh
    return place


def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in LIBRARIES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "none"))
    return tuple(found)
