"""The product roots of laboratories, whose keys take seconds each to find and are kept on disk by laboratory seed.

Laboratory 0's come with the package. Files are written whole and then named;
what does not check out in one is found anew. Two writers at a time may lose each
other's keys, which costs whoever asks next the seconds again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from psp.product_line import PRODUCT_LINES
from psp.product_root import ProductRoot
from psp.rsa_signing import RsaKey, rsa_key

SHIPPED = Path(__file__).parent / "root_keys.json"
_FORMAT = 1
_MOST_BYTES = 1 << 20
"""A file beyond this is not ours."""


@lru_cache(maxsize=64)
def product_root(line: str, laboratory: int = 0) -> ProductRoot:
    """The root of a line (KeyError if there is no such) in the laboratory of a seed."""
    store = RootKeys(cache_folder() / f"laboratory-{laboratory}.json")
    return ProductRoot(PRODUCT_LINES[line], str(laboratory).encode(), store)


def cache_folder() -> Path:
    """Where keys are kept: ``$XDG_CACHE_HOME/sevfleet`` or ``~/.cache/sevfleet``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sevfleet"


class RootKeys:
    """Keys by their seeds: the package's, those of a file, else found now and put there, if it can be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, seed: bytes, bits: int) -> RsaKey:
        name = hashlib.sha256(seed).hexdigest()[:32]
        for known in (_shipped(), _entries(self.path)):
            key = _checked(known.get(name), seed, bits)
            if key is not None:
                return key
        key = rsa_key(seed, bits)
        entry = {"bits": bits, "p": f"{key.p:x}", "q": f"{key.q:x}", "check": _check(seed, key)}
        with suppress(OSError):
            _write(self.path, {**_entries(self.path), name: entry})
        return key


@lru_cache(maxsize=1)
def _shipped() -> dict[str, object]:
    return _entries(SHIPPED)


def _entries(path: Path) -> dict[str, object]:
    """What a file holds, unchecked; nothing if it is none of ours."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        found = json.loads(path.read_text("ascii"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("keys"), dict):
        return {}
    return dict(found["keys"])


def _checked(entry: object, seed: bytes, bits: int) -> RsaKey | None:
    if not isinstance(entry, dict) or entry.get("bits") != bits:
        return None
    try:
        key = RsaKey(bits, *(int(entry[one], 16) for one in ("p", "q")))
    except (KeyError, TypeError, ValueError):
        return None
    return key if entry.get("check") == _check(seed, key) else None


def _check(seed: bytes, key: RsaKey) -> str:
    """Binds an entry to its seed, so that no damage and no exchange goes unseen."""
    return hashlib.sha256(seed + f" {key.bits} {key.p:x} {key.q:x}".encode()).hexdigest()


def _write(path: Path, entries: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": _FORMAT, "keys": dict(sorted(entries.items()))}, indent=1)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text + "\n")
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
