"""What each side can do: flags, transfer sizes, and which flags make no sense together (DSP0274, 10.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

from tio.spdm.codes import Request, Response
from tio.spdm.message_layout import Message, number

SMALLEST_TRANSFER_BYTES = 42
"""MinDataTransferSize from 1.2 on."""
LARGEST_CT_EXPONENT = 31
"""2^31 us are 36 minutes; nobody computes longer over a signature."""


class Capability(IntFlag):
    """Flags of GET_CAPABILITIES and CAPABILITIES. Two fields are two bits wide: MEAS and PSK."""

    CACHE = 0x1
    CERT = 0x2
    CHAL = 0x4
    MEAS_NO_SIG = 0x8
    MEAS_SIG = 0x10
    MEAS_FRESH = 0x20
    ENCRYPT = 0x40
    MAC = 0x80
    MUT_AUTH = 0x100
    KEY_EX = 0x200
    PSK = 0x400
    PSK_WITH_CONTEXT = 0x800
    ENCAP = 0x1000
    HBEAT = 0x2000
    KEY_UPD = 0x4000
    HANDSHAKE_IN_THE_CLEAR = 0x8000
    PUB_KEY_ID = 0x10000
    CHUNK = 0x20000
    ALIAS_CERT = 0x40000
    SET_CERT = 0x80000
    CSR = 0x100000
    CERT_INSTALL_RESET = 0x200000
    EP_INFO_NO_SIG = 0x400000
    EP_INFO_SIG = 0x800000
    MEL = 0x1000000
    EVENT = 0x2000000
    MULTI_KEY_ONLY = 0x4000000
    MULTI_KEY_NEG = 0x8000000
    GET_KEY_PAIR_INFO = 0x10000000
    SET_KEY_PAIR_INFO = 0x20000000


C = Capability
ANY_MEAS = C.MEAS_NO_SIG | C.MEAS_SIG
ANY_PSK = C.PSK | C.PSK_WITH_CONTEXT


def psk_in_common(one: Capability, other: Capability) -> bool:
    """Whether both sides make sessions from a key that they have; with context or not is the responder's alone."""
    return bool(one & ANY_PSK and other & ANY_PSK)


_SESSIONS = C.KEY_EX | ANY_PSK
_PROTECTION = C.ENCRYPT | C.MAC
_SIGNS = C.CHAL | C.KEY_EX


def _needs(flag: Capability, other: Capability) -> Callable[[Capability], bool]:
    """Whoever has ``flag`` has something of ``other``."""
    return lambda flags: not flags & flag or bool(flags & other)


_BOTH: tuple[Callable[[Capability], bool], ...] = (
    _needs(C.ENCRYPT, _SESSIONS),
    _needs(C.MAC, _SESSIONS),
    _needs(C.HBEAT, _SESSIONS),
    _needs(C.KEY_UPD, _SESSIONS),
    _needs(C.KEY_EX, _PROTECTION),
    _needs(ANY_PSK, _PROTECTION),
    _needs(C.HANDSHAKE_IN_THE_CLEAR, C.KEY_EX),
    _needs(C.MUT_AUTH, C.CHAL | C.KEY_EX),
    lambda flags: not (flags & C.CERT and flags & C.PUB_KEY_ID),
    lambda flags: flags & ANY_PSK != ANY_PSK,
    lambda flags: flags & ANY_MEAS != ANY_MEAS,
    lambda flags: flags & (C.EP_INFO_NO_SIG | C.EP_INFO_SIG) != C.EP_INFO_NO_SIG | C.EP_INFO_SIG,
    lambda flags: flags & (C.MULTI_KEY_ONLY | C.MULTI_KEY_NEG) != C.MULTI_KEY_ONLY | C.MULTI_KEY_NEG,
)
_RESPONDER = (
    *_BOTH,
    _needs(C.MEAS_FRESH, ANY_MEAS),
    _needs(_SIGNS | C.MEAS_SIG, C.CERT | C.PUB_KEY_ID),
    _needs(C.CERT, _SIGNS | C.MEAS_SIG),
    _needs(C.ALIAS_CERT, C.CERT),
    _needs(C.SET_CERT, C.CERT),
    _needs(C.CSR, C.SET_CERT),
    _needs(C.MULTI_KEY_ONLY | C.MULTI_KEY_NEG, C.GET_KEY_PAIR_INFO),
)
_REQUESTER = (
    *_BOTH,
    lambda flags: flags & ANY_PSK != C.PSK_WITH_CONTEXT,
    _needs(C.MUT_AUTH, C.CERT | C.PUB_KEY_ID),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitiesMessage(Message):
    """The body that both messages share from 1.2 on, 20 bytes."""

    CODE: ClassVar[int] = Response.CAPABILITIES
    param1: int = number(1)
    """From 1.3 on bit 0 asks for the supported algorithms; who does not tell them answers 0."""
    param2: int = number(1)
    ct_exponent: int = number(1, before=1)
    flags: int = number(4, before=2)
    data_transfer_bytes: int = number(4)
    """The largest message, in bytes, that the sender takes in one piece."""
    max_message_bytes: int = number(4)
    """The largest that it takes at all, in chunks."""

    @property
    def capabilities(self) -> Capability:
        """The flags; unknown ones are kept."""
        return Capability(self.flags)

    @property
    def sensible(self) -> bool:
        """Whether times and sizes are allowed ones."""
        chunked = bool(self.flags & C.CHUNK)
        return (
            self.ct_exponent <= LARGEST_CT_EXPONENT
            and self.data_transfer_bytes >= SMALLEST_TRANSFER_BYTES
            and self.max_message_bytes >= self.data_transfer_bytes
            and (chunked or self.max_message_bytes == self.data_transfer_bytes)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetCapabilities(CapabilitiesMessage):
    """GET_CAPABILITIES."""

    CODE: ClassVar[int] = Request.GET_CAPABILITIES

    @property
    def acceptable(self) -> bool:
        """Whether a responder may go on with such a requester."""
        return self.sensible and all(rule(self.capabilities) for rule in _REQUESTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(CapabilitiesMessage):
    """CAPABILITIES."""

    CODE: ClassVar[int] = Response.CAPABILITIES

    @property
    def acceptable(self) -> bool:
        """Whether a requester may go on with such a responder."""
        return self.sensible and all(rule(self.capabilities) for rule in _RESPONDER)
