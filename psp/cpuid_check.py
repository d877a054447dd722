"""Which values firmware lets into a CPUID page: those that guests stake their memory on (SNP ABI, 8.17.2.6).

Firmware compares a page with the processor; where it finds a value that it does not
allow, it puts the allowed one in its place and refuses the page, so that the host sees
what would do. The rules of each leaf are in AMD's processor manuals. Of them this firmware knows
the place of the C-bit, the bits of an address that it costs, the width of addresses, and which features
the processor has: a guest may be shown fewer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache

from psp.system_bus import CpuidFacts

_HEADER_BYTES = 0x10
_ENTRY = struct.Struct("<IIQQIIIIQ")
_EAX, _EBX = 4, 5
_ENCRYPTION, _ADDRESSES = 0x8000_001F, 0x8000_0008
_SNP_GUEST = 1 << 1 | 1 << 3 | 1 << 4

Registers = list[int]


@lru_cache(maxsize=64)  # A host's guests are shown the same.
def corrected(page: bytes, facts: CpuidFacts) -> bytes:
    """The page with the values that are allowed; the same bytes if all are. It holds as many entries as it says."""
    out = bytearray(page)
    masks = {(function, index): allowed for function, index, allowed in facts.masks}
    (count,) = struct.unpack_from("<I", page)
    for number in range(count):
        offset = _HEADER_BYTES + number * _ENTRY.size
        fields = list(_ENTRY.unpack_from(page, offset))
        rule, allowed = _RULES.get(fields[0]), masks.get((fields[0], fields[1]))
        if allowed is not None:
            fields[_EAX : _EAX + 4] = [value & mask for value, mask in zip(fields[_EAX:], allowed, strict=False)]
        if rule is not None:
            rule(fields, facts)
        _ENTRY.pack_into(out, offset, *fields)
    return bytes(out)


def _encryption(fields: Registers, facts: CpuidFacts) -> None:
    """EBX: C-bit in 5:0, bits of addresses that go with it in 11:6. EAX: what the guest is, SEV, SEV-ES and SEV-SNP."""
    fields[_EAX] |= _SNP_GUEST
    fields[_EBX] = fields[_EBX] & ~0xFFF | facts.reduced_bits << 6 | facts.c_bit


def _addresses(fields: Registers, facts: CpuidFacts) -> None:
    """EAX: width of physical addresses in 7:0, at most the processor's."""
    if fields[_EAX] & 0xFF > facts.address_bits:
        fields[_EAX] = fields[_EAX] & ~0xFF | facts.address_bits


_RULES: Mapping[int, Callable[[Registers, CpuidFacts], None]] = {_ENCRYPTION: _encryption, _ADDRESSES: _addresses}
