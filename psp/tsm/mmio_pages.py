"""MMIO_VALIDATE: that a guest's addresses are backed, page by page in order, by what its device reported.

Firmware knows where the reported pages are: it takes off what it had the device add. The host has assigned them to
the guest as pages of 4 KiB (RMPUPDATE); what it did is read from the RMP, and Validated is set there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from psp.system_bus import PAGE_BYTES, RmpEntry, SystemBus
from psp.tsm.contexts import Binding
from psp.tsm.guest_messages import MmioValidateRequest, MmioValidateStatus, ValidateFlags
from tio.tdisp.report import PAGE_SHIFT, InterfaceReport

_S = MmioValidateStatus
_ADDRESSES = 1 << 64


@dataclass(frozen=True, slots=True)
class Span:
    """Pages that lie one after another, with one entry for all (GPAs following), and where the guest has the first."""

    spa: int
    pages: int
    gpa: int
    entry: RmpEntry


def validate(
    bus: SystemBus, binding: Binding, asked: MmioValidateRequest, leads: Callable[[int, int], bool]
) -> tuple[MmioValidateStatus, bool]:
    """Carry out a request: its status, and whether any page is other than before. A refusal changes nothing.

    ``leads`` tells whether a range of addresses, as (SPA, length), lies behind the device that reports it.
    """
    places = _places(binding, asked)
    if isinstance(places, MmioValidateStatus):
        return places, False
    gpa, spans = asked.subrange_base, list[Span]()
    for spa, pages in places:
        size = pages * PAGE_BYTES
        if spa < bus.dram_bytes or spa + size > _ADDRESSES:
            return _S.NOT_IO, False
        if not bus.rmp_covers(spa, pages):
            return _S.NOT_ASSIGNED, False
        if not leads(spa, size):
            return _S.NOT_IO, False
        for span in _spans(bus, spa, pages, gpa):
            wrong = _wrong(span, binding.asid)
            if wrong is not None:
                return wrong, False
            spans.append(span)
        gpa += size
    wanted = bool(asked.flags & ValidateFlags.VALIDATED)
    others = [one for one in spans if one.entry.validated != wanted]
    if others and len(others) != len(spans) and not asked.flags & ValidateFlags.FORCE:
        return _S.NOT_UNIFORM, False
    for one in others:
        bus.rmp_set_pages(one.spa, one.pages * PAGE_BYTES, replace(one.entry, validated=wanted))
    return _S.SUCCESS, bool(others)


def any_valid(bus: SystemBus, report: InterfaceReport, offset_bytes: int) -> bool:
    """Whether any page that an interface reports is valid for a guest: what that stores would reach it."""
    for one in report.ranges:
        spa = ((one.first_page << PAGE_SHIFT) - offset_bytes) % _ADDRESSES
        if spa + one.pages * PAGE_BYTES > _ADDRESSES or not bus.rmp_covers(spa, one.pages):
            continue
        if any(span.entry.validated for span in _spans(bus, spa, one.pages, 0)):
            return True
    return False


def _places(binding: Binding, asked: MmioValidateRequest) -> list[tuple[int, int]] | MmioValidateStatus:
    """Where the pages are that a request names, as (SPA, pages).

    Ranges of one id, as a device reports parts of a BAR, count as one, in the order of the report.
    """
    ranges = [one for one in binding.report.ranges if one.range_id == asked.range_id]
    if not ranges:
        return _S.NOT_REPORTED
    if not asked.page_count or asked.range_offset + asked.page_count > sum([one.pages for one in ranges]):
        return _S.OUT_OF_RANGE
    skip, left, places = asked.range_offset, asked.page_count, []
    for one in ranges:
        first, skip = min(skip, one.pages), max(0, skip - one.pages)
        pages = min(one.pages - first, left)
        if pages:
            spa = ((one.first_page + first << PAGE_SHIFT) - binding.offset_bytes) % _ADDRESSES
            places.append((spa, pages))
            left -= pages
    return places


def _spans(bus: SystemBus, spa: int, pages: int, gpa: int) -> Iterator[Span]:
    """Pages with their entries: all at once where the RMP says that they are alike, else one by one."""
    run = bus.rmp_run(spa, pages)
    if run is not None:
        yield Span(spa, pages, gpa, run)
        return
    for at in range(pages):
        place = spa + at * PAGE_BYTES
        yield Span(place, 1, gpa + at * PAGE_BYTES, bus.rmp_entry(place))


def _wrong(span: Span, asid: int) -> MmioValidateStatus | None:
    """What is wrong with pages, in the order of the laboratory's choice; None if nothing is."""
    entry = span.entry
    checks = (
        (entry.assigned and entry.asid == asid, _S.NOT_ASSIGNED),
        (not entry.large, _S.NOT_4K),
        (not entry.immutable, _S.IMMUTABLE),
        (entry.gpa == span.gpa, _S.NOT_MAPPED),
    )
    return next((status for holds, status in checks if not holds), None)
