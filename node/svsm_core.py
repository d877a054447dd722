"""Protocol 0 of an SVSM: its own calling area, page validation, vCPUs, memory lent to it, and what it speaks.

Every address is the guest's word: it must be RAM, and nothing of the SVSM's own. A page is cleared after it was
validated and before the guest gets rights to it, or what lay there under the same key, the SVSM's own secrets
included, would be readable at its new address. Rights are taken before a page is rescinded.

Entries of a list that stand for one range are done at once. Where the range fails it is rescinded, and the list's
next entry is its first: nothing of it is done.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace

from node import operations as op
from node.nae_event import ApCreationKind
from node.svsm import Svsm, grant
from node.svsm_books import Books, Steps, must, read_books, refused_by
from node.svsm_call import (
    CALL_PENDING,
    ENTRY_BYTES,
    FAIL_UNCHANGED,
    LIST_HEADER,
    PROTOCOL_BASE,
    CallRefused,
    CoreCall,
    ListHeader,
    PageEntry,
    Protocol,
    SvsmResult,
    entry_words,
    page_list,
)
from node.svsm_memory import BOOK_RECORD, GUEST_VMPL, POOL_GPA, POOL_PAGES, book_gpa
from node.svsm_request import Request
from node.vmsa import VMSA_BYTES, SevFeature, read_field
from psp.system_bus import LARGE_PAGE_BYTES, PAGE_BYTES

VERSIONS: Mapping[int, tuple[int, int]] = {Protocol.CORE: (1, 1), Protocol.VTPM: (1, 1), Protocol.DEVICES: (1, 1)}
"""Least and most version of each protocol that is spoken."""
EFER_SVME = 1 << 12


def core_service(svsm: Svsm, call: int, request: Request) -> Steps:
    """Serve a call of the core protocol. Raises CallRefused."""
    serve = _CALLS.get(call)
    if serve is None:
        raise CallRefused(SvsmResult.UNSUPPORTED_CALL)
    yield from serve(svsm, request)


def _remap_ca(svsm: Svsm, request: Request) -> Steps:
    """RCX: the new calling area, which is cleared."""
    caa = request.rcx
    if caa % PAGE_BYTES:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    (yield from read_books(svsm)).expect(svsm, caa)
    # The call that is being served is pending in the old one.
    yield from must(op.Write(caa + CALL_PENDING, bytes(8)), op.Write(book_gpa(svsm.vcpu), struct.pack("<Q", caa)))


def _pvalidate(svsm: Svsm, request: Request) -> Steps:
    """RCX: a list of pages, 8 byte aligned and within one page."""
    gpa = request.rcx
    books = yield from read_books(svsm)
    header, words = yield from _read_list(svsm, books, gpa)
    done, refused = header.next, None
    try:
        for run in _runs(words[done:]):
            yield from _change(svsm, books, run)
            done += len(run)
    except CallRefused as found:
        refused = found
    yield from must(op.Write(gpa, LIST_HEADER.pack(header.entries, done, 0)))
    if refused is not None:
        raise refused


def _runs(words: Sequence[int]) -> Iterator[list[PageEntry]]:
    """Entries that stand for one range, together. Raises CallRefused at a malformed one, when those before are out."""
    run: list[PageEntry] = []
    for word in words:
        try:
            entry = PageEntry.parse(word)
        except CallRefused:
            if run:
                yield run
            raise
        if run and entry != replace(run[-1], gpa=run[-1].gpa + run[-1].length):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _change(svsm: Svsm, books: Books, run: list[PageEntry]) -> Steps:
    """Validate or rescind the pages of a run. Raises CallRefused with nothing of it done."""
    one, length = run[0], sum(entry.length for entry in run)
    books.expect(svsm, one.gpa, length)
    if not one.validate:
        yield from must(grant(one.gpa, length, one.large, rights=0))
    (answer,) = yield (op.PValidate(one.gpa, length, one.large, one.validate),)
    clean = isinstance(answer, op.PValidateResult) and not answer.code
    if clean and isinstance(answer, op.PValidateResult) and answer.unchanged and not one.ignores_carry:
        clean = False
    if not clean:
        if one.validate:
            yield (op.PValidate(one.gpa, length, one.large, validate=False),)
        unchanged = isinstance(answer, op.PValidateResult) and not answer.code
        raise CallRefused(PROTOCOL_BASE + FAIL_UNCHANGED) if unchanged else refused_by(answer)
    if one.validate:
        yield from must(*svsm.cleared(one.gpa, length), grant(one.gpa, length, one.large))


def _create_vcpu(svsm: Svsm, request: Request) -> Steps:
    """RCX: a page with the save area of a vCPU at the guest's VMPL. RDX: its calling area. R8: its APIC ID."""
    area, caa, vcpu = request.rcx, request.rdx, request.r8 & 0xFFFF_FFFF
    if (area | caa) % PAGE_BYTES or area == caa:
        raise CallRefused(SvsmResult.INVALID_ADDRESS)
    books = yield from read_books(svsm)
    books.expect(svsm, area)
    books.expect(svsm, caa)
    in_use = area in books.calling_areas or not area % LARGE_PAGE_BYTES
    if vcpu >= len(books.save_areas) or vcpu == svsm.vcpu or books.save_areas[vcpu] or in_use:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    # The guest must not change what was checked, so its rights go first.
    yield from must(grant(area, PAGE_BYTES, rights=0))
    (page,) = yield (op.Read(area, VMSA_BYTES),)
    fits = (
        isinstance(page, bytes)
        and read_field(page, "VMPL") == GUEST_VMPL
        and read_field(page, "EFER") & EFER_SVME
        and read_field(page, "SEV_FEATURES") == SevFeature.SNP_ACTIVE
    )
    if not fits:
        yield from must(grant(area, PAGE_BYTES))
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    yield from must(op.RmpAdjust(area, PAGE_BYTES, large=False, target=1, permissions=0, vmsa=True))
    if not (yield from svsm.announce(vcpu, area, ApCreationKind.CREATE)):
        yield from must(*_ordinary_again(area))
        raise CallRefused(SvsmResult.INVALID_REQUEST)
    yield from must(op.Write(book_gpa(vcpu), BOOK_RECORD.pack(caa, area)))


def _delete_vcpu(svsm: Svsm, request: Request) -> Steps:
    """RCX: the save area of another vCPU, which becomes an ordinary page of the guest again."""
    area = request.rcx
    save_areas = (yield from read_books(svsm)).save_areas
    # That of the boot processor, which the SVSM made itself, lies in its own memory and stays there.
    if not area or area not in save_areas or not svsm.holds(area, PAGE_BYTES):
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    vcpu = save_areas.index(area)
    if not (yield from svsm.announce(vcpu, area, ApCreationKind.DESTROY)):
        raise CallRefused(SvsmResult.BUSY)
    yield from must(*_ordinary_again(area), op.Write(book_gpa(vcpu), bytes(BOOK_RECORD.size)))


def _ordinary_again(area: int) -> tuple[op.RmpAdjust, op.RmpAdjust]:
    return op.RmpAdjust(area, PAGE_BYTES, large=False, target=1, permissions=0), grant(area, PAGE_BYTES)


def _deposit(svsm: Svsm, request: Request) -> Steps:
    """RCX: a list of pages of 4 KiB that the guest lends; its rights to them go."""
    gpa = request.rcx
    books = yield from read_books(svsm)
    header, words = yield from _read_list(svsm, books, gpa)
    pool = list(books.pool)
    done, refused = header.next, None
    try:
        for word in words[done:]:
            page = _depositable(svsm, books, word, (gpa & -PAGE_BYTES, *pool, *books.calling_areas))
            yield from must(grant(page, PAGE_BYTES, rights=0))
            pool.append(page)
            done += 1
    except CallRefused as found:
        refused = found
    yield from must(_pool_write(pool), op.Write(gpa, LIST_HEADER.pack(header.entries, done, 0)))
    if refused is not None:
        raise refused


def _depositable(svsm: Svsm, books: Books, word: int, needed: tuple[int, ...]) -> int:
    entry = PageEntry.parse(word)
    if entry.large or len(needed) > POOL_PAGES:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    books.expect(svsm, entry.gpa)
    if entry.gpa in needed:
        raise CallRefused(SvsmResult.INVALID_ADDRESS)
    return entry.gpa


def _withdraw(svsm: Svsm, request: Request) -> Steps:
    """RCX: where to put a list of the pages that the guest gets back, cleared; as many as its page has room for."""
    gpa = request.rcx
    if gpa % ENTRY_BYTES:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    books = yield from read_books(svsm)
    books.expect(svsm, gpa, LIST_HEADER.size)
    pool = list(books.pool)
    room = (PAGE_BYTES - gpa % PAGE_BYTES - LIST_HEADER.size) // ENTRY_BYTES
    back, rest = pool[:room], pool[room:]
    for page in back:
        yield from must(op.Clear(page, PAGE_BYTES), grant(page, PAGE_BYTES))
    data = page_list(PageEntry(page, validate=False) for page in back)
    yield from must(_pool_write(rest), op.Write(gpa, data))


def _query(_: Svsm, request: Request) -> Steps:
    """RCX: protocol and version. RCX then: the most and the least version, or nothing for what is not spoken."""
    protocol, version = request.rcx >> 32, request.rcx & 0xFFFF_FFFF
    least, most = VERSIONS.get(protocol, (1, 0))
    request.rcx = most << 32 | least if least <= version <= most else 0
    return
    yield ()


def _configure_vtom(_: Svsm, request: Request) -> Steps:
    """RCX bit 0 asks whether vTOM can be configured: it cannot."""
    if not request.rcx & 1:
        raise CallRefused(SvsmResult.INVALID_REQUEST)
    request.rcx = 0
    return
    yield ()


_CALLS: Mapping[int, Callable[[Svsm, Request], Steps]] = {
    CoreCall.REMAP_CA: _remap_ca,
    CoreCall.PVALIDATE: _pvalidate,
    CoreCall.CREATE_VCPU: _create_vcpu,
    CoreCall.DELETE_VCPU: _delete_vcpu,
    CoreCall.DEPOSIT_MEM: _deposit,
    CoreCall.WITHDRAW_MEM: _withdraw,
    CoreCall.QUERY_PROTOCOL: _query,
    CoreCall.CONFIGURE_VTOM: _configure_vtom,
}


def _read_list(
    svsm: Svsm, books: Books, gpa: int
) -> Generator[tuple[op.GuestOperation, ...], tuple[op.Answer, ...], tuple[ListHeader, list[int]]]:
    """One copy of a list: what the guest changes in it meanwhile counts for nothing. Raises CallRefused."""
    room = PAGE_BYTES - gpa % PAGE_BYTES
    if gpa % ENTRY_BYTES or room < LIST_HEADER.size + ENTRY_BYTES:
        raise CallRefused(SvsmResult.INVALID_PARAMETER)
    data = yield from books.read(svsm, gpa, room)
    header = ListHeader.parse(data[: LIST_HEADER.size], room)
    end = LIST_HEADER.size + header.entries * ENTRY_BYTES
    return header, list(entry_words(data[LIST_HEADER.size : end]))


def _pool_write(pool: list[int]) -> op.Write:
    return op.Write(POOL_GPA, struct.pack(f"<{len(pool) + 1}Q", len(pool), *pool))
