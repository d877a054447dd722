"""TDISP: interfaces of a device that are locked, attested and trusted with a guest's memory.

What is here
    Messages (``messages``), the device interface report (``report``), one TDI with its states and what moves them
    (``interface``), and the DSM that answers for all of a device's (``responder``).

Who is trusted here
    The session that locked an interface, and nobody else: neither the host that configures the device nor another
    session of its own.
"""

from __future__ import annotations

from tio.tdisp.interface import Function, Tampering, Tdi
from tio.tdisp.messages import (
    Capabilities,
    ErrorCode,
    InterfaceId,
    LockFlags,
    LockRequest,
    Message,
    Request,
    Response,
    TdispError,
    TdiState,
    parse_message,
)
from tio.tdisp.report import InterfaceInfo, InterfaceReport, MmioRange, RangeAttributes, ReportError, parse_report
from tio.tdisp.responder import TdispResponder

__all__ = [
    "Capabilities",
    "ErrorCode",
    "Function",
    "InterfaceId",
    "InterfaceInfo",
    "InterfaceReport",
    "LockFlags",
    "LockRequest",
    "Message",
    "MmioRange",
    "RangeAttributes",
    "ReportError",
    "Request",
    "Response",
    "Tampering",
    "Tdi",
    "TdiState",
    "TdispError",
    "TdispResponder",
    "parse_message",
    "parse_report",
]
