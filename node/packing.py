"""Values as msgpack bytes, by one packer that is kept: to make one costs ten times what a small message does."""

from __future__ import annotations

import msgpack

_MOST_KEPT_BYTES = 1 << 20


class _Packing:
    __slots__ = ("_pack",)

    def __init__(self) -> None:
        self._pack = msgpack.Packer().pack

    def __call__(self, body: object) -> bytes:
        """The bytes of ``body``. Raises what msgpack does for what cannot be packed."""
        data: bytes = self._pack(body)
        if len(data) > _MOST_KEPT_BYTES:
            # A packer's buffer stays as large as its largest message.
            self._pack = msgpack.Packer().pack
        return data


packed = _Packing()
"""For one thread of a process."""
