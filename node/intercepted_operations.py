"""Instructions of a guest that every hypervisor intercepts: RDMSR, WRMSR, IN, OUT, their string forms, and WBINVD.

With encrypted registers they raise #VC. In other guests the hypervisor, which emulates
no MSR and has no device at a port, answers on the spot: no exit is modelled for that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rdmsr:
    """RDMSR of one that the processor does not keep for the guest. Answer: int, or a Fault: #VC, or #GP for none."""

    index: int


@dataclass(frozen=True, slots=True)
class Wrmsr:
    """WRMSR, as ``Rdmsr``. Answer: None, or a Fault."""

    index: int
    value: int


@dataclass(frozen=True, slots=True)
class PortIn:
    """IN of 1, 2 or 4 bytes. Answer: int, all ones where no device is; or a Fault: #VC, #GP for what no IN can say."""

    port: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class PortOut:
    """OUT of 1, 2 or 4 bytes. Answer: None, or a Fault as of ``PortIn``."""

    port: int
    value: int
    width: int = 1


MOST_STRING_BYTES = 1 << 16
"""Of one REP INS or OUTS here."""


@dataclass(frozen=True, slots=True)
class PortInString:
    """REP INS of ``count`` units. Answer: the bytes that it stores, all ones where no device is; or a Fault as of IN.

    Where they are stored, and where OUTS takes its bytes from, is an operation of its own.
    """

    port: int
    count: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class PortOutString:
    """REP OUTS of whole units. Answer: None, or a Fault as of ``PortIn``."""

    port: int
    data: bytes
    width: int = 1


@dataclass(frozen=True, slots=True)
class WriteBackCaches:
    """A guest's WBINVD. Answer: None, or a Fault (#VC)."""
