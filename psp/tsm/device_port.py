"""On which of a device's ports a stream ends, by the IDE extended capability that QUERY_RESP shows (PCIe 7.9.26).

After the header, the capability and the control there is a block of two words for each traffic class of link IDE, and
then one for each selective stream: capability, control, status, two words of requester ids and three for each range of
addresses.
"""

from __future__ import annotations

from collections.abc import Generator

from tio.ide.key_programmer import KeyProgrammingError, ask_for_port

_HAS_LINK_STREAMS, _HAS_SELECTIVE_STREAMS = 1 << 0, 1 << 1
_LINK_SHIFT, _LINK = 13, 0b111
_SELECTIVE_SHIFT, _SELECTIVE = 16, 0xFF
_RANGES = 0xF
_STREAM_ID_SHIFT = 24
_HEAD_WORDS, _LINK_WORDS, _SELECTIVE_WORDS, _RANGE_WORDS = 3, 2, 5, 3


def stream_ids(registers: tuple[int, ...]) -> frozenset[int]:
    """The ids in a port's selective streams; as far as the words go, for a device may say anything."""
    if len(registers) < _HEAD_WORDS or not registers[1] & _HAS_SELECTIVE_STREAMS:
        return frozenset()
    capability, at, found = registers[1], _HEAD_WORDS, set()
    if capability & _HAS_LINK_STREAMS:
        at += _LINK_WORDS * ((capability >> _LINK_SHIFT & _LINK) + 1)
    for _ in range((capability >> _SELECTIVE_SHIFT & _SELECTIVE) + 1):
        if at + 1 >= len(registers):
            break
        found.add(registers[at + 1] >> _STREAM_ID_SHIFT)
        at += _SELECTIVE_WORDS + _RANGE_WORDS * (registers[at] & _RANGES)
    return frozenset(found)


def find_ports(wanted: frozenset[int]) -> Generator[bytes, bytes, dict[int, int]]:
    """The port index of each stream: QUERY, port after port, until all are found. Raises KeyProgrammingError."""
    ports: dict[int, int] = {}
    index, last = 0, 0
    while index <= last and wanted - ports.keys():
        found = yield from ask_for_port(index)
        last = found.max_port_index
        ports |= dict.fromkeys(stream_ids(found.registers) & wanted - ports.keys(), index)
        index += 1
    if wanted - ports.keys():
        raise KeyProgrammingError(f"expected streams {sorted(wanted)} on some port, found {sorted(ports)}")
    return ports
