"""Sealed work for a GPU: what a guest and a device that share keys put into memory that anybody sees and writes.

The laboratory's own design, after what confidential GPUs without TDISP do: the guest's driver opens an SPDM session of
its own, gives the device keys in it, and from then on commands, data and fences cross shared memory under AES-256-GCM.
Each use has a key and a count of its own, so that what is dropped, repeated, moved or made up opens nowhere. While a
channel is open the device takes no command in the clear, and shows its memory to nobody.

    OPEN     code 1, version 1, two zero bytes, keys for commands, data in and data out (32 bytes each)
    CLOSE    code 2, version 1, two zero bytes
    answer   code with its highest bit set, version 1, status, zero

Messages travel as VENDOR_DEFINED of the laboratory's vendor id, in a session alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES, TAG_BYTES = 32, 16
VENDOR = (0x1AF4).to_bytes(2, "little")
"""Of the registry of PCI-SIG."""
VERSION = 1
_HEAD = struct.Struct("<BBH")
_ANSWER = struct.Struct("<BBBB")
_ANSWERS = 0x80


class ChannelCode(IntEnum):
    """First byte of a message."""

    OPEN = 1
    CLOSE = 2


class ChannelStatus(IntEnum):
    """What the answer says."""

    DONE = 0
    MALFORMED = 1
    IN_USE = 2
    """Another session has the channel, or none is open."""


class Unsealed(Exception):
    """What was in memory is not what the other end put there next."""


@dataclass(slots=True)
class _Lane:
    """One use, as sealed at one end and opened at the other in the same order."""

    aead: AESGCM = field(repr=False)
    count: int = 0

    def seal(self, data: bytes, additional: bytes = b"") -> bytes:
        self.count += 1
        return self.aead.encrypt(self.count.to_bytes(12, "little"), data, additional)

    def open(self, sealed: bytes, additional: bytes = b"") -> bytes:
        try:
            data = self.aead.decrypt((self.count + 1).to_bytes(12, "little"), sealed, additional)
        except InvalidTag:
            raise Unsealed("expected what the other end sealed next") from None
        self.count += 1
        return data


class GpuChannel:
    """One end. ``keys`` are those for commands, data in and data out, ``counts`` how often each was used."""

    def __init__(self, keys: tuple[bytes, bytes, bytes], counts: tuple[int, int, int] = (0, 0, 0)) -> None:
        lanes = [_Lane(AESGCM(one), count) for one, count in zip(keys, counts, strict=True)]
        self._commands, self._inward, self._outward = lanes

    @property
    def counts(self) -> tuple[int, int, int]:
        """How often each key was used: with the keys all that an end has to keep."""
        return self._commands.count, self._inward.count, self._outward.count

    # The guest's end. ``read_out`` and ``check_fence`` raise Unsealed.

    def command(self, packed: bytes) -> bytes:
        """A command of 64 bytes as it lies in shared memory."""
        return self._commands.seal(packed)

    def bring_in(self, data: bytes) -> bytes:
        """What the next COPY_IN brings, as it lies in shared memory."""
        return self._inward.seal(data)

    def read_out(self, sealed: bytes) -> bytes:
        """What the last COPY_OUT took back."""
        return self._outward.open(sealed)

    def check_fence(self, fence: bytes, tag: bytes) -> None:
        """That the device wrote this fence for the command that was next."""
        self._outward.open(tag, fence)

    # The device's. The first two raise Unsealed.

    def open_command(self, sealed: bytes) -> bytes:
        """The command that is next."""
        return self._commands.open(sealed)

    def open_in(self, sealed: bytes) -> bytes:
        """The data that are next."""
        return self._inward.open(sealed)

    def take_out(self, data: bytes) -> bytes:
        """Data as they go to shared memory."""
        return self._outward.seal(data)

    def fence_tag(self, fence: bytes) -> bytes:
        """What stands behind a fence."""
        return self._outward.seal(b"", fence)


def open_request(keys: tuple[bytes, bytes, bytes]) -> bytes:
    """OPEN."""
    return _HEAD.pack(ChannelCode.OPEN, VERSION, 0) + b"".join(keys)


def close_request() -> bytes:
    """CLOSE."""
    return _HEAD.pack(ChannelCode.CLOSE, VERSION, 0)


def status_of(answer: bytes, asked: ChannelCode) -> ChannelStatus:
    """What an answer says. Raises ValueError for one that is none."""
    if len(answer) != _ANSWER.size or answer[:2] != bytes((asked | _ANSWERS, VERSION)):
        raise ValueError(f"channel answer: expected one to {asked.name}, found {answer.hex()}")
    return ChannelStatus(answer[2])


class ChannelKeeper:
    """Who has the device's channel. ``changed`` gets it when one was opened, None when it was closed."""

    def __init__(self, changed: Callable[[GpuChannel | None], None]) -> None:
        self._changed = changed
        self._session: int | None = None

    def answer(self, session_id: int | None, message: bytes) -> bytes | None:
        """The answer to a message of a session; None outside of one, and for what is no message."""
        if session_id is None or len(message) < _HEAD.size or message[0] not in tuple(ChannelCode):
            return None
        status = self._open(session_id, message) if message[0] == ChannelCode.OPEN else self._close(session_id, message)
        return _ANSWER.pack(message[0] | _ANSWERS, VERSION, status, 0)

    def end_session(self, session_id: int) -> None:
        """A session is over, and its channel with it."""
        if self._session == session_id:
            self._session = None
            self._changed(None)

    def lost(self) -> None:
        """The device has closed the channel by itself."""
        self._session = None

    def _open(self, session_id: int, message: bytes) -> ChannelStatus:
        keys = message[_HEAD.size :]
        if _HEAD.unpack_from(message)[1:] != (VERSION, 0) or len(keys) != 3 * KEY_BYTES:
            return ChannelStatus.MALFORMED
        first, second, third = (keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES))
        if len({first, second, third}) != 3:
            return ChannelStatus.MALFORMED
        if self._session not in (None, session_id):
            return ChannelStatus.IN_USE
        self._session = session_id
        self._changed(GpuChannel((first, second, third)))
        return ChannelStatus.DONE

    def _close(self, session_id: int, message: bytes) -> ChannelStatus:
        if message != close_request():
            return ChannelStatus.MALFORMED
        if self._session != session_id:
            return ChannelStatus.IN_USE
        self.end_session(session_id)
        return ChannelStatus.DONE
