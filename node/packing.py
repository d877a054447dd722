"""Values as msgpack bytes, by one packer that is kept: to make one costs ten times what a small message does."""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgpack

_MOST_KEPT_BYTES = 1 << 20


class Unmade(ABC):
    """What stands for a value that nobody has looked at yet, and is packed as that value."""

    __slots__ = ()

    @abstractmethod
    def made(self) -> object:
        """The value."""


class _Packing:
    __slots__ = ("_pack",)

    def __init__(self) -> None:
        self._pack = msgpack.Packer(default=self._made).pack

    def __call__(self, body: object) -> bytes:
        """The bytes of ``body``. Raises what msgpack does for what cannot be packed."""
        data: bytes = self._pack(body)
        if len(data) > _MOST_KEPT_BYTES:
            # A packer's buffer stays as large as its largest message.
            self._pack = msgpack.Packer(default=self._made).pack
        return data

    def _made(self, value: object) -> object:
        if not isinstance(value, Unmade):
            raise TypeError(f"can not serialize {type(value).__name__!r} object")
        # Whoever makes it may pack, too, and this packer is in the middle of something.
        before, self._pack = self._pack, msgpack.Packer(default=self._made).pack
        try:
            return value.made()
        finally:
            self._pack = before


packed = _Packing()
"""For one thread of a process."""
