"""The vTPM that a kernel at VMPL 2 has at its SVSM: PCRs live in the SVSM's memory, where nobody else reaches."""

import hashlib
import struct

import pytest
from svsm_guests import CAA, PAGES, SvsmVm, said_by
from test_tpm import DIGEST, GET_RANDOM, STARTUP, extend, read

from node import operations as op
from node.svsm_call import Protocol, SvsmResult, VtpmCall
from node.svsm_memory import SVSM, TPM_GPA

AT = PAGES[0] + 0x800  # the buffer of one page need not begin one


def vtpm(talker, command, platform=8, locality=0, size=None, at=AT):
    size = len(command) if size is None else size
    yield from talker.do(op.Write(at, struct.pack("<IBI", platform, locality, size) + command))
    answer = yield from talker.call(Protocol.VTPM, VtpmCall.CMD, at)
    data = yield from talker.do(op.Read(at, 512))
    length = int.from_bytes(data[:4], "little")
    return answer.result, data[4 : 4 + length]


def test_a_kernel_measures_into_its_vtpm():
    def talk(talker):
        query = yield from talker.call(Protocol.VTPM, VtpmCall.QUERY, 7, 7)
        responses = []
        for command in (STARTUP, extend(4, (0xB, DIGEST)), extend(4, (0xB, DIGEST)), read(0xB, 1 << 4), GET_RANDOM):
            responses.append((yield from vtpm(talker, command)))  # noqa: PERF401
        return query, responses

    vm = SvsmVm(talk)
    query, responses = vm.said
    assert (query.result, query.rcx, query.rdx) == (0, 1 << 8, 0)
    assert [result for result, _ in responses] == [0] * 5
    expected = hashlib.sha256(hashlib.sha256(bytes(32) + DIGEST).digest() + DIGEST).digest()
    assert responses[3][1][-32:] == expected
    assert expected in vm.as_vmpl0(TPM_GPA, 2048)
    # Extending twice, and what counts as reading three times: 2 x 2.57 ms and 3 x 3.582 ms, beyond a few exits.
    boot_ns = SvsmVm(lambda _: iter(())).guest.operation_ns
    assert 15.886e6 < vm.guest.operation_ns - boot_ns < 16.4e6


def test_random_bytes_differ_by_machine_and_not_by_run():
    def talk(talker):
        yield from vtpm(talker, STARTUP)
        return (yield from vtpm(talker, GET_RANDOM))[1]

    assert said_by(talk) == said_by(talk)


@pytest.mark.parametrize(
    ("more", "result"),
    [
        ({"platform": 7}, SvsmResult.INVALID_PARAMETER),
        ({"locality": 1}, SvsmResult.INVALID_PARAMETER),
        ({"size": 4096 - 8}, SvsmResult.INVALID_PARAMETER),
        ({"size": 0xFFFF_FFFF}, SvsmResult.INVALID_PARAMETER),
    ],
    ids=str,
)
def test_a_malformed_request_is_refused_and_left_as_it_is(more, result):
    def talk(talker):
        return (yield from vtpm(talker, STARTUP, **more))[0]

    assert said_by(talk) == result


@pytest.mark.parametrize(
    ("gpa", "result"),
    [
        (0, SvsmResult.INVALID_PARAMETER),
        (TPM_GPA, SvsmResult.INVALID_ADDRESS),
        (SVSM.gpa - 8, SvsmResult.INVALID_ADDRESS),
        (1 << 40, SvsmResult.INVALID_ADDRESS),
        ((1 << 64) - 1, SvsmResult.INVALID_ADDRESS),
        (32 << 20, SvsmResult.INVALID_ADDRESS),  # the pool, which is shared
    ],
    ids=hex,
)
def test_the_buffer_is_the_guests_own_memory(gpa, result):
    def talk(talker):
        return (yield from talker.call(Protocol.VTPM, VtpmCall.CMD, gpa)).result

    assert said_by(talk) == result


def test_other_calls_are_unsupported():
    def talk(talker):
        return (yield from talker.call(Protocol.VTPM, 2, CAA)).result

    assert said_by(talk) == SvsmResult.UNSUPPORTED_CALL
