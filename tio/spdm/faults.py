"""What can be wrong with an exchange.

Each layer raises only what is its own:

    SpdmFault
    ├─ MalformedMessage   bytes that are no such message: names the field
    ├─ Refused            a responder will not: becomes an ERROR message, never leaves the responder
    ├─ RecordRejected     a secured message that is not its peer's, or not next
    ├─ PeerRefused        to a requester: its responder answered ERROR
    └─ PeerUntrusted      to a requester: an answer that does not prove what it must, or that breaks the protocol

A responder raises none of these to its caller: whatever it is sent, it answers.
"""

from __future__ import annotations

from tio.spdm.codes import ErrorCode


class SpdmFault(Exception):
    """Something in an exchange is wrong."""


class MalformedMessage(SpdmFault):
    """Bytes that are no such message. Names the field and what was expected."""

    def __init__(self, field: str, expected: str, found: object) -> None:
        super().__init__(f"{field}: expected {expected}, found {found}")
        self.field = field


class Refused(SpdmFault):
    """A responder refuses: ``code`` and ``data`` are Param1 and Param2 of the ERROR, ``extended`` follows them."""

    def __init__(self, code: ErrorCode, data: int = 0, extended: bytes = b"") -> None:
        super().__init__(code.name)
        self.code = code
        self.data = data
        self.extended = extended


class RecordRejected(SpdmFault):
    """A secured message failed to open, or none can be sealed any more."""


class PeerRefused(SpdmFault):
    """A responder answered ERROR with ``code`` (Param1) and ``data`` (Param2)."""

    def __init__(self, request: str, code: int, data: int) -> None:
        name = ErrorCode(code).name if code in set(ErrorCode) else f"{code:#04x}"
        super().__init__(f"{request}: the responder refuses with {name} (data {data:#04x})")
        self.code = code
        self.data = data


class PeerUntrusted(SpdmFault):
    """A responder's answer does not prove what it must, or is no answer to what was asked."""
