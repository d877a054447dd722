"""The core protocol of an SVSM: the specification's results, and a guest that asks for what it must not get."""

import struct

import pytest
from svsm_guests import CAA, PAGES, PLACE, SvsmVm, said_by

from node import operations as op
from node.operations import FaultKind
from node.rmp_faults import ERROR_VMPL
from node.svsm_call import (
    BUFFER,
    FAIL_UNCHANGED,
    LIST_HEADER,
    PROTOCOL_BASE,
    CoreCall,
    PageEntry,
    Protocol,
    SvsmResult,
    VtpmCall,
    page_list,
)
from node.svsm_memory import SVSM
from node.vmsa import SevFeature, initial_vmsa

A, B, C, D, E, F = PAGES[:6]
LIST = CAA + BUFFER
DATA = b"of the kernel's!"
IN, OUT = (PageEntry(A, validate=validate) for validate in (True, False))
_R = SvsmResult


def core(talker, call, rcx=0, rdx=0, r8=0, **more):
    return (yield from talker.call(Protocol.CORE, call, rcx, rdx, r8, **more))


def pvalidate(talker, *entries, first=0, at=LIST):
    """The call's result, and the next entry as the list says then."""
    yield from talker.do(op.Write(at, page_list(entries, first)))
    answer = yield from core(talker, CoreCall.PVALIDATE, at)
    header = yield from talker.do(op.Read(at, LIST_HEADER.size))
    return answer.result, LIST_HEADER.unpack(header)[1]


def area(vmpl=2, efer=0x1000, features=SevFeature.SNP_ACTIVE):
    return initial_vmsa(0xFFF0, 0, features, {"VMPL": vmpl, "EFER": efer})


@pytest.mark.parametrize(
    ("asked", "result", "rcx"),
    [
        ((Protocol.CORE, CoreCall.QUERY_PROTOCOL, 1), _R.SUCCESS, 1 << 32 | 1),
        ((Protocol.CORE, CoreCall.QUERY_PROTOCOL, Protocol.VTPM << 32 | 1), _R.SUCCESS, 1 << 32 | 1),
        ((Protocol.CORE, CoreCall.QUERY_PROTOCOL, 2), _R.SUCCESS, 0),
        ((Protocol.CORE, CoreCall.QUERY_PROTOCOL, Protocol.ATTESTATION << 32 | 1), _R.SUCCESS, 0),
        ((Protocol.CORE, CoreCall.QUERY_PROTOCOL, 0xFFFF_FFFF << 32), _R.SUCCESS, 0),
        ((Protocol.CORE, CoreCall.CONFIGURE_VTOM, 1), _R.SUCCESS, 0),
        ((Protocol.CORE, CoreCall.CONFIGURE_VTOM, 1 << 40), _R.INVALID_REQUEST, 1 << 40),
        ((Protocol.CORE, 8, 5), _R.UNSUPPORTED_CALL, 5),
        ((Protocol.APIC, 0, 5), _R.UNSUPPORTED_PROTOCOL, 5),
        ((0xFFFF_FFFF, 0xFFFF_FFFF, 5), _R.UNSUPPORTED_PROTOCOL, 5),
    ],
)
def test_what_is_spoken_and_what_is_not(asked, result, rcx):
    def talk(talker):
        answer = yield from talker.call(*asked)
        return answer.result, answer.rcx

    assert said_by(talk) == (result, rcx)


def test_a_page_is_rescinded_and_comes_back_cleared():
    def talk(talker):
        yield from talker.do(op.Write(A, DATA))
        out = yield from pvalidate(talker, OUT)
        gone = yield from talker.do(op.Read(A, 16))
        back = yield from pvalidate(talker, IN)
        return out, gone.kind, back, (yield from talker.do(op.Read(A, 16)))

    assert said_by(talk) == ((0, 1), FaultKind.PAGE_NOT_VALIDATED, (0, 1), bytes(16))


def test_a_list_stops_at_the_entry_that_cannot_be_done():
    many = [PageEntry(gpa, validate=False) for gpa in (A, C)]

    def talk(talker):
        found = [(yield from pvalidate(talker, *many, IN, PageEntry(E), PageEntry(C)))]
        found.append((yield from pvalidate(talker, PageEntry(A), PageEntry(E), PageEntry(C), first=2)))
        reads = yield from talker.do(*[op.Read(gpa, 8) for gpa in (A, C, E)])
        return found, [isinstance(one, bytes) for one in reads]

    # E was valid: CF. It is refused, and as it was asked for twice nothing of it is the guest's any more.
    found, readable = said_by(talk)
    assert found == [(PROTOCOL_BASE + FAIL_UNCHANGED, 3), (0, 3)]
    assert readable == [True, True, False]


def test_the_carry_is_ignored_where_the_guest_says_so():
    def talk(talker):
        return (yield from pvalidate(talker, PageEntry(A, ignores_carry=True)))

    assert said_by(talk) == (0, 1)


@pytest.mark.parametrize(
    ("entry", "result"),
    [
        (2, _R.INVALID_PARAMETER),
        (A | 0x10 | 4, _R.INVALID_PARAMETER),
        (A | 0x800 | 4, _R.INVALID_PARAMETER),
        (A | 1 | 4, _R.INVALID_PARAMETER),
        (1 << 40 | 4, _R.INVALID_ADDRESS),
        (SVSM.gpa | 4, _R.INVALID_ADDRESS),
        (SVSM.gpa, _R.INVALID_ADDRESS),
        (SVSM.gpa | 1 | 4, _R.INVALID_ADDRESS),
        (0xFFFF_0000 | 4, _R.INVALID_ADDRESS),
        ((1 << 64) - 0x1000 | 4, _R.INVALID_ADDRESS),
        # One page of an entry of 2 MiB: the core faults, and nobody smashes it here.
        (0x20_1000, _R.INVALID_ADDRESS),
        # The save area of vCPU 1 is among them.
        (PLACE.early.gpa | 1 | 4, _R.INVALID_ADDRESS),
    ],
    ids=hex,
)
def test_a_page_that_cannot_be_validated_is_refused(entry, result):
    def talk(talker):
        data = LIST_HEADER.pack(2, 0, 0) + struct.pack("<2Q", PageEntry(B, validate=False).word, entry)
        yield from talker.do(op.Write(LIST, data))
        answer = yield from core(talker, CoreCall.PVALIDATE, LIST)
        header = yield from talker.do(op.Read(LIST, LIST_HEADER.size))
        return answer.result, LIST_HEADER.unpack(header)[1]

    assert said_by(talk) == (result, 1)


def test_the_code_of_an_instruction_that_refuses_comes_back():
    def talk(talker):
        return (yield from pvalidate(talker, PageEntry(PLACE.early.gpa, large=True)))

    assert said_by(talk, vcpus=1) == (PROTOCOL_BASE + 6, 0), "FAIL_SIZEMISMATCH: the entries are of 4 KiB"


@pytest.mark.parametrize(
    ("at", "header", "result"),
    [
        (LIST + 4, (1, 0, 0), _R.INVALID_PARAMETER),
        (LIST, (0, 0, 0), _R.INVALID_PARAMETER),
        (LIST, (1, 1, 0), _R.INVALID_PARAMETER),
        (LIST, (1, 2, 0), _R.INVALID_PARAMETER),
        (LIST, (1, 0, 1), _R.INVALID_PARAMETER),
        (LIST, (511, 0, 0), _R.INVALID_PARAMETER),
        (CAA + 0xFF8, (1, 0, 0), _R.INVALID_PARAMETER),
        (CAA + 0xFF0, (2, 0, 0), _R.INVALID_PARAMETER),
        (1 << 40, None, _R.INVALID_ADDRESS),
        (SVSM.gpa + 0x2000, None, _R.INVALID_ADDRESS),
        (0xFFFF_F000, None, _R.INVALID_ADDRESS),
    ],
)
def test_a_malformed_list_is_refused_whole(at, header, result):
    def talk(talker):
        if header is not None:
            data = LIST_HEADER.pack(*header) + (OUT.word.to_bytes(8, "little") if at % 0x1000 < 0xFF8 else b"")
            yield from talker.do(op.Write(at, data))
        answer = yield from core(talker, CoreCall.PVALIDATE, at)
        return answer.result, (yield from talker.do(op.Write(A, DATA)))

    assert said_by(talk) == (result, None)


def test_a_calling_area_moves():
    def talk(talker):
        yield from talker.do(op.Write(A, b"\7" * 16))
        moved = yield from core(talker, CoreCall.REMAP_CA, A)
        there = yield from talker.do(op.Read(A, 8))
        new = yield from core(talker, CoreCall.QUERY_PROTOCOL, 1, caa=A)
        wrong = []
        for caa in (A + 8, SVSM.gpa, 1 << 40):
            wrong.append((yield from core(talker, CoreCall.REMAP_CA, caa, caa=A)).result)  # noqa: PERF401
        return moved.result, there, new.rcx, wrong

    assert said_by(talk) == (
        0, bytes(8), 1 << 32 | 1, [_R.INVALID_PARAMETER, _R.INVALID_ADDRESS, _R.INVALID_ADDRESS]
    )  # fmt: skip


def test_a_vcpu_is_deleted_and_made_again():
    second = PLACE.heap_gpa + 0x3000  # where the kernel put the save area of vCPU 1

    def talk(talker):
        deleted = yield from core(talker, CoreCall.DELETE_VCPU, second)
        back = yield from talker.do(op.Write(second, bytes(0x1000)))
        again = yield from core(talker, CoreCall.DELETE_VCPU, second)
        yield from talker.do(op.Write(A, area()))
        made = yield from core(talker, CoreCall.CREATE_VCPU, A, B, 1)
        fault = yield from talker.do(op.Write(A + 0xC8, bytes(8)))
        return deleted.result, back, again.result, made.result, fault.kind, fault.error & ERROR_VMPL

    vm = SvsmVm(talk, until_ns=0)
    # The host would start vCPU 1 when the kernel is through; so the calls come before it runs.
    deleted, back, again, made, kind, error = _said_before_others_run(vm)
    assert (deleted, back, again, made) == (0, None, _R.INVALID_PARAMETER, 0)
    assert (kind, error) == (FaultKind.RMP_FAULT, ERROR_VMPL)
    assert vm.rmp(A).vmsa
    assert not vm.rmp(second).vmsa
    assert vm.record.vmpls.areas[1, 2] == vm.spa(A)


def _said_before_others_run(vm):
    while vm.said is None:
        vm.host.clock.env.step()
    return vm.said


def test_a_vcpu_that_runs_is_not_deleted():
    def talk(talker):
        yield (op.GuestWork("svsm.vtpm_read_ns"),)  # until vCPU 1 runs
        answer = yield from core(talker, CoreCall.DELETE_VCPU, PLACE.heap_gpa + 0x3000)
        return answer.result

    assert said_by(talk) == _R.BUSY


@pytest.mark.parametrize(
    ("page", "rcx", "rdx", "r8", "result"),
    [
        (area(vmpl=0), A, B, 1, _R.INVALID_PARAMETER),
        (area(vmpl=1), A, B, 1, _R.INVALID_PARAMETER),
        (area(efer=0), A, B, 1, _R.INVALID_PARAMETER),
        (area(features=SevFeature.SNP_ACTIVE | SevFeature.DEBUG_SWAP), A, B, 1, _R.INVALID_PARAMETER),
        (area(), A, B, 0, _R.INVALID_PARAMETER),
        (area(), A, B, 2, _R.INVALID_PARAMETER),
        (area(), A, B, 0xFFFF_FFFF, _R.INVALID_PARAMETER),
        (area(), A, A, 1, _R.INVALID_ADDRESS),
        (area(), A + 8, B, 1, _R.INVALID_ADDRESS),
        (area(), A, B + 8, 1, _R.INVALID_ADDRESS),
        (area(), SVSM.gpa + 0x10_0000, B, 1, _R.INVALID_ADDRESS),
        (area(), A, SVSM.gpa + 0x2000, 1, _R.INVALID_ADDRESS),
        (area(), CAA, B, 1, _R.INVALID_PARAMETER),
        (area(), PLACE.early.gpa, B, 1, _R.INVALID_PARAMETER),
    ],
)
def test_no_vcpu_is_made_of_a_page_that_is_no_save_area_of_the_guests_vmpl(page, rcx, rdx, r8, result):
    def talk(talker):
        yield from core(talker, CoreCall.DELETE_VCPU, PLACE.heap_gpa + 0x3000)
        yield from talker.do(op.Write(A, page))
        answer = yield from core(talker, CoreCall.CREATE_VCPU, rcx, rdx, r8)
        return answer.result, (yield from talker.do(op.Write(A, page)))

    vm = SvsmVm(talk, until_ns=0)
    assert _said_before_others_run(vm) == (result, None)
    assert not vm.rmp(A).vmsa
    assert (1, 2) not in vm.record.vmpls.areas


def test_memory_is_lent_and_comes_back_cleared():
    def talk(talker):
        yield from talker.do(op.Write(A, DATA), op.Write(B, DATA))
        entries = [PageEntry(gpa, validate=False) for gpa in (A, B)]
        yield from talker.do(op.Write(LIST, page_list(entries)))
        lent = yield from core(talker, CoreCall.DEPOSIT_MEM, LIST)
        gone = yield from talker.do(op.Read(A, 16), op.Read(B, 16))
        yield from talker.do(op.Write(LIST, page_list(entries[:1])))
        twice = yield from core(talker, CoreCall.DEPOSIT_MEM, LIST)
        back = yield from core(talker, CoreCall.WITHDRAW_MEM, LIST)
        listed = yield from talker.do(op.Read(LIST, 8 + 16))
        again = yield from talker.do(op.Read(A, 16), op.Read(B, 16))
        return lent.result, [one.error & ERROR_VMPL for one in gone], twice.result, back.result, listed, again

    lent, gone, twice, back, listed, again = said_by(talk)
    assert (lent, twice, back) == (0, _R.INVALID_ADDRESS, 0)
    assert gone == [ERROR_VMPL, ERROR_VMPL]
    assert listed == LIST_HEADER.pack(2, 0, 0) + struct.pack("<2Q", A, B)
    assert again == (bytes(16), bytes(16))


SAVE_AREA = PLACE.heap_gpa + 0x3000
"""Of vCPU 1."""


@pytest.mark.parametrize(
    "asked",
    [
        # The header that a list gets back lies over the VMPL, at 0CA, when the list is at 0C8.
        (CoreCall.PVALIDATE, SAVE_AREA + 0xC8),
        (CoreCall.DEPOSIT_MEM, SAVE_AREA + 0xC8),
        (CoreCall.WITHDRAW_MEM, SAVE_AREA + 0xC8),
        (CoreCall.REMAP_CA, SAVE_AREA),
        (CoreCall.PVALIDATE, PageEntry(SAVE_AREA, validate=False)),
        (CoreCall.PVALIDATE, PageEntry(SAVE_AREA, ignores_carry=True)),
        (CoreCall.DEPOSIT_MEM, PageEntry(SAVE_AREA, validate=False)),
    ],
    ids=str,
)
def test_the_svsm_is_not_talked_into_touching_a_save_area_for_the_kernel(asked):
    call, operand = asked

    def talk(talker):
        at = operand
        if isinstance(operand, PageEntry):
            at = LIST
            yield from talker.do(op.Write(LIST, page_list([operand])))
        answer = yield from core(talker, call, at)
        fault = yield from talker.do(op.Write(SAVE_AREA + 0xC8, bytes(8)))
        return answer.result, fault.error & ERROR_VMPL

    vm = SvsmVm(talk)
    assert vm.said == (_R.INVALID_ADDRESS, ERROR_VMPL)
    assert vm.as_vmpl0(SAVE_AREA + 0xCA, 1) == b"\2"
    assert vm.rmp(SAVE_AREA).vmsa


def test_a_page_does_not_become_a_save_area_while_another_vcpu_is_served_there():
    # vCPU 0 has the vTPM answer into page A, which takes milliseconds; vCPU 1 asks to have a save area made of it, so
    # that the answer would come to lie over the VMPL that was checked.
    at = A + 0xCA - 4

    def talk(talker):
        yield from talker.do(op.Write(A, area()), op.Write(at, struct.pack("<IBI", 8, 0, 0)))
        return (yield from talker.call(Protocol.VTPM, VtpmCall.CMD, at)).result

    def meanwhile(talker):
        yield (op.GuestWork("svsm.vtpm_extend_ns"),)  # until that is on its way
        yield from talker.do(op.Write(B, bytes(8)))
        caa = PLACE.heap_gpa + 0x2000
        made = yield from core(talker, CoreCall.CREATE_VCPU, A, B, 2, caa=caa)
        yield (op.GuestWork("svsm.vtpm_extend_ns"),)
        after = yield from core(talker, CoreCall.QUERY_PROTOCOL, 1, caa=caa)
        return made.result, after.result

    vm = SvsmVm(talk, vcpus=3, others=meanwhile)
    assert vm.said == 0
    assert vm.others_said == (_R.BUSY, 0)
    assert not vm.rmp(A).vmsa
