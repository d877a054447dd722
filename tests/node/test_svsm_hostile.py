"""Whatever a kernel asks of its SVSM: it gets a result of the specification, and no right that it must not have."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from svsm_guests import CAA, PAGES, PLACE, SvsmVm

from node import operations as op
from node.guest import GuestState
from node.svsm_call import BUFFER, PROTOCOL_BASE, PageEntry, SvsmResult
from node.svsm_memory import SVSM
from node.vmsa import SevFeature, initial_vmsa

_RESULTS = {*SvsmResult} | {PROTOCOL_BASE + code for code in (*range(8), 0x10)}
_AREA = initial_vmsa(0xFFF0, 0, SevFeature.SNP_ACTIVE, {"VMPL": 2})
_SECOND = PLACE.heap_gpa + 0x3000
_PLACES = st.sampled_from([
    *PAGES[:4], PAGES[0] + 0xC8, PAGES[1] + 0xFF0, _SECOND, _SECOND + 0xC8, CAA, CAA + BUFFER, PLACE.secrets_gpa,
    SVSM.gpa, SVSM.gpa + 0x2000, SVSM.gpa + 0x10_0000, SVSM.gpa - 0x1000, SVSM.gpa - 8, 0x200_0000, 0x300_0000,
    0xFFFF_0000, 1 << 40, (1 << 64) - 1, 0,
])  # fmt: skip
_WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda gpa, *rest: PageEntry(gpa & -4096, *rest).word, _PLACES, *[st.booleans()] * 3),
)
_LISTS = st.builds(
    lambda header, words: struct.pack("<HHI", *header) + struct.pack(f"<{len(words)}Q", *words),
    st.tuples(st.integers(0, 6), st.integers(0, 4), st.sampled_from((0, 0, 0, 1))),
    st.lists(_WORDS, max_size=5),
)
_CALLS = st.tuples(
    st.sampled_from((0, 0, 0, 0, 2, 1, 0xFFFF_FFFF)),
    st.integers(0, 9),
    st.one_of(_PLACES, st.just(CAA + BUFFER)),
    _PLACES,
    st.sampled_from((0, 1, 2, 0xFFFF_FFFF)),
    st.one_of(_LISTS, st.binary(max_size=64)),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(_CALLS, min_size=5, max_size=25))
def test_no_call_gives_a_kernel_more_than_its_own(calls):
    results = []

    def talk(talker):
        yield from talker.do(op.Write(PAGES[0], _AREA), op.Write(PAGES[1], _AREA))
        for protocol, call, rcx, rdx, r8, data in calls:
            yield from talker.do(op.Write(CAA + BUFFER, data))
            if (protocol, call) == (0, 0):
                rcx = CAA  # noqa: PLW2901 - one that moved would not be found again
            answer = yield from talker.call(protocol, call, rcx, rdx, r8)
            results.append(answer.result)
        return len(results)

    vm = SvsmVm(talk)
    assert set(results) <= _RESULTS, [hex(one) for one in results]
    if vm.said is None:
        # It may have had its own calling area or code's memory taken away: then it stands still or ended itself.
        assert vm.guest.state in (GuestState.RUNNING, GuestState.STOPPED)
    else:
        assert vm.said == len(calls)
    _expect_no_rights(vm)


def _expect_no_rights(vm):
    for gpa in range(SVSM.gpa, SVSM.gpa + SVSM.length, 4096):
        if vm.rmp(gpa).assigned:  # All but the pages for its GHCBs.
            assert vm.rmp(gpa).vmpl_permissions[1:] == (0, 0, 0), hex(gpa)
    areas = 0
    for gpa in (*PAGES, *range(PLACE.heap_gpa, PLACE.heap_gpa + 0x1_0000, 4096)):
        entry = vm.rmp(gpa)
        if entry.vmsa:
            areas += 1
            assert entry.vmpl_permissions[1:] == (0, 0, 0), hex(gpa)
            assert vm.as_vmpl0(gpa + 0xCA, 1) == b"\2"
    assert areas <= 2
