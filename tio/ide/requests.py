"""Requests for any bytes of memory or configuration space, and the completions that answer them.

A request names whole double words, and by byte enables which bytes of the first and last it means. Only runs of bytes
without a gap are known here: others, which a requester may send for two double words, are refused. Source: PCI Express
base specification, 2.2.5 (byte enables), 2.2.7 (requests), 2.2.9 and 2.3.1.1 (completions and how they are split).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tio.ide.tlp import (
    DWORD_BYTES,
    CompletionStatus,
    Tlp,
    TlpError,
    TlpKind,
    completion,
    memory_read,
    memory_write,
)

_BORDER = 4096
_CONFIGURATION = struct.Struct(">BBHHBBHH")
_ALL = 0xF
_CONFIGURATION_KINDS = (TlpKind.CONFIG_READ, TlpKind.CONFIG_WRITE)
_FIRST_AT = {0b1111: 0, 0b1110: 1, 0b1100: 2, 0b1000: 3}
"""By first byte enables, the byte of the first double word at which a longer run begins."""
_LAST_END = {0b0001: 1, 0b0011: 2, 0b0111: 3, 0b1111: 4}
_RUNS = {(1 << count) - 1 << at: (at, count) for at in range(4) for count in range(1, 5 - at)} | {0: (0, 0)}
"""Runs inside of one double word; a request for none of its bytes is a flush."""


def read_bytes(requester: int, address: int, length: int, tag: int = 0) -> Tlp:
    """Ask for ``length`` bytes from ``address`` on, inside 4 KiB. Raises TlpError."""
    start, span, enables = _spanned(address, length)
    return _enabled(memory_read(requester, start, span, tag), enables)


def write_bytes(requester: int, address: int, data: bytes, tag: int = 0) -> Tlp:
    """Post bytes to ``address`` and behind, inside 4 KiB. Raises TlpError."""
    start, span, enables = _spanned(address, len(data))
    padded = (bytes(address - start) + data).ljust(span, b"\0")
    return _enabled(memory_write(requester, start, padded, tag), enables)


def configuration_read(requester: int, target: int, offset: int, width: int, tag: int = 0) -> Tlp:
    """A configuration request of type 0 to function ``target``. Raises TlpError."""
    return Tlp(_configuration(TlpKind.CONFIG_READ, requester, target, offset, width, tag))


def configuration_write(requester: int, target: int, offset: int, value: int, width: int, tag: int = 0) -> Tlp:
    """A configuration write of type 0; it is answered. Raises TlpError."""
    header = _configuration(TlpKind.CONFIG_WRITE, requester, target, offset, width, tag)
    return Tlp(header, (value << 8 * (offset % DWORD_BYTES)).to_bytes(DWORD_BYTES, "little"))


def span(request: Tlp) -> tuple[int, int]:
    """Address (or offset in configuration space) and length in bytes of what a request means.

    Raises TlpError, also for more than a double word of configuration space.
    """
    configuration = request.kind in _CONFIGURATION_KINDS
    start = _register(request) if configuration else request.address
    enables = request.header[7]
    first, last, length = enables & _ALL, enables >> 4, request.length_bytes
    if length == DWORD_BYTES:
        found = None if last else _RUNS.get(first)
        if found is not None:
            return start + found[0], found[1]
    elif first in _FIRST_AT and last in _LAST_END and not configuration:
        at = _FIRST_AT[first]
        return start + at, length - at - DWORD_BYTES + _LAST_END[last]
    raise TlpError("byte enables", "a run without a gap", f"{enables:#04x}")


def written(request: Tlp) -> tuple[int, bytes]:
    """Address and bytes of a write. Raises TlpError."""
    address, length = span(request)
    at = address % DWORD_BYTES
    return address, request.payload[at : at + length]


def target(request: Tlp) -> int:
    """The function that a configuration request is for."""
    return int.from_bytes(request.header[8:10], "big")


def completions(completer: int, request: Tlp, data: bytes, most_bytes: int) -> Iterator[Tlp]:
    """The answers to a read, each but the last up to a border of ``most_bytes``. ``data`` are the bytes it means."""
    address, length = span(request)
    if not length:
        yield completion(completer, request.requester, request.tag, bytes(DWORD_BYTES))
    done = 0
    while done < length:
        at = address + done
        some = min(length - done, most_bytes - at % most_bytes)
        pad = at % DWORD_BYTES
        payload = bytes(pad) + data[done : done + some]
        payload += bytes(-len(payload) % DWORD_BYTES)
        yield completion(
            completer, request.requester, request.tag, payload, byte_count=length - done, lower_address=at & 0x7F
        )
        done += some


def refusal(
    completer: int, request: Tlp, status: CompletionStatus = CompletionStatus.UNSUPPORTED_REQUEST
) -> Tlp:
    """The answer to a request that is not served."""
    return completion(completer, request.requester, request.tag, b"", status)


def is_last(answer: Tlp) -> bool:
    """Whether no completion comes behind this one for its request."""
    return not answer.payload or remaining(answer) <= _carried(answer)


def completion_status(answer: Tlp) -> int:
    """2.2.9.1."""
    return answer.header[6] >> 5


def remaining(answer: Tlp) -> int:
    """How many bytes are still to come, those of this completion among them."""
    return int.from_bytes(answer.header[6:8], "big") & 0xFFF or _BORDER


def _carried(answer: Tlp) -> int:
    return len(answer.payload) - (answer.header[11] & 0b11)


def _spanned(address: int, length: int) -> tuple[int, int, int]:
    """Whole double words around bytes, and the enables that leave out the rest."""
    start, end = address & -DWORD_BYTES, address + length
    whole = -(-end // DWORD_BYTES) * DWORD_BYTES - start
    if length <= 0:
        raise TlpError("length", "some bytes", str(length))
    first = _ALL << address % DWORD_BYTES & _ALL
    last = _ALL >> -end % DWORD_BYTES
    return (start, whole, first & last) if whole == DWORD_BYTES else (start, whole, first | last << 4)


def _enabled(packet: Tlp, enables: int) -> Tlp:
    header = packet.header
    return packet if header[7] == enables else Tlp(header[:7] + bytes((enables,)) + header[8:], packet.payload)


def _configuration(kind: TlpKind, requester: int, target: int, offset: int, width: int, tag: int) -> bytes:
    if not 0 <= offset < _BORDER or width not in (1, 2, 4) or offset % width:
        raise TlpError("register", "1, 2 or 4 bytes at their own alignment in 4 KiB", f"{width} at {offset:#x}")
    if not 0 <= requester <= 0xFFFF or not 0 <= target <= 0xFFFF or not 0 <= tag <= 0xFF:
        raise TlpError("requester", "16 bits, and a tag of 8", f"{requester:#x}, {target:#x}, {tag:#x}")
    enables = (1 << width) - 1 << offset % DWORD_BYTES
    return _CONFIGURATION.pack(kind, 0, 1, requester, tag, enables, target, offset & 0xFFC)


def _register(request: Tlp) -> int:
    return int.from_bytes(request.header[10:12], "big") & 0xFFC
