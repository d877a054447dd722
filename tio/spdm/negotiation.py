"""NEGOTIATE_ALGORITHMS and ALGORITHMS: what a requester offers, and the one of each that a responder takes (10.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from tio.spdm.algorithms import Aead, BaseAsym, BaseHash, DheGroup, mask, named, strongest
from tio.spdm.codes import Request, Response
from tio.spdm.faults import MalformedMessage
from tio.spdm.message_layout import Message, number, octets

DMTF_MEASUREMENTS = 0x01
OPAQUE_FORMAT_1 = 0x02
MULTI_KEY_CONNECTION = 0x10
SPDM_KEY_SCHEDULE = 0x01
LONGEST_NEGOTIATION_BYTES = 128
"""Of NEGOTIATE_ALGORITHMS (10.5)."""

_TABLE = struct.Struct("<BBH")
_FIXED_COUNT = 0x20
"""AlgCount of a table with a two-byte bitmap and no external algorithms."""


class Table(IntEnum):
    """AlgType of a table."""

    DHE = 2
    AEAD = 3
    REQUESTER_ASYM = 4
    KEY_SCHEDULE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiateAlgorithms(Message):
    """NEGOTIATE_ALGORITHMS."""

    CODE: ClassVar[int] = Request.NEGOTIATE_ALGORITHMS
    table_count: int = number(1)
    length: int = number(2, before=1)
    measurement_specification: int = number(1)
    other_parameters: int = number(1)
    base_asym: int = number(4)
    base_hash: int = number(4)
    external_asym_count: int = number(1, before=12)
    external_hash_count: int = number(1)
    mel_specification: int = number(1, before=1)
    externals: bytes = octets("external_asym_count", unit=4)
    external_hashes: bytes = octets("external_hash_count", unit=4)
    tables: bytes = octets("table_count", unit=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms(Message):
    """ALGORITHMS, without external algorithms, which nobody here selects."""

    CODE: ClassVar[int] = Response.ALGORITHMS
    table_count: int = number(1)
    length: int = number(2, before=1)
    measurement_specification: int = number(1)
    other_parameters: int = number(1)
    measurement_hash: int = number(4)
    base_asym: int = number(4)
    base_hash: int = number(4)
    mel_specification: int = number(1, before=11)
    external_asym_count: int = number(1)
    external_hash_count: int = number(1)
    tables: bytes = octets("table_count", before=2, unit=4)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side has of each kind, strongest last."""

    asym: tuple[BaseAsym, ...] = tuple(BaseAsym)
    hashes: tuple[BaseHash, ...] = tuple(BaseHash)
    dhe: tuple[DheGroup, ...] = tuple(DheGroup)
    aead: tuple[Aead, ...] = tuple(Aead)
    measurement_hash: BaseHash | None = None
    """A responder's own choice; None takes the base hash."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What was agreed on; None where there is nothing in common."""

    hash: BaseHash
    asym: BaseAsym | None = None
    dhe: DheGroup | None = None
    aead: Aead | None = None
    key_schedule: bool = False
    opaque_format_1: bool = False
    measurement_hash: BaseHash | None = field(default=None)
    """None: there are no measurements, or raw bit streams only."""


def request_of(offer: Offer, *, sessions: bool) -> NegotiateAlgorithms:
    """What a requester sends; ``sessions`` adds the tables that a session needs."""
    rows = []
    if sessions:
        rows = [
            (Table.DHE, mask(offer.dhe)),
            (Table.AEAD, mask(offer.aead)),
            (Table.KEY_SCHEDULE, SPDM_KEY_SCHEDULE),
        ]
    # A bitmap of zero is an invalid request: such a table is left out.
    tables = b"".join([_TABLE.pack(kind, _FIXED_COUNT, bits) for kind, bits in rows if bits])
    return NegotiateAlgorithms(
        table_count=len(tables) // _TABLE.size,
        length=32 + len(tables),
        measurement_specification=DMTF_MEASUREMENTS,
        other_parameters=OPAQUE_FORMAT_1,
        base_asym=mask(offer.asym),
        base_hash=mask(offer.hashes),
        tables=tables,
    )


def parse_tables(tables: bytes, *, empty_allowed: bool = False) -> dict[int, int]:
    """Bitmaps by AlgType. Raises MalformedMessage unless types rise and each has a two-byte bitmap with a bit set."""
    found: dict[int, int] = {}
    last = Table.DHE - 1
    for kind, count, bits in _TABLE.iter_unpack(tables):
        if kind <= last or kind > Table.KEY_SCHEDULE:
            raise MalformedMessage("algorithm table", f"a known type above {last}", kind)
        if count != _FIXED_COUNT:
            raise MalformedMessage("algorithm table", "a two-byte bitmap alone", hex(count))
        if not bits and not empty_allowed:
            raise MalformedMessage("algorithm table", "at least one algorithm", bits)
        found[kind] = bits
        last = kind
    return found


def select(request: NegotiateAlgorithms, offer: Offer) -> Negotiated | None:
    """A responder's choice, the strongest that both have; None without a hash in common."""
    tables = parse_tables(request.tables)
    base_hash = strongest(offer.hashes, request.base_hash)
    if base_hash is None:
        return None
    measures = bool(request.measurement_specification & DMTF_MEASUREMENTS)
    return Negotiated(
        hash=base_hash,
        asym=strongest(offer.asym, request.base_asym),
        dhe=strongest(offer.dhe, tables.get(Table.DHE, 0)),
        aead=strongest(offer.aead, tables.get(Table.AEAD, 0)),
        key_schedule=bool(tables.get(Table.KEY_SCHEDULE, 0) & SPDM_KEY_SCHEDULE),
        opaque_format_1=bool(request.other_parameters & OPAQUE_FORMAT_1),
        measurement_hash=(offer.measurement_hash or base_hash) if measures else None,
    )


def response_of(request: NegotiateAlgorithms, chosen: Negotiated) -> Algorithms:
    """What a responder answers: a table for each that was offered, one bit in each."""
    bits = {
        Table.DHE: chosen.dhe.value.bit if chosen.dhe else 0,
        Table.AEAD: chosen.aead.value.bit if chosen.aead else 0,
        Table.REQUESTER_ASYM: 0,  # no mutual authentication
        Table.KEY_SCHEDULE: SPDM_KEY_SCHEDULE if chosen.key_schedule else 0,
    }
    asked = parse_tables(request.tables)
    tables = b"".join([_TABLE.pack(kind, _FIXED_COUNT, bits[Table(kind)]) for kind in asked])
    return Algorithms(
        table_count=len(tables) // _TABLE.size,
        length=36 + len(tables),
        measurement_specification=DMTF_MEASUREMENTS if chosen.measurement_hash else 0,
        other_parameters=OPAQUE_FORMAT_1 if chosen.opaque_format_1 else 0,
        measurement_hash=chosen.measurement_hash.value.measurement_bit if chosen.measurement_hash else 0,
        base_asym=chosen.asym.value.bit if chosen.asym else 0,
        base_hash=chosen.hash.value.bit,
        tables=tables,
    )


def accepted(answer: Algorithms, offer: Offer) -> Negotiated:
    """What a requester reads from an answer. Raises MalformedMessage for a selection it did not offer."""
    tables = parse_tables(answer.tables, empty_allowed=True)
    if answer.length != len(answer.wire) or answer.external_asym_count or answer.external_hash_count:
        raise MalformedMessage("ALGORITHMS", "its own length and no external algorithms", answer.length)
    base_hash = named(BaseHash, answer.base_hash)
    if base_hash is None or base_hash not in offer.hashes:
        raise MalformedMessage("BaseHashSel", "one that was offered", hex(answer.base_hash))
    asym = named(BaseAsym, answer.base_asym)
    dhe = named(DheGroup, tables.get(Table.DHE, 0))
    aead = named(Aead, tables.get(Table.AEAD, 0))
    for name, row, among, bits in (
        ("BaseAsymSel", asym, offer.asym, answer.base_asym),
        ("DHE", dhe, offer.dhe, tables.get(Table.DHE, 0)),
        ("AEAD", aead, offer.aead, tables.get(Table.AEAD, 0)),
    ):
        if row not in among if row else bits:
            raise MalformedMessage(name, "one that was offered, or none", hex(bits))
    measurement_hash = next((row for row in BaseHash if row.value.measurement_bit == answer.measurement_hash), None)
    return Negotiated(
        hash=base_hash,
        asym=asym,
        dhe=dhe,
        aead=aead,
        key_schedule=bool(tables.get(Table.KEY_SCHEDULE, 0) & SPDM_KEY_SCHEDULE),
        opaque_format_1=bool(answer.other_parameters & OPAQUE_FORMAT_1),
        measurement_hash=measurement_hash,
    )
