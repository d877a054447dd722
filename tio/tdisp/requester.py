"""A TSM's side of TDISP: what it asks an interface, and how it judges the answers.

Each step yields a message and is sent its answer, so that somebody else may carry them. Source: PCI Express base
specification 6.x, 11.3.
"""

from __future__ import annotations

from collections.abc import Generator

from tio.tdisp.messages import (
    NONCE_BYTES,
    VERSION,
    Capabilities,
    ErrorCode,
    InterfaceId,
    LockRequest,
    Message,
    Request,
    Response,
    TdispError,
    TdiState,
    error_of,
    parse_message,
    report_portion,
    report_request,
)

_PORTION_BYTES = 1024
MOST_REPORT_BYTES = 1 << 16


def ask_version(interface: InterfaceId) -> Generator[bytes, bytes, None]:
    """GET_TDISP_VERSION. Raises TdispError for a device without this version."""
    versions = yield from _ask(interface, Request.GET_TDISP_VERSION)
    if VERSION not in versions[1:] or len(versions) != 1 + versions[0]:
        raise TdispError(ErrorCode.VERSION_MISMATCH, f"expected version {VERSION:#x}, found {versions.hex()}")


def ask_capabilities(interface: InterfaceId) -> Generator[bytes, bytes, Capabilities]:
    """GET_TDISP_CAPABILITIES. Raises TdispError."""
    return Capabilities.of((yield from _ask(interface, Request.GET_TDISP_CAPABILITIES, bytes(4))))


def ask_state(interface: InterfaceId) -> Generator[bytes, bytes, TdiState]:
    """GET_DEVICE_INTERFACE_STATE. Raises TdispError."""
    answer = yield from _ask(interface, Request.GET_DEVICE_INTERFACE_STATE)
    if len(answer) != 1 or answer[0] not in tuple(TdiState):
        raise TdispError(ErrorCode.UNSPECIFIED, f"expected a state, found {answer.hex()}")
    return TdiState(answer[0])


def lock_interface(interface: InterfaceId, request: LockRequest) -> Generator[bytes, bytes, bytes]:
    """LOCK_INTERFACE_REQUEST: the nonce. Raises TdispError."""
    nonce = yield from _ask(interface, Request.LOCK_INTERFACE_REQUEST, request.pack())
    if len(nonce) != NONCE_BYTES:
        raise TdispError(ErrorCode.UNSPECIFIED, f"expected a nonce of {NONCE_BYTES} bytes, found {len(nonce)}")
    return nonce


def read_report(
    interface: InterfaceId, portion_bytes: int = _PORTION_BYTES
) -> Generator[bytes, bytes, bytes]:
    """GET_DEVICE_INTERFACE_REPORT until all is there. Raises TdispError, also where it would never end."""
    report, remainder = b"", 1
    while remainder:
        asked = report_request(len(report), portion_bytes)
        portion, remainder = report_portion((yield from _ask(interface, Request.GET_DEVICE_INTERFACE_REPORT, asked)))
        report += portion
        if not portion or len(portion) > portion_bytes or len(report) + remainder > MOST_REPORT_BYTES - 1:
            raise TdispError(ErrorCode.UNSPECIFIED, "expected a report in portions as asked for")
    return report


def start_interface(interface: InterfaceId, nonce: bytes) -> Generator[bytes, bytes, None]:
    """START_INTERFACE_REQUEST. Raises TdispError."""
    yield from _ask(interface, Request.START_INTERFACE_REQUEST, nonce)


def stop_interface(interface: InterfaceId) -> Generator[bytes, bytes, None]:
    """STOP_INTERFACE_REQUEST. Raises TdispError."""
    yield from _ask(interface, Request.STOP_INTERFACE_REQUEST)


def set_mmio_attribute(interface: InterfaceId, wanted: bytes) -> Generator[bytes, bytes, None]:
    """SET_MMIO_ATTRIBUTE_REQUEST with the 16 bytes of a range. Raises TdispError."""
    yield from _ask(interface, Request.SET_MMIO_ATTRIBUTE_REQUEST, wanted)


def bind_p2p_stream(interface: InterfaceId, stream_id: int) -> Generator[bytes, bytes, None]:
    """BIND_P2P_STREAM_REQUEST. Raises TdispError."""
    yield from _ask(interface, Request.BIND_P2P_STREAM_REQUEST, bytes((stream_id,)))


def unbind_p2p_stream(interface: InterfaceId, stream_id: int) -> Generator[bytes, bytes, None]:
    """UNBIND_P2P_STREAM_REQUEST. Raises TdispError."""
    yield from _ask(interface, Request.UNBIND_P2P_STREAM_REQUEST, bytes((stream_id,)))


def _ask(interface: InterfaceId, request: Request, payload: bytes = b"") -> Generator[bytes, bytes, bytes]:
    """The payload of the response. Raises TdispError for an error, and for an answer to something else."""
    answer = parse_message((yield Message(request, interface.pack(), payload).pack()))
    if answer.code == Response.TDISP_ERROR:
        raise error_of(answer.payload)
    expected = request & ~0x80
    if (answer.version, answer.code, answer.interface) != (VERSION, expected, interface.pack()):
        raise TdispError(ErrorCode.UNSPECIFIED, f"expected {Response(expected).name} of the same interface")
    return answer.payload
