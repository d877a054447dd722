"""The DSM of a device: what it answers inside of SPDM sessions to whoever manages its keys and its interfaces.

Both protocols travel in vendor-defined messages of PCI-SIG, with their number in the first byte (PCI Express base
specification, 6.33.3 and 11.3). Outside of a session neither is answered; nor, if its card wants encryption, in one
that only authenticates.
"""

from __future__ import annotations

from enum import IntEnum

from tio.ide.key_responder import KeyResponder
from tio.tdisp.responder import TdispResponder


class ProtocolId(IntEnum):
    """First byte of a vendor-defined payload."""

    IDE_KM = 0
    TDISP = 1


class DeviceSecurityModule:
    """Keys and interfaces of one device."""

    def __init__(self, keys: KeyResponder, interfaces: TdispResponder) -> None:
        self._keys = keys
        self._interfaces = interfaces

    def answer(self, session_id: int | None, payload: bytes) -> bytes | None:
        """The payload of the answer; None where there is none to give."""
        if session_id is None or not payload:
            return None
        body, answer = payload[1:], None
        if payload[0] == ProtocolId.IDE_KM:
            answer = self._keys.answer(session_id, body)
        elif payload[0] == ProtocolId.TDISP:
            answer = self._interfaces.answer(session_id, body)
        return None if answer is None else payload[:1] + answer

    def end_session(self, session_id: int) -> None:
        """A session is over: its keys are gone, and what was locked by it is in ERROR."""
        self._interfaces.end_session(session_id)
        self._keys.end_session(session_id)
